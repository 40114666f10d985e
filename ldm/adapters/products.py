"""Adapters that multiply a weight instead of adding to it. (IA)^3, arXiv 2205.05638; OFT, 2306.07280; BOFT, 2311.06243;
all in the forms of LyCORIS, 2309.14859 (github.com/KohakuBlueleaf/LyCORIS), and of kohya-ss/sd-scripts.

Shapes: o, i output and input channels; k blocks of size n, o = k n. apply(weight, strength) is the changed weight, in
the dtype and on the device of `weight`. Every factor goes `strength` of the way from the identity to itself, so 0
leaves the weight as it is, and 1 multiplies by the whole.
"""

from dataclasses import dataclass
from math import isqrt, prod

import torch
from einops import einsum, rearrange
from torch import Tensor

EPSILON = 1e-8  # beside the norm of OFT's constraint, in both programs


@dataclass(frozen=True)
class IA3:
    """W (1 + factor): the factors (o) scale the outputs, or with on_input (i) the inputs. Of a bias too."""

    factor: Tensor
    on_input: bool

    def __post_init__(self):
        if self.factor.ndim != 1:
            raise ValueError(f"factors of the shape {tuple(self.factor.shape)} are no vector")

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.factor.shape)

    def fits(self, weight: tuple[int, ...]) -> bool:
        axis = 1 if self.on_input else 0
        return len(weight) > axis and self.shape == (weight[axis],)

    def apply(self, weight: Tensor, strength: float) -> Tensor:
        axes = weight.ndim - 1
        if self.on_input:
            axes = weight.ndim - 2
        factor = self.factor.to(weight).reshape(-1, *[1] * axes)
        return weight * (1 + strength * factor)


@dataclass(frozen=True)
class OFT:
    """Each block of n outputs is rotated: W'_k = R_k^T W_k, with R = (I + Q) (I - Q)^-1 and Q = blocks - blocks^T.

    blocks (k n n). alpha bounds the rotation: the norm of Q over all blocks is at most alpha * o; 0 sets no bound.
    rescale (o) then scales the outputs. LyCORIS' diag-oft since 2.1. Its strength leaves `rescale` whole, ours does
    not.
    """

    blocks: Tensor
    alpha: float = 0.0
    rescale: Tensor | None = None

    def __post_init__(self):
        check_blocks(self.blocks, self.rescale, axes=3)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.blocks.shape)

    def fits(self, weight: tuple[int, ...]) -> bool:
        return len(weight) > 1 and outputs(self.blocks) == weight[0]

    def rotations(self, like: Tensor) -> Tensor:
        skew = skew_symmetric(self.blocks.to(like))
        return cayley(bounded(skew, self.alpha * outputs(self.blocks)))

    def apply(self, weight: Tensor, strength: float) -> Tensor:
        turns = partly(self.rotations(weight), strength)
        parts = rearrange(weight, "(k n) ... -> k n ...", k=len(turns))
        turned = rearrange(einsum(turns, parts, "k n m, k n ... -> k m ..."), "k m ... -> (k m) ...")
        return rescaled(turned, self.rescale, strength)


@dataclass(frozen=True)
class KohyaOFT(OFT):
    """kohya's, the same but for where the epsilon of its bound stands."""

    def rotations(self, like: Tensor) -> Tensor:
        skew = skew_symmetric(self.blocks.to(like))
        limit = self.alpha * outputs(self.blocks)
        norm = torch.linalg.vector_norm(skew)
        return cayley(skew * ((norm.clamp(max=limit) + EPSILON) / (norm + EPSILON)))


@dataclass(frozen=True)
class OFTDiag(OFT):
    """LyCORIS' diag-oft before 2.1 stored R itself, with its rescaling."""

    def rotations(self, like: Tensor) -> Tensor:
        return self.blocks.to(like)


@dataclass(frozen=True)
class BOFT:
    """A butterfly of rotations: m stages, W <- R_k W_k, whose blocks join outputs that lie 2^stage * n / 2 apart.

    blocks (m k n n); R, alpha and rescale as in OFT, one bound for all stages. Note R here, and R^T in OFT: so LyCORIS.
    """

    blocks: Tensor
    alpha: float = 0.0
    rescale: Tensor | None = None

    def __post_init__(self):
        check_blocks(self.blocks, self.rescale, axes=4)
        stages, count, size, _ = self.blocks.shape
        if size % 2 or stages > count.bit_length() or count % 2 ** (stages - 1):
            raise ValueError(f"blocks of the shape {self.shape} are no butterfly")

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.blocks.shape)

    def fits(self, weight: tuple[int, ...]) -> bool:
        return len(weight) > 1 and outputs(self.blocks) == weight[0]

    def apply(self, weight: Tensor, strength: float) -> Tensor:
        skew = skew_symmetric(self.blocks.to(weight))
        turns = partly(cayley(bounded(skew, self.alpha * outputs(self.blocks))), strength)
        size = turns.shape[-1]
        for stage, turn in enumerate(turns):
            apart = 2**stage * size // 2
            mixed = rearrange(weight, "(c two a) ... -> (c a two) ...", two=2, a=apart)
            parts = rearrange(mixed, "(k n) ... -> k n ...", n=size)
            turned = rearrange(einsum(turn, parts, "k m n, k n ... -> k m ..."), "k m ... -> (k m) ...")
            weight = rearrange(turned, "(c a two) ... -> (c two a) ...", two=2, a=apart)
        return rescaled(weight, self.rescale, strength)


