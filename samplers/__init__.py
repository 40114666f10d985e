"""Samplers: from noise to latents, given a denoiser.

    schedule   trained noise levels, t <-> sigma, choices of levels
    denoiser   a network that predicts noise, velocity or the picture -> denoise(x, sigma) = x0
    noise      random streams, one per picture
    ode        euler, heun: deterministic
    sde        euler_ancestral, ddim: fresh noise in every step
    multistep  plms, dpmpp_2m: remember earlier steps

A sampler is a generator function `sampler(denoise, x, sigmas)` that yields a Step after each of its steps; the
stochastic ones take `noise` as well. x is the noisy picture x0 + sigma * noise, in float32 or float64. This package
knows nothing of networks, prompts or files.
"""

from collections.abc import Callable
from typing import NamedTuple

from . import multistep, ode, sde


class Sampler(NamedTuple):
    """A sampler and the habits of its published implementation."""

    run: Callable
    stochastic: bool = False      # takes a source of noise
    drops_last: bool = False      # leading and linspace choose one time step more and drop the smallest
    whole_times: bool = False     # the network is given whole time steps
    ends_at_zero: bool = True     # or at the smallest trained noise level
    unit_variance: bool = True    # always starts at sqrt(1 + sigma^2); False: at sigma where the first time is the last


SAMPLERS = {
    "euler": Sampler(ode.euler, unit_variance=False),
    "heun": Sampler(ode.heun, unit_variance=False),
    "euler_ancestral": Sampler(sde.euler_ancestral, stochastic=True, unit_variance=False),
    "ddim": Sampler(sde.ddim, stochastic=True, whole_times=True, ends_at_zero=False),
    "plms": Sampler(multistep.plms, whole_times=True, ends_at_zero=False),
    "dpmpp_2m": Sampler(multistep.dpmpp_2m, drops_last=True, whole_times=True),
}
