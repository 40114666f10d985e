"""Guidance: functions from a network to a network.

What goes in is the UNet, or any network(x, t, context, vector) -> output. What comes out is a network(x, t) -> output,
or a samplers.basics.Guided, whose strength may depend on sigma. x and outputs are (b c h w); outputs are eps, v or x0.
"""

from collections.abc import Callable, Sequence
from math import inf, isfinite
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from samplers.basics import Guided, Network
from samplers.options import as_number, as_numbers, show, takes

from .conditioning import Conditioning

UNetLike = Callable[..., Tensor]  # (x, t, context, vector) -> output
Scale = Callable[[float], float]  # sigma -> the strength of guidance
Make = Callable[[UNetLike, Conditioning, Conditioning], Network | Guided]  # (network, cond, uncond) -> guided network
Guidance = float | Sequence[float] | Scale | Make


def condition(network: UNetLike, cond: Conditioning) -> Network:
    """The network with its conditioning filled in, run in the dtype of that conditioning."""
    return lambda x, t: network(x.to(cond.context.dtype), t, cond.context, cond.vector)


class ClassifierFree:
    """Classifier-free guidance (arXiv 2207.12598): away from the unconditional output, both in one batch.

    scale: its strength, a function of sigma. Where it is 1 the conditional half alone runs.
    """

    def __init__(self, network: UNetLike, cond: Conditioning, uncond: Conditioning, scale: Scale):
        self.conditional = condition(network, cond)
        self.both = condition(network, Conditioning.cat(uncond, cond))
        self.scale = scale

    def at(self, sigma: float) -> Network:
        scale = self.scale(sigma)
        return self.conditional if scale == 1 else lambda x, t: self.guided_and_unguided(x, t, scale)[0]

    def pair_at(self, sigma: float) -> Network:
        """Both outputs that CFG++ needs (arXiv 2406.08070): with guidance and without the prompt, (2 b c h w)."""
        scale = self.scale(sigma)
        return lambda x, t: torch.stack(self.guided_and_unguided(x, t, scale))

    def guided_and_unguided(self, x: Tensor, t: float, scale: float) -> tuple[Tensor, Tensor]:
        uncond, cond = self.both(torch.cat([x, x]), t).chunk(2)
        return uncond + scale * (cond - uncond), uncond


def classifier_free(
    network: UNetLike, cond: Conditioning, uncond: Conditioning, scale: float | Scale
) -> ClassifierFree:
    """Classifier-free guidance of a constant strength, or of one that is a function of sigma. Raises TypeError for
    anything else."""
    return ClassifierFree(network, cond, uncond, as_scale(scale))


def as_scale(scale: Any) -> Scale:
    """The strength as a function of sigma, constant for a number. Raises TypeError for anything else."""
    if callable(scale):
        return scale
    number = as_number(scale)
    return lambda sigma: number


def guide(network: UNetLike, cond: Conditioning, uncond: Conditioning, guidance: Guidance,
          sigmas: Sequence[float], off: float = 1.0) -> Network | Guided:  # fmt: skip
    """The network with its guidance: a number, which means none if it is at most `off`, or what `guide_by` takes."""
    if isinstance(guidance, bool) or not isinstance(guidance, Real) or not isfinite(guidance):
        return guide_by(network, cond, uncond, guidance, sigmas, off)
    if guidance <= off:
        return condition(network, cond)
    return ClassifierFree(network, cond, uncond, lambda sigma: float(guidance))


WANTED = "give a number, one number per step, a function of sigma, or one of (network, cond, uncond)"


def guide_by(
    network: UNetLike, cond: Conditioning, uncond: Conditioning, guidance: Any, sigmas: Sequence[float], off: float
) -> Network | Guided:
    """The network with guidance that is one number for each step between the sigmas; a function of sigma; or a function
    (network, cond, uncond) -> network. Raises TypeError or ValueError, which name the argument, for anything else."""
    if isinstance(guidance, bool):
        raise TypeError(f"guidance {guidance}: {WANTED}")
    if isinstance(guidance, Real):
        raise ValueError(f"guidance {guidance}: must be a number that is finite")
    # A tensor or an array without axes is one number.
    if getattr(guidance, "ndim", None) == 0 and not isinstance(guidance, str | bytes):
        return guide(network, cond, uncond, guidance.item(), sigmas, off)
    if not callable(guidance):
        scale = one_per_step(guidance, sigmas)
    elif takes(guidance, 1):
        scale = guidance
    elif takes(guidance, 3):
        return checked_network(guidance, guidance(network, cond, uncond))
    else:
        raise TypeError(f"guidance {show(guidance)}: {WANTED}")
    return ClassifierFree(network, cond, uncond, checked_scale(guidance, scale, off))


def checked_network(guidance: Make, made: Any) -> Network | Guided:
    """What the caller's function made. Raises TypeError unless it is a network or Guided."""
    if not callable(made) and not callable(getattr(made, "at", None)):
        raise TypeError(f"guidance {show(guidance)} made {show(made)}: a network (x, t) -> output is expected")
    return made


def checked_scale(guidance: Any, scale: Scale, off: float) -> Scale:
    """The function of sigma, with its values checked. A value of at most `off` becomes 1: it means no guidance, as one
    number for the run does. The result raises TypeError for what is no number, ValueError if it is not finite."""

    def checked(sigma: float) -> float:
        found = scale(sigma)
        try:
            value = as_number(found)
        except TypeError:
            expected = "a number is expected; a function that makes a network names its three arguments"
            raise TypeError(f"guidance {show(guidance)} gave {show(found)} at sigma {sigma:g}: {expected}") from None
        if not isfinite(value):
            raise ValueError(f"guidance {show(guidance)} gave {value} at sigma {sigma:g}: must be finite")
        return value if value > off else 1.0

    return checked


def one_per_step(guidance: Any, sigmas: Sequence[float]) -> Scale:
    """A function of sigma from one number per step: the number of the step that begins at sigma or passes it. Raises
    TypeError for what is no list of numbers, ValueError unless all are finite and as many as the steps."""
    try:
        scales = as_numbers(guidance)
    except TypeError:
        raise TypeError(f"guidance {show(guidance)}: {WANTED}") from None
    if len(scales) != len(sigmas) - 1:
        raise ValueError(f"guidance {show(guidance)}: {len(sigmas) - 1} steps take as many numbers; {WANTED}")
    if not all(map(isfinite, scales)):
        raise ValueError(f"guidance {show(guidance)}: every number must be finite")
    starts = [*sigmas[1:-1], -inf]  # the level at which each step but the first begins

    def scale(sigma: float) -> float:
        begun = sum(1 for start in starts if start >= sigma)  # steps after the first that have begun at this level
        return scales[begun]

    return scale
