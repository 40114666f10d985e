"""Run a sampler on a problem with a known answer, and measure how far from it the run ends."""

from collections.abc import Callable
from math import inf, log, nan, sqrt
from typing import Any, NamedTuple

from torch import Tensor

from lab.mixture import sliced_wasserstein
from samplers import SAMPLERS
from samplers.basics import Levels, Streams, karras
from samplers.ode import heun
from samplers.schedules.levels import Convention, choose

TO_SMALLEST = Convention(ends_at_zero=False)  # every run ends at the smallest trained level
Track = list[tuple[float, Tensor]]  # (sigma, x), from the highest level down


class Problem(NamedTuple):
    """Something to sample from unit Gaussian `noise` (b c h w), on its device and in its dtype."""

    denoise: Callable[[Tensor, float], Tensor]
    levels: Levels
    noise: Tensor
    seeds: list[int]
    what: str  # in words, for the page
    samples: Tensor | None = None  # draws of the true distribution
    floor: float | None = None  # distance of two such draws: no sampler can be expected to come closer
    picture: Callable[[Tensor], Tensor] | None = None


class Run(NamedTuple):
    """One run of a sampler, and where it ended."""

    sampler: str
    schedule: str
    steps: int
    evaluations: int  # of the network
    error: float  # from the end of the exact path; NaN for a sampler that adds noise
    distance: float  # of the distributions; NaN where that is not known
    end: Tensor


class Counter:
    """A function that counts its calls."""

    def __init__(self, function: Callable[..., Any]):
        self.function = function
        self.calls = 0

    def __call__(self, *args: Any) -> Any:
        self.calls += 1
        return self.function(*args)


def start(problem: Problem, sigma: float) -> Tensor:
    """The noise of the problem at this level, with the variance of noisy pictures."""
    return problem.noise * sqrt(1 + sigma**2)


def find_exact_path(problem: Problem, steps: int) -> Track:
    """The path of problem.noise, from Heun's method with `steps` and twice as many: the error of its order cancels."""
    levels = problem.levels
    coarse_sigmas = karras(levels.sigma_min, levels.sigma_max, steps + 1)
    fine_sigmas = karras(levels.sigma_min, levels.sigma_max, 2 * steps + 1)
    first = start(problem, coarse_sigmas[0])
    coarse = [step.x for step in heun(problem.denoise, first, coarse_sigmas)]
    fine = [step.x for step in heun(problem.denoise, first, fine_sigmas)]
    path = [(coarse_sigmas[0], first)]
    # Richardson: half the step leaves a quarter of the error of a method of second order
    for sigma, a, b in zip(coarse_sigmas[1:], coarse, fine[1::2]):
        path.append((sigma, (4 * b - a) / 3))
    return path


def choose_levels(problem: Problem, schedule: str, steps: int) -> list[float]:
    """Noise levels that end at the smallest trained one. Raises ValueError for an unknown schedule."""
    sigmas, _ = choose(problem.levels, schedule, steps, TO_SMALLEST)
    return sigmas


def sample(problem: Problem, name: str, schedule: str, steps: int, exact: Tensor) -> tuple[Run, Track]:
    """One run, and its states. exact: where the exact path ends."""
    sampler = SAMPLERS[name]
    sigmas = choose_levels(problem, schedule, steps)
    # Other numbers than those of the start
    streams = Streams([seed + 1000 for seed in problem.seeds], problem.noise.shape[1:], problem.noise.device)
    source = sampler.noise(streams, sigmas)
    noise = Counter(streams if source is None else source)  # some samplers draw from nothing
    denoise = Counter(problem.denoise)
    x = start(problem, sigmas[0])
    states = []
    for step in sampler.run(denoise, x, sigmas, noise):
        states.append((step.sigma, x))
        x = step.x
    states.append((sigmas[-1], x))

    error = nan if noise.calls else (x - exact).square().mean().sqrt().item()
    distance = nan
    if problem.samples is not None:
        distance = sliced_wasserstein(x[0, :, 0].T, problem.samples)
    return Run(name, schedule, steps, denoise.calls, error, distance, x), states


def find_order(runs: list[Run]) -> float:
    """How fast the error falls: the slope of log error over log evaluations between the last two runs."""
    if len(runs) < 2:
        return nan
    before, last = runs[-2:]
    if not 0 < last.error < inf or last.evaluations == before.evaluations:
        return nan
    return log(before.error / last.error) / log(last.evaluations / before.evaluations)


def select(runs: list[Run], sampler: str, schedule: str) -> list[Run]:
    """Those of one sampler on one schedule, from few to many steps."""
    return [run for run in runs if run.sampler == sampler and run.schedule == schedule]
