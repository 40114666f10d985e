"""Deterministic samplers of the probability-flow ODE dx/dsigma = (x - x0) / sigma (arXiv 2206.00364)."""

from itertools import pairwise

from .step import Step


def euler(denoise, x, sigmas):
    """First order: one evaluation per step. The same map as DDIM with eta = 0."""
    for i, (sigma, lower) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        x = x + (lower - sigma) * (x - x0) / sigma
        yield Step(i, sigma, x, x0)


def heun(denoise, x, sigmas):
    """Second order: the mean slope of both ends of the step (arXiv 2206.00364, algorithm 1); Euler into sigma 0."""
    for i, (sigma, lower) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        slope = (x - x0) / sigma
        end = x + (lower - sigma) * slope
        if lower > 0:
            slope = (slope + (end - denoise(end, lower)) / lower) / 2
            end = x + (lower - sigma) * slope
        x = end
        yield Step(i, sigma, x, x0)
