"""Random numbers that belong to pictures, not to batches: one stream or one Brownian path each."""

from collections.abc import Sequence
from functools import reduce
from math import sqrt

import torch
from numpy.random import SeedSequence
from torch import Tensor

from .basics import Streams, white

__all__ = ["BrownianPath", "BrownianTree", "Streams", "brownian", "white"]


def brownian(streams: Streams, sigmas: Sequence[float]) -> "BrownianTree":
    """One Brownian path per picture, from the seeds of the streams, over the levels of a run."""
    smallest = min(sigma for sigma in sigmas if sigma > 0)
    return BrownianTree(streams.seeds, streams.shape, smallest, max(sigmas), streams.device)


class BrownianTree:
    """One Brownian motion over sigma per picture; its increments, scaled to unit variance, are the noise of a step.

    Noise over neighbouring intervals is independent and over overlapping ones is shared, so the path, and with it the
    picture, stays the same where a step is divided in two. The increments are torchsde's BrownianTree, bit for bit,
    in the use that k-diffusion makes of it: noise(sigma, sigma_next) is -(W(sigma) - W(sigma_next)) over the square
    root of sigma - sigma_next.

    seeds: one per picture. shape: of one picture, (c h w). sigma_min, sigma_max: the smallest level above 0 and the
    largest that will be asked for. The numbers are drawn on the CPU.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        shape: Sequence[int],
        sigma_min: float,
        sigma_max: float,
        device: torch.device | str = "cpu",
    ):
        self.paths = [BrownianPath(seed, shape, sigma_min, sigma_max) for seed in seeds]
        self.device = device

    def __call__(self, sigma: float, sigma_next: float) -> Tensor:
        """Unit Gaussian of the step from sigma to sigma_next: (b c h w) float32. ValueError outside the range."""
        a, b = sorted((sigma, sigma_next))
        increment = torch.stack([path.increment(a, b) for path in self.paths])
        return (increment * (1 if sigma < sigma_next else -1) / sqrt(b - a)).to(self.device)


class BrownianPath:
    """A Brownian motion of which every point can be asked for, in any order.

    The range is halved again and again; what the left half gains, given the gain of the whole, is Gaussian (a Brownian
    bridge), drawn from a seed that belongs to the place in the tree. Points are rounded to 6 digits, so the halving
    ends.
    """

    def __init__(self, seed: int, shape: Sequence[int], start: float, end: float):
        self.seed, self.shape = seed, tuple(shape)
        self.start, self.end = round(start, 6), round(end, 6)
        self.generator = torch.Generator()
        self.whole = self.draw() * sqrt(end - start)
        self.kept, self.used = {}, {}  # gains of left halves in the previous query and in this one

    def increment(self, a: float, b: float) -> Tensor:
        """W(b) - W(a) for a < b."""
        a, b = round(a, 6), round(b, 6)
        if not self.start <= a < b <= self.end:
            raise ValueError(f"noise between {a} and {b}: choose two levels from {self.start} to {self.end}")
        self.kept, self.used = self.used, {}
        gains = []
        self.cover(a, b, self.start, self.end, self.whole, key=0, depth=0, gains=gains)
        return reduce(torch.add, gains)

    def cover(
        self, a: float, b: float, left: float, right: float, gain: Tensor, key: int, depth: int, gains: list[Tensor]
    ) -> None:
        """Append the gains of the largest nodes of the tree that make up [a, b], from left to right."""
        if (a, b) == (left, right):
            gains.append(gain)
            return
        middle = round((left + right) / 2, 6)
        left_gain = self.bridge(left, middle, right, gain, key, depth)
        if a < middle:
            self.cover(a, min(b, middle), left, middle, left_gain, 2 * key, depth + 1, gains)
        if b > middle:
            self.cover(max(a, middle), b, middle, right, gain - left_gain, 2 * key + 1, depth + 1, gains)

    def bridge(self, left: float, middle: float, right: float, gain: Tensor, key: int, depth: int) -> Tensor:
        """What the left half gains: its share of the whole, and noise that vanishes at both ends."""
        node = key, depth
        if node not in self.kept:
            share, rest, reciprocal = middle - left, right - middle, 1 / (right - left)
            noise = self.draw(spawn_key=node).mul_(sqrt(share * rest * reciprocal))
            self.kept[node] = noise.add_((share * gain).mul_(reciprocal))
        self.used[node] = self.kept[node]
        return self.used[node]

    def draw(self, **place) -> Tensor:
        seed = SeedSequence(self.seed, pool_size=24, **place).generate_state(1)[0]
        return torch.randn(self.shape, generator=self.generator.manual_seed(int(seed)), dtype=torch.float32)
