"""Samplers that remember slopes (x - x0) / sigma of earlier steps: higher orders at one evaluation per step.

They differ in the axis on which the polynomial through the slopes is drawn: plms and ipndm count steps, lms and
ipndm_v take sigma. (dpm_solver and deis of multistep.py take lambda.)
"""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from .basics import Denoise
from .coefficients import UNIFORM, check_order, quadrature, remembered, usable_order
from .step import Noise, Sigmas, Step, Steps, weighted

STEPS = (0, -1, -2, -3)  # nodes of a polynomial in the number of the step


def plms(denoise: Denoise, x: Tensor, sigmas: Sigmas, noise: Noise = None, *, middles: Sequence[float] = ()) -> Steps:
    """Pseudo linear multistep (arXiv 2202.09778): Adams-Bashforth on the slopes, up to order 4.

    The first step is taken twice, the second time with the mean slope of both its ends; the slope found at that
    trial end is not remembered. One evaluation more than steps. With `middles`, the levels halfway into the first
    three steps, those are steps of Runge and Kutta instead, of four evaluations.
    """
    slopes = []  # newest first
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        slopes = [(x - x0) / sigma, *slopes[:3]]
        if i < len(middles):
            slope = runge_kutta(denoise, x, slopes[0], sigma, middles[i], sigma_next)
        else:
            slope = adams_bashforth(slopes)
        if i == 0 and not middles and len(sigmas) > 2:
            end = x.add(slope, alpha=sigma_next - sigma)
            slope = slope.lerp((end - denoise(end, sigma_next)) / sigma_next, 1 / 2)
        x = x.add(slope, alpha=sigma_next - sigma)
        yield Step(i, sigma, x, x0)


def adams_bashforth(slopes: Sequence[Tensor]) -> Tensor:
    """The mean slope of the next of equal steps, from those of the steps before, newest first."""
    return weighted(quadrature(STEPS[: len(slopes)], UNIFORM), slopes)


def runge_kutta(denoise: Denoise, x: Tensor, first: Tensor, sigma: float, middle: float, sigma_next: float) -> Tensor:
    """The mean slope of a step by the classical rule of order 4; first: the slope at its start."""
    slopes = [first]
    for level in (middle, middle, sigma_next):
        y = x.add(slopes[-1], alpha=level - sigma)
        slopes.append((y - denoise(y, level)) / level)
    return weighted((1 / 6, 1 / 3, 1 / 3, 1 / 6), slopes)


def ipndm(denoise: Denoise, x: Tensor, sigmas: Sigmas, noise: Noise = None, *, order: int = 4) -> Steps:
    """Adams-Bashforth with the weights of equal steps, whatever they are (arXiv 2204.13902); Euler into 0."""
    check_order(order, 4)
    slopes = []
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        slopes = [(x - x0) / sigma, *slopes[: order - 1]]
        used = slopes[: usable_order(sigmas, i, order)]
        weights = quadrature(STEPS[: len(used)], UNIFORM)
        x = weighted([1.0, *((sigma_next - sigma) * w for w in weights)], [x, *used])
        yield Step(i, sigma, x, x0)


def lms(
    denoise: Denoise, x: Tensor, sigmas: Sigmas, noise: Noise = None, *, order: int = 4, euler_at_zero: bool = False
) -> Steps:
    """Linear multistep in sigma, weights integrated exactly (k-diffusion): Adams-Bashforth for any steps.

    euler_at_zero: first order into sigma 0, as in ComfyUI; then it is ipndm_v.
    """
    check_order(order, 4)
    slopes = []
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        slopes = [(x - x0) / sigma, *slopes[: order - 1]]
        count = remembered(sigmas, i)
        if sigma_next == sigma or (sigma_next == 0 and euler_at_zero):
            count = 1
        used = slopes[:count]
        nodes = [0.0, *((sigmas[i - j] - sigma) / (sigma_next - sigma) for j in range(1, len(used)))]
        x = weighted([1.0, *((sigma_next - sigma) * w for w in quadrature(nodes, UNIFORM))], [x, *used])
        yield Step(i, sigma, x, x0)


def gradient_estimation(
    denoise: Denoise, x: Tensor, sigmas: Sigmas, noise: Noise = None, *, gamma: float = 2.0
) -> Steps:
    """Euler along gamma * slope + (1 - gamma) * previous slope (arXiv 2306.04848); 3/2 is Adams-Bashforth's order 2."""
    previous = None
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        slope = (x - x0) / sigma
        direction = slope
        if previous is not None and sigma_next > 0:
            direction = previous.lerp(slope, gamma)
        x = x.add(direction, alpha=sigma_next - sigma)
        previous = slope
        yield Step(i, sigma, x, x0)
