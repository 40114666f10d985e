"""Textual inversion, arXiv 2208.01618: new words, each one or several vectors in the token table of a text tower.

Files, all .safetensors, and what their keys mean; d is 768 or 1024, in SDXL 768 and 1280:

    <token>: (n d) or (d)               one word, diffusers' learned_embeds; for SDXL's second tower learned_embeds_2
    emb_params: (n d)                   one word, web UIs, kohya
    clip_l: (n d), clip_g: (n d)        one word, kohya and OneTrainer; clip_l alone for SD 1 and SD 2
    text_encoders_0: (n d), ..._1       n words <s0>, <s1>, ..., which stand together in prompts: diffusers' advanced
                                        trainers
    bundle_emb.<word>.<one of these>    beside an adapter, OneTrainer and web UIs; there also string_to_param.*

Where a file does not name its token, the file's own name stands for it.
"""

import copy
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ldm.clip import CLIPText
from ldm.config import FAMILIES
from ldm.model import Model

from ..disk.safetensors import Entries, read_header
from ..errors import CheckpointError, listed, shown
from .names import BUNDLED, split_word
from .read import FILES, adapter_file
from .tensors import read_all

MOST_VECTORS = 1000  # no prompt has room for more than 75
WIDEST_TOWER = 2**14
UNNAMED = ("emb_params", "string_to_param.*", "clip_h", "*")
TOWERS = ("clip_l", "clip_g")  # of SDXL, in published order
ROWS = ("text_encoders_0", "text_encoders_1")
OUTPUTS = ("clip_l_out", "clip_g_out", "emb_params_out")  # which OneTrainer alone adds to what a tower gives
FIRST = "learned_embeds.safetensors"  # as diffusers' scripts call their files
SECOND = "learned_embeds_2.safetensors"
PAIR = re.compile(r"learned_embeds(_2)?((?:-steps-\d+)?\.safetensors)")
ROW = re.compile(r"<s(\d+)>")
TITLES = {family.widths: family.title for family in FAMILIES.values()}  # by the widths of the vectors
Source = str | Path | Sequence[str | Path]  # a file, a folder that holds one, or the files of two towers


@dataclass(frozen=True)
class Embedding:
    """vectors: (n d) for each tower that a family has, equally many for all. separate: each of them is a word of its
    own, <s0>, <s1> and so on, unless all of them are given one name."""

    token: str
    vectors: tuple[Tensor, ...]
    source: str = ""
    separate: bool = False


def embedding_file(source: str | Path) -> Path:
    """The file itself, or the one in a folder; of the two that diffusers' script for SDXL writes, the first."""
    return adapter_file(Path(source), (FIRST,), without=(*FILES, SECOND))


def read_embedding(source: Source) -> Embedding:
    """The only word of a source. CheckpointError, one line, for a file of another kind, or with several words."""
    return choose_word(read_words(source), None)


def read_words(source: Source) -> dict[str, Embedding]:
    """All words of a source, by token. CheckpointError, one line, for a file of another kind."""
    if not isinstance(source, str | Path):
        return read_pair([Path(path) for path in source])
    path = embedding_file(source)
    words = read_file(path)
    beside = other_file(path)
    if beside and beside.is_file() and widths(words) != widths(read_file(beside)):
        return read_pair([path, beside])
    return words


def read_pair(paths: list[Path]) -> dict[str, Embedding]:
    """One word, from a file for each tower. Of diffusers' names the second tells that it is of the second tower."""
    if any(is_second(path) for path in paths[:1]):
        paths = paths[::-1]
    found = [choose_word(read_file(path), None) for path in paths[:2]]
    if len(paths) != 2 or any(len(word.vectors) > 1 for word in found):
        names = listed([str(path) for path in paths]) or "no file"
        raise CheckpointError(f"{names}: one file, or two with the vectors of one tower each are expected")
    first, second = found
    if second.token not in (first.token, paths[1].stem):  # the stem stands for a token that is not named
        raise CheckpointError(
            f"{paths[0]} teaches {shown(first.token)} and {paths[1]} {shown(second.token)}: the files of one word "
            "are expected"
        )
    vectors = (*first.vectors, *second.vectors)
    check_counts(f"{paths[0]} and {paths[1].name}", vectors)
    return {first.token: replace(first, vectors=vectors, source=f"{paths[0]} and {paths[1].name}")}


