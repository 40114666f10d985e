"""CFG++ (arXiv 2406.08070): the guided estimate is where to go, the noise that remains is that of the unguided one.

Here denoise(x, sigma) returns both, (x0, free): the clean estimate with guidance and that without the prompt. The
guidance scale is an interpolation, 0 to 1; A1111 takes a usual scale divided by 12.5. With x0 = free all are samplers
of the plain kind.
"""

from itertools import pairwise
from math import log

from .coefficients import ancestral, remembered
from .step import Step, stir


def euler_cfg_pp(denoise, x, sigmas, noise=None, *, eta=0.0, s_noise=1.0):
    """Euler; DDIM CFG++ under another name."""
    for i, (sigma, lower) in enumerate(pairwise(sigmas)):
        x0, free = denoise(x, sigma)
        down, up = ancestral(sigma, lower, eta)
        x = stir(x0.add(x - free, alpha=down / sigma), s_noise * up, noise, sigma, lower)
        yield Step(i, sigma, x, x0)


def euler_ancestral_cfg_pp(denoise, x, sigmas, noise, *, eta=1.0, s_noise=1.0):
    return euler_cfg_pp(denoise, x, sigmas, noise, eta=eta, s_noise=s_noise)


def dpmpp_2m_cfg_pp(denoise, x, sigmas, *, mixed=False):
    """DPM-Solver++(2M), which extrapolates the unguided estimate; first order into sigma 0.

    mixed: take its difference from the guided one, as ComfyUI does, so that the guidance grows with every step.
    """
    previous = None
    for i, (sigma, lower) in enumerate(pairwise(sigmas)):
        x0, free = denoise(x, sigma)
        q = lower / sigma
        target = x0.add(x - free, alpha=q)
        if 0 < lower < sigma and remembered(sigmas, i) > 1:
            weight = (1 - q) * log(sigma / lower) / log(sigmas[i - 1] / sigma) / 2
            target = target.add((x0 if mixed else free) - previous, alpha=weight)
        x, previous = target, free
        yield Step(i, sigma, x, x0)
