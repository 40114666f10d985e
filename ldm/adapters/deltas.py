"""The kinds of change that an adapter makes to one parameter. LoRA, arXiv 2106.09685; DoRA, 2402.09353; GLoRA,
2306.07967; LoHa, LoKr and the Tucker form of convolutions, LyCORIS, 2309.14859. ldm.adapters.products has those that
multiply.

Shapes: o, i output and input channels; h w a kernel; r the rank. A weight is (o i) or (o i h w). A change has the shape
of its factors, which `fits` the weight's but for reshaping; value(like) computes it with dtype and device of `like`.
apply(weight, strength) is the changed weight, with strength 0 the weight itself.
"""

from dataclasses import dataclass
from math import prod

import torch
from einops import einsum, rearrange
from torch import Tensor

from .products import BOFT, IA3, OFT, InputOFT


class Sum:
    """What is added to a weight, strength times."""

    def value(self, like: Tensor) -> Tensor:
        raise NotImplementedError

    def apply(self, weight: Tensor, strength: float) -> Tensor:
        return weight + strength * self.value(weight).reshape(weight.shape)


@dataclass(frozen=True)
class Full(Sum):
    """The change itself, of a weight, a bias or the scale of a norm."""

    change: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.change.shape)

    def value(self, like: Tensor) -> Tensor:
        return self.change.to(like)


@dataclass(frozen=True)
class Replacement(Sum):
    """The new weight itself, to which strength 1 goes, whatever the old one is."""

    weight: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.weight.shape)

    def value(self, like: Tensor) -> Tensor:
        return self.weight.to(like).reshape(like.shape) - like


@dataclass(frozen=True)
class Product(Sum):
    """up (o r) @ down, which is (r i) or (r i h w). With a core (r r h w) it is Tucker's form: a 1x1 convolution `down`
    (r i), the core, a 1x1 convolution `up`. ValueError if the factors do not fit each other."""

    up: Tensor
    down: Tensor
    core: Tensor | None = None

    def __post_init__(self):
        shapes = [tuple(factor.shape) for factor in (self.up, self.down, self.core) if factor is not None]
        if [len(shape) for shape in shapes] not in ([2, 2], [2, 4], [2, 2, 4]) or self.rank < 1:
            raise ValueError(f"factors of the shapes {shapes} are no matrices or kernels")
        if self.up.shape[1] != self.rank or shapes[2:] and shapes[2][:2] != (self.rank, self.rank):
            raise ValueError(f"factors of the shapes {shapes} have no common rank")

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        kernel = self.down if self.core is None else self.core
        return (self.up.shape[0], self.down.shape[1], *kernel.shape[2:])

    def value(self, like: Tensor) -> Tensor:
        up, down = self.up.to(like), self.down.to(like)
        if self.core is None:
            return einsum(up, down, "o r, r ... -> o ...")
        return einsum(up, self.core.to(like), down, "o a, a b h w, b i -> o i h w")


@dataclass(frozen=True)
class LoRA(Product):
    scale: float = 1.0  # alpha / rank

    def value(self, like: Tensor) -> Tensor:
        return self.scale * super().value(like)


@dataclass(frozen=True)
class LoHa(Sum):
    """scale * first * second, elementwise: the rank may reach the product of theirs."""

    first: Product
    second: Product
    scale: float = 1.0

    def __post_init__(self):
        if self.first.shape != self.second.shape:
            raise ValueError(f"factors of the shapes {self.first.shape} and {self.second.shape} cannot be multiplied")

    @property
    def rank(self) -> int:
        return self.first.rank

    @property
    def shape(self) -> tuple[int, ...]:
        return self.first.shape

    def value(self, like: Tensor) -> Tensor:
        return self.scale * self.first.value(like) * self.second.value(like)


@dataclass(frozen=True)
class LoKr(Sum):
    """scale * Kronecker product of first, a matrix, and second, a matrix or a kernel."""

    first: Full | Product
    second: Full | Product
    scale: float = 1.0

    def __post_init__(self):
        if len(self.first.shape) != 2 or len(self.second.shape) not in (2, 4):
            raise ValueError(f"factors of the shapes {self.first.shape} and {self.second.shape} are no matrices")

    @property
    def rank(self) -> int | None:
        """None where neither factor is a product."""
        return next((part.rank for part in (self.first, self.second) if isinstance(part, Product)), None)

    @property
    def shape(self) -> tuple[int, ...]:
        (a, b), (c, d, *kernel) = self.first.shape, self.second.shape
        return (a * c, b * d, *kernel)

    def value(self, like: Tensor) -> Tensor:
        blocks = einsum(self.first.value(like), self.second.value(like), "a b, c d ... -> a c b d ...")
        return self.scale * rearrange(blocks, "a c b d ... -> (a c) (b d) ...")


