"""Prompts of a named syntax, of any length, for a model's text towers -> Conditioning."""

import warnings
from collections.abc import Sequence
from itertools import pairwise
from math import isfinite, lcm

import torch
from torch import Tensor

from samplers.options import show

from .. import ops
from ..clip import CLIPText, TextFeatures
from ..conditioning import BY_NUMBERS, Conditioning, Sizes, TextCut, as_sizes, with_zeros
from ..model import Model
from ..plan import as_int
from ..tokenizer import EOT
from .chunks import Chunk, as_chunk, make_chunks, pad_chunks
from .editing import changes
from .rules import Rule, Variant, find_rule, mix

Texts = str | Sequence[str | None]


def encode(
    model: Model, texts: Texts, *, rule: str | None = None, clip_skip: int = 0, second: Texts | None = None,
    sizes: Sizes | None = None,
) -> Conditioning:  # fmt: skip
    """Conditioning of one prompt per picture, context (b 77c d). The c chunks of each are repeated to a
    common number of them, see match.

    rule: a syntax, by its name in RULES. None reads every sign as text, and no more than one chunk, as tasks do.
    clip_skip: how many of a tower's last layers are left out, beyond those that the family never uses: diffusers'
    count, one less than A1111's. It holds for whatever is encoded, negative prompts too. second: the texts for SDXL's
    second tower, from which the pooled text comes; None takes the same. sizes: of SDXL; None takes the model's own.
    None among the texts is the published empty conditioning.

    Raises ValueError or TypeError, which name the argument, for what does not fit; FloatingPointError if the text
    encoder produces NaN or infinity. Warns, TextCut, without a rule of what is not read.
    """
    prompts = as_list("texts", texts)
    both = [prompts] if second is None else [prompts, as_list("second", second)]
    if rule is not None and find_rule(rule).edits:
        for text in (text for side in both for text in side if text):
            if changes(text):
                raise ValueError(f"the prompt {show(text)} changes with the step, or holds AND: see prompts.scheduled")
    return encode_texts(model, both, rule, clip_skip, sizes)


def encode_texts(
    model: Model, both: Sequence[Sequence[str | None]], rule: str | None, clip_skip: int, sizes: Sizes | None
) -> Conditioning:
    """The conditioning of texts whose changes are resolved. both: for the first tower, and for the second if they are
    others there. Every prompt is encoded alone, so that no prompt of a batch changes what another one is."""
    if len(both) > len(model.texts):
        raise ValueError("second: this model has one text tower; give the text as the prompt")
    if len(both[0]) != len(both[-1]):
        raise ValueError(f"second: {len(both[-1])} texts for {len(both[0])} prompts: give one each")
    check_clip_skip(model, clip_skip)
    size = model.facts.size
    sizes = Sizes((size, size), (size, size)) if sizes is None else as_sizes("sizes", sizes)
    if rule is not None and find_rule(rule).together_in_batch:
        return encode_together(model, both, rule, clip_skip, sizes)
    alone = {}
    for texts in zip(*both):
        if texts not in alone:
            alone[texts] = encode_together(model, [[text] for text in texts], rule, clip_skip, sizes)
    return Conditioning.cat(*match(*(alone[texts] for texts in zip(*both))))


@torch.no_grad()
def encode_together(
    model: Model, both: Sequence[Sequence[str | None]], rule: str | None, clip_skip: int, sizes: Sizes
) -> Conditioning:
    """The same of prompts that get as many chunks as the longest of them takes in either tower."""
    mixes = []
    for number, pad_id in enumerate(model.facts.pad_ids):
        texts = both[min(number, len(both) - 1)]
        mixes.append([cut_up(model, text or "", pad_id, rule) for text in texts])
    count = max(len(chunks) for tower in mixes for variants in tower for chunks, _ in variants)
    features = []
    for tower, pad_id, variants in zip(model.texts.values(), model.facts.pad_ids, mixes):
        room = model.tokenizer.length - 2
        padded = [[(pad_chunks(chunks, count, room, pad_id), share) for chunks, share in mixed] for mixed in variants]
        features.append(run_tower(model, tower, padded, as_chunk([], room, pad_id), rule, clip_skip))

    facts = model.facts
    cond = BY_NUMBERS[facts.family.numbers](features, sizes, facts.unet.vector_dim)
    ops.check_finite(cond.context, "the text encoder, or the rule of weights,")
    if facts.zero_empty_prompt and cond.vector is not None:
        given = torch.tensor([text is not None for text in both[0]], device=cond.context.device)
        return with_zeros(cond.context, cond.vector, given, features[-1].pooled.shape[1])
    return cond


