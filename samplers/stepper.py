"""A sampler turned inside out, for those who drive the loop themselves.

stepper = Stepper(euler, x, sigmas)
while not stepper.done:
    stepper.step(denoise(stepper.x, stepper.sigma))
picture = stepper.x
"""

from collections.abc import Callable

from torch import Tensor

from .step import Step


class Unanswered(Exception):
    """A sampler asks for what nobody has told yet."""


class Stepper:
    """Asks for one estimate at a time, where a sampler would call `denoise`.

    x, sigma: what to evaluate next; at the end the result, and sigma is None. done: nothing is left to evaluate.
    steps: the Steps that the sampler has finished. Answers are those of any `denoise`, and the result is that of the
    sampler called directly, bit for bit.
    """

    # A Python generator cannot be stopped inside a function that it calls. So the sampler runs again from its start
    # for every answer, on the answers and the noise recorded so far: no threads, and right for every sampler, at the
    # price of their memory and of arithmetic that grows with the square of the steps. The network is never run again.

    def __init__(self, sampler: Callable, x: Tensor, sigmas: list[float], noise: Callable | None = None, **options):
        self.sampler, self.start, self.sigmas, self.noise, self.options = sampler, x, sigmas, noise, options
        self.answers, self.draws = [], []
        self.done = False
        self.replay()

    def step(self, x0: Tensor):
        """Answer: the clean picture estimated from self.x at self.sigma. Raises ValueError when done."""
        if self.done:
            raise ValueError("the sampler is done: it has nothing left to ask")
        self.answers.append(x0)
        self.replay()

    def replay(self):
        """Run the sampler to its next open question."""
        answers, drawn = iter(self.answers), 0
        self.steps: list[Step] = []

        def denoise(x: Tensor, sigma: float):
            for answer in answers:
                return answer
            self.x, self.sigma = x, sigma
            raise Unanswered

        def noise(sigma: float, lower: float) -> Tensor:
            nonlocal drawn
            if drawn == len(self.draws):
                self.draws.append(self.noise(sigma, lower))
            drawn += 1
            return self.draws[drawn - 1]

        more = () if self.noise is None else (noise,)
        try:
            for step in self.sampler(denoise, self.start, self.sigmas, *more, **self.options):
                self.steps.append(step)
        except Unanswered:
            return
        self.x, self.sigma, self.done = self.steps[-1].x if self.steps else self.start, None, True
