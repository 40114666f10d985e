"""CLIP's byte-pair encoding: prompts -> token ids (b 77). The vocabulary is the file that open_clip_torch installs,
the same for every published tower. CLIP, arXiv 2103.00020; byte-pair encoding, arXiv 1508.07909.
"""

import copy
import gzip
import html
import json
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from heapq import heappop, heappush
from importlib import metadata
from itertools import islice, pairwise

import ftfy
import regex
import torch
from torch import Tensor

BOS, EOT = 49406, 49407
MERGES = 48894  # the file holds more; CLIP trained with these
LONG_WORD = 1000  # bytes; words are shorter, but not all that people paste is words
NEVER = MERGES  # the rank of a pair that is not joined
SPECIALS = {"open_clip": ("<start_of_text>", "<end_of_text>"), "transformers": ("<|startoftext|>", "<|endoftext|>")}

WORD = r"'(?:s|t|re|ve|m|ll|d)|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"  # digits stand alone
OPEN_CLIP_PIECE = regex.compile("|".join(SPECIALS["open_clip"]) + "|" + WORD, regex.IGNORECASE)
TRANSFORMERS_PIECE = regex.compile(r"<\|(?:start|end)oftext\|>|" + WORD)


@dataclass(frozen=True)
class Tokens:
    """ids (b length) int64; cut: per text the end of it that did not fit, '' where all did."""

    ids: Tensor
    cut: list[str]


def open_clip_pieces(text: str, pad_id: int) -> Iterator[str | int]:
    """Words and special ids as CLIP was trained: ftfy, two rounds of HTML unescaping, lower case."""
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    for piece in OPEN_CLIP_PIECE.findall(text.lower()):
        yield {"<start_of_text>": BOS, "<end_of_text>": EOT}.get(piece, piece)


def transformers_pieces(text: str, pad_id: int) -> Iterator[str | int]:
    """Words and special ids as transformers 5 finds them: special tokens in the raw text, the pad token "!" of SD2
    and SDXL among them, then NFC and lower case."""
    specials = {"<|startoftext|>": BOS, "<|endoftext|>": EOT} | ({"!": 0} if pad_id == 0 else {})
    for part in regex.split("(" + "|".join(map(regex.escape, specials)) + ")", text):
        if part in specials:
            yield specials[part]
        else:  # letter by letter: str.lower of the whole would make a final sigma
            part = "".join(map(str.lower, unicodedata.normalize("NFC", part)))
            for piece in TRANSFORMERS_PIECE.findall(part):
                yield from regex.findall(WORD, piece)  # "<|ENDOFTEXT|>" is no special token: three words


RULES = {"open_clip": open_clip_pieces, "transformers": transformers_pieces}


def read_merges() -> list[str]:
    """The pairs "left right" in the order in which they are joined. FileNotFoundError without open_clip_torch."""
    try:
        path = metadata.distribution("open_clip_torch").locate_file("open_clip/bpe_simple_vocab_16e6.txt.gz")
        with gzip.open(str(path), "rt", encoding="utf-8") as file:
            return [line.rstrip("\n") for line in islice(file, 1, 1 + MERGES)]
    except (metadata.PackageNotFoundError, FileNotFoundError):
        raise FileNotFoundError(
            "CLIP's vocabulary bpe_simple_vocab_16e6.txt.gz is missing: pip install open_clip_torch"
        ) from None