@dataclass(frozen=True)
class InputOFT:
    """The inputs are rotated in blocks of n: W' = W R^T. peft's OFT since 0.18, of linear layers and 1x1 convolutions.

    triangles (k n(n-1)/2): what lies above the diagonal of each Q = -Q^T, row by row; one block may stand for all.
    R is the first terms of a series, (I + Q) (I + Q + Q^2 + Q^3), or, where is_exact, (I - Q) (I + Q)^-1.
    """

    triangles: Tensor
    is_exact: bool = False

    def __post_init__(self):
        shape = tuple(self.triangles.shape)
        if len(shape) != 2 or prod(shape) == 0 or self.size * (self.size - 1) != 2 * shape[1]:
            raise ValueError(f"a tensor of the shape {shape} holds no triangles of square matrices")

    @property
    def size(self) -> int:
        """n"""
        return (1 + isqrt(1 + 8 * self.triangles.shape[-1])) // 2

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.triangles), self.size, self.size)

    def fits(self, weight: tuple[int, ...]) -> bool:
        return len(weight) > 1 and prod(weight[2:]) == 1 and self.fits_inputs(prod(weight[1:]))

    def fits_inputs(self, inputs: int) -> bool:
        if len(self.triangles) == 1:
            return inputs % self.size == 0
        return inputs == len(self.triangles) * self.size

    def rotations(self, like: Tensor) -> Tensor:
        """R (k n n)."""
        rows, columns = torch.triu_indices(self.size, self.size, 1, device=like.device)
        upper = like.new_zeros(self.shape)
        upper[:, rows, columns] = self.triangles.to(like)
        skew = upper - upper.mT
        identity = torch.eye(self.size, dtype=like.dtype, device=like.device)
        if self.is_exact:
            return cayley(-skew)
        return (identity + skew) @ (identity + skew + skew @ skew + skew @ skew @ skew)

    def apply(self, weight: Tensor, strength: float) -> Tensor:
        turns = partly(self.rotations(weight), strength)
        parts = rearrange(weight.flatten(1), "o (k n) -> o k n", n=self.size)
        turns = turns.expand(parts.shape[1], -1, -1)
        return einsum(turns, parts, "k n m, o k m -> o k n").reshape(weight.shape)


@dataclass(frozen=True)
class OneTrainerOFT(InputOFT):
    """OneTrainer's: in linear layers W R^T as peft, in convolutions W R, whose inputs are (i h w)."""

    def fits(self, weight: tuple[int, ...]) -> bool:
        return len(weight) > 1 and self.fits_inputs(prod(weight[1:]))

    def rotations(self, like: Tensor) -> Tensor:
        turns = super().rotations(like)
        return turns.mT if like.ndim == 4 else turns


def check_blocks(blocks: Tensor, rescale: Tensor | None, axes: int) -> None:
    """ValueError unless the blocks are square and there is a scale for each output."""
    shape = tuple(blocks.shape)
    if len(shape) != axes or shape[-1] != shape[-2] or prod(shape) == 0:
        raise ValueError(f"blocks of the shape {shape} are no square matrices")
    if rescale is not None and tuple(rescale.shape) != (outputs(blocks),):
        raise ValueError(f"rescale of the shape {tuple(rescale.shape)} is not of {outputs(blocks)} outputs")


def outputs(blocks: Tensor) -> int:
    """How many the blocks (... k n n) rotate."""
    return blocks.shape[-3] * blocks.shape[-1]


def skew_symmetric(blocks: Tensor) -> Tensor:
    return blocks - blocks.mT


def bounded(skew: Tensor, limit: float) -> Tensor:
    """Matrices whose norm, over all of them, is at most the limit; 0 is none."""
    norm = torch.linalg.vector_norm(skew) + EPSILON
    if limit <= 0 or norm <= limit:
        return skew
    return skew * limit / norm


def cayley(skew: Tensor) -> Tensor:
    """(I + Q) (I - Q)^-1, a rotation."""
    identity = torch.eye(skew.shape[-1], dtype=skew.dtype, device=skew.device)
    return torch.linalg.solve(identity - skew, identity + skew, left=False)


def partly(turns: Tensor, strength: float) -> Tensor:
    """I + strength * (R - I)."""
    identity = torch.eye(turns.shape[-1], dtype=turns.dtype, device=turns.device)
    return identity + strength * (turns - identity)


def rescaled(weight: Tensor, rescale: Tensor | None, strength: float) -> Tensor:
    if rescale is None:
        return weight
    scale = rescale.to(weight).reshape(-1, *[1] * (weight.ndim - 1))
    return weight * (1 + strength * (scale - 1))
