"""Noise levels: those that networks were trained with, and choices of a few to sample at.

levels    noise_table, SCHEDULES by name, choose
spacing   pure functions that space times, or sigmas over a range
tables    levels that were optimised and published as lists
cut       parts of a schedule: where to begin, stop or hand over
names     other programs' names for them
beta_quantile   of the Beta distribution, which two spacings need
"""

from ..basics import EDM, Levels, NoiseTable, karras, leading
from .levels import EXACT, SCHEDULES, Convention, Schedule, at_times, choose, find, noise_table, start_std, with_times
from .spacing import (
    beta,
    beta_times,
    ddim_uniform,
    exponential,
    kl_optimal,
    laplace,
    lcm,
    linear_quadratic,
    linspace,
    polyexponential,
    sgm,
    sgm_uniform,
    simple,
    trailing,
    vp,
)
from .tables import ays_sd15, ays_sdxl, gits

# fmt: off
__all__ = [
    "EDM", "EXACT", "SCHEDULES", "Convention", "Levels", "NoiseTable", "Schedule", "at_times", "choose", "find",
    "noise_table", "start_std", "with_times", "ays_sd15", "ays_sdxl", "beta", "beta_times", "ddim_uniform",
    "exponential", "gits", "karras", "kl_optimal", "laplace", "lcm", "leading", "linear_quadratic", "linspace",
    "polyexponential", "sgm", "sgm_uniform", "simple", "trailing", "vp",
]
# fmt: on
