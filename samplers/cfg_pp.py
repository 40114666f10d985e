"""CFG++ (arXiv 2406.08070): the guided estimate is where to go, the noise that remains is that of the unguided one.

denoise.pair(x, sigma) returns both: the clean estimate with guidance and that without the prompt. A plain function has
one estimate, and all are samplers of the plain kind then. The guidance scale is an interpolation, 0 to 1; A1111 takes a
usual scale divided by 12.5.
"""

from itertools import pairwise
from math import log
from typing import Protocol, runtime_checkable

from torch import Tensor

from .basics import Denoise
from .coefficients import ancestral, remembered
from .step import Noise, Sigmas, Step, Steps, renoise


@runtime_checkable
class HasPair(Protocol):
    """A denoiser that can tell both estimates."""

    def pair(self, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]: ...


def both_estimates(denoise: Denoise | HasPair, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    """(x0 with guidance, x0 without the prompt)."""
    if isinstance(denoise, HasPair):
        return denoise.pair(x, sigma)
    x0 = denoise(x, sigma)
    return x0, x0


def euler_cfg_pp(
    denoise: Denoise, x: Tensor, sigmas: Sigmas, noise: Noise = None, *, eta: float = 0.0, s_noise: float = 1.0
) -> Steps:
    """Euler; DDIM CFG++ under another name."""
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x0, unguided = both_estimates(denoise, x, sigma)
        sigma_down, sigma_up = ancestral(sigma, sigma_next, eta)
        x = x0.add(x - unguided, alpha=sigma_down / sigma)
        x = renoise(x, s_noise * sigma_up, noise, sigma, sigma_next)
        yield Step(i, sigma, x, x0)


def euler_ancestral_cfg_pp(
    denoise: Denoise, x: Tensor, sigmas: Sigmas, noise: Noise = None, *, eta: float = 1.0, s_noise: float = 1.0
) -> Steps:
    """euler_cfg_pp to the level below, then noise."""
    return euler_cfg_pp(denoise, x, sigmas, noise, eta=eta, s_noise=s_noise)


def dpmpp_2m_cfg_pp(denoise: Denoise, x: Tensor, sigmas: Sigmas, noise: Noise = None) -> Steps:
    """DPM-Solver++(2M), which extrapolates the unguided estimate; first order into sigma 0."""
    previous = x
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x0, unguided = both_estimates(denoise, x, sigma)
        q = sigma_next / sigma
        target = x0.add(x - unguided, alpha=q)
        if 0 < sigma_next < sigma and remembered(sigmas, i) > 1:
            weight = (1 - q) * log(sigma / sigma_next) / log(sigmas[i - 1] / sigma) / 2
            target = target.add(unguided - previous, alpha=weight)
        x = target
        previous = unguided
        yield Step(i, sigma, x, x0)
