"""What weights of words do to the features of a text tower, rule by rule.

z (n c m d): features of n prompts of c chunks of m tokens. weights (n c m). empty (m d): features of the empty prompt.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import pi, tan

import torch
from torch import Tensor

from .chunks import SHORT
from .weights import Section, read_a1111, read_comfyui, read_compel, read_plain

Variant = tuple[list[Section], float]  # a prompt, and its share in a mix


def scale(z: Tensor, weights: Tensor, empty: Tensor, over: tuple[int, ...]) -> Tensor:
    """A1111: each token times its weight; then all times what brings the mean back to what it was, taken over these
    axes. Without axes the mean stays as it comes ("No norm" in forge). A prompt whose weights are all 1 keeps its
    bits."""
    scaled = z * weights[..., None]
    if not over:
        return scaled
    return scaled * (z.mean(over, keepdim=True) / scaled.mean(over, keepdim=True))


def move_from_empty(z: Tensor, weights: Tensor, empty: Tensor) -> Tensor:
    """ComfyUI and compel: from the features of the empty prompt, at the same place, as far as the weight says."""
    moved = empty + weights[..., None] * (z - empty)
    return torch.where(weights[..., None] == 1, z, moved)


def keep_all(sections: list[Section]) -> list[Variant]:
    return [(sections, 1.0)]


def mix_without(sections: list[Section]) -> list[Variant]:
    """compel: a piece that weighs less than 1 also fades out. The prompt without it joins a mix, whose shares are 1 for
    the whole prompt and tan((1 - weight) pi/2) for each of these."""
    variants = [(sections, 1.0)]
    pieces = sections[0]
    for k, piece in enumerate(pieces):
        if piece.weight < 1:
            variants.append(([pieces[:k] + pieces[k + 1 :]], tan((1 - max(piece.weight, 1e-5)) * pi / 2)))
    return variants


@dataclass(frozen=True)
class Rule:
    """read: text -> sections. weigh: features -> weighted ones; None for a syntax without weights. commas, together:
    where chunks end, see make_chunks. variants: the prompts whose features are mixed. edits: whether the syntax has
    parts that change with the step. together_in_batch: whether the prompts of a call depend on each other, and shorter
    ones get empty chunks."""

    read: Callable[[str], list[Section]]
    weigh: Callable[[Tensor, Tensor, Tensor], Tensor] | None
    commas: bool = True
    together: int = 1
    variants: Callable[[list[Section]], list[Variant]] = keep_all
    edits: bool = False
    together_in_batch: bool = False


RULES = {
    "plain": Rule(read_plain, None),
    "a1111": Rule(read_a1111, partial(scale, over=(2, 3)), edits=True),
    "a1111_batch": Rule(read_a1111, partial(scale, over=(0, 2, 3)), edits=True, together_in_batch=True),
    "a1111_no_norm": Rule(read_a1111, partial(scale, over=()), edits=True),
    "comfyui": Rule(read_comfyui, move_from_empty, commas=False, together=SHORT),
    "compel": Rule(read_compel, move_from_empty, commas=False, variants=mix_without),
}


def find_rule(name: str) -> Rule:
    """Raises ValueError for an unknown name."""
    if name not in RULES:
        raise ValueError(f"rule {name!r}: choose one of {', '.join(RULES)}")
    return RULES[name]


def mix(z: Tensor, shares: Sequence[float]) -> Tensor:
    """The mean (1 c m d) of variants (n c m d), each with its share."""
    weights = torch.tensor(shares, dtype=z.dtype, device=z.device)
    return torch.tensordot(weights / weights.sum(), z, dims=1)[None]
