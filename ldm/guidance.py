"""Guidance: functions from a network to a network.

Before guidance a network is the UNet, or any network(x, t, context, vector) -> output; after it a network(x, t) ->
output, or one whose strength depends on sigma (samplers.basics.Guided). Outputs are eps, v or x0.
"""

from collections.abc import Callable, Sequence
from inspect import signature
from math import inf, isfinite
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from samplers.basics import Guided, Network

from .conditioning import Conditioning

UNetLike = Callable[..., Tensor]  # (x, t, context, vector) -> output
Scale = Callable[[float], float]  # sigma -> the strength of guidance
Make = Callable[[UNetLike, Conditioning, Conditioning], Network | Guided]
Guidance = float | Sequence[float] | Scale | Make


def condition(network: UNetLike, cond: Conditioning) -> Network:
    """The network with its conditioning filled in, run in the dtype of that conditioning."""
    return lambda x, t: network(x.to(cond.context.dtype), t, cond.context, cond.vector)


class ClassifierFree:
    """Classifier-free guidance (arXiv 2207.12598): away from the unconditional output, both in one batch.

    scale: its strength, a function of sigma. Where it is 1 the conditional half alone runs.
    """

    def __init__(self, network: UNetLike, cond: Conditioning, uncond: Conditioning, scale: Scale):
        self.given = condition(network, cond)
        self.both = condition(network, Conditioning.cat(uncond, cond))
        self.scale = scale

    def at(self, sigma: float) -> Network:
        scale = self.scale(sigma)
        return self.given if scale == 1 else lambda x, t: self.halves(x, t, scale)[0]

    def pair_at(self, sigma: float) -> Network:
        """Both outputs that CFG++ needs (arXiv 2406.08070): with guidance and without the prompt, (2 b c h w)."""
        scale = self.scale(sigma)
        return lambda x, t: torch.stack(self.halves(x, t, scale))

    def halves(self, x: Tensor, t: float, scale: float) -> tuple[Tensor, Tensor]:
        without, given = self.both(torch.cat([x, x]), t).chunk(2)
        return without + scale * (given - without), without


def classifier_free(
    network: UNetLike, cond: Conditioning, uncond: Conditioning, scale: float | Scale
) -> ClassifierFree:
    """Classifier-free guidance of a constant strength, or of one that is a function of sigma."""
    if isinstance(scale, int | float):
        return ClassifierFree(network, cond, uncond, lambda sigma: scale)
    return ClassifierFree(network, cond, uncond, scale)


def guide(network: UNetLike, cond: Conditioning, uncond: Conditioning, guidance: Guidance,
          sigmas: Sequence[float], off: float = 1.0) -> Network | Guided:  # fmt: skip
    """The network with its guidance: a number, which means none if it is at most `off`, or what `guide_by` takes."""
    if not isinstance(guidance, Real) or not isfinite(guidance):
        return guide_by(network, cond, uncond, guidance, sigmas)
    if guidance <= off:
        return condition(network, cond)
    return ClassifierFree(network, cond, uncond, lambda sigma: float(guidance))


def guide_by(
    network: UNetLike, cond: Conditioning, uncond: Conditioning, guidance: Any, sigmas: Sequence[float]
) -> Network | Guided:
    """The network with guidance that is one number for each step between the sigmas; a function of sigma; or a function
    (network, cond, uncond) -> network. Raises TypeError or ValueError, which name the argument, for anything else."""
    if isinstance(guidance, Real):
        raise ValueError(f"guidance {guidance}: must be a number; 1 or less means off")
    if not callable(guidance):
        return ClassifierFree(network, cond, uncond, one_per_step(guidance, sigmas))
    if takes(guidance, 3):
        return guidance(network, cond, uncond)
    return ClassifierFree(network, cond, uncond, guidance)


def takes(function: Callable[..., Any], count: int) -> bool:
    """Whether a function can be called with so many arguments."""
    try:
        signature(function).bind(*range(count))
    except TypeError:
        return False
    return True


def one_per_step(guidance: Any, sigmas: Sequence[float]) -> Scale:
    """A function of sigma from one number per step: that of the step which begins at the level or passes it."""
    wanted = "give a number, one number per step, a function of sigma, or one of (network, cond, uncond)"
    try:
        scales = [float(scale) for scale in guidance]
    except (TypeError, ValueError):
        raise TypeError(f"guidance {guidance!r}: {wanted}") from None
    if len(scales) != len(sigmas) - 1 or not all(map(isfinite, scales)):
        raise ValueError(f"guidance {guidance!r}: {len(sigmas) - 1} steps take as many numbers; {wanted}")
    starts = [*sigmas[1:-1], -inf]  # the level at which each step but the first begins

    def scale(sigma: float) -> float:
        step = sum(1 for start in starts if start >= sigma)
        return scales[step]

    return scale
