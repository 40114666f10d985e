"""Prompts -> Conditioning, one function per family.

context (b m d) are the text tokens that the UNet attends to; vector (b e) is what it adds to its time embedding.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from samplers.options import show

from . import ops
from .clip import TextFeatures
from .model import Model


@dataclass(frozen=True)
class Conditioning:
    """What the UNet is told of b prompts: context (b m d), and vector (b e), None for families without one."""

    context: Tensor
    vector: Tensor | None = None

    @staticmethod
    def cat(*parts: "Conditioning") -> "Conditioning":
        """Join batches; the one place where the two halves of guidance meet."""
        vectors = [part.vector for part in parts if part.vector is not None]
        return Conditioning(torch.cat([part.context for part in parts]), torch.cat(vectors) if vectors else None)

    def __len__(self) -> int:
        return len(self.context)

    def repeat(self, pictures: int) -> "Conditioning":
        """The conditioning of one picture for several."""
        vector = None if self.vector is None else self.vector.expand(pictures, -1)
        return Conditioning(self.context.expand(pictures, -1, -1), vector)


@dataclass(frozen=True)
class Sizes:
    """SDXL's micro-conditioning (arXiv 2307.01952) in pixels. original: (height, width) of the training picture. crop:
    the (top, left) corner of what was cut out of it. target: (height, width) asked for. aesthetic: the score, 6 or 2.5,
    that the refiner takes in place of the target. base, refiner: the numbers in the order of the UNet's vector."""

    original: tuple[int, int]
    target: tuple[int, int]
    crop: tuple[int, int] = (0, 0)
    aesthetic: float = 6.0

    def base(self) -> tuple[float, ...]:
        return (*self.original, *self.crop, *self.target)

    def refiner(self) -> tuple[float, ...]:
        return (*self.original, *self.crop, self.aesthetic)


@torch.no_grad()
def encode(model: Model, prompts: Sequence[str | None] | Conditioning, sizes: Sizes) -> Conditioning:
    """Condition on one prompt per picture; None is the published empty conditioning. A Conditioning stays as it is.
    Warns, TextCut, of text that is too long. Raises FloatingPointError if the text encoder makes NaN or infinity."""
    if isinstance(prompts, Conditioning):
        return check_conditioning(prompts)
    facts = model.facts
    features = []
    for tower, pad_id in zip(model.texts.values(), facts.pad_ids):
        tokens = model.tokenizer([prompt or "" for prompt in prompts], pad_id)
        if any(tokens.cut) and not features:  # once, not for each tower
            warn_of_cuts(prompts, tokens.cut)
        features.append(tower(tokens.ids.to(tower.text_model.embeddings.token_embedding.weight.device)))
    cond = BY_NUMBERS[facts.family.numbers](features, sizes, facts.unet.vector_dim)
    ops.check_finite(cond.context, "the text encoder")
    if facts.zero_empty_prompt and cond.vector is not None:
        given = torch.tensor([prompt is not None for prompt in prompts], device=cond.context.device)
        return with_zeros(cond.context, cond.vector, given, features[-1].pooled.shape[1])
    return cond


class TextCut(UserWarning):
    """A prompt is longer than the text encoder reads."""


def warn_of_cuts(prompts: Sequence[str | None], cut: Sequence[str]) -> None:
    """One warning for all texts of a batch, in one line, with the first that is cut and what is not read of it."""
    numbers = [k for k, end in enumerate(cut) if end]
    first = numbers[0]
    others = f", and {len(numbers) - 1} more" if len(numbers) > 1 else ""
    text = f"the prompt {show(prompts[first])} is too long: what is not read begins at {show(cut[first])}{others}"
    warnings.warn(text, TextCut, stacklevel=6)  # the caller of the task, above two functions and their no_grad


def check_conditioning(cond: Conditioning) -> Conditioning:
    """The same Conditioning. Raises ValueError if the shapes of its parts do not fit together. The network checks their
    widths."""
    vector = cond.vector
    if cond.context.ndim != 3 or (vector is not None and (vector.ndim != 2 or len(vector) != len(cond.context))):
        shapes = f"context {tuple(cond.context.shape)}"
        if vector is not None:
            shapes += f" and vector {tuple(vector.shape)}"
        raise ValueError(f"Conditioning with {shapes}: (b m d) and (b e) of the same b are expected")
    return cond


def as_sizes(name: str, sizes: Any) -> Sizes:
    """The same Sizes. Raises TypeError, which names the argument, for anything but Sizes of whole numbers."""
    wanted = "Sizes(original=(height, width), target=(height, width), crop=(top, left)) is expected, in whole pixels"
    if not isinstance(sizes, Sizes):
        raise TypeError(f"{name} {show(sizes)}: {wanted}")
    for pair in (sizes.original, sizes.target, sizes.crop):
        whole = isinstance(pair, Sequence) and all(isinstance(number, Integral) for number in pair)
        if not whole or len(pair) != 2 or not isinstance(sizes.aesthetic, Real):
            raise TypeError(f"{name} {show(sizes)}: {wanted}")
    return sizes


def sd(features: list[TextFeatures], sizes: Sizes, vector_dim: int) -> Conditioning:
    """SD 1 and 2: the last layer after the final norm. SD2's tower is published without its 24th layer."""
    return Conditioning(features[0].last)


def sdxl(features: list[TextFeatures], sizes: Sizes, vector_dim: int) -> Conditioning:
    """SDXL: the last layer but one of both towers, before the final norm; pooled text of the second."""
    return with_sizes(features, sizes.base(), vector_dim)


def sdxl_refiner(features: list[TextFeatures], sizes: Sizes, vector_dim: int) -> Conditioning:
    """The refiner has the second tower alone, and takes an aesthetic score in place of the target size."""
    return with_sizes(features, sizes.refiner(), vector_dim)


def with_sizes(features: list[TextFeatures], numbers: tuple[float, ...], vector_dim: int) -> Conditioning:
    context = torch.cat([tower.hidden[-2] for tower in features], dim=-1)  # (b 77 2048)
    pooled = features[-1].pooled  # (b 1280)
    width = (vector_dim - pooled.shape[1]) // len(numbers)  # 256 in every published model
    embedded = ops.sinusoid(torch.tensor(numbers, device=pooled.device), width).flatten().to(pooled.dtype)
    return Conditioning(context, torch.cat([pooled, embedded.expand(len(pooled), -1)], dim=1))


def with_zeros(context: Tensor, vector: Tensor, given: Tensor, pooled: int) -> Conditioning:
    """SDXL's empty conditioning where `given` (b) is False: zeros for context and the first `pooled` of vector."""
    text = torch.where(given[:, None], vector[:, :pooled], 0)
    return Conditioning(torch.where(given[:, None, None], context, 0), torch.cat([text, vector[:, pooled:]], dim=1))


BY_NUMBERS = {0: sd, 6: sdxl, 5: sdxl_refiner}  # by the count of sizes and scores that a family is told
