"""Prompts -> Conditioning, one function per family.

context (b m d) are the text tokens that the UNet attends to; vector (b e) is what it adds to its time embedding.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import ops
from .clip import CLIPText, TextFeatures
from .config import ModelConfig
from .tokenizer import Tokenizer


@dataclass(frozen=True)
class Conditioning:
    context: Tensor
    vector: Tensor | None = None

    @staticmethod
    def cat(*parts: "Conditioning") -> "Conditioning":
        """Join batches; the one place where the two halves of guidance meet."""
        vectors = [part.vector for part in parts]
        return Conditioning(
            torch.cat([part.context for part in parts]), None if vectors[0] is None else torch.cat(vectors)
        )


@dataclass(frozen=True)
class Sizes:
    """SDXL's micro-conditioning in pixels (arXiv 2307.01952): the size the training picture had, the (top, left)
    corner of its crop, and the size asked for. The refiner takes an aesthetic score in place of the target."""

    original: tuple[int, int]
    target: tuple[int, int]
    crop: tuple[int, int] = (0, 0)
    aesthetic: float = 6.0

    def base(self) -> tuple[float, ...]:
        return (*self.original, *self.crop, *self.target)

    def refiner(self) -> tuple[float, ...]:
        return (*self.original, *self.crop, self.aesthetic)


def encode(
    texts: Mapping[str, CLIPText], tokenizer: Tokenizer, facts: ModelConfig, prompts: Sequence[str | None], sizes: Sizes
) -> Conditioning:
    """Condition on one prompt per picture. None stands for "no prompt": the published empty conditioning."""
    features = [
        read(tower, tokenizer, [prompt or "" for prompt in prompts], pad_id)
        for tower, pad_id in zip(texts.values(), facts.pad_ids)
    ]
    cond = BY_NUMBERS[facts.family.numbers](features, sizes, facts.unet.vector_dim)
    if not facts.zero_empty_prompt:
        return cond
    given = torch.tensor([prompt is not None for prompt in prompts], device=cond.context.device)
    pooled = features[-1].pooled.shape[1]
    return Conditioning(
        torch.where(given[:, None, None], cond.context, 0),
        torch.cat([torch.where(given[:, None], cond.vector[:, :pooled], 0), cond.vector[:, pooled:]], dim=1),
    )


def read(tower: CLIPText, tokenizer: Tokenizer, prompts: list[str], pad_id: int) -> TextFeatures:
    device = tower.text_model.embeddings.token_embedding.weight.device
    return tower(tokenizer(prompts, pad_id).ids.to(device))


def sd(features: list[TextFeatures], sizes: Sizes, vector_dim: int) -> Conditioning:
    """SD 1 and 2: the last layer after the final norm. SD2's tower is published without its 24th layer."""
    return Conditioning(features[0].last)


def sdxl(features: list[TextFeatures], sizes: Sizes, vector_dim: int) -> Conditioning:
    """SDXL: the last layer but one of both towers, before the final norm; pooled text of the second."""
    return with_sizes(features, sizes.base(), vector_dim)


def sdxl_refiner(features: list[TextFeatures], sizes: Sizes, vector_dim: int) -> Conditioning:
    return with_sizes(features, sizes.refiner(), vector_dim)


def with_sizes(features: list[TextFeatures], numbers: tuple[float, ...], vector_dim: int) -> Conditioning:
    context = torch.cat([f.hidden[-2] for f in features], dim=-1)  # (b 77 2048)
    pooled = features[-1].pooled  # (b 1280)
    width = (vector_dim - pooled.shape[1]) // len(numbers)  # 256 in every published model
    embedded = ops.sinusoid(torch.tensor(numbers, device=pooled.device), width).flatten().to(pooled.dtype)
    return Conditioning(context, torch.cat([pooled, embedded.expand(len(pooled), -1)], dim=1))


BY_NUMBERS = {0: sd, 6: sdxl, 5: sdxl_refiner}  # by the count of sizes and scores that a family is told
