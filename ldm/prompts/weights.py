"""How programs read the weights of words in a prompt: text -> sections of pieces, each a text with its weight.

A section is what stands between two BREAKs, and begins a chunk of its own. Nothing here raises for brackets that do not
pair: they are read as each program reads them.
"""

import re
from typing import NamedTuple, NoReturn

from samplers.options import show


class Piece(NamedTuple):
    """A text without syntax, and the weight of all its tokens."""

    text: str
    weight: float = 1.0


Section = list[Piece]

# In this order: the first that fits is taken
A1111 = re.compile(r"\\[()\[\]\\]?|[(\[]|:\s*(?P<number>[+-]?[.\d]+)\s*\)|[)\]]|[^\\()\[\]:]+|:")
BREAK = re.compile(r"\s*\bBREAK\b\s*")
COMPEL = re.compile(
    r"""\\(?P<escaped>[()"+\-.,=])
    |\((?P<open>)
    |\)(?P<close>)(?P<suffix>\++|-+|[.\d]*\d)?
    |(?P<word>[^\s()\\+\-"]+(?:[+\-]+[^\s()\\+\-",.]+)*)(?P<marks>\++|-+)(?=[\s()",.]|$)
    |[^\s()\\]+|\s+|\\""",
    re.VERBOSE,
)
NUMBER = re.compile(r"\s*[+-]?[.\d]+(?:[eE][+-]?\d+)?\s*")
DEPTH = 100  # brackets in brackets of ComfyUI's syntax; what is deeper is read as text


def read_a1111(text: str) -> list[Section]:
    """(a) weighs 1.1, [a] 1/1.1, (a:1.3) what it says, and nested brackets multiply; a backslash makes a bracket text.
    What stays open ends with the prompt. BREAK, in capitals, ends a section. Raises ValueError for (a:1.2.3)."""
    parts: list[tuple[str | None, list[float]]] = []  # the text, None for BREAK; and the brackets around it
    rounds: list[int] = []  # where each bracket that is open begins
    squares: list[int] = []
    for found in A1111.finditer(text):
        token = found[0]
        if token.startswith("\\"):
            parts.append((token[1:], []))
        elif token == "(":
            rounds.append(len(parts))
        elif token == "[":
            squares.append(len(parts))
        elif found["number"] and rounds:
            weigh(parts[rounds.pop() :], as_weight(found["number"], token))
        elif token == ")" and rounds:
            weigh(parts[rounds.pop() :], 1.1)
        elif token == "]" and squares:
            weigh(parts[squares.pop() :], 1 / 1.1)
        else:
            for number, part in enumerate(BREAK.split(token)):
                if number > 0:
                    parts.append((None, []))
                parts.append((part, []))
    for begin in rounds:
        weigh(parts[begin:], 1.1)
    for begin in squares:
        weigh(parts[begin:], 1 / 1.1)

    sections: list[Section] = [[]]
    for part, factors in parts:
        if part is None:
            sections.append([])
        else:
            sections[-1].append(Piece(part, product(factors)))
    return [merge(section) for section in sections]


def weigh(parts: list[tuple[str | None, list[float]]], factor: float) -> None:
    for _, factors in parts:
        factors.append(factor)


def product(factors: list[float]) -> float:
    """From the innermost bracket outwards, as A1111 rounds."""
    weight = 1.0
    for factor in factors:
        weight *= factor
    return weight


def merge(pieces: Section) -> Section:
    """Neighbours of the same weight as one piece: they are tokenized together."""
    merged: Section = []
    for piece in pieces:
        if merged and merged[-1].weight == piece.weight:
            merged[-1] = Piece(merged[-1].text + piece.text, piece.weight)
        else:
            merged.append(piece)
    return merged or [Piece("")]


def as_weight(number: str, where: str) -> float:
    """Raises ValueError for what looks like a number and is none."""
    try:
        return float(number)
    except ValueError:
        refuse_number(where)


def refuse_number(where: str) -> NoReturn:
    hint = "a weight is one number, such as (word:1.2); write a bracket that is text with a backslash before it"
    raise ValueError(f"{show(where)} in the prompt: {hint}")


def read_comfyui(text: str) -> list[Section]:
    """(a) multiplies by 1.1; (a:1.3) is 1.3 whatever is around it; square brackets and BREAK are text; a backslash
    makes a round bracket text. Raises ValueError for (a:1.2.3)."""
    hidden = text.replace("\\)", "\0\1").replace("\\(", "\0\2")
    pieces = [Piece(p.text.replace("\0\1", ")").replace("\0\2", "("), p.weight) for p in weigh_brackets(hidden, 1.0)]
    return [pieces or [Piece("")]]


def weigh_brackets(text: str, weight: float, depth: int = 0) -> Section:
    pieces: Section = []
    for part in split_at_brackets(text):
        is_bracketed = len(part) >= 2 and part[0] == "(" and part[-1] == ")"
        if not is_bracketed or depth == DEPTH:
            pieces.append(Piece(part, weight))
            continue
        inside = part[1:-1]
        inner = weight * 1.1
        words, colon, number = inside.rpartition(":")
        if colon and words and NUMBER.fullmatch(number):
            inner = as_weight(number, f":{number})")
            inside = words
        pieces += weigh_brackets(inside, inner, depth + 1)
    return pieces


def split_at_brackets(text: str) -> list[str]:
    """The text in order: what is between outermost round brackets, with them, and what is outside."""
    parts = []
    begin = 0
    level = 0
    for place, letter in enumerate(text):
        if letter == "(":
            if level == 0:
                parts.append(text[begin:place])
                begin = place
            level += 1
        elif letter == ")":
            level -= 1
            if level == 0:
                parts.append(text[begin : place + 1])
                begin = place + 1
    parts.append(text[begin:])
    return [part for part in parts if part]


def read_compel(text: str) -> list[Section]:
    """word++ weighs 1.1 squared, word- 0.9; (some words)1.3 and (some words)++ weigh all of them, and nested brackets
    multiply; a backslash makes a sign text. Raises ValueError for (a)1.2.3, and for compel's .blend, .and and .swap."""
    operator = re.search(r"\)\.(?:blend|and|add|swap)\(", text)
    if operator:
        raise ValueError(f"{show(operator[0][1:-1])} in the prompt: only weights of compel's syntax are read")
    parts: list[tuple[str | None, list[float]]] = []
    opened: list[int] = []
    for found in COMPEL.finditer(text):
        if found["open"] is not None:
            opened.append(len(parts))
            parts.append(("(", []))
        elif found["close"] is not None and opened:
            begin = opened.pop()
            parts[begin] = ("", [])  # it has its other half, so it is no text
            suffix = found["suffix"] or ""
            weigh(parts[begin:], marks_as_weight(suffix, f"){suffix}"))
        elif found["word"] is not None:
            parts.append((found["word"], [marks_as_weight(found["marks"], found[0])]))
        elif found[0].isspace() and parts:
            # Spaces are no tokens: with the words before them, they do not part two words of the same weight
            before, factors = parts[-1]
            parts[-1] = ((before or "") + found[0], factors)
        else:
            parts.append((found["escaped"] or found[0], []))
    return [merge([Piece(part or "", product(factors)) for part, factors in parts if part])]


def marks_as_weight(marks: str, where: str) -> float:
    """The weight of ++, --, a number, or nothing."""
    if not marks:
        return 1.0
    if marks[0] in "+-":
        return (1.1 if marks[0] == "+" else 0.9) ** min(len(marks), DEPTH)
    return as_weight(marks, where)


def read_plain(text: str) -> list[Section]:
    """All of it is text."""
    return [[Piece(text)]]
