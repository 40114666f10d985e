"""Exponential integrators that look ahead inside a step and remember nothing of earlier ones: DPM-Solver's blocks, its
fast and its adaptive form, and SEEDS."""

from itertools import pairwise
from math import atan, exp, log, prod, sqrt

import torch

from .coefficients import ancestral, check_order, exponential, fresh
from .multistep import slope_weights
from .step import Step, stir, weighted


def singlestep(denoise, x, sigmas, noise=None, *, order=2, second="midpoint", third="exact", eta=0.0, s_noise=1.0):
    """DPM-Solver++ singlestep of order 1 to 3 (arXiv 2211.01095): blocks of `order` of the steps given.

    Every step of a block starts where the block did, with all estimates since. A step into 0 is a block of its own.
    second: "midpoint" is the paper's, which also leaves out the middle one of three estimates; "exact" is "heun".
    third, eta: as in multistep.dpmpp.
    """
    check_order(order, 3)
    for i, (sigma, lower) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        if i % order == 0 or lower == 0:
            start, top, levels, x0s = x, sigma, [], []
        levels, x0s = [sigma, *levels], [x0, *x0s]
        if len(levels) == 3 and second == "midpoint":
            levels, x0s = levels[::2], x0s[::2]
        nodes = [log(top / level) / log(top / lower) if level < top else 0.0 for level in levels]
        rule = second if i % order == 1 else "exact"  # and not for the two that are left of three
        x = weighted(exponential(top, lower, nodes, eta, rule, third), [start, *x0s])
        x = stir(x, s_noise * fresh(top, lower, eta), noise, sigma, lower)
        yield Step(i, sigma, x, x0)


