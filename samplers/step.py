"""What every sampler yields, and the tensor operations that they are made of."""

from collections.abc import Callable, Sequence
from math import sqrt
from typing import NamedTuple

from torch import Tensor


class Step(NamedTuple):
    """Step i left noise level sigma: x is the new noisy picture, x0 the clean estimate that led there (b c h w)."""

    i: int
    sigma: float
    x: Tensor
    x0: Tensor


def weighted(weights: Sequence[float], tensors: Sequence[Tensor]) -> Tensor:
    """The sum of weights[k] * tensors[k], with one pass over memory for each."""
    total = tensors[0] * weights[0]
    for weight, tensor in zip(weights[1:], tensors[1:]):
        total = total.add_(tensor, alpha=weight)  # in place: nobody else holds it
    return total


def stir(x: Tensor, up: float, noise: Callable[[float, float], Tensor] | None, sigma: float, lower: float) -> Tensor:
    """x with fresh noise of deviation `up`; 0 draws nothing. Raises ValueError without a source of noise."""
    if up == 0:
        return x
    if noise is None:
        raise ValueError("noise is asked for and none was given: pass samplers.noise.Streams, or no eta and no churn")
    return x.add(noise(sigma, lower), alpha=up)


def relabelled(x: Tensor, level: float, label: float) -> Tensor:
    """What a sampler that scales x to unit variance takes x at `level` for, if it is told that the level is `label`."""
    return x if level == label else x * sqrt((1 + label**2) / (1 + level**2))
