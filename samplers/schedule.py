"""Noise levels: those a network was trained with, the time that belongs to each, and choices of a few to sample at.

A schedule is a decreasing list of Python floats, noise levels sigma, that usually ends in 0.
"""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from math import exp, log, sqrt
from typing import NamedTuple

import torch

from .spacing import (
    beta,
    beta_times,
    cut_off,
    ddim_uniform,
    exponential,
    karras,
    kl_optimal,
    laplace,
    lcm,
    leading,
    linear_quadratic,
    linspace,
    polyexponential,
    sgm_uniform,
    simple,
    trailing,
    vp,
    whole,
)
from .tables import ays_sd15, ays_sdxl, gits


@dataclass(frozen=True)
class NoiseTable:
    """The sigmas of the trained time steps 0, 1, ..., increasing. Between them both directions interpolate."""

    sigmas: tuple[float, ...]

    @property
    def sigma_min(self) -> float:
        return self.sigmas[0]

    @property
    def sigma_max(self) -> float:
        return self.sigmas[-1]

    def sigma(self, t: float) -> float:
        """Noise level at time t, linear in sigma, as diffusers has it."""
        k = min(int(t), len(self.sigmas) - 2)
        return self.sigmas[k] + (t - k) * (self.sigmas[k + 1] - self.sigmas[k])

    def log_linear_sigma(self, t: float) -> float:
        """Noise level at time t, linear in log sigma, as k-diffusion has it: the inverse of t()."""
        k = min(int(t), len(self.sigmas) - 2)
        return exp((1 - (t - k)) * log(self.sigmas[k]) + (t - k) * log(self.sigmas[k + 1]))

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


