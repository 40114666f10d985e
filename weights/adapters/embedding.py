"""Textual inversion, arXiv 2208.01618: new words, each one or several vectors in the token table of a text tower.

Files, all .safetensors: diffusers' learned_embeds {"<token>": (n d) or (d)}; the web UIs' {"emb_params": (n d)}; for
SDXL {"clip_l": (n 768), "clip_g": (n 1280)}. Where a file does not name its token, the file's own name stands for it.
"""

import copy
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ldm.clip import CLIPText
from ldm.config import FAMILIES
from ldm.model import Model

from ..errors import CheckpointError, listed, shown
from ..sources import as_written
from .read import read_all

UNNAMED = "emb_params"
PAIR = ("clip_l", "clip_g")  # of SDXL's towers, in published order
TITLES = {family.widths: family.title for family in FAMILIES.values()}  # by the widths of the vectors


@dataclass(frozen=True)
class Embedding:
    """vectors: (n d) for each tower that a family has, equally many for all."""

    token: str
    vectors: tuple[Tensor, ...]
    source: str = ""


def read_embedding(source: str | Path) -> Embedding:
    """CheckpointError, one line, for a file of another kind."""
    path = as_written(source)
    tensors, _ = read_all(path)
    keys = PAIR if tensors.keys() == set(PAIR) else tuple(tensors)
    if keys != PAIR and len(keys) != 1:
        raise CheckpointError(
            f"{path} holds {listed(list(keys)) or 'nothing'}: an embedding has one tensor, or {' and '.join(PAIR)}"
        )
    for key, tensor in tensors.items():
        if tensor.ndim not in (1, 2) or not tensor.numel() or not tensor.is_floating_point():
            raise CheckpointError(
                f"{path}: {shown(key)} is {tensor.dtype} of the shape {tuple(tensor.shape)}: "
                "floating-point vectors (n d) are expected"
            )
    vectors = tuple(tensors[key][None] if tensors[key].ndim == 1 else tensors[key] for key in keys)
    if len({len(tensor) for tensor in vectors}) > 1:
        raise CheckpointError(
            f"{path} holds {len(vectors[0])} vectors for one tower and {len(vectors[1])} for the "
            "other: equally many are expected"
        )
    return Embedding(path.stem if keys == PAIR or keys == (UNNAMED,) else keys[0], vectors, str(path))


def add_embedding(model: Model, embedding: Embedding | str | Path, token: str | None = None) -> Model:
    """A model that knows one more word; the given one stays as it was, and both share all other parameters.

    The word is `token`, or the embedding's own; in a prompt each of its vectors counts as one of the 77 tokens.
    CheckpointError for a damaged file, for vectors of another family, or for a word that is known already.
    """
    if not isinstance(embedding, Embedding):
        embedding = read_embedding(embedding)
    widths = tuple(tensor.shape[1] for tensor in embedding.vectors)
    wanted = tuple(text.config.width for text in model.texts.values())
    chosen = embedding.vectors
    if len(chosen) == 2 and len(wanted) == 1 and model.facts.family.has_sizes:
        chosen = chosen[1:]  # SDXL's embeddings serve its refiner, which has the second tower alone
    if tuple(tensor.shape[1] for tensor in chosen) != wanted:
        raise CheckpointError(
            f"the embedding {embedding.source} has vectors of width {describe_widths(widths)}, and the model's "
            f"text towers {describe_widths(wanted)}"
        )
    try:
        tokenizer = model.tokenizer.with_token(token or embedding.token, len(chosen[0]))
    except ValueError as error:
        raise CheckpointError(f"the embedding {embedding.source}: {error}, as token") from None
    known = len(model.tokenizer.symbols)
    texts = {tower: extend_table(text, vectors, known) for (tower, text), vectors in zip(model.texts.items(), chosen)}
    facts = replace(model.facts, texts=tuple(text.config for text in texts.values()))
    return replace(model, texts=texts, tokenizer=tokenizer, facts=facts)


def describe_widths(widths: tuple[int, ...]) -> str:
    """With the family that has them."""
    sizes = " and ".join(map(str, widths))
    return f"{sizes} ({TITLES[widths]})" if widths in TITLES else sizes


def extend_table(text: CLIPText, vectors: Tensor, known: int) -> CLIPText:
    """A tower that shares all parameters but the token table, which gets the vectors as rows after the `known`."""
    memo = {id(parameter): parameter for parameter in text.parameters()}
    text = copy.deepcopy(text, memo)
    old = text.text_model.embeddings.token_embedding.weight
    table = nn.Embedding.from_pretrained(torch.cat([old.detach()[:known], vectors.to(old)]))
    text.text_model.embeddings.token_embedding = table
    text.config = replace(text.config, vocab=len(table.weight))
    return text