@dataclass(frozen=True)
class GLoRA(Sum):
    """scale * (W A + B): A (i i), a product of matrices, mixes the inputs of the weight; B is added as in LoRA. The
    paper has vectors beside them, which LyCORIS left out."""

    inner: Product
    added: Product
    scale: float = 1.0

    def __post_init__(self):
        if len(self.inner.shape) != 2 or self.inner.shape[0] != self.inner.shape[1]:
            raise ValueError(f"factors of the shape {self.inner.shape} do not mix the inputs of a weight")
        if self.inner.shape[0] != self.added.shape[1]:
            raise ValueError(f"factors of the shapes {self.inner.shape} and {self.added.shape} are of two weights")

    @property
    def rank(self) -> int:
        return self.added.rank

    @property
    def shape(self) -> tuple[int, ...]:
        return self.added.shape

    def value(self, like: Tensor) -> Tensor:
        """like: the weight W itself."""
        up = self.inner.up.to(like)
        down = self.inner.down.to(like)
        mixed = einsum(like, up, down, "o i ..., i r, r j -> o j ...")
        return self.scale * (mixed + self.added.value(like).reshape(like.shape))


Added = Full | Replacement | LoRA | LoHa | LoKr | GLoRA


@dataclass(frozen=True)
class DoRA:
    """The changed weight gets the magnitudes that were learned: one for each output (o 1), or for each input (1 i).

    W' = W + strength * (m (W + D) / |W + D| - W), where |.| is the norm of an output's or an input's weights, to which
    the rounding unit is added. This is the rule of kohya's tools, LyCORIS and ComfyUI for `dora_scale`.
    """

    direction: Added
    magnitude: Tensor

    def __post_init__(self):
        if self.magnitude.ndim != 2 or 1 not in self.magnitude.shape or len(self.shape) < 2:
            raise ValueError(
                f"magnitudes of the shape {tuple(self.magnitude.shape)} for {self.shape} are neither of "
                "the outputs nor of the inputs"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        return self.direction.shape

    def value(self, like: Tensor) -> Tensor:
        return self.direction.value(like)

    def apply(self, weight: Tensor, strength: float) -> Tensor:
        moved = self.direction.apply(weight, 1.0)
        decomposed = moved * self.magnification(moved, torch.finfo(moved.dtype).eps)
        return weight + strength * (decomposed - weight)

    def magnification(self, weight: Tensor, eps: float) -> Tensor:
        """Magnitude over norm, which is taken along the axes that the magnitude lacks."""
        magnitude = self.magnitude.to(weight).reshape(*self.magnitude.shape, *[1] * (weight.ndim - 2))
        along = [axis for axis, size in enumerate(magnitude.shape) if size == 1]
        return magnitude / (torch.linalg.vector_norm(weight, dim=along, keepdim=True) + eps)


@dataclass(frozen=True)
class PeftDoRA(DoRA):
    """peft's rule, for `lora_magnitude_vector`: W' = m (W + strength * D) / |W + strength * D|. Strength 0 still sets
    the magnitudes. After other adapters, the norm is that of the base and this change alone."""

    def apply_beside(self, weight: Tensor, base: Tensor, strength: float) -> Tensor:
        """weight: the base with the changes of the adapters before this one."""
        change = strength * self.value(base).reshape(base.shape)
        return (weight + change) * self.magnification(base + change, eps=0.0)


Multiplied = IA3 | OFT | BOFT | InputOFT
Delta = Added | DoRA | Multiplied


def fits(delta: Delta, weight: tuple[int, ...]) -> bool:
    """A change may lack the kernel 1x1 that the weight has, or have it in excess, or be a matrix (o i*h*w)."""
    if isinstance(delta, Multiplied):
        return delta.fits(weight)
    if isinstance(delta, DoRA) and tuple(delta.magnitude.shape) not in ((weight[0], 1), (1, *weight[1:2])):
        return False
    shape = delta.shape[:2] if delta.shape[2:] == (1, 1) else delta.shape
    return shape in (weight, (weight[0], prod(weight[1:])))
