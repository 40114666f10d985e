"""Samplers that remember earlier estimates and so reach a higher order at one evaluation per step."""

from itertools import pairwise
from math import log

from .step import Step


def dpmpp_2m(denoise, x, sigmas):
    """DPM-Solver++(2M), midpoint form (arXiv 2211.01095, algorithm 2); first order into sigma 0.

    With fewer than 15 steps the published implementation takes its last step in first order too, which is only
    different here for schedules that do not end at 0.
    """
    previous, n = None, len(sigmas) - 1
    for i, (sigma, lower) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        target = x0
        if i > 0 and lower > 0 and not (i == n - 1 and n < 15):
            ratio = log(sigmas[i - 1] / sigma) / log(sigma / lower)
            target = x0 + (x0 - previous) / (2 * ratio)
        x = target + (lower / sigma) * (x - target)
        previous = x0
        yield Step(i, sigma, x, x0)


def plms(denoise, x, sigmas):
    """Pseudo linear multistep (arXiv 2202.09778): Adams-Bashforth on the slopes, up to order 4.

    The first step is taken twice, the second time with the mean slope of both its ends; the slope found at that
    trial end is not remembered. One evaluation more than steps.
    """
    weights = [(1,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24)]
    slopes = []   # newest first
    for i, (sigma, lower) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        slopes = [(x - x0) / sigma, *slopes[:3]]
        slope = sum(w * s for w, s in zip(weights[len(slopes) - 1], slopes))
        if i == 0 and len(sigmas) > 2:
            end = x + (lower - sigma) * slope
            slope = (slope + (end - denoise(end, lower)) / lower) / 2
        x = x + (lower - sigma) * slope
        yield Step(i, sigma, x, x0)
