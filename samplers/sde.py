"""Samplers that add fresh noise in their steps; noise(sigma, lower) gives a unit Gaussian like x."""

from itertools import pairwise
from math import sqrt

from .step import Step


def ddim(denoise, x, sigmas, noise, eta=0.0):
    """DDIM (arXiv 2010.02502): eta 0 is deterministic and draws nothing, eta 1 is ancestral sampling (DDPM).

    Each step goes down to a level below `lower`, then noise brings it up again.
    """
    for i, (sigma, lower) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        up = eta * lower * sqrt(1 - (lower / sigma) ** 2)
        down = sqrt(lower**2 - up**2)
        x = x0 + (down / sigma) * (x - x0)
        if up > 0:
            x = x + up * noise(sigma, lower)
        yield Step(i, sigma, x, x0)


def euler_ancestral(denoise, x, sigmas, noise, eta=1.0):
    """Ancestral sampling under the name that users know; the same map as ddim, with eta 1."""
    return ddim(denoise, x, sigmas, noise, eta)
