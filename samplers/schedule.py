"""Noise levels: those a network was trained with, the time that belongs to each, and choices of a few to sample at.

A schedule is a decreasing list of Python floats, noise levels sigma, that usually ends in 0.
"""

from bisect import bisect_right
from dataclasses import dataclass
from math import log, sqrt

import torch

TIMES = ("leading", "linspace", "trailing")
SCHEDULES = (*TIMES, "karras")


@dataclass(frozen=True)
class NoiseTable:
    """The sigmas of the trained time steps 0, 1, ..., increasing. Between them both directions interpolate."""

    sigmas: tuple[float, ...]

    def sigma(self, t: float) -> float:
        """Noise level at time t, linear in sigma."""
        k = min(int(t), len(self.sigmas) - 2)
        return self.sigmas[k] + (t - k) * (self.sigmas[k + 1] - self.sigmas[k])

    def t(self, sigma: float) -> float:
        """Time at noise level sigma, linear in log sigma; 0 or the last time beyond the table."""
        if sigma <= self.sigmas[0]:
            return 0.0
        if sigma >= self.sigmas[-1]:
            return float(len(self.sigmas) - 1)
        k = bisect_right(self.sigmas, sigma) - 1
        return k + log(sigma / self.sigmas[k]) / log(self.sigmas[k + 1] / self.sigmas[k])


@dataclass(frozen=True)
class EDM:
    """Continuous noise levels (arXiv 2206.00364): the time of a level is a quarter of its logarithm."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    sigma_data: float = 0.5

    def t(self, sigma: float) -> float:
        return log(sigma) / 4


def noise_table(beta_start: float = 0.00085, beta_end: float = 0.012, law: str = "scaled_linear",
                trained: int = 1000) -> NoiseTable:
    """The published tables, computed in float32 as every implementation that made or runs the models does.

    law: "linear"; "scaled_linear", linear in the square root; "squaredcos_cap_v2" (arXiv 2102.09672).
    Raises ValueError for another law.
    """
    match law:
        case "linear":
            betas = torch.linspace(beta_start, beta_end, trained, dtype=torch.float32)
        case "scaled_linear":
            betas = torch.linspace(beta_start**0.5, beta_end**0.5, trained, dtype=torch.float32) ** 2
        case "squaredcos_cap_v2":
            t = torch.arange(trained + 1, dtype=torch.float64) / trained
            signal = torch.cos((t + 0.008) / 1.008 * torch.pi / 2)
            betas = (1 - (signal[1:] / signal[:-1]) ** 2).clamp(max=0.999).float()
        case _:
            raise ValueError(f"unknown beta law {law!r}: choose one of linear, scaled_linear, squaredcos_cap_v2")
    kept = torch.cumprod(1 - betas, dim=0)   # alpha^2
    return NoiseTable(tuple((((1 - kept) / kept) ** 0.5).tolist()))


def leading(steps: int, offset: int = 1, trained: int = 1000) -> list[float]:
    """Times at the beginning of equal intervals, decreasing: 981, 961, ..., 1 for 50 steps."""
    stride = max(trained // steps, 1)
    offset = min(offset, trained - 1 - (steps - 1) * stride)   # 1000 steps have no room for one
    return [float(i * stride + offset) for i in reversed(range(steps))]


def linspace(steps: int, trained: int = 1000) -> list[float]:
    """Evenly spaced times from the last to 0, fractions included."""
    if steps == 1:
        return [trained - 1.0]
    return [(trained - 1) * i / (steps - 1) for i in reversed(range(steps))]


def trailing(steps: int, trained: int = 1000) -> list[float]:
    """Times at the end of equal intervals: 999, 979, ..., 19 for 50 steps (arXiv 2305.08891)."""
    return [float(round(trained - i * trained / steps) - 1) for i in range(steps)]


def karras(sigma_min: float, sigma_max: float, steps: int, rho: float = 7.0) -> list[float]:
    """Evenly spaced in the rho-th root of sigma (arXiv 2206.00364, equation 5), sigma_max .. sigma_min."""
    if steps == 1:
        return [sigma_max]
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return [(high + i / (steps - 1) * (low - high)) ** rho for i in range(steps)]


def choose(levels: NoiseTable | EDM, schedule: str, steps: int, offset: int = 1, drops_last: bool = False,
           whole_times: bool = False, ends_at_zero: bool = True) -> tuple[list[float], dict[float, float]]:
    """The named schedule: its sigmas, with the end appended, and the time of each sigma that is not the end.

    drops_last: leading and linspace choose one time more and leave out the smallest, as DPM-Solver's publishers do.
    whole_times: times are rounded to trained ones. ends_at_zero: or at the smallest trained level (DDIM).
    Raises ValueError for an unknown schedule or a number of steps that it cannot have.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"unknown schedule {schedule!r}: choose one of {', '.join(SCHEDULES)}")
    if isinstance(levels, EDM):
        if schedule != "karras":
            raise ValueError(f"schedule {schedule!r} needs trained time steps and this model has none: choose karras")
        if steps < 1:
            raise ValueError(f"{steps} steps: choose at least 1")
        sigmas = karras(levels.sigma_min, levels.sigma_max, steps)
        return [*sigmas, 0.0], {s: levels.t(s) for s in sigmas}

    trained = len(levels.sigmas)
    if not 1 <= steps <= trained:
        raise ValueError(f"{steps} steps: choose 1 to {trained}, the number of trained noise levels")
    if schedule == "karras":
        sigmas = karras(levels.sigmas[0], levels.sigmas[-1], steps)
        times = [levels.t(sigma) for sigma in sigmas]
        if whole_times:
            times = [float(round(t)) for t in times]
    else:
        more = int(drops_last and schedule != "trailing" and steps < trained)
        match schedule:
            case "leading":  times = leading(steps + more, offset, trained)
            case "linspace": times = linspace(steps + more, trained)
            case "trailing": times = trailing(steps, trained)
        times = times[:steps]
        if whole_times:
            times = [float(round(t)) for t in times]
        sigmas = [levels.sigma(t) for t in times]
    return [*sigmas, 0.0 if ends_at_zero else levels.sigmas[0]], dict(zip(sigmas, times))


def start_scale(sigma: float, schedule: str, unit_variance: bool) -> float:
    """Factor of the unit Gaussian that sampling begins with.

    sqrt(1 + sigma^2) is the deviation of x0 + sigma * noise for pictures of unit variance. The published
    implementations of the Euler family leave out the picture's share where the schedule begins at the last time.
    """
    begins_last = schedule in ("linspace", "trailing")
    return sigma if begins_last and not unit_variance else sqrt(1 + sigma**2)
