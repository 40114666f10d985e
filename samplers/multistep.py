"""Samplers that remember earlier estimates and integrate them exactly in lambda = -log sigma: DPM-Solver++ and kin.

A polynomial is drawn through the last clean estimates x0 (or slopes) at their lambdas and integrated over the step:
coefficients.exponential. With one x0 and no noise that is Euler. dpmpp_2m is written out in basics.py; `dpmpp` is its
general form.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import exp, log, sqrt

from torch import Tensor

from .basics import Denoise, dpmpp_2m
from .coefficients import (
    Rule,
    ancestral,
    check_order,
    exponential,
    noise_std,
    past_nodes,
    quadrature,
    remembered,
    slope_weights,
    usable_order,
)
from .step import Noise, Sigmas, Step, Steps, renoise, weighted

# fmt: off
__all__ = [
    "deis", "dpm_solver", "dpmpp", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m", "dpmpp_3m_sde", "er_moments", "er_sde",
    "res_multistep", "res_multistep_ancestral",
]
# fmt: on


def dpmpp(
    denoise: Denoise,
    x: Tensor,
    sigmas: Sigmas,
    noise: Noise = None,
    *,
    order: int = 2,
    second: str | Rule = "midpoint",
    eta: float = 0.0,
    s_noise: float = 1.0,
    short: float = 15,
) -> Steps:
    """DPM-Solver++ multistep of order 1 to 3, ODE and SDE (arXiv 2211.01095); first order into sigma 0.

    second: a rule of coefficients. The paper has "midpoint"; "exact" is known as "heun".
    eta: how much of the reverse SDE's noise; 0 is the ODE and draws nothing. s_noise: scales the noise.
    short: in a run of fewer steps the last is of first order and the one before of second, as published; k-diffusion
    has 0. Raises ValueError for another order or rule.
    """
    check_order(order, 3)
    x0s = []  # newest first
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        x0s = [x0, *x0s[: order - 1]]
        nodes = past_nodes(sigmas, i, usable_order(sigmas, i, order, short))
        x = weighted(exponential(sigma, sigma_next, nodes, eta, second), [x, *x0s])
        x = renoise(x, s_noise * noise_std(sigma, sigma_next, eta), noise, sigma, sigma_next)
        yield Step(i, sigma, x, x0)


def dpmpp_3m(
    denoise: Denoise,
    x: Tensor,
    sigmas: Sigmas,
    noise: Noise = None,
    *,
    second: str | Rule = "midpoint",
    eta: float = 0.0,
    s_noise: float = 1.0,
    short: float = 15,
) -> Steps:
    """DPM-Solver++(3M) of order 3. The form that all programs have is of order 2: published.dpmpp_3m."""
    return dpmpp(denoise, x, sigmas, noise, order=3, second=second, eta=eta, s_noise=s_noise, short=short)


def dpmpp_2m_sde(
    denoise: Denoise,
    x: Tensor,
    sigmas: Sigmas,
    noise: Noise = None,
    *,
    second: str | Rule = "midpoint",
    eta: float = 1.0,
    s_noise: float = 1.0,
    short: float = 0,
) -> Steps:
    """DPM++ 2M SDE with k-diffusion's defaults; second="exact" is its "heun"."""
    return dpmpp(denoise, x, sigmas, noise, order=2, second=second, eta=eta, s_noise=s_noise, short=short)


def dpmpp_3m_sde(
    denoise: Denoise,
    x: Tensor,
    sigmas: Sigmas,
    noise: Noise = None,
    *,
    second: str | Rule = "exact",
    eta: float = 1.0,
    s_noise: float = 1.0,
    short: float = 0,
) -> Steps:
    """DPM++ 3M SDE with k-diffusion's defaults and the exact third moment. k-diffusion has half of it:
    published.dpmpp_3m_sde."""
    return dpmpp(denoise, x, sigmas, noise, order=3, second=second, eta=eta, s_noise=s_noise, short=short)


def res_multistep(denoise: Denoise, x: Tensor, sigmas: Sigmas, noise: Noise = None) -> Steps:
    """RES (arXiv 2308.02157), the same map as dpmpp_2m with exact weights."""
    return dpmpp(denoise, x, sigmas, noise, second="exact", short=0)