def byte_symbols() -> dict[int, str]:
    """A visible character for every byte: Latin-1's where it has one, else the next from U+0100. In order of id."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {byte: chr(byte) for byte in visible} | {byte: chr(0x100 + i) for i, byte in enumerate(hidden)}


def vocabulary(merges: list[str], specials: tuple[str, str]) -> list[str]:
    """Every symbol by its id; "</w>" marks the end of a word."""
    symbols = list(byte_symbols().values())
    return symbols + [s + "</w>" for s in symbols] + [pair.replace(" ", "") for pair in merges] + list(specials)


def published_files() -> dict[str, str]:
    """Name -> text of vocab.json and merges.txt, as every published tokenizer folder holds them."""
    merges = read_merges()
    ids = {symbol: i for i, symbol in enumerate(vocabulary(merges, SPECIALS["transformers"]))}
    return {
        "vocab.json": json.dumps(ids, indent=2, ensure_ascii=False) + "\n",
        "merges.txt": "\n".join(["#version: 0.2", *merges, ""]),
    }


class Tokenizer:
    """rules: "open_clip", by which every CLIP was trained, or "transformers", whose ids diffusers feeds to the same
    towers; they differ in HTML entities, curly quotes, ligatures, special tokens and "!". ValueError for others.
    """

    def __init__(self, rules: str = "open_clip", length: int = 77):
        if rules not in RULES:
            raise ValueError(f"unknown tokenizer rules {rules!r}: choose one of {', '.join(RULES)}")
        merges = read_merges()
        self.pieces = RULES[rules]
        self.length = length
        self.symbols = vocabulary(merges, SPECIALS[rules])
        self.ids = {symbol: i for i, symbol in enumerate(self.symbols)}
        self.ranks = {pair: i for i, pair in enumerate(merges)}
        self.of_byte = byte_symbols()
        self.to_byte = {symbol: byte for byte, symbol in self.of_byte.items()}
        self.words: dict[str, list[int]] = {}  # those already encoded
        self.added: dict[str, list[int]] = {}  # in lower case; no other text has these ids

    def with_token(self, token: str, count: int = 1) -> "Tokenizer":
        """A tokenizer that also knows `token`, as `count` new consecutive ids: the names of textual inversion. It is
        found in a prompt where it stands as a word of its own, in either case, since CLIP reads lower case.
        ValueError if it is not one word, or is known already."""
        name = token.lower()
        if not name or name.split() != [name]:
            raise ValueError(f"the token {token!r} is not one word without spaces: choose another name")
        if name in self.added or name in self.ids or name + "</w>" in self.ids:
            raise ValueError(f"the token {token!r} is known already: choose another name")
        new = copy.copy(self)
        new.added = self.added | {name: list(range(len(self.symbols), len(self.symbols) + count))}
        shown = [name, *(f"{name}_{i}" for i in range(1, count))]
        new.symbols = self.symbols + ["".join(self.of_byte[byte] for byte in text.encode()) + "</w>" for text in shown]
        return new

    def __call__(self, texts: list[str], pad_id: int = EOT) -> Tokens:
        """BOS, text, EOT, pads; a text that is too long loses its end, which is returned. pad_id: EOT for SD1 and
        SDXL's first tower, 0 for SD2 and SDXL's second."""
        if isinstance(texts, str):
            raise TypeError("the tokenizer takes a list of texts, not one str")
        rows = [self.encode(text, pad_id) for text in texts]
        room = self.length - 2  # beside BOS and EOT
        ids = [[BOS, *row[:room], EOT, *[pad_id] * (room - len(row))] for row in rows]
        cut = [self.decode(row[room:]) if len(row) > room else "" for row in rows]
        return Tokens(torch.tensor(ids, dtype=torch.int64).reshape(-1, self.length), cut)

    def encode(self, text: str, pad_id: int = EOT) -> list[int]:
        """The ids of a text of any length, without BOS, EOT and pads. pad_id matters to the transformers rules only:
        with 0, "!" is the pad token."""
        ids = []
        for piece in self.split(text, pad_id):
            if isinstance(piece, str) and piece not in self.words:
                self.words[piece] = self.encode_word(piece)
            ids += [piece] if isinstance(piece, int) else self.words[piece]
        return ids

    def split(self, text: str, pad_id: int) -> Iterator[str | int]:
        """The pieces between the added tokens, and their ids in place of those."""
        names = sorted(self.added, key=len, reverse=True)  # the longest first, where one begins another
        whole = [regex.sub(r"^(?=\w)|(?<=\w)$", r"\\b", regex.escape(name)) for name in names]
        for part in regex.split(f"({'|'.join(whole)})", text, flags=regex.IGNORECASE) if names else [text]:
            yield from self.added.get(part.lower()) or self.pieces(part, pad_id)

    def encode_word(self, word: str) -> list[int]:
        """Start from the bytes and join, until none is left, the adjacent pair that stands first in the merges."""
        parts = [self.of_byte[byte] for byte in word.encode()]
        parts[-1] += "</w>"
        if len(parts) > LONG_WORD:
            return self.encode_long_word(parts)
        ranks = [self.ranks.get(f"{a} {b}", NEVER) for a, b in pairwise(parts)]
        while ranks and (best := min(ranks)) < NEVER:
            i = ranks.index(best)
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
            del ranks[i]
            for j in range(max(i - 1, 0), min(i + 1, len(ranks))):  # the pairs that hold the joined part
                ranks[j] = self.ranks.get(f"{parts[j]} {parts[j + 1]}", NEVER)
        return [self.ids[part] for part in parts]

    def encode_long_word(self, parts: list[str]) -> list[int]:
        """The same, in time that grows with the length and not with its square: the pairs wait in a heap. A joined part
        stays at the place of its left half, and "" is left at that of the right one."""
        after = [*range(1, len(parts)), -1]
        before = [-1, *range(len(parts) - 1)]
        heap: list[tuple[int, int, str]] = []

        def add_pair(i: int) -> None:
            if i >= 0 and after[i] >= 0:
                pair = f"{parts[i]} {parts[after[i]]}"
                if pair in self.ranks:
                    heappush(heap, (self.ranks[pair], i, pair))

        for i in range(len(parts)):
            add_pair(i)
        while heap:
            _, i, pair = heappop(heap)
            j = after[i]
            if j < 0 or pair != f"{parts[i]} {parts[j]}":
                continue  # one of the two was joined with another meanwhile
            parts[i] += parts[j]
            parts[j] = ""
            after[i] = after[j]
            if after[i] >= 0:
                before[after[i]] = i
            add_pair(before[i])
            add_pair(i)
        return [self.ids[part] for part in parts if part]

    def decode(self, ids: list[int]) -> str:
        """The text of the ids, its words separated by single spaces; special tokens appear by name."""
        words = "".join(self.symbols[i] for i in ids).split("</w>")
        return " ".join(
            bytes(self.to_byte[symbol] for symbol in word).decode(errors="replace") for word in words
        ).removesuffix(" ")
