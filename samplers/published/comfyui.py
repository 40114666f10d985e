"""Faults of ComfyUI."""

from itertools import pairwise
from math import exp, log

from torch import Tensor

from ..basics import Denoise
from ..cfg_pp import both_estimates
from ..coefficients import ancestral, exponential, remembered
from ..step import Noise, Sigmas, Step, Steps, renoise, weighted


def res_multistep_ancestral(
    denoise: Denoise, x: Tensor, sigmas: Sigmas, noise: Noise = None, *, eta: float = 1.0, s_noise: float = 1.0
) -> Steps:
    """multistep.res_multistep_ancestral, which takes the previous estimate to be further away than it is, by the part
    of the step that its noise undid."""
    previous = x
    sigma_down_before = sigmas[0]
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        sigma_down, sigma_up = ancestral(sigma, sigma_next, eta)
        nodes = [0.0]
        if 0 < sigma_down < sigma and remembered(sigmas, i) > 1:
            nodes.append(log(sigma_down_before / sigmas[i - 1]) / log(sigma / sigma_down))
        x = weighted(exponential(sigma, sigma_down, nodes), [x, x0, previous])
        x = renoise(x, s_noise * sigma_up, noise, sigma, sigma_next)
        previous = x0
        sigma_down_before = sigma_down
        yield Step(i, sigma, x, x0)


def dpmpp_2m_cfg_pp(denoise: Denoise, x: Tensor, sigmas: Sigmas, noise: Noise = None) -> Steps:
    """cfg_pp.dpmpp_2m_cfg_pp that subtracts the previous unguided estimate from the guided one, so that the guidance
    grows with every step."""
    previous = x
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x0, unguided = both_estimates(denoise, x, sigma)
        q = sigma_next / sigma
        target = x0.add(x - unguided, alpha=q)
        if 0 < sigma_next < sigma and remembered(sigmas, i) > 1:
            weight = (1 - q) * log(sigma / sigma_next) / log(sigmas[i - 1] / sigma) / 2
            target = target.add(x0 - previous, alpha=weight)
        x = target
        previous = unguided
        yield Step(i, sigma, x, x0)


def ddim_uniform(steps: int, trained: int = 1000) -> list[float]:
    """schedules.ddim_uniform that goes on to the last trained time and so may have more entries than steps."""
    return [float(t) for t in reversed(range(1, trained, max(trained // steps, 1)))]


def laplace_clamped(sigma_min: float, sigma_max: float, steps: int, mu: float = 0.0, scale: float = 0.5) -> list[float]:
    """schedules.laplace as quantiles of the whole distribution, cut to the range: many steps repeat its ends."""
    sigmas = []
    for i in range(steps):
        r = i / max(steps - 1, 1)
        spread = scale * log(1 - 2 * abs(0.5 - r) + 1e-5)  # so that the ends are finite
        log_sigma = mu - spread if r < 0.5 else mu + spread
        sigmas.append(min(max(exp(log_sigma), sigma_min), sigma_max))
    return sigmas
