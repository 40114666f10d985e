"""Data with a known answer: a mixture of round Gaussians, whose denoiser is a formula, and a distance to it.

For experiments with samplers: there is no network whose mistakes could be mixed up with the sampler's.
"""

from dataclasses import dataclass
from math import pi

import torch
from torch import Tensor


@dataclass(frozen=True)
class Mixture:
    """Points of c coordinates: Gaussian k has centre (c), deviation and share (k), all in float64."""

    centres: Tensor
    spreads: Tensor
    shares: Tensor

    def denoise(self, x: Tensor, sigma: float) -> Tensor:
        """x0 for x (b c h w), where each pixel is a point: the mean of the clean points that it may come from."""
        points = x.movedim(1, -1)[..., None, :]  # (b h w 1 c)
        variance = self.spreads**2 + sigma**2  # (k)
        away = points - self.centres  # (b h w k c)
        fit = self.shares.log() - self.centres.shape[1] / 2 * variance.log() - (away**2).sum(-1) / (2 * variance)
        guess = self.centres + away * (self.spreads**2 / variance)[:, None]  # if it is of Gaussian k
        return (torch.softmax(fit, dim=-1)[..., None] * guess).sum(-2).movedim(-1, 1)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Points (n c)."""
        which = torch.multinomial(self.shares, count, replacement=True, generator=generator)
        unit = torch.randn(count, self.centres.shape[1], generator=generator, dtype=self.centres.dtype)
        return self.centres[which] + self.spreads[which, None] * unit


FIVE = Mixture(
    torch.tensor([(-1.1, -0.7), (1.2, -0.5), (0.1, 1.2), (0.9, 0.6), (-0.7, 0.8)], dtype=torch.float64),
    torch.tensor([0.25, 0.35, 0.15, 0.2, 0.3], dtype=torch.float64),
    torch.tensor([0.3, 0.25, 0.2, 0.15, 0.1], dtype=torch.float64),
)


def sliced_wasserstein(a: Tensor, b: Tensor, directions: int = 64) -> float:
    """Distance of two sets of points (n 2), as many in each: root mean square over directions (arXiv 1902.00434)."""
    angles = torch.arange(directions, dtype=a.dtype) * (pi / directions)
    lines = torch.stack([angles.cos(), angles.sin()])
    return ((a @ lines).sort(0).values - (b @ lines).sort(0).values).square().mean().sqrt().item()