def dpm_fast(denoise, x, sigmas, noise=None, *, eta=0.0, s_noise=1.0):
    """DPM-Solver-fast (arXiv 2206.00927): as many evaluations as `sigmas` has steps, in blocks of order 3.

    Of `sigmas` only the ends count: the blocks are equal in lambda, down to the smallest level above 0.
    """
    count, top, bottom = len(sigmas) - 1, sigmas[0], min(sigma for sigma in sigmas if sigma > 0)
    orders = [3] * (count // 3) + [count % 3] if count % 3 else [3] * (count // 3 - 1) + [2, 1]
    levels = [*(top * (bottom / top) ** (i / len(orders)) for i in range(len(orders))), bottom]
    for i, (sigma, lower) in enumerate(pairwise(levels)):
        x0 = denoise(x, sigma)
        down = max(ancestral(sigma, lower, eta)[0], bottom)
        x, _ = look_ahead(denoise, x, x0, sigma, down, orders[i])
        x = stir(x, s_noise * sqrt(lower**2 - down**2) if eta else 0, noise, sigma, lower)
        yield Step(i, sigma, x, x0)


def dpm_adaptive(
    denoise,
    x,
    sigmas,
    noise=None,
    *,
    order=3,
    rtol=0.05,
    atol=0.0078,
    h_init=0.05,
    pcoeff=0.0,
    icoeff=1.0,
    dcoeff=0.0,
    accept_safety=0.81,
    eta=0.0,
    s_noise=1.0,
):
    """DPM-Solver-12 or -23 (arXiv 2206.00927): steps as long as two orders agree within the tolerances.

    Of `sigmas` only the ends count, the lower one being the smallest level above 0. The step is one for the whole
    batch, and choosing it waits for the device: the only sampler that does. The coefficients are those of a PID
    controller of the logarithm of the step.
    """
    check_order(order, 3, lowest=2)
    sigma, bottom = sigmas[0], min(sigma for sigma in sigmas if sigma > 0)
    powers = [c / (1.5 if eta else order) for c in (pcoeff + icoeff + dcoeff, -pcoeff - 2 * dcoeff, dcoeff)]
    h, accepted, agreed, i, x0 = h_init, x, [], 0, denoise(x, sigma)  # agreed: inverse errors, newest first
    while log(sigma / bottom) > 1e-5:
        lower = max(sigma * exp(-h), bottom)
        down = max(ancestral(sigma, lower, eta)[0], bottom)
        high, low = look_ahead(denoise, x, x0, sigma, down, order)
        tolerance = (rtol * torch.maximum(low.abs(), accepted.abs())).clamp(min=atol)
        agreement = 1 / (((low - high) / tolerance).square().mean().sqrt().item() + 1e-8)
        agreed = [agreement, *agreed[1:]] if agreed else [agreement] * 3
        factor = 1 + atan(prod(a**p for a, p in zip(agreed, powers)) - 1)
        h *= factor
        if factor >= accept_safety:
            agreed, accepted = [agreement, *agreed[:2]], low
            x = stir(high, s_noise * sqrt(lower**2 - down**2) if eta else 0, noise, sigma, lower)
            yield Step(i, sigma, x, x0)
            sigma, i = lower, i + 1
            if log(sigma / bottom) > 1e-5:
                x0 = denoise(x, sigma)


def look_ahead(denoise, x, x0, sigma, lower, order):
    """One step of DPM-Solver-1, -2 or -3 (arXiv 2206.00927, algorithms 1, 4, 5): its end, and one of an order less."""
    first = [(x - x0) / sigma]

    def end(slopes, nodes, level, second="exact"):
        return weighted([1.0, *slope_weights(sigma, level, nodes, second)], [x, *slopes])

    def slope(y, level):
        return (y - denoise(y, level)) / level

    one = end(first, [0.0], lower)
    if order == 1:
        return one, x
    share = 1 / 2 if order == 2 else 1 / 3
    middle = sigma ** (1 - share) * lower**share
    second = [*first, slope(end(first, [0.0], middle), middle)]
    two = end(second, [0.0, share], lower, "midpoint")
    if order == 2:
        return two, one
    level = sigma ** (1 / 3) * lower ** (2 / 3)
    third = [*first, slope(end(second, [0.0, 1 / 2], level), level)]
    return end(third, [0.0, 2 / 3], lower), two


def seeds_2(denoise, x, sigmas, noise, *, eta=1.0, s_noise=1.0, r=1 / 2, second="midpoint"):
    """SEEDS-2 (arXiv 2305.14267): a second estimate a share r down the step, on one path of noise.

    With eta 0 the same map as dpmpp_2s_ancestral. r = 1 and second="exact" is the exponential Heun method.
    """
    for i, (sigma, lower) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        if lower > 0:
            middle = sigma ** (1 - r) * lower**r
            path = onward(0.0, sigma, middle, eta, noise)
            y = weighted(exponential(sigma, middle, [0.0], eta), [x, x0]) + s_noise * middle * path
            x = weighted(exponential(sigma, lower, [0.0, r], eta, second), [x, x0, denoise(y, middle)])
            x = x + s_noise * lower * onward(path, middle, lower, eta, noise)
        else:
            x = x0
        yield Step(i, sigma, x, x0)


def seeds_3(denoise, x, sigmas, noise, *, eta=1.0, s_noise=1.0, r1=1 / 3, r2=2 / 3):
    """SEEDS-3 (arXiv 2305.14267): estimates at shares r1 and r2 of the step, on one path of noise; no exact third."""
    for i, (sigma, lower) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        if lower > 0:
            upper, middle = (sigma ** (1 - r) * lower**r for r in (r1, r2))
            path = onward(0.0, sigma, upper, eta, noise)
            y = weighted(exponential(sigma, upper, [0.0], eta), [x, x0]) + s_noise * upper * path
            path = onward(path, upper, middle, eta, noise)
            y = weighted(exponential(sigma, middle, [0.0, r1 / r2], eta), [x, x0, denoise(y, upper)])
            y = y + s_noise * middle * path
            x = weighted(exponential(sigma, lower, [0.0, r2], eta), [x, x0, denoise(y, middle)])
            x = x + s_noise * lower * onward(path, middle, lower, eta, noise)
        else:
            x = x0
        yield Step(i, sigma, x, x0)


def onward(path, sigma, lower, eta, noise):
    """The noise of a step, in units of the level, from what it was at sigma to `lower`; 0.0 where it begins."""
    if eta == 0 or lower == sigma:
        return path
    return (lower / sigma) ** eta * path + fresh(sigma, lower, eta) / lower * noise(sigma, lower)