def cut_up(model: Model, text: str, pad_id: int, rule: str | None) -> list[tuple[list[Chunk], float]]:
    """The chunks of a prompt, and of those that are mixed with it, each with its share."""
    if rule is None:
        tokens = model.tokenizer([text], pad_id)
        if tokens.cut[0]:
            cut = f"what is not read begins at {show(tokens.cut[0])}"
            warnings.warn(f"the prompt {show(text)} is too long: {cut}", TextCut, stacklevel=6)
        ids = tokens.ids[0].tolist()
        return [([Chunk(ids, [1.0] * len(ids), ids.index(EOT) - 1)], 1.0)]
    chosen = find_rule(rule)
    variants: list[Variant] = chosen.variants(chosen.read(text))
    found = []
    for sections, share in variants:
        for piece in (piece for section in sections for piece in section):
            if not isfinite(piece.weight):
                raise ValueError(f"{show(piece.text)} in the prompt weighs {piece.weight}: must be finite")
        chunks = make_chunks(model.tokenizer, sections, pad_id, chosen.commas, chosen.together)
        found.append((chunks, share))
    return found


def run_tower(
    model: Model, tower: CLIPText, mixes: Sequence[Sequence[tuple[list[Chunk], float]]], empty: Chunk,
    rule: str | None, clip_skip: int,
) -> TextFeatures:  # fmt: skip
    """The features (b 77c d) of a tower with the weights applied, and the pooled text of the first chunks. It reads
    every chunk alone."""
    prompts = [chunks for mixed in mixes for chunks, _ in mixed]
    ids = [chunk.ids for chunks in prompts for chunk in chunks]
    device = tower.text_model.embeddings.token_embedding.weight.device
    out = tower(torch.tensor([*ids, empty.ids], device=device))
    hidden = choose_layer(model, tower, out, clip_skip)
    z = hidden[:-1].unflatten(0, (len(prompts), -1))  # (n c 77 d)
    pooled = out.pooled[:-1].unflatten(0, (len(prompts), -1))[:, 0]

    chosen = None if rule is None else find_rule(rule)
    if chosen is not None and chosen.weigh is not None:
        z = weigh(chosen, z, [[chunk.weights for chunk in chunks] for chunks in prompts], hidden[-1])
    starts = [0]
    for mixed in mixes:
        starts.append(starts[-1] + len(mixed))
    pictures = []
    for (begin, end), mixed in zip(pairwise(starts), mixes):
        pictures.append(z[begin:end] if len(mixed) == 1 else mix(z[begin:end], [share for _, share in mixed]))
    z = torch.cat(pictures).flatten(1, 2)  # (b 77c d)
    return TextFeatures([z, z], z, pooled[starts[:-1]])


def weigh(rule: Rule, z: Tensor, weights: list[list[list[float]]], empty: Tensor) -> Tensor:
    """The weighted features, computed in float32 or better."""
    assert rule.weigh is not None
    precise = torch.promote_types(z.dtype, torch.float32)
    factors = torch.tensor(weights, dtype=precise, device=z.device)
    return rule.weigh(z.to(precise), factors, empty.to(precise)).to(z.dtype)


def choose_layer(model: Model, tower: CLIPText, out: TextFeatures, clip_skip: int) -> Tensor:
    """The layer that the family reads, or an earlier one: SD 1 and 2 norm the last, SDXL takes the last but one as it
    is."""
    if model.facts.family.has_sizes:
        return out.hidden[-2 - clip_skip]
    return ops.layer_norm(out.hidden[-1 - clip_skip], tower.text_model.final_layer_norm)


def check_clip_skip(model: Model, clip_skip: int) -> None:
    """Raises ValueError if so many layers are not there to be left out, TypeError for what is no whole number."""
    skip = as_int("clip_skip", clip_skip)
    unused = 1 if model.facts.family.has_sizes else 0
    most = min(len(tower.text_model.encoder.layers) for tower in model.texts.values()) - unused - 1
    if not 0 <= skip <= most:
        raise ValueError(f"clip_skip {skip}: from 0, the model's own layer, to {most}; A1111's count is one more")


def match(*parts: Conditioning) -> tuple[Conditioning, ...]:
    """The same conditionings with contexts of one length, for Conditioning.cat: each is repeated as often as their
    least common multiple needs. Attention to a context and to its repetition is the same, to rounding."""
    length = lcm(*(part.context.shape[1] for part in parts))
    return tuple(
        Conditioning(part.context.repeat(1, length // part.context.shape[1], 1), part.vector) for part in parts
    )


def as_list(name: str, texts: Texts) -> list[str | None]:
    """Raises TypeError, which names the argument, for anything but a text or several, ValueError for none."""
    several = [texts] if isinstance(texts, str) else texts
    if not isinstance(several, Sequence) or not all(isinstance(text, str | None) for text in several):
        raise TypeError(f"{name} {show(texts)}: give a text, or a list of them")
    if not several:
        raise ValueError(f"{name}: give at least one prompt")
    return list(several)
