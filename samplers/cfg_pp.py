"""CFG++ (arXiv 2406.08070): the guided estimate is where to go, the noise that remains is that of the unguided one.

denoise.pair(x, sigma) returns both: the clean estimate with guidance and that without the prompt. A plain function has
one estimate, and all are samplers of the plain kind then. The guidance scale is an interpolation, 0 to 1; A1111 takes a
usual scale divided by 12.5.
"""

from itertools import pairwise
from math import log, sqrt
from typing import Protocol, runtime_checkable

from torch import Tensor

from .basics import Denoise
from .coefficients import ancestral, exponential, remembered
from .step import Noise, Sigmas, Step, Steps, renoise, weighted


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


def gradient_estimation_cfg_pp(
    denoise: Denoise, x: Tensor, sigmas: Sigmas, noise: Noise = None, *, gamma: float = 2.0
) -> Steps:
    """euler_cfg_pp with the change of the unguided slope since the last step, gamma - 1 times (arXiv 2306.04848);
    none into sigma 0. ComfyUI's."""
    previous = None
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x0, unguided = both_estimates(denoise, x, sigma)
        slope = (x - unguided) / sigma
        x = x0.add(slope, alpha=sigma_next)
        if previous is not None and sigma_next > 0:
            x = x.add(slope - previous, alpha=(gamma - 1) * (sigma_next - sigma))
        previous = slope
        yield Step(i, sigma, x, x0)


def dpmpp_2s_ancestral_cfg_pp(
    denoise: Denoise, x: Tensor, sigmas: Sigmas, noise: Noise = None, *, eta: float = 1.0, s_noise: float = 1.0
) -> Steps:
    """DPM-Solver++(2S) to the level below, then noise; the step begins where the guidance moves x. ComfyUI's."""
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x0, unguided = both_estimates(denoise, x, sigma)
        sigma_down, sigma_up = ancestral(sigma, sigma_next, eta)
        moved = x + (x0 - unguided)
        target = x0
        if sigma_down > 0:
            middle = sqrt(sigma * sigma_down)
            target = denoise(x0.lerp(moved, middle / sigma), middle)
        x = target.lerp(moved, sigma_down / sigma)
        x = renoise(x, s_noise * sigma_up, noise, sigma, sigma_next)
        yield Step(i, sigma, x, x0)


def res_multistep_cfg_pp(denoise: Denoise, x: Tensor, sigmas: Sigmas, noise: Noise = None) -> Steps:
    """RES (arXiv 2308.02157) of the unguided estimate, from where the guidance moves x; euler_cfg_pp in the first step
    and into sigma 0. ComfyUI's."""
    return res_multistep_ancestral_cfg_pp(denoise, x, sigmas, noise, eta=0.0)


def res_multistep_ancestral_cfg_pp(
    denoise: Denoise, x: Tensor, sigmas: Sigmas, noise: Noise = None, *, eta: float = 1.0, s_noise: float = 1.0
) -> Steps:
    """res_multistep_cfg_pp to the level below, then noise. ComfyUI's, which takes the previous estimate to be further
    away by the part of its step that the noise undid: at the true distance the noise grows to twice the picture's."""
    previous = x
    sigma_down_before = sigmas[0]
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x0, unguided = both_estimates(denoise, x, sigma)
        sigma_down, sigma_up = ancestral(sigma, sigma_next, eta)
        if 0 < sigma_down < sigma and remembered(sigmas, i) > 1:
            nodes = [0.0, log(sigma_down_before / sigmas[i - 1]) / log(sigma / sigma_down)]
            x = weighted(exponential(sigma, sigma_down, nodes), [x + (x0 - unguided), unguided, previous])
        else:
            x = x0.add(x - unguided, alpha=sigma_down / sigma)
        x = renoise(x, s_noise * sigma_up, noise, sigma, sigma_next)
        previous = unguided
        sigma_down_before = sigma_down
        yield Step(i, sigma, x, x0)
