"""Deterministic samplers of the probability-flow ODE dx/dsigma = (x - x0) / sigma (arXiv 2206.00364).

With x0 fixed the ODE is solved exactly by x0 + (lower / sigma) (x - x0), written x0.lerp(x, lower / sigma).
`churn` stands for s_churn, s_tmin, s_tmax and s_noise of `raised`; without them nothing is random.
"""

from itertools import pairwise
from math import inf, sqrt

from .step import Step, stir, weighted


def euler(denoise, x, sigmas, noise=None, **churn):
    """First order: one evaluation per step. The same map as DDIM with eta = 0 and as DPM-Solver++ of order 1."""
    for i, (sigma, lower) in enumerate(pairwise(sigmas)):
        x, sigma = raised(x, sigma, len(sigmas) - 1, noise, **churn)
        x0 = denoise(x, sigma)
        x = x0.lerp(x, lower / sigma)
        yield Step(i, sigma, x, x0)


def heun(denoise, x, sigmas, noise=None, **churn):
    """Second order: the mean slope of both ends of the step; Euler into sigma 0 (arXiv 2206.00364, algorithms 1, 2)."""
    for i, (sigma, lower) in enumerate(pairwise(sigmas)):
        x, sigma = raised(x, sigma, len(sigmas) - 1, noise, **churn)
        x, x0 = heun_step(denoise, x, sigma, lower)
        yield Step(i, sigma, x, x0)


def heun_step(denoise, x, sigma, lower):
    """(where the step ends, x0 at its start)."""
    x0 = denoise(x, sigma)
    end = x0.lerp(x, lower / sigma)
    if lower > 0:
        slope = (end - denoise(end, lower)) / lower
        end = x.lerp(end, 1 / 2).add(slope, alpha=(lower - sigma) / 2)
    return end, x0


def dpm_2(denoise, x, sigmas, noise=None, **churn):
    """Second order: the slope at the geometric middle of the step (arXiv 2206.00927 in sigma); Euler into 0."""
    for i, (sigma, lower) in enumerate(pairwise(sigmas)):
        x, sigma = raised(x, sigma, len(sigmas) - 1, noise, **churn)
        x, x0 = dpm_2_step(denoise, x, sigma, lower)
        yield Step(i, sigma, x, x0)


def dpm_2_step(denoise, x, sigma, lower):
    """(where the step ends, x0 at its start)."""
    x0 = denoise(x, sigma)
    if lower == 0:
        return x0, x0
    middle = sqrt(sigma * lower)
    y = x0.lerp(x, middle / sigma)
    return x.add(y - denoise(y, middle), alpha=(lower - sigma) / middle), x0


def heunpp2(denoise, x, sigmas, noise=None, **churn):
    """Heun++: slopes of up to two levels further on are mixed in while sigma is large (sd-webui-samplers-scheduler).

    The weights are sigma_k / (n sigma_0) for n slopes, so the order is the first wherever sigma is not half of
    sigma_0. Two evaluations in the last step but one, one in the last.
    """
    for i, (sigma, lower) in enumerate(pairwise(sigmas)):
        x, sigma = raised(x, sigma, len(sigmas) - 1, noise, **churn)
        x0 = denoise(x, sigma)
        ahead = [level for level in sigmas[i + 1 : i + 3] if level > sigmas[-1]]
        shares = [level / (sigmas[0] * (len(ahead) + 1)) for level in ahead]
        slopes, y = [(x - x0) / sigma], x
        for above, level in pairwise([sigma, *ahead]):
            y = y.add(slopes[-1], alpha=level - above)
            slopes.append((y - denoise(y, level)) / level)
        x = weighted([1.0, *((lower - sigma) * share for share in (1 - sum(shares), *shares))], [x, *slopes])
        yield Step(i, sigma, x, x0)


def raised(x, sigma, steps, noise, s_churn=0.0, s_tmin=0.0, s_tmax=inf, s_noise=1.0):
    """x with fresh noise, and the higher level it is then at (arXiv 2206.00364, algorithm 2)."""
    if s_churn == 0 or not s_tmin <= sigma <= s_tmax:
        return x, sigma
    higher = sigma * (1 + min(s_churn / steps, sqrt(2) - 1))
    return stir(x, s_noise * sqrt(higher**2 - sigma**2), noise, higher, sigma), higher
