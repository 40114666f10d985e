"""Prompts of any length: tokens in chunks of what a text tower reads at once, 75 tokens between BOS and EOT."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..tokenizer import BOS, EOT, Tokenizer
from .weights import Section

COMMA = ",</w>"
BACK = 20  # tokens: how far before the end of a chunk A1111 looks for a comma to end it at
SHORT = 8  # tokens: ComfyUI keeps pieces of fewer together


class Group(NamedTuple):
    """Tokens that one chunk takes whole, and their weight."""

    ids: list[int]
    weight: float


@dataclass(frozen=True)
class Chunk:
    """ids and weights of what a tower reads at once, BOS, EOT and pads among them; those weigh 1. used: how many are
    tokens of the text."""

    ids: list[int]
    weights: list[float]
    used: int


def make_chunks(
    tokenizer: Tokenizer, sections: Sequence[Section], pad_id: int, commas: bool = True, together: int = 1
) -> list[Chunk]:
    """The chunks of a prompt. Each section begins a new one. commas: what follows a comma among the last 20 tokens of a
    full chunk goes to the next, as in A1111. together: pieces of fewer tokens are kept in one chunk, as in ComfyUI. The
    vectors of a learned word always are. Raises ValueError for a learned word that no chunk can hold."""
    room = tokenizer.length - 2
    comma = tokenizer.ids[COMMA]
    filled: list[list[Group]] = []
    for section in sections:
        groups = [group for piece in section for group in group_tokens(tokenizer, piece, pad_id, together)]
        filled += fill(groups, room, comma if commas else None)
    # A BREAK at the end begins nothing
    if len(filled) > 1 and not filled[-1]:
        filled.pop()
    return [as_chunk(groups, room, pad_id) for groups in filled]


def group_tokens(tokenizer: Tokenizer, piece: tuple[str, float], pad_id: int, together: int) -> list[Group]:
    """The tokens of a piece, each alone but those of one learned word."""
    text, weight = piece
    ids = tokenizer.encode(text, pad_id)
    if 0 < len(ids) < together:
        return [Group(ids, weight)]
    counts = {learned[0]: len(learned) for learned in tokenizer.added.values()}
    groups = []
    place = 0
    while place < len(ids):
        count = counts.get(ids[place], 1)
        groups.append(Group(ids[place : place + count], weight))
        place += count
    return groups


def fill(groups: Sequence[Group], room: int, comma: int | None) -> list[list[Group]]:
    """One list for each chunk that the groups take, in order; at least one. comma: its token, None to end chunks where
    they are full."""
    chunks: list[list[Group]] = [[]]
    after_comma = None  # the groups of the chunk up to its last comma, that included
    for group in groups:
        chunk = chunks[-1]
        used = count_tokens(chunk)
        if len(group.ids) > room:
            raise ValueError(f"a learned word of {len(group.ids)} vectors: a chunk holds {room}")
        if group.ids == [comma]:
            after_comma = len(chunk) + 1
        elif used == room and after_comma is not None and count_tokens(chunk[after_comma:]) < BACK:
            chunks[-1] = chunk[:after_comma]
            chunks.append(chunk[after_comma:])
            after_comma = None
        if count_tokens(chunks[-1]) + len(group.ids) > room:
            chunks.append([])
            after_comma = None
        chunks[-1].append(group)
    return chunks


def count_tokens(groups: Sequence[Group]) -> int:
    return sum(len(group.ids) for group in groups)


def as_chunk(groups: Sequence[Group], room: int, pad_id: int) -> Chunk:
    ids = [token for group in groups for token in group.ids]
    weights = [group.weight for group in groups for _ in group.ids]
    pads = room - len(ids)
    return Chunk([BOS, *ids, EOT, *[pad_id] * pads], [1.0, *weights, *[1.0] * (pads + 1)], len(ids))


def pad_chunks(chunks: Sequence[Chunk], count: int, room: int, pad_id: int) -> list[Chunk]:
    """The chunks with empty ones behind, `count` in all."""
    return [*chunks, *[as_chunk([], room, pad_id)] * (count - len(chunks))]
