"""Exponential integrators that look ahead inside a step and remember nothing of earlier ones: DPM-Solver's blocks, its
fast and its adaptive form, and SEEDS."""

from itertools import pairwise
from math import atan, exp, log, prod, sqrt

import torch
from torch import Tensor

from .basics import Denoise
from .coefficients import Rule, ancestral, check_order, exponential, noise_std, slope_weights
from .step import Noise, Sigmas, Step, Steps, draw, renoise, weighted


def singlestep(
    denoise: Denoise,
    x: Tensor,
    sigmas: Sigmas,
    noise: Noise = None,
    *,
    order: int = 2,
    second: str | Rule = "midpoint",
    third: str | Rule = "exact",
    eta: float = 0.0,
    s_noise: float = 1.0,
) -> Steps:
    """DPM-Solver++ singlestep of order 1 to 3 (arXiv 2211.01095): the steps are taken in blocks of `order`.

    Every step of a block starts where the block did, with all estimates since. A step into 0 is a block of its own.
    second: the rule for two estimates. "midpoint" is the paper's, which also leaves out the middle one of three;
    "exact" is known as "heun". third: the rule for the third step of a block. eta, s_noise: as in multistep.dpmpp.
    Raises ValueError for another order or rule.
    """
    check_order(order, 3)
    start = x
    end = x  # of the step before, as it was yielded
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        if i % order == 0 or sigma_next == 0:
            start = x
            top = sigma
            block = []  # its levels and the estimates there, newest first
        else:  # what the caller added to Step.x grows with the level where it is carried back to the start of the block
            start = start.add(x - end, alpha=(top / sigma) ** (1 + eta))
        block = [(sigma, x0), *block]
        if len(block) == 3 and second == "midpoint":
            block = block[::2]
        nodes = [log(top / level) / log(top / sigma_next) if level < top else 0.0 for level, _ in block]
        rule = second if i % order == 1 else third
        x = weighted(exponential(top, sigma_next, nodes, eta, rule), [start, *(estimate for _, estimate in block)])
        x = renoise(x, s_noise * noise_std(top, sigma_next, eta), noise, sigma, sigma_next)
        end = x.clone()
        yield Step(i, sigma, x, x0)


def dpm_fast(
    denoise: Denoise, x: Tensor, sigmas: Sigmas, noise: Noise = None, *, eta: float = 0.0, s_noise: float = 1.0
) -> Steps:
    """DPM-Solver-fast (arXiv 2206.00927): as many evaluations as `sigmas` has steps, in blocks of order 3.

    Of `sigmas` only the ends count: the blocks are equal in lambda, down to the smallest level above 0. Yields a Step
    for each block. eta, s_noise: as in sde.
    """
    top = sigmas[0]
    bottom = min(sigma for sigma in sigmas if sigma > 0)
    orders = orders_of_blocks(len(sigmas) - 1)
    levels = [*(top * (bottom / top) ** (i / len(orders)) for i in range(len(orders))), bottom]
    for i, (sigma, sigma_next) in enumerate(pairwise(levels)):
        x0 = denoise(x, sigma)
        sigma_down = max(ancestral(sigma, sigma_next, eta)[0], bottom)
        x, _ = look_ahead(denoise, x, x0, sigma, sigma_down, orders[i])
        x = renoise(x, s_noise * noise_above(sigma_down, sigma_next, eta), noise, sigma, sigma_next)
        yield Step(i, sigma, x, x0)


