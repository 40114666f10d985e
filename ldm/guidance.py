"""Guidance: functions from a network to a network. A network is any (x, t) -> output; outputs are eps or v."""

from collections.abc import Callable

import torch
from torch import Tensor

from .conditioning import Conditioning
from .unet import UNet

Network = Callable[[Tensor, Tensor | float], Tensor]


def condition(unet: UNet, cond: Conditioning) -> Network:
    """The UNet with its conditioning filled in, run in the dtype of that conditioning."""
    return lambda x, t: unet(x.to(cond.context.dtype), t, cond.context, cond.vector)


def classifier_free(unet: UNet, cond: Conditioning, uncond: Conditioning, scale: float) -> Network:
    """Classifier-free guidance (arXiv 2207.12598): away from the unconditional output, both in one batch."""
    both = condition(unet, Conditioning.cat(uncond, cond))

    def guided(x: Tensor, t: Tensor | float) -> Tensor:
        without, given = both(torch.cat([x, x]), t).chunk(2)
        return without + scale * (given - without)

    return guided