def other_file(path: Path) -> Path | None:
    """Where diffusers' script for SDXL puts the vectors of the other tower."""
    parts = PAIR.fullmatch(path.name)
    if parts is None:
        return None
    return path.with_name(f"learned_embeds{'' if parts[1] else '_2'}{parts[2]}")


def is_second(path: Path) -> bool:
    parts = PAIR.fullmatch(path.name)
    return parts is not None and parts[1] is not None


def widths(words: Mapping[str, Embedding]) -> set[tuple[int, ...]]:
    return {tuple(tensor.shape[1] for tensor in word.vectors) for word in words.values()}


def read_file(path: Path) -> dict[str, Embedding]:
    """The words of one file, by token; of an adapter's file, those that lie beside it."""
    entries = read_header(path).entries
    check_sizes(path, entries)
    keys = list(entries)
    bundled = [key for key in keys if key.startswith(BUNDLED)]
    places: dict[str, dict[str, str]] = defaultdict(dict)  # word -> what the tensor is -> key
    for key in bundled:
        word, field = split_word(key)
        places[word][field] = key
    if not bundled:
        places[""] = {key: key for key in keys}
    used = {word: choose_fields(path, word, fields) for word, fields in places.items()}
    wanted = {places[word][field] for word, fields in used.items() for field in fields}
    tensors, _ = read_all(path, wanted, small=MOST_VECTORS * WIDEST_TOWER)
    words = [
        make_embedding(path, word, {field: tensors[places[word][field]] for field in fields})
        for word, fields in used.items()
    ]
    return {word.token: word for word in words}


def check_sizes(path: Path, entries: Entries) -> None:
    """Before anything is read of a file that may be of any kind."""
    for key, entry in entries.items():
        if max(entry.shape, default=0) > WIDEST_TOWER or len(entry.shape) == 2 and entry.shape[0] > MOST_VECTORS:
            raise CheckpointError(
                f"{path}: {shown(key)} has the shape {shown(entry.shape)}: at most {MOST_VECTORS} vectors of at most "
                f"{WIDEST_TOWER} numbers are read"
            )


def choose_fields(path: Path, word: str, fields: Mapping[str, str]) -> list[str]:
    """What makes up one word, in the order of the towers. Nothing else may be there."""
    for towers in (TOWERS, ROWS):
        if fields and fields.keys() <= set(towers):
            return [field for field in towers if field in fields]
    for field in OUTPUTS:
        if field in fields:
            raise CheckpointError(
                f"{path}: {shown(fields[field])} is added to what a text tower gives, which OneTrainer alone does: "
                "train without output embeddings"
            )
    if len(fields) != 1:
        of = f" of {shown(word)}" if word else ""
        raise CheckpointError(
            f"{path} holds {listed(list(fields)) or 'nothing'}{of}: an embedding has one tensor, or "
            f"{' and '.join(TOWERS)}"
        )
    return list(fields)


def make_embedding(path: Path, word: str, fields: Mapping[str, Tensor]) -> Embedding:
    for field, tensor in fields.items():
        if tensor.ndim not in (1, 2) or not tensor.numel() or not tensor.is_floating_point():
            raise CheckpointError(
                f"{path}: {shown(field)} is {tensor.dtype} of the shape {tuple(tensor.shape)}: "
                "floating-point vectors (n d) are expected"
            )
    vectors = tuple(tensor[None] if tensor.ndim == 1 else tensor for tensor in fields.values())
    check_counts(str(path), vectors)
    first = next(iter(fields))
    if word:
        return Embedding(word, vectors, str(path))
    if first in ROWS:
        return Embedding("<s0>", vectors, str(path), separate=True)
    unnamed = first in TOWERS or first in UNNAMED
    return Embedding(path.stem if unnamed else first, vectors, str(path))


