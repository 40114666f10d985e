"""The published tables of noise levels, and choices of a few levels to sample at.

A schedule is a decreasing list of Python floats, noise levels sigma, that usually ends in 0.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import accumulate, pairwise
from math import cos, inf, pi, sqrt
from operator import mul
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from ..basics import EDM, Levels, NoiseTable, karras, leading
from ..options import as_numbers, show, takes
from . import names, spacing, tables

# The levels that networks were trained with


# Programs compute the tables in float32 (diffusers) or float64 (CompVis, Stability, sgm, ComfyUI), up to 1.3e-5 apart
# where sigma is small. Here every operation is rounded exactly and in a fixed order, so that a table has the same bits
# on every processor.


@cache
def noise_table(
    beta_start: float = 0.00085, beta_end: float = 0.012, law: str = "scaled_linear", trained: int = 1000,
    zero_snr: bool = False, precision: str = "float32",
) -> NoiseTable:  # fmt: skip
    """The published tables: sigma^2 = (1 - alpha_bar) / alpha_bar, with alpha_bar the product of 1 - beta up to a time.

    law: a name in LAWS. zero_snr: rescaled so that nothing of the picture is left at the last time (arXiv 2305.08891).
    precision: "float32" or "float64". Raises ValueError for another law or precision.
    """
    if law not in LAWS or precision not in PRECISIONS:
        refuse_table(law, precision)
    betas = LAWS[law](beta_start, beta_end, trained, PRECISIONS[precision])
    alpha_bar = running_product(1 - betas)
    if zero_snr:
        return table_without_signal_at_the_end(alpha_bar)
    return NoiseTable(tuple(((1 - alpha_bar) / alpha_bar).sqrt().tolist()))


def refuse_table(law: str, precision: str) -> NoReturn:
    """Raises ValueError, which names the argument that is wrong."""
    if law not in LAWS:
        raise ValueError(f"unknown beta law {law!r}: choose one of {', '.join(LAWS)}")
    raise ValueError(f"unknown precision {precision!r}: choose {' or '.join(PRECISIONS)}")


def linear(start: float, end: float, count: int, dtype: torch.dtype) -> Tensor:
    """torch.linspace by single operations, from both ends to the middle; its own vectorised loop rounds otherwise on
    other processors."""
    first, last = torch.tensor([start, end], dtype=dtype)
    step = (last - first) / (count - 1)
    i = torch.arange(count, dtype=dtype)
    return torch.where(i < count // 2, first + step * i, last - step * (count - 1 - i))


def scaled_linear(start: float, end: float, count: int, dtype: torch.dtype) -> Tensor:
    """Betas whose square roots are evenly spaced: Stable Diffusion's law."""
    return linear(sqrt(start), sqrt(end), count, dtype).square()


def squared_cosine(start: float, end: float, count: int, dtype: torch.dtype) -> Tensor:
    """Betas of the cosine law for alpha_bar (arXiv 2102.09672). start and end are not used; every law takes them."""
    alpha_bar = [cos((i / count + 0.008) / 1.008 * pi / 2) ** 2 for i in range(count + 1)]
    return torch.tensor([min(1 - after / before, 0.999) for before, after in pairwise(alpha_bar)], dtype=dtype)


LAWS = {"linear": linear, "scaled_linear": scaled_linear, "squaredcos_cap_v2": squared_cosine}
PRECISIONS = {"float32": torch.float32, "float64": torch.float64}


def running_product(factors: Tensor) -> Tensor:
    """torch.cumprod: accumulated in float64, each product rounded to the dtype of the factors."""
    return torch.tensor(list(accumulate(factors.tolist(), mul)), dtype=factors.dtype)


def table_without_signal_at_the_end(alpha_bar: Tensor) -> NoiseTable:
    """The table with alpha shifted to 0 at the last time and stretched to keep the first (arXiv 2305.08891)."""
    alpha = alpha_bar.sqrt()
    alpha = (alpha - alpha[-1]) * (alpha[0] / (alpha[0] - alpha[-1]))
    alpha_bar = alpha.square()
    betas = 1 - torch.cat([alpha_bar[:1], alpha_bar[1:] / alpha_bar[:-1]])  # back to betas, which rounds as published
    alpha_bar = running_product(1 - betas)[:-1]
    sigmas = ((1 - alpha_bar) / alpha_bar).sqrt().tolist()
    return NoiseTable((*sigmas, 4096.0))  # 4096, as published, for an infinite sigma


def levels_behind(denoise: object) -> Levels:
    """The levels that the network of a denoiser was trained with; Stable Diffusion's for a plain function."""
    return getattr(denoise, "levels", None) or noise_table()


# Choices of a few levels


