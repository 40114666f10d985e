"""A sampler turned inside out, for those who drive the loop themselves.

stepper = Stepper(euler, x, sigmas)
while not stepper.done:
    stepper.step(denoise(stepper.x, stepper.sigma))
latents = stepper.x
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from .step import Noise, Step, Steps

Answer = Tensor | tuple[Tensor, Tensor]  # x0, or for CFG++ (x0 with guidance, x0 without the prompt)


class Stepper:
    """Asks for one estimate at a time, where a sampler would call `denoise`.

    x, sigma: what to evaluate next; at the end the result, and sigma is None. done: nothing is left to evaluate.
    steps: the Steps that the sampler has finished. Answers are those of any `denoise`, and the result is that of the
    sampler called directly, bit for bit.
    """

    # A Python generator cannot be stopped inside a function that it calls. So the sampler runs again from its start
    # for every answer, on the answers and the noise recorded so far: no threads, and right for every sampler, at the
    # price of their memory and of arithmetic that grows with the square of the steps. The network is never run again.

    def __init__(
        self, sampler: Callable[..., Steps], x: Tensor, sigmas: list[float], noise: Noise = None, **options: Any
    ):
        self.sampler = sampler
        self.start = x
        self.sigmas = sigmas
        self.noise = noise
        self.options = options
        self.answers: list[Answer] = []
        self.draws: list[Tensor] = []
        self.done = False
        self.replay()

    def step(self, x0: Answer) -> None:
        """Answer: the clean picture estimated from self.x at self.sigma, or for CFG++ the pair with guidance and
        without. Raises ValueError when done."""
        if self.done:
            raise ValueError("the sampler is done: it has nothing left to ask")
        self.answers.append(x0)
        self.replay()

    def replay(self) -> None:
        """Run the sampler to its next open question."""
        denoise = Answers(self)
        drawn = 0
        self.steps: list[Step] = []

        def draw(sigma: float, sigma_next: float) -> Tensor:
            nonlocal drawn
            if drawn == len(self.draws) and self.noise is not None:
                self.draws.append(self.noise(sigma, sigma_next))
            drawn += 1
            return self.draws[drawn - 1]

        noise = None if self.noise is None else draw
        try:
            for step in self.sampler(denoise, self.start, self.sigmas, noise, **self.options):
                self.steps.append(step)
        except Unanswered:
            return
        self.x = self.steps[-1].x if self.steps else self.start
        self.sigma = None
        self.done = True


class Answers:
    """The denoiser of a replay: it repeats the answers so far, then leaves the open question with the stepper."""

    def __init__(self, stepper: Stepper):
        self.stepper = stepper
        self.left = iter(stepper.answers)

    def ask(self, x: Tensor, sigma: float) -> Answer:
        """The next answer. Raises Unanswered if there is none yet."""
        for answer in self.left:
            return answer
        self.stepper.x = x
        self.stepper.sigma = sigma
        raise Unanswered

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        answer = self.ask(x, sigma)
        return answer if isinstance(answer, Tensor) else answer[0]

    def pair(self, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        answer = self.ask(x, sigma)
        return (answer, answer) if isinstance(answer, Tensor) else answer


class Unanswered(Exception):
    """The sampler asks for an estimate that it has no answer to yet."""
