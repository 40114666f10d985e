"""Random numbers that belong to pictures, not to batches: one stream or one Brownian path each."""

from collections.abc import Iterator, Sequence
from functools import reduce
from math import sqrt
from typing import NamedTuple

import torch
from numpy.random import SeedSequence
from torch import Tensor

from .basics import Streams
from .step import Sigmas

__all__ = ["BrownianPath", "BrownianTree", "Streams", "brownian"]


def brownian(streams: Streams, sigmas: Sigmas) -> "BrownianTree":
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
        """Unit Gaussian of the step from sigma to sigma_next, (b c h w) float32. ValueError outside the range."""
        low, high = sorted((sigma, sigma_next))
        increment = torch.stack([path.increment(low, high) for path in self.paths])
        if sigma_next < sigma:
            increment = -increment
        return (increment / sqrt(high - low)).to(self.device)


class Node(NamedTuple):
    """A part of the range: what the path gains over it, and its place in the tree, (number from the left, depth)."""

    left: float
    right: float
    gain: Tensor
    place: tuple[int, int]


class BrownianPath:
    """A Brownian motion of which every point can be asked for, in any order.

    The range is halved again and again; what the left half gains, given the gain of the whole, is Gaussian (a Brownian
    bridge), drawn from a seed that belongs to the place in the tree. Points are rounded to 6 digits, so the halving
    ends.

    seed: of the picture. shape: of the picture, (c h w). start, end: the range, the smallest and the largest level.
    """

    def __init__(self, seed: int, shape: Sequence[int], start: float, end: float):
        self.seed = seed
        self.shape = tuple(shape)
        self.generator = torch.Generator()
        gain = self.draw() * sqrt(end - start)
        self.whole = Node(round(start, 6), round(end, 6), gain, place=(0, 0))
        # Gains of left halves in the previous query and in this one.
        self.known: dict[tuple[int, int], Tensor] = {}
        self.used: dict[tuple[int, int], Tensor] = {}

    def increment(self, a: float, b: float) -> Tensor:
        """W(b) - W(a) for a < b: (c h w) float32. Raises ValueError outside the range."""
        a = round(a, 6)
        b = round(b, 6)
        low = self.whole.left
        high = self.whole.right
        if not low <= a < b <= high:
            raise ValueError(f"noise between {a} and {b}: choose two levels from {low} to {high}")
        self.known = self.used
        self.used = {}
        return reduce(torch.add, self.cover(a, b, self.whole))

    def cover(self, a: float, b: float, node: Node) -> Iterator[Tensor]:
        """The gains of the largest nodes of the tree that make up [a, b], from left to right."""
        if (a, b) == (node.left, node.right):
            yield node.gain
            return
        middle = round((node.left + node.right) / 2, 6)
        key, depth = node.place
        gain = self.bridge(node, middle)
        if a < middle:
            yield from self.cover(a, min(b, middle), Node(node.left, middle, gain, (2 * key, depth + 1)))
        if b > middle:
            right = Node(middle, node.right, node.gain - gain, (2 * key + 1, depth + 1))
            yield from self.cover(max(a, middle), b, right)

    def bridge(self, node: Node, middle: float) -> Tensor:
        """What the left half gains: its share of the whole, and noise that vanishes at both ends."""
        if node.place not in self.known:
            share = middle - node.left
            rest = node.right - middle
            reciprocal = 1 / (node.right - node.left)
            noise = self.draw(node.place).mul_(sqrt(share * rest * reciprocal))
            self.known[node.place] = noise.add_((share * node.gain).mul_(reciprocal))
        self.used[node.place] = self.known[node.place]
        return self.used[node.place]

    def draw(self, place: tuple[int, int] | tuple[()] = ()) -> Tensor:
        """The unit Gaussian (c h w) that belongs to a place in the tree; () is the gain over the whole range."""
        seed = SeedSequence(self.seed, spawn_key=place, pool_size=24).generate_state(1)[0]
        return torch.randn(
            self.shape, generator=self.generator.manual_seed(int(seed)), dtype=torch.float32, device="cpu"
        )
