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
    both = guided_and_free(unet, cond, uncond, scale)
    return lambda x, t: both(x, t)[0]


def guided_and_free(unet: UNet, cond: Conditioning, uncond: Conditioning, scale: float) -> Network:
    """Both outputs that CFG++ needs (arXiv 2406.08070): with guidance and without the prompt, (2 b c h w)."""
    both = condition(unet, Conditioning.cat(uncond, cond))

    def guided(x: Tensor, t: Tensor | float) -> Tensor:
        without, given = both(torch.cat([x, x]), t).chunk(2)
        return torch.stack([without + scale * (given - without), without])

    return guided