class Schedule(NamedTuple):
    """A way to choose levels. make: of "times", (steps, trained) -> times; of a "range" of sigma, (sigma_min,
    sigma_max, steps) -> sigmas; of a "list" for Stable Diffusion, steps -> sigmas."""

    make: Callable[..., list[float]]
    of: str
    log_linear: bool = False  # sigma between two trained times, as k-diffusion has it


SCHEDULES = {
    "leading": Schedule(leading, "times"),
    "linspace": Schedule(spacing.linspace, "times"),
    "trailing": Schedule(spacing.trailing, "times"),
    "normal": Schedule(spacing.linspace, "times", log_linear=True),
    "sgm_uniform": Schedule(spacing.sgm_uniform, "times", log_linear=True),
    "sgm": Schedule(spacing.sgm, "times"),
    "simple": Schedule(spacing.simple, "times"),
    "ddim_uniform": Schedule(spacing.ddim_uniform, "times"),
    "beta_times": Schedule(spacing.beta_times, "times"),
    "lcm": Schedule(spacing.lcm, "times"),
    "karras": Schedule(karras, "range"),
    "exponential": Schedule(spacing.exponential, "range"),
    "polyexponential": Schedule(spacing.polyexponential, "range"),
    "beta": Schedule(spacing.beta, "range"),
    "kl_optimal": Schedule(spacing.kl_optimal, "range"),
    "laplace": Schedule(spacing.laplace, "range"),
    "vp": Schedule(spacing.vp, "range"),
    "linear_quadratic": Schedule(spacing.linear_quadratic, "range"),
    "ays_sd15": Schedule(tables.ays_sd15, "list"),
    "ays_sdxl": Schedule(tables.ays_sdxl, "list"),
    "gits": Schedule(tables.gits, "list"),
}


@dataclass(frozen=True)
class Convention:
    """How the publisher of a sampler turns a schedule into levels."""

    drops_last: bool = False  # leading and linspace choose one time step more and leave out the smallest
    whole_times: bool = False  # the network is given whole time steps
    ends_at_zero: bool = True  # or at the smallest trained noise level
    # Always starts at sqrt(1 + sigma^2). False, as the Euler family is published: at sigma, without the picture's
    # share, where the schedule begins at the last time.
    unit_variance: bool = True


EXACT = Convention()
Chosen = tuple[list[float], dict[float, float]]  # sigmas with the end; the time of each sigma but the end

# A name in SCHEDULES or another program's name for it. Or two as in "karras:leading": the levels of the first between
# the first and the last of the second, as diffusers' Euler family has them. Or a list of decreasing sigmas with its
# end, which is taken as it is. Or a function (levels, steps) -> such a list.
Choice = str | Sequence[float] | Callable[[Levels, int], Sequence[float]]


def choose(levels: Levels, schedule: Choice, steps: int, convention: Convention = EXACT, offset: int = 1) -> Chosen:
    """The sigmas of a schedule with the end appended, and the time of each but the end. schedule: see Choice. offset:
    added to every time of "leading". Raises ValueError or TypeError for a schedule or steps that do not fit."""
    if not isinstance(schedule, str):
        return with_times(levels, checked_list(levels, schedule, steps), convention)
    if schedule not in SCHEDULES or isinstance(levels, EDM) or not 1 <= steps <= len(levels.sigmas):
        schedule = find_checked(levels, schedule, steps)
    name, _, within = schedule.partition(":")
    end = 0.0 if convention.ends_at_zero else levels.sigma_min
    if SCHEDULES[name].of == "times" and isinstance(levels, NoiseTable):
        times = choose_times(levels, name, steps, convention, offset)
        return at_times(levels, times, end, SCHEDULES[name].log_linear)
    return with_times(levels, choose_sigmas(levels, name, within, steps, end, offset), convention)


def choose_times(levels: NoiseTable, name: str, steps: int, convention: Convention, offset: int) -> list[float]:
    """The times of a schedule that spaces times."""
    make = partial(leading, offset=offset) if name == "leading" else SCHEDULES[name].make
    if convention.whole_times or convention.drops_last or not convention.ends_at_zero:
        return choose_published_times(levels, name, make, steps, convention)
    return make(steps, len(levels.sigmas))


def choose_published_times(
    levels: NoiseTable, name: str, make: Callable[..., list[float]], steps: int, convention: Convention
) -> list[float]:
    """The times of a schedule by a publisher's convention; `make` is that of choose_times."""
    trained = len(levels.sigmas)

    def take(count: int) -> list[float]:
        """The first `steps` of `count` times, which begin at the most noise."""
        times = make(count, trained)[:steps]
        return spacing.whole(times) if convention.whole_times else times

    if convention.drops_last and name in ("leading", "linspace") and steps < trained:
        return take(steps + 1)
    times = take(steps)
    # A schedule that reaches time 0 itself would end there twice. "leading" is published so.
    if times[-1] == 0 and not convention.ends_at_zero and steps < trained and name != "leading":
        return take(steps + 1)
    return times


