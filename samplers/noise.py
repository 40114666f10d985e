"""Random numbers that belong to pictures, not to batches."""

from collections.abc import Sequence

import torch
from torch import Tensor


class Streams:
    """One CPU generator per picture: picture k gets the same bits alone, in any batch and on any device.

    seeds: one per picture, 0 .. 2**64 - 1. shape: of one picture, (c h w).
    """

    def __init__(self, seeds: Sequence[int], shape: Sequence[int], device: torch.device | str = "cpu"):
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.shape, self.device = tuple(shape), device

    def draw(self) -> Tensor:
        """The next unit Gaussian of every stream: (b c h w) float32."""
        return torch.stack([torch.randn(self.shape, generator=g) for g in self.generators]).to(self.device)

    def __call__(self, sigma: float, lower: float) -> Tensor:
        """As samplers ask for it; white noise does not depend on the levels of the step."""
        return self.draw()
