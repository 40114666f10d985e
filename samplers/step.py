"""What every sampler yields, and the tensor operations that samplers are made of."""

from collections.abc import Callable, Iterator, Sequence
from math import inf, sqrt
from typing import NamedTuple

from torch import Tensor

Sigmas = Sequence[float]  # noise levels, decreasing
Noise = Callable[[float, float], Tensor] | None  # (sigma, sigma_next) -> a unit Gaussian like x, for that step


class Step(NamedTuple):
    """Step i began at noise level sigma. x is the noisy picture at its end, x0 the clean estimate that led there, both
    (b c h w).

    The caller of a sampler may write into x before the next step: the sampler goes on from what x then holds.
    """

    i: int
    sigma: float
    x: Tensor
    x0: Tensor


Steps = Iterator[Step]  # what a sampler is


def weighted(weights: Sequence[float], tensors: Sequence[Tensor]) -> Tensor:
    """The sum of weights[k] * tensors[k], in one pass over memory for each k. Tensors beyond the last weight are left
    out."""
    total = tensors[0] * weights[0]
    for weight, tensor in zip(weights[1:], tensors[1:]):
        total = total.add_(tensor, alpha=weight)  # in place: nobody else holds it
    return total


def renoise(x: Tensor, std: float, noise: Noise, sigma: float, sigma_next: float) -> Tensor:
    """x with new noise of standard deviation `std`; 0 draws nothing. Raises ValueError without a source of noise."""
    if std == 0:
        return x
    return x.add(draw(noise, sigma, sigma_next), alpha=std)


def draw(noise: Noise, sigma: float, sigma_next: float) -> Tensor:
    """The noise of a step. Raises ValueError without a source of it."""
    if noise is None:
        raise ValueError("noise is asked for and none was given: pass samplers.noise.Streams, or no eta and no churn")
    return noise(sigma, sigma_next)


def churn(
    x: Tensor,
    sigma: float,
    steps: int,
    noise: Noise,
    *,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = inf,
    s_noise: float = 1.0,
) -> tuple[Tensor, float]:
    """x with new noise, and the higher level at which it then is (arXiv 2206.00364, algorithm 2).

    s_churn: how much in all, shared among the `steps`. s_tmin, s_tmax: the levels between which noise is added.
    s_noise: scales the noise; with 1 it is as much as the level rises. Raises ValueError without a source of noise.
    """
    if s_churn == 0 or not s_tmin <= sigma <= s_tmax:
        return x, sigma
    higher = sigma * (1 + min(s_churn / steps, sqrt(2) - 1))
    return renoise(x, s_noise * sqrt(higher**2 - sigma**2), noise, higher, sigma), higher
