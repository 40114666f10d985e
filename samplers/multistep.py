"""Samplers that remember earlier estimates and integrate them exactly in lambda = -log sigma: DPM-Solver++ and kin.

A polynomial is drawn through the last clean estimates x0 (or slopes) at their lambdas and integrated over the step:
coefficients.exponential. With one x0 and no noise that is Euler.
"""

from itertools import pairwise
from math import exp, log, sqrt

from .coefficients import (
    adjusted,
    ancestral,
    check_order,
    exponential,
    fresh,
    moments,
    past_nodes,
    quadrature,
    remembered,
    usable_order,
)
from .step import Step, stir, weighted


def dpmpp(denoise, x, sigmas, noise=None, *, order=2, second="midpoint", third="exact", eta=0.0, s_noise=1.0, short=15):
    """DPM-Solver++ multistep of order 1 to 3, ODE and SDE (arXiv 2211.01095); first order into sigma 0.

    second, third: see coefficients.adjusted. The paper has second="midpoint"; "exact" is known as "heun".
    eta: how much of the reverse SDE's noise; 0 is the ODE and draws nothing.
    short: with fewer steps the last is of first order and the one before of second, as published; k-diffusion has 0.
    """
    check_order(order, 3)
    x0s = []  # newest first
    for i, (sigma, lower) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        x0s = [x0, *x0s[: order - 1]]
        nodes = past_nodes(sigmas, i, usable_order(sigmas, i, order, short))
        x = weighted(exponential(sigma, lower, nodes, eta, second, third), [x, *x0s])
        x = stir(x, s_noise * fresh(sigma, lower, eta), noise, sigma, lower)
        yield Step(i, sigma, x, x0)


def dpmpp_2m(denoise, x, sigmas, **options):
    """DPM-Solver++(2M), the one that most people use."""
    return dpmpp(denoise, x, sigmas, order=2, **options)


def dpmpp_3m(denoise, x, sigmas, **options):
    """DPM-Solver++(3M); as published with third="published"."""
    return dpmpp(denoise, x, sigmas, order=3, **options)


def dpmpp_2m_sde(denoise, x, sigmas, noise, *, eta=1.0, short=0, **options):
    """k-diffusion's; second="exact" is its "heun"."""
    return dpmpp(denoise, x, sigmas, noise, order=2, eta=eta, short=short, **options)


def dpmpp_3m_sde(denoise, x, sigmas, noise, *, eta=1.0, second="exact", short=0, **options):
    """k-diffusion's, which has third="published"."""
    return dpmpp(denoise, x, sigmas, noise, order=3, eta=eta, second=second, short=short, **options)


def res_multistep(denoise, x, sigmas):
    """RES (arXiv 2308.02157), the same map as dpmpp_2m with exact weights."""
    return dpmpp(denoise, x, sigmas, second="exact", short=0)


def res_multistep_ancestral(denoise, x, sigmas, noise, *, eta=1.0, s_noise=1.0, published=False):
    """RES to the level below, then noise. published: as ComfyUI, which takes the previous estimate to be further away
    than it is, by the part of the step that its noise undid.
    """
    previous = below = None
    for i, (sigma, lower) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        down, up = ancestral(sigma, lower, eta)
        nodes = [0.0]
        if 0 < down < sigma and remembered(sigmas, i) > 1:
            nodes.append(log((below if published else sigma) / sigmas[i - 1]) / log(sigma / down))
        x = stir(weighted(exponential(sigma, down, nodes), [x, x0, previous]), s_noise * up, noise, sigma, lower)
        previous, below = x0, down
        yield Step(i, sigma, x, x0)


def dpm_solver(denoise, x, sigmas, noise=None, *, order=2, second="midpoint", third="exact", eta=0.0, short=15):
    """DPM-Solver multistep of order 1 to 3, which integrates the slope (arXiv 2206.00927); options as in dpmpp."""
    check_order(order, 3)
    slopes = []
    for i, (sigma, lower) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        slopes = [(x - x0) / sigma, *slopes[: order - 1]]
        nodes = past_nodes(sigmas, i, usable_order(sigmas, i, order, short))
        weights = [(1 + eta**2) * w for w in slope_weights(sigma, lower, nodes, second, third)]
        x = stir(weighted([1.0, *weights], [x, *slopes]), eta * sqrt(sigma**2 - lower**2), noise, sigma, lower)
        yield Step(i, sigma, x, x0)


def deis(denoise, x, sigmas, *, order=2, short=15):
    """DEIS with its polynomial in log rho (arXiv 2204.13902), the same map as dpm_solver with exact weights."""
    return dpm_solver(denoise, x, sigmas, order=order, second="exact", short=short)


def er_sde(denoise, x, sigmas, noise, *, order=3, third="exact", s_noise=1.0, scale=None, points=200):
    """ER-SDE-Solver (arXiv 2309.06169): reverse SDEs whose noise is set by a function of sigma, here `scale`.

    The k-th moment, of the weight scale(lower) scale'/scale^2, is integrated by parts with `points` points.
    third: "exact", or "published", where the slope of x0 is that at the middle of the last step, which leaves three
    estimates the second order. scale(sigma) = sigma has no noise.
    """
    check_order(order, 3)
    scale, x0s = scale or er_scale, []
    for i, (sigma, lower) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        x0s = [x0, *x0s[: order - 1]]
        nodes = [0.0, *((sigmas[i - j] - sigma) / (lower - sigma) for j in range(1, usable_order(sigmas, i, order)))]
        r = scale(lower) / scale(sigma)
        us = [(j + 1 / 2) / points for j in range(points if len(nodes) > 1 else 0)]
        kernel = [scale(lower) / scale(sigma + u * (lower - sigma)) / points for u in us]
        m = [1 - r, *(1 - k * sum(w * u ** (k - 1) for w, u in zip(kernel, us)) for k in range(1, len(nodes)))]
        if len(nodes) == 3 and third == "published":
            m[2] += nodes[1] * m[1]
        x = weighted([r, *quadrature(nodes, m)], [x, *x0s])
        x = stir(x, s_noise * sqrt(max(lower**2 - (r * sigma) ** 2, 0)), noise, sigma, lower)
        yield Step(i, sigma, x, x0)


def er_scale(sigma):
    """The paper's choice for pictures."""
    return sigma * (exp(sigma**0.3) + 10)


def slope_weights(sigma, lower, nodes, second="exact", third="exact"):
    """The weights of slopes at the nodes in a step of the ODE."""
    if len(nodes) == 1:
        return [lower - sigma]
    h = -log(sigma / lower)
    return [lower * w for w in quadrature(nodes, adjusted(moments(h, len(nodes)), h, second, third))]
