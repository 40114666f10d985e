"""Deterministic samplers of the probability-flow ODE dx/dsigma = (x - x0) / sigma (arXiv 2206.00364).

With x0 fixed the ODE is solved exactly by x0 + (sigma_next / sigma) (x - x0), written x0.lerp(x, sigma_next / sigma).
options: s_churn, s_tmin, s_tmax and s_noise of step.churn; without them nothing is random.
"""

from itertools import pairwise
from math import sqrt

from torch import Tensor

from .basics import Denoise, euler
from .step import Noise, Sigmas, Step, Steps, churn, weighted

__all__ = ["dpm_2", "dpm_2_step", "euler", "heun", "heun_step", "heunpp2"]


def heun(denoise: Denoise, x: Tensor, sigmas: Sigmas, noise: Noise = None, **options: float) -> Steps:
    """Second order: the mean slope of both ends of the step; Euler into sigma 0 (arXiv 2206.00364, algorithms 1, 2)."""
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x, sigma = churn(x, sigma, len(sigmas) - 1, noise, **options)
        x, x0 = heun_step(denoise, x, sigma, sigma_next)
        yield Step(i, sigma, x, x0)


def heun_step(denoise: Denoise, x: Tensor, sigma: float, sigma_next: float) -> tuple[Tensor, Tensor]:
    """(where the step ends, x0 at its start)."""
    x0 = denoise(x, sigma)
    end = x0.lerp(x, sigma_next / sigma)
    if sigma_next > 0:
        slope = (end - denoise(end, sigma_next)) / sigma_next
        end = x.lerp(end, 1 / 2).add(slope, alpha=(sigma_next - sigma) / 2)
    return end, x0


def dpm_2(denoise: Denoise, x: Tensor, sigmas: Sigmas, noise: Noise = None, **options: float) -> Steps:
    """Second order: the slope at the geometric middle of the step (arXiv 2206.00927 in sigma); Euler into 0."""
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x, sigma = churn(x, sigma, len(sigmas) - 1, noise, **options)
        x, x0 = dpm_2_step(denoise, x, sigma, sigma_next)
        yield Step(i, sigma, x, x0)


def dpm_2_step(denoise: Denoise, x: Tensor, sigma: float, sigma_next: float) -> tuple[Tensor, Tensor]:
    """(where the step ends, x0 at its start)."""
    x0 = denoise(x, sigma)
    if sigma_next == 0:
        return x0.clone(), x0  # the caller may change either
    middle = sqrt(sigma * sigma_next)
    y = x0.lerp(x, middle / sigma)
    return x.add(y - denoise(y, middle), alpha=(sigma_next - sigma) / middle), x0


def heunpp2(denoise: Denoise, x: Tensor, sigmas: Sigmas, noise: Noise = None, **options: float) -> Steps:
    """Heun++: slopes of up to two levels further on are mixed in while sigma is large (sd-webui-samplers-scheduler).

    The weights are sigma_k / (n sigma_0) for n slopes, so the order is the first wherever sigma is not half of
    sigma_0. Two evaluations in the last step but one, one in the last.
    """
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x, sigma = churn(x, sigma, len(sigmas) - 1, noise, **options)
        x0 = denoise(x, sigma)
        ahead = [level for level in sigmas[i + 1 : i + 3] if level > sigmas[-1]]
        slopes = [(x - x0) / sigma]
        # Euler's method goes on to the levels ahead and finds a slope at each.
        y = x
        for above, level in pairwise([sigma, *ahead]):
            y = y.add(slopes[-1], alpha=level - above)
            slopes.append((y - denoise(y, level)) / level)
        shares = [level / (sigmas[0] * (len(ahead) + 1)) for level in ahead]
        weights = [1 - sum(shares), *shares]
        x = weighted([1.0, *((sigma_next - sigma) * weight for weight in weights)], [x, *slopes])
        yield Step(i, sigma, x, x0)
