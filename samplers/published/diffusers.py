"""Faults of diffusers 0.42."""

from collections.abc import Sequence
from itertools import pairwise
from math import ceil, sqrt

from torch import Tensor

from ..adams import adams_bashforth
from ..basics import Denoise, Levels, NoiseTable
from ..coefficients import Rule, ancestral
from ..schedules.levels import EXACT, SCHEDULES, Chosen, Convention
from ..step import Noise, Sigmas, Step, Steps, renoise
from .orders import with_third

# Moments


def third_of_sde(second: str = "midpoint") -> Rule:
    """Multistep "sde-dpmsolver++" of order 3: half of the third moment, and a term of it with the wrong sign."""
    return with_third(second, lambda third: third / 2 - 1)


def third_of_singlestep_sde(second: str = "exact") -> Rule:
    """Singlestep "sde-dpmsolver++" of order 3: the third moment with that wrong sign."""
    return with_third(second, lambda third: third - 2)


# Strides. DDIM and PNDM step to T // N below each time, whatever the next time of their list is. Where it is another,
# the network is told a wrong noise level.


def strided_targets(table: NoiseTable, times: Sequence[float], end: float) -> list[float]:
    """The level to which each step goes, the `targets` of ddim_strided; `end` stands for times below 0."""
    stride = len(table.sigmas) // len(times)
    return [table.sigma(t - stride) if t >= stride else end for t in times]


def strided_legs(table: NoiseTable, times: Sequence[float], end: float) -> list[tuple[float, float]]:
    """(sigma, sigma_next) of every move of PNDM, the `legs` of plms_strided: the trial step first, then the first step
    again, from T // N above its end. `end` stands for times below 0."""
    stride = len(table.sigmas) // len(times)

    def level(t: float) -> float:
        return table.sigma(t) if t >= 0 else end

    trial, *rest = [(level(t), level(t - stride)) for t in times]
    if not rest:
        return [trial, trial]
    return [trial, (level(times[1] + stride), level(times[1])), *rest]


def rescale(x: Tensor, level: float, label: float) -> Tensor:
    """x at `level` as it is read by a sampler that keeps x at unit variance and is told that the level is `label`."""
    return x if level == label else x * sqrt((1 + label**2) / (1 + level**2))


def ddim_strided(
    denoise: Denoise,
    x: Tensor,
    sigmas: Sigmas,
    noise: Noise = None,
    *,
    targets: Sequence[float],
    eta: float = 0.0,
    s_noise: float = 1.0,
) -> Steps:
    """sde.ddim whose steps go to strided_targets; each next step takes x for x at the next level of `sigmas`."""
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        sigma_down, sigma_up = ancestral(sigma, targets[i], eta)
        x = renoise(x0.lerp(x, sigma_down / sigma), s_noise * sigma_up, noise, sigma, targets[i])
        x = rescale(x, targets[i], sigma_next)
        yield Step(i, sigma, x, x0)


def plms_strided(
    denoise: Denoise, x: Tensor, sigmas: Sigmas, noise: Noise = None, *, legs: Sequence[tuple[float, float]]
) -> Steps:
    """adams.plms whose moves are strided_legs; each move takes x for x at the start of its leg."""

    def move(x: Tensor, slope: Tensor, sigma: float, sigma_next: float, leg: tuple[float, float]) -> Tensor:
        start, end = leg
        return rescale(rescale(x, sigma, start).add(slope, alpha=end - start), end, sigma_next)

    slopes = []  # newest first
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        slopes = [(x - x0) / sigma, *slopes[:3]]
        slope = adams_bashforth(slopes)
        if i == 0 and len(sigmas) > 2:
            end = move(x, slope, sigma, sigma_next, legs[0])
            slope = slope.lerp((end - denoise(end, sigma_next)) / sigma_next, 1 / 2)
        x = move(x, slope, sigma, sigma_next, legs[i + 1])
        yield Step(i, sigma, x, x0)


# Schedules


def trailing(steps: int, trained: int = 1000) -> list[float]:
    """schedules.trailing whose rounding can add the time -1: for 61, 103, 121, ... steps."""
    stride = trained - (trained - trained / steps)  # numpy.arange's
    count = ceil(trained / (trained / steps))
    return [float(round(trained - i * stride) - 1) for i in range(count)]


def choose_range(levels: Levels, schedule: str, steps: int, convention: Convention = EXACT) -> Chosen:
    """schedules.choose for a schedule over a range of sigma, as the DPM-Solver family has it.

    Whole times of "exponential" and "beta" are cut off, where those of "karras" are rounded. A run that ends at the
    smallest level reaches it one step early, and its last step goes nowhere.
    """
    end = 0.0 if convention.ends_at_zero else levels.sigma_min
    sigmas = [*SCHEDULES[schedule].make(levels.sigma_min, levels.sigma_max, steps), end]
    times = {sigma: levels.t(sigma) for sigma in sigmas[:-1]}
    if not convention.whole_times:
        return sigmas, times
    # Their 999 is 998.9999 in float32, hence 998.
    cut = round if schedule == "karras" else lambda t: int(t - 1e-4)
    return sigmas, {sigma: float(cut(t)) for sigma, t in times.items()}