def check_counts(where: str, vectors: tuple[Tensor, ...]) -> None:
    if len({len(tensor) for tensor in vectors}) > 1:
        raise CheckpointError(
            f"{where} holds {len(vectors[0])} vectors for one tower and {len(vectors[1])} for the "
            "other: equally many are expected"
        )


def choose_word(words: Mapping[str, Embedding], token: str | None) -> Embedding:
    """The word `token`, or else the only one."""
    if token is not None and token in words:
        return words[token]
    only = next(iter(words.values()))
    if len(words) > 1:
        missing = "" if token is None else f" and not {shown(token)}"
        raise CheckpointError(
            f"{only.source} holds the words {listed(list(words))}{missing}: choose one as token "
            "(txt2img: --embedding FILE:TOKEN)"
        )
    return only


def add_embedding(model: Model, embedding: Embedding | Source, token: str | None = None) -> Model:
    """A model that knows one more word; the given one stays as it was, and both share all other parameters.

    embedding: a file or a folder that holds one; the two files of diffusers' script for SDXL, of which one is enough if
    the other lies beside it; an adapter's file that holds words.
    The word is `token`, or the embedding's own; in a prompt each of its vectors counts as one of the 77 tokens. Of a
    file with several words `token` chooses one. Vectors that are words of their own, <s0>, <s1> and so on, are all
    added, and under `token` they are one word.
    CheckpointError for a damaged file, for vectors of another family, or for a word that is known already.
    """
    if not isinstance(embedding, Embedding):
        embedding = choose_word(read_words(embedding), token)
    if not embedding.separate:
        return add_word(model, embedding, token or embedding.token)
    count = len(embedding.vectors[0])
    chosen = ROW.fullmatch(token or "")
    if token and (chosen is None or int(chosen[1]) >= count):
        return add_word(model, embedding, token)
    for i in [int(chosen[1])] if chosen else range(count):
        row = replace(embedding, vectors=tuple(tensor[i : i + 1] for tensor in embedding.vectors))
        model = add_word(model, row, f"<s{i}>")
    return model


def add_word(model: Model, embedding: Embedding, token: str) -> Model:
    found = tuple(tensor.shape[1] for tensor in embedding.vectors)
    wanted = tuple(text.config.width for text in model.texts.values())
    vectors = embedding.vectors
    if len(vectors) == 2 and len(wanted) == 1 and model.facts.family.has_sizes:
        vectors = vectors[1:]  # SDXL's embeddings serve its refiner, which has the second tower alone
    if tuple(tensor.shape[1] for tensor in vectors) != wanted:
        raise CheckpointError(
            f"the embedding {embedding.source} has vectors of width {describe_widths(found)}, and the model's "
            f"text towers {describe_widths(wanted)}{what_is_missing(embedding, wanted)}"
        )
    try:
        tokenizer = model.tokenizer.with_token(token, len(vectors[0]))
    except ValueError as error:
        raise CheckpointError(f"the embedding {embedding.source}: {error}, as token") from None
    known = len(model.tokenizer.symbols)
    texts = {tower: extend_table(text, tensor, known) for (tower, text), tensor in zip(model.texts.items(), vectors)}
    facts = replace(model.facts, texts=tuple(text.config for text in texts.values()))
    return replace(model, texts=texts, tokenizer=tokenizer, facts=facts)


def what_is_missing(embedding: Embedding, wanted: tuple[int, ...]) -> str:
    other = other_file(Path(embedding.source))
    if other is None or len(wanted) == len(embedding.vectors):
        return ""
    return f": {other.name} is expected beside it"


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
