"""Samplers that remember slopes (x - x0) / sigma of earlier steps: higher orders at one evaluation per step.

They differ in the axis on which the polynomial through the slopes is drawn: plms and ipndm count steps, lms and
ipndm_v take sigma. (dpm_solver and deis of multistep.py take lambda.)
"""

from itertools import pairwise

from .coefficients import UNIFORM, check_order, quadrature, remembered, usable_order
from .step import Step, relabelled, weighted

STEPS = (0, -1, -2, -3)  # nodes of a polynomial in the number of the step


def plms(denoise, x, sigmas, *, middles=(), legs=None):
    """Pseudo linear multistep (arXiv 2202.09778): Adams-Bashforth on the slopes, up to order 4.

    The first step is taken twice, the second time with the mean slope of both its ends; the slope found at that
    trial end is not remembered. One evaluation more than steps. With `middles`, the levels halfway into the first
    three steps, those are steps of Runge and Kutta instead, of four evaluations.
    legs: (sigma, lower) of every move, that trial first, where they are not those of `sigmas`: see strided_legs.
    """
    slopes = []  # newest first
    legs = legs or [*pairwise(sigmas[:2]), *pairwise(sigmas)]
    for i, (sigma, lower) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        slopes = [(x - x0) / sigma, *slopes[:3]]
        if i < len(middles):
            slope = runge_kutta(denoise, x, slopes[0], sigma, middles[i], lower)
        else:
            slope = weighted(quadrature(STEPS[: len(slopes)], UNIFORM), slopes)
        if i == 0 and not middles and len(sigmas) > 2:
            end = move(x, slope, sigma, lower, legs[0])
            slope = slope.lerp((end - denoise(end, lower)) / lower, 1 / 2)
        x = move(x, slope, sigma, lower, legs[i + 1])
        yield Step(i, sigma, x, x0)


def runge_kutta(denoise, x, first, sigma, middle, lower):
    """The mean slope of a step by the classical rule of order 4; first: the slope at its start."""
    slopes = [first]
    for level in (middle, middle, lower):
        y = x.add(slopes[-1], alpha=level - sigma)
        slopes.append((y - denoise(y, level)) / level)
    return weighted((1 / 6, 1 / 3, 1 / 3, 1 / 6), slopes)


def move(x, slope, sigma, lower, leg):
    """Along the slope from leg[0] to leg[1], where x is labelled `sigma` before and `lower` after."""
    start, end = leg
    return relabelled(relabelled(x, sigma, start).add(slope, alpha=end - start), end, lower)


def ipndm(denoise, x, sigmas, *, order=4):
    """Adams-Bashforth with the weights of equal steps, whatever they are (arXiv 2204.13902); Euler into 0."""
    check_order(order, 4)
    slopes = []
    for i, (sigma, lower) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        slopes = [(x - x0) / sigma, *slopes[: order - 1]]
        used = slopes[: usable_order(sigmas, i, order)]
        weights = quadrature(STEPS[: len(used)], UNIFORM)
        x = weighted([1.0, *((lower - sigma) * w for w in weights)], [x, *used])
        yield Step(i, sigma, x, x0)


def lms(denoise, x, sigmas, *, order=4, euler_at_zero=False):
    """Linear multistep in sigma, weights integrated exactly (k-diffusion): Adams-Bashforth for any steps.

    euler_at_zero: first order into sigma 0; then it is ipndm_v.
    """
    check_order(order, 4)
    slopes = []
    for i, (sigma, lower) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        slopes = [(x - x0) / sigma, *slopes[: order - 1]]
        used = slopes[: 1 if lower == sigma or (lower == 0 and euler_at_zero) else remembered(sigmas, i)]
        nodes = [0.0, *((sigmas[i - j] - sigma) / (lower - sigma) for j in range(1, len(used)))]
        x = weighted([1.0, *((lower - sigma) * w for w in quadrature(nodes, UNIFORM))], [x, *used])
        yield Step(i, sigma, x, x0)


def gradient_estimation(denoise, x, sigmas, *, gamma=2.0):
    """Euler along gamma * slope + (1 - gamma) * previous slope (arXiv 2306.04848); 3/2 is Adams-Bashforth's order 2."""
    previous = None
    for i, (sigma, lower) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        slope = mixed = (x - x0) / sigma
        if previous is not None and lower > 0:
            mixed = previous.lerp(slope, gamma)
        x = x.add(mixed, alpha=lower - sigma)
        previous = slope
        yield Step(i, sigma, x, x0)


def strided_legs(table, times, end):
    """The legs of diffusers' PNDM: its trial is redone from T // N above its end, and see sde.strided."""
    stride = len(table.sigmas) // len(times)
    level = lambda t: table.sigma(t) if t >= 0 else end
    trial, *rest = [(level(t), level(t - stride)) for t in times]
    return [trial, (level(times[1] + stride), level(times[1])), *rest] if rest else [trial, trial]