def choose_sigmas(levels: Levels, name: str, within: str, steps: int, end: float, offset: int) -> list[float]:
    """The levels of a schedule over a range of sigma, or of a published list, with the end."""
    make, of, _ = SCHEDULES[name]
    if of == "range":
        spaced = [levels.sigma_max, levels.sigma_min]
        if within:
            spaced = choose(levels, within, steps, offset=offset)[0][:-1]  # without its end
        make = partial(make, spaced[-1], spaced[0])
    sigmas = make(steps)
    if sigmas[-1] <= end * (1 + 1e-9):
        sigmas = make(steps + 1)[:-1]  # its last level is the end, which would be there twice
    return [*sigmas, end]


def at_times(levels: NoiseTable, times: Sequence[float], end: float = 0.0, log_linear: bool = False) -> Chosen:
    """The sigmas of given times, such as tables.AYS_SDXL_TIMES, with the end appended, and the time of each."""
    sigmas = [levels.log_linear_sigma(t) if log_linear else levels.sigma(t) for t in times]
    return [*sigmas, end], dict(zip(sigmas, times))


def with_times(levels: Levels, sigmas: list[float], convention: Convention = EXACT) -> Chosen:
    """The given sigmas, of which the last is the end, and the time of each but the end."""
    if convention.whole_times and isinstance(levels, NoiseTable):
        return sigmas, {sigma: float(round(levels.t(sigma))) for sigma in sigmas[:-1]}
    return sigmas, {sigma: levels.t(sigma) for sigma in sigmas[:-1]}


def checked_list(levels: Levels, schedule: Choice, steps: int) -> list[float]:
    """A caller's own list of sigmas, or what a caller's function makes. Raises TypeError for what is no list of
    numbers, ValueError unless they decrease from a finite level to one not below 0."""
    found: Any = schedule
    if callable(schedule):
        if not takes(schedule, 2):
            raise TypeError(f"schedule {show(schedule)}: a function of (levels, steps) is expected")
        found = schedule(levels, steps)
    try:
        sigmas = as_numbers(found)
    except TypeError:
        made = f" made {show(found)}" if callable(schedule) else ""
        wanted = "give a name, a list of sigmas or a function (levels, steps) that makes one"
        raise TypeError(f"schedule {show(schedule)}{made}: {wanted}") from None
    falls = all(a > b for a, b in pairwise(sigmas))
    if len(sigmas) < 2 or not falls or sigmas[0] == inf or not sigmas[-1] >= 0:
        law = "noise levels must decrease in every step, from a finite one, and not below 0"
        raise ValueError(f"schedule {show(sigmas)}: {law}")
    return sigmas


def find_checked(levels: Levels, schedule: str, steps: int) -> str:
    """The schedule in our spelling; one of our names with a usual number of steps on a table needs no such look. Raises
    ValueError for one that does not exist, or one or a number of steps that the model cannot have."""
    schedule = find(schedule)
    name, colon, within = schedule.partition(":")
    ranges = [key for key, value in SCHEDULES.items() if value.of == "range"]
    spacings = [key for key, value in SCHEDULES.items() if value.of == "times"]
    if colon and (within not in spacings or name not in ranges):
        raise ValueError(f"unknown schedule {schedule!r}: choose one of {', '.join(SCHEDULES)}")
    if isinstance(levels, NoiseTable):
        if not 1 <= steps <= len(levels.sigmas):
            raise ValueError(f"{steps} steps: choose 1 to {len(levels.sigmas)}, the number of trained noise levels")
        return schedule
    if colon or name not in ranges:
        offer = ", ".join(ranges)
        raise ValueError(f"schedule {schedule!r} needs trained time steps and this model has none: choose {offer}")
    if steps < 1:
        raise ValueError(f"{steps} steps: choose at least 1")
    return schedule


def find(schedule: str, sdxl: bool | None = None) -> str:
    """The name in SCHEDULES of a schedule by any name of other programs; see names.find."""
    return names.find(schedule, SCHEDULES, sdxl)


AT_LAST_TIME = re.compile("lin[ _-]?space|trailing", re.IGNORECASE)  # the schedules that begin at the last time


def start_std(sigma: float, schedule: Choice, convention: Convention = EXACT) -> float:
    """Standard deviation of the noise that sampling begins with: sqrt(1 + sigma^2), or sigma; see Convention."""
    at_last_time = isinstance(schedule, str) and AT_LAST_TIME.search(schedule)
    return sigma if at_last_time and not convention.unit_variance else sqrt(1 + sigma**2)
