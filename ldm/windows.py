"""MultiDiffusion (arXiv 2302.08113): a picture larger than a model was trained for, from windows of the usual size.

Each window is drawn as if it were a picture, and where windows overlap, the mean of what they say is taken in every
evaluation of the network. What the prompt names appears in each of them: this is for landscapes, not for portraits.

`windowed` makes a network from a network, which any task takes as its `network`; `Windows` makes a denoiser from a
denoiser. They are the same map, unless guidance is not linear in the network's outputs: a rescaled guidance then looks
at the whole picture with the first, and at each window with the second.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from samplers.basics import Levels
from samplers.cfg_pp import both_estimates

from .guidance import UNetLike

WEIGHTS = ("uniform", "gaussian")


@dataclass(frozen=True)
class Grid:
    """size: the height and width of a window in latents. stride: from one to the next; the last lies at the edge,
    wherever that is. weights: of the pixels in a window, "uniform" as MultiDiffusion has them, or "gaussian" as Mixture
    of Diffusers (arXiv 2302.02412), which hides seams but leaves less room between the centers. Raises ValueError for
    windows that leave gaps."""

    size: int = 64
    stride: int = 8
    weights: str = "uniform"

    def __post_init__(self):
        if self.size < 1:
            raise ValueError(f"window {self.size}: at least 1 latent is needed, such as 64")
        if not 1 <= self.stride <= self.size:
            raise ValueError(f"stride {self.stride}: choose from 1 to the window's {self.size} latents")
        if self.weights not in WEIGHTS:
            raise ValueError(f"weights {self.weights!r}: choose one of {', '.join(WEIGHTS)}")

    def starts(self, length: int) -> list[int]:
        """Where the windows begin along a side of so many latents."""
        last = max(length - self.size, 0)
        return [*range(0, last, self.stride), last]

    def weigh(self, like: Tensor) -> Tensor:
        """The weights (h w) of the pixels in a window (b c h w), in float32 or float64."""
        dtype = torch.promote_types(like.dtype, torch.float32)
        sides = [torch.ones(n, dtype=dtype, device=like.device) for n in like.shape[2:]]
        if self.weights == "gaussian":
            sides = [bell(side) for side in sides]
        return torch.outer(*sides)

    def mean(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """The weighted mean of function(window) over all windows of x (b c h w)."""
        if max(x.shape[2:]) <= self.size:
            return function(x)
        total: Tensor | None = None
        count = x.new_zeros(x.shape[2:], dtype=torch.promote_types(x.dtype, torch.float32))
        for top in self.starts(x.shape[2]):
            for left in self.starts(x.shape[3]):
                rows = slice(top, top + self.size)
                columns = slice(left, left + self.size)
                value = function(x[:, :, rows, columns])
                weight = self.weigh(value)
                if total is None:
                    total = count.new_zeros(*value.shape[:2], *x.shape[2:])
                total[:, :, rows, columns] += weight * value
                count[rows, columns] += weight
        assert total is not None  # every side has a window
        return (total / count).to(x.dtype)


def bell(ones: Tensor) -> Tensor:
    """A Gaussian about the middle, whose standard deviation is a tenth of the length."""
    n = len(ones)
    place = torch.arange(n, dtype=ones.dtype, device=ones.device) - (n - 1) / 2
    return torch.exp(-0.5 * (place / (0.1 * n)).square())


@dataclass(frozen=True)
class Windows:
    """A denoiser whose estimate is the mean of those of the windows: `blend.around(run, lambda d: Windows(d, grid))`.

    The wrapper that is put around a plan last is the innermost. To keep a part of the picture too, put the `Keep`
    around it first.
    """

    denoise: Any  # a Denoiser, or any function (x, sigma) -> x0
    grid: Grid = Grid()

    @property
    def levels(self) -> Levels | None:
        """Those of the denoiser, which some samplers ask for."""
        return getattr(self.denoise, "levels", None)

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        return self.grid.mean(lambda window: self.denoise(window, sigma), x)

    def pair(self, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        """Both estimates of CFG++."""
        both = self.grid.mean(lambda window: torch.cat(both_estimates(self.denoise, window, sigma), dim=1), x)
        guided, unguided = both.chunk(2, dim=1)
        return guided, unguided


def windowed(network: UNetLike, grid: Grid = Grid()) -> UNetLike:
    """The network on the windows of its input, in a run of any task: `network=windowed(model.unet, grid)`."""

    def run(x: Tensor, t: float, context: Tensor, vector: Tensor | None = None) -> Tensor:
        return grid.mean(lambda window: network(window, t, context, vector), x)

    return run