def res_multistep_ancestral(
    denoise: Denoise, x: Tensor, sigmas: Sigmas, noise: Noise = None, *, eta: float = 1.0, s_noise: float = 1.0
) -> Steps:
    """RES to a level below sigma_next, then noise up to it: see coefficients.ancestral."""
    previous = x
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        sigma_down, sigma_up = ancestral(sigma, sigma_next, eta)
        nodes = [0.0]
        if 0 < sigma_down < sigma and remembered(sigmas, i) > 1:
            nodes.append(log(sigma / sigmas[i - 1]) / log(sigma / sigma_down))
        x = weighted(exponential(sigma, sigma_down, nodes), [x, x0, previous])
        x = renoise(x, s_noise * sigma_up, noise, sigma, sigma_next)
        previous = x0
        yield Step(i, sigma, x, x0)


def dpm_solver(
    denoise: Denoise,
    x: Tensor,
    sigmas: Sigmas,
    noise: Noise = None,
    *,
    order: int = 2,
    second: str | Rule = "midpoint",
    eta: float = 0.0,
    short: float = 15,
) -> Steps:
    """DPM-Solver multistep of order 1 to 3, which integrates slopes (arXiv 2206.00927); options as in dpmpp."""
    check_order(order, 3)
    slopes = []
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        slopes = [(x - x0) / sigma, *slopes[: order - 1]]
        nodes = past_nodes(sigmas, i, usable_order(sigmas, i, order, short))
        weights = [(1 + eta**2) * w for w in slope_weights(sigma, sigma_next, nodes, second)]
        x = weighted([1.0, *weights], [x, *slopes])
        x = renoise(x, eta * sqrt(sigma**2 - sigma_next**2), noise, sigma, sigma_next)
        yield Step(i, sigma, x, x0)


def deis(
    denoise: Denoise, x: Tensor, sigmas: Sigmas, noise: Noise = None, *, order: int = 2, short: float = 15
) -> Steps:
    """DEIS with its polynomial in log rho (arXiv 2204.13902), the same map as dpm_solver with exact weights."""
    return dpm_solver(denoise, x, sigmas, noise, order=order, second="exact", short=short)


def er_sde(
    denoise: Denoise,
    x: Tensor,
    sigmas: Sigmas,
    noise: Noise = None,
    *,
    order: int = 3,
    s_noise: float = 1.0,
    scale: Callable[[float], float] | None = None,
    points: int = 200,
    moments: Callable[..., list[float]] | None = None,
) -> Steps:
    """ER-SDE-Solver (arXiv 2309.06169): reverse SDEs whose noise is set by a function of sigma, here `scale`.

    scale(sigma) = sigma has no noise. points: how many er_moments integrates over. moments: a function in its place.
    s_noise: scales the noise. Raises ValueError for another order.
    """
    check_order(order, 3)
    scale = scale or er_scale
    moments = moments or er_moments
    x0s = []
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        x0s = [x0, *x0s[: order - 1]]
        past = range(1, usable_order(sigmas, i, order))
        nodes = [0.0, *((sigmas[i - j] - sigma) / (sigma_next - sigma) for j in past)]
        kept = scale(sigma_next) / scale(sigma)
        weights = quadrature(nodes, moments(scale, sigma, sigma_next, nodes, points))
        x = weighted([kept, *weights], [x, *x0s])
        x = renoise(x, s_noise * sqrt(max(sigma_next**2 - (kept * sigma) ** 2, 0)), noise, sigma, sigma_next)
        yield Step(i, sigma, x, x0)


def er_scale(sigma: float) -> float:
    """The paper's `scale` for pictures."""
    return sigma * (exp(sigma**0.3) + 10)


def er_moments(
    scale: Callable[[float], float], sigma: float, sigma_next: float, nodes: Sequence[float], points: int
) -> list[float]:
    """Moments of the weight scale(sigma_next) scale'/scale^2 over the step, one for each node.

    Integrated by parts, which leaves integrals of u^(k-1) scale(sigma_next) / scale: sums over the middles of `points`
    equal intervals.
    """
    found = [1 - scale(sigma_next) / scale(sigma)]
    if len(nodes) == 1:
        return found
    us = [(j + 1 / 2) / points for j in range(points)]
    kernel = [scale(sigma_next) / scale(sigma + u * (sigma_next - sigma)) / points for u in us]
    for k in range(1, len(nodes)):
        found.append(1 - k * sum(w * u ** (k - 1) for w, u in zip(kernel, us)))
    return found