def noise_table(
    beta_start: float = 0.00085,
    beta_end: float = 0.012,
    law: str = "scaled_linear",
    trained: int = 1000,
    zero_snr: bool = False,
) -> NoiseTable:
    """The published tables, computed in float32 as every implementation that made or runs the models does.

    law: "linear"; "scaled_linear", linear in the square root; "squaredcos_cap_v2" (arXiv 2102.09672).
    zero_snr: rescaled so that nothing of the picture is left at the last time (arXiv 2305.08891).
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
    kept = torch.cumprod(1 - betas, dim=0)  # alpha^2
    if zero_snr:
        kept = without_signal_at_the_end(kept)
    return NoiseTable(tuple((((1 - kept) / kept) ** 0.5).tolist()))


def without_signal_at_the_end(kept: torch.Tensor) -> torch.Tensor:
    """alpha^2 (t), with alpha shifted to 0 at the last time and stretched to keep the first (arXiv 2305.08891)."""
    alpha = kept.sqrt()
    alpha = (alpha - alpha[-1]) * (alpha[0] / (alpha[0] - alpha[-1]))
    kept = alpha**2
    kept = torch.cumprod(torch.cat([kept[:1], kept[1:] / kept[:-1]]), dim=0)  # through betas: the published rounding
    kept[-1] = 2**-24  # 0 would be an infinite sigma; this is 4096
    return kept


class Schedule(NamedTuple):
    """A way to choose levels. make: of "times", (steps, trained) -> times; of a "range" of sigma, (sigma_min,
    sigma_max, steps) -> sigmas; of a "list" for Stable Diffusion, steps -> sigmas."""

    make: Callable[..., list[float]]
    of: str
    log_linear: bool = False  # sigma between two trained times, as k-diffusion has it


SCHEDULES = {
    "leading": Schedule(leading, "times"),
    "linspace": Schedule(linspace, "times"),
    "trailing": Schedule(trailing, "times"),
    "normal": Schedule(linspace, "times", log_linear=True),
    "sgm_uniform": Schedule(sgm_uniform, "times", log_linear=True),
    "simple": Schedule(simple, "times"),
    "ddim_uniform": Schedule(ddim_uniform, "times"),
    "beta_times": Schedule(beta_times, "times"),
    "lcm": Schedule(lcm, "times"),
    "karras": Schedule(karras, "range"),
    "exponential": Schedule(exponential, "range"),
    "polyexponential": Schedule(polyexponential, "range"),
    "beta": Schedule(beta, "range"),
    "kl_optimal": Schedule(kl_optimal, "range"),
    "laplace": Schedule(laplace, "range"),
    "vp": Schedule(vp, "range"),
    "linear_quadratic": Schedule(linear_quadratic, "range"),
    "ays_sd15": Schedule(ays_sd15, "list"),
    "ays_sdxl": Schedule(ays_sdxl, "list"),
    "gits": Schedule(gits, "list"),
}
Chosen = tuple[list[float], dict[float, float]]  # sigmas with the end; the time of each sigma but the end


def choose(
    levels: NoiseTable | EDM,
    schedule: str | Sequence[float],
    steps: int,
    offset: int = 1,
    drops_last: bool = False,
    whole_times: bool = False,
    ends_at_zero: bool = True,
    *,
    truncates: bool = False,
    repeats_last: bool = False,
) -> Chosen:
    """The named schedule: its sigmas, with the end appended, and the time of each sigma that is not the end.

    schedule: a name in SCHEDULES; "karras:leading" and the like choose sigmas between the first and the last of that
    spacing, as diffusers' Euler family does, not over all that were trained. Or a list of decreasing sigmas, with its
    end, which is taken as it is, whatever `steps`.
    drops_last: leading and linspace choose one time more and leave out the smallest, as DPM-Solver's publishers do.
    whole_times: times are rounded to trained ones, or with `truncates` cut off to the next below, as diffusers does for
    exponential and beta. ends_at_zero: or at the smallest trained level (DDIM), which a schedule over a range reaches
    itself; with `repeats_last` it does so one step early and its last step stands still, as in diffusers.
    Raises ValueError for an unknown schedule, one that the model cannot have, or an impossible number of steps.
    """
    trained = None if isinstance(levels, EDM) else len(levels.sigmas)
    rounded = (cut_off if truncates else round) if whole_times and trained else float
    if not isinstance(schedule, str):
        sigmas = [float(s) for s in schedule]
        if len(sigmas) < 2 or sigmas[-1] < 0 or not all(a > b for a, b in pairwise(sigmas)):
            raise ValueError(f"schedule {sigmas}: noise levels must decrease in every step, and not below 0")
        return at_sigmas(levels, sigmas, rounded)
    name, spacing = check_schedule(levels, schedule, steps)
    end = 0.0 if ends_at_zero else levels.sigma_min

    make, of, log_linear = SCHEDULES[name]
    if of == "times":
        times = named_times(name, steps, trained, offset, drops_last, whole_times)
        if times[-1] == 0 and not ends_at_zero and steps < trained and name != "leading":  # it is published so
            times = named_times(name, steps + 1, trained, offset, False, whole_times)[:-1]
        return at_times(levels, times, end, log_linear)
    if of == "range":
        low, high = levels.sigma_min, levels.sigma_max
        if spacing:
            *spaced, _ = choose(levels, spacing, steps, offset)[0]
            low, high = spaced[-1], spaced[0]
        make = partial(make, low, high)
    sigmas = make(steps)
    if sigmas[-1] > end * (1 + 1e-9) or repeats_last:
        sigmas = [*sigmas, end]
    else:
        sigmas = [*make(steps + 1)[:-1], end]
    return at_sigmas(levels, sigmas, rounded)


def named_times(name: str, steps: int, trained: int, offset: int, drops_last: bool, whole_times: bool) -> list[float]:
    more = int(drops_last and name in ("leading", "linspace") and steps < trained)
    options = {"offset": offset} if name == "leading" else {}
    times = SCHEDULES[name].make(steps + more, trained, **options)[:steps]
    return whole(times) if whole_times else times


def at_times(levels: NoiseTable, times: Sequence[float], end: float = 0.0, log_linear: bool = False) -> Chosen:
    """The sigmas of given times, for example tables.AYS_SDXL_TIMES."""
    sigmas = [levels.log_linear_sigma(t) if log_linear else levels.sigma(t) for t in times]
    return [*sigmas, end], dict(zip(sigmas, times))


def at_sigmas(levels: NoiseTable | EDM, sigmas: list[float], rounded: Callable[[float], float] = float) -> Chosen:
    """The times of given sigmas, of which the last is the end."""
    return sigmas, {sigma: float(rounded(levels.t(sigma))) for sigma in sigmas[:-1]}


def check_schedule(levels: NoiseTable | EDM, schedule: str, steps: int) -> tuple[str, str]:
    """The name and, after a colon, the spacing that gives its range."""
    name, colon, spacing = schedule.partition(":")
    spacings = [key for key, value in SCHEDULES.items() if value.of == "times"]
    if name not in SCHEDULES or (colon and (spacing not in spacings or SCHEDULES[name].of != "range")):
        raise ValueError(f"unknown schedule {schedule!r}: choose one of {', '.join(SCHEDULES)}")
    if isinstance(levels, EDM) and (colon or SCHEDULES[name].of != "range"):
        ranges = ", ".join(key for key, value in SCHEDULES.items() if value.of == "range")
        raise ValueError(f"schedule {schedule!r} needs trained time steps and this model has none: choose {ranges}")
    if isinstance(levels, EDM) and steps < 1:
        raise ValueError(f"{steps} steps: choose at least 1")
    if isinstance(levels, NoiseTable) and not 1 <= steps <= len(levels.sigmas):
        raise ValueError(f"{steps} steps: choose 1 to {len(levels.sigmas)}, the number of trained noise levels")
    return name, spacing


def start_scale(sigma: float, schedule: str, unit_variance: bool) -> float:
    """Factor of the unit Gaussian that sampling begins with.

    sqrt(1 + sigma^2) is the deviation of x0 + sigma * noise for pictures of unit variance. The published
    implementations of the Euler family leave out the picture's share where the schedule begins at the last time.
    """
    begins_last = isinstance(schedule, str) and schedule.split(":")[-1] in ("linspace", "trailing")
    return sigma if begins_last and not unit_variance else sqrt(1 + sigma**2)