def orders_of_blocks(count: int) -> list[int]:
    """The orders of DPM-Solver-fast's blocks, which sum to `count`: as many 3s as leave a last block of 1 or 2."""
    if count % 3:
        return [3] * (count // 3) + [count % 3]
    return [3] * (count // 3 - 1) + [2, 1]


def noise_above(sigma_down: float, sigma_next: float, eta: float) -> float:
    """The standard deviation of the noise that leads from sigma_down up to sigma_next; 0 without eta."""
    return sqrt(sigma_next**2 - sigma_down**2) if eta else 0.0


def dpm_adaptive(
    denoise: Denoise,
    x: Tensor,
    sigmas: Sigmas,
    noise: Noise = None,
    *,
    order: int = 3,
    rtol: float = 0.05,
    atol: float = 0.0078,
    h_init: float = 0.05,
    pcoeff: float = 0.0,
    icoeff: float = 1.0,
    dcoeff: float = 0.0,
    accept_safety: float = 0.81,
    eta: float = 0.0,
    s_noise: float = 1.0,
) -> Steps:
    """DPM-Solver-12 or -23 (arXiv 2206.00927): each step as long as two orders differ by less than rtol and atol.

    Of `sigmas` only the ends count, the lower one being the smallest level above 0. All pictures of a batch take the
    same steps, and choosing one waits for the device: the only sampler that does. h_init: length of the first step in
    lambda. pcoeff, icoeff, dcoeff: of a PID controller of the logarithm of the length. accept_safety: a step is taken
    again if the controller multiplies its length by less. Raises ValueError for another order than 2 (-12) or 3 (-23).
    """
    check_order(order, 3, lowest=2)
    sigma = sigmas[0]
    bottom = min(sigma for sigma in sigmas if sigma > 0)
    control = PID(h_init, (pcoeff, icoeff, dcoeff), 1.5 if eta else order, accept_safety)
    accepted = x
    i = 0
    while log(sigma / bottom) > 1e-5:
        x0 = denoise(x, sigma)
        while True:
            sigma_next = max(sigma * exp(-control.h), bottom)
            sigma_down = max(ancestral(sigma, sigma_next, eta)[0], bottom)
            high, low = look_ahead(denoise, x, x0, sigma, sigma_down, order)
            tolerance = (rtol * torch.maximum(low.abs(), accepted.abs())).clamp(min=atol)
            if control.accepts(((low - high) / tolerance).square().mean().sqrt().item()):
                break
        accepted = low
        x = renoise(high, s_noise * noise_above(sigma_down, sigma_next, eta), noise, sigma, sigma_next)
        yield Step(i, sigma, x, x0)
        sigma = sigma_next
        i += 1


class PID:
    """A controller of the length h of steps in lambda, by their errors. coefficients: (p, i, d). order: of the method,
    by which its powers are divided. safety: the factor of h below which a step is refused."""

    def __init__(self, h: float, coefficients: tuple[float, float, float], order: float, safety: float):
        p, i, d = coefficients
        self.h = h
        self.powers = [(p + i + d) / order, (-p - 2 * d) / order, d / order]
        self.safety = safety
        self.agreements: list[float] = []  # inverse errors, newest first

    def accepts(self, error: float) -> bool:
        """Change h by the error of a step, 1 at the tolerance. True if the step is to be taken, False if again."""
        agreement = 1 / (error + 1e-8)
        self.agreements = [agreement, *self.agreements[1:]] if self.agreements else [agreement] * 3
        factor = 1 + atan(prod(a**power for a, power in zip(self.agreements, self.powers)) - 1)
        self.h *= factor
        if factor < self.safety:
            return False
        self.agreements = [agreement, *self.agreements[:2]]
        return True


def look_ahead(
    denoise: Denoise, x: Tensor, x0: Tensor, sigma: float, sigma_next: float, order: int
) -> tuple[Tensor, Tensor]:
    """x at the end of one step of DPM-Solver-1, -2 or -3 (arXiv 2206.00927, algorithms 1, 4, 5), and the same by the
    method of one order less; for order 1 that is x where it started."""
    first = [(x - x0) / sigma]  # slopes

    def end(slopes: list[Tensor], nodes: list[float], level: float, second: str = "exact") -> Tensor:
        return weighted([1.0, *slope_weights(sigma, level, nodes, second)], [x, *slopes])

    def slope(y: Tensor, level: float) -> Tensor:
        return (y - denoise(y, level)) / level

    end_1 = end(first, [0.0], sigma_next)
    if order == 1:
        return end_1, x
    share = 1 / 2 if order == 2 else 1 / 3
    middle = sigma ** (1 - share) * sigma_next**share
    second = [*first, slope(end(first, [0.0], middle), middle)]
    end_2 = end(second, [0.0, share], sigma_next, "midpoint")
    if order == 2:
        return end_2, end_1
    level = sigma ** (1 / 3) * sigma_next ** (2 / 3)
    third = [*first, slope(end(second, [0.0, 1 / 2], level), level)]
    return end(third, [0.0, 2 / 3], sigma_next), end_2


def seeds_2(
    denoise: Denoise,
    x: Tensor,
    sigmas: Sigmas,
    noise: Noise = None,
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
    r: float = 1 / 2,
    second: str | Rule = "midpoint",
) -> Steps:
    """SEEDS-2 (arXiv 2305.14267): a second estimate a share r down the step, on one path of noise.

    With eta 0 the same map as dpmpp_2s_ancestral. r = 1 and second="exact" is the exponential Heun method.
    """
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        if sigma_next > 0:
            middle = sigma ** (1 - r) * sigma_next**r
            path = path_noise(0.0, sigma, middle, eta, noise)
            y = weighted(exponential(sigma, middle, [0.0], eta), [x, x0]) + s_noise * middle * path
            x = weighted(exponential(sigma, sigma_next, [0.0, r], eta, second), [x, x0, denoise(y, middle)])
            x = x + s_noise * sigma_next * path_noise(path, middle, sigma_next, eta, noise)
        else:
            x = x0.clone()  # the caller may change either
        yield Step(i, sigma, x, x0)


def seeds_3(
    denoise: Denoise,
    x: Tensor,
    sigmas: Sigmas,
    noise: Noise = None,
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
    r1: float = 1 / 3,
    r2: float = 2 / 3,
) -> Steps:
    """SEEDS-3 (arXiv 2305.14267): estimates at shares r1 and r2 of the step, on one path of noise. The last formula
    takes the first and the third of the three estimates."""
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        if sigma_next > 0:
            upper = sigma ** (1 - r1) * sigma_next**r1
            middle = sigma ** (1 - r2) * sigma_next**r2
            path = path_noise(0.0, sigma, upper, eta, noise)
            y = weighted(exponential(sigma, upper, [0.0], eta), [x, x0]) + s_noise * upper * path
            path = path_noise(path, upper, middle, eta, noise)
            y = weighted(exponential(sigma, middle, [0.0, r1 / r2], eta), [x, x0, denoise(y, upper)])
            y = y + s_noise * middle * path
            x = weighted(exponential(sigma, sigma_next, [0.0, r2], eta), [x, x0, denoise(y, middle)])
            x = x + s_noise * sigma_next * path_noise(path, middle, sigma_next, eta, noise)
        else:
            x = x0.clone()
        yield Step(i, sigma, x, x0)


def path_noise(path: Tensor | float, sigma: float, sigma_next: float, eta: float, noise: Noise) -> Tensor | float:
    """The noise that a step has gathered at sigma_next, in units of that level. path: what it had gathered at sigma, in
    units of sigma; 0.0 where the step begins."""
    if eta == 0 or sigma_next == sigma:
        return path
    kept = (sigma_next / sigma) ** eta * path
    return kept + noise_std(sigma, sigma_next, eta) / sigma_next * draw(noise, sigma, sigma_next)
