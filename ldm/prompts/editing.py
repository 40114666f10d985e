"""Prompts that change from step to step, as A1111 reads them: [from:to:when], [to:when], [from::when], [one|other], and
several prompts joined by AND.

A step is one call of the denoiser, counted from 1.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

TOKEN = re.compile(r"(?P<plain>(?:[^\\\[\]():|]|\\.)+)|[\[\]():|]")
WHEN = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*")
AND = re.compile(r"\bAND\b")
AND_WEIGHT = re.compile(r":\s*([-+]?(?:\d+\.?|\d*\.\d+))\s*\Z")
DEPTH = 50  # brackets in brackets; a prompt with more is read as text


class Switch(NamedTuple):
    """[before:after:when]: `before` until the step `when`, that included. A text with a point is a share of all."""

    before: "Parts"
    after: "Parts"
    when: str

    def at(self, step: int, steps: int) -> "Parts":
        share = float(self.when) * steps if "." in self.when else float(self.when)
        last = int(max(0.0, min(share, float(steps))))
        return self.before if step <= last else self.after


class Alternation(NamedTuple):
    """[a|b|c]: one after the other, a new one at each step."""

    choices: "list[Parts]"

    def at(self, step: int, steps: int) -> "Parts":
        return self.choices[(step - 1) % len(self.choices)]


Parts = list[str | Switch | Alternation]


@dataclass
class Bracket:
    """A bracket that is open: its fields, which its separators end. level: how deep what it holds is nested."""

    sign: str
    fields: list[Parts] = field(default_factory=lambda: [[]])
    separators: list[str] = field(default_factory=list)
    level: int = 0


def texts_by_step(text: str, steps: int) -> list[str]:
    """The text of each step, `steps` of them. Weights and escapes stay as they are; so does all of a text that does not
    follow the grammar, as one with a bar outside of brackets."""
    parts = parse(text)
    if parts is None:
        return [text] * steps
    return [resolve(parts, step, steps) for step in range(1, steps + 1)]


def resolve(parts: Parts, step: int, steps: int) -> str:
    return "".join(part if isinstance(part, str) else resolve(part.at(step, steps), step, steps) for part in parts)


def changes(text: str) -> bool:
    """Whether a prompt needs more than one conditioning: it changes with the step, or joins prompts by AND."""
    parts = parse(text)
    edits = parts is not None and any(not isinstance(part, str) for part in parts)
    return edits or AND.search(text) is not None


def resolve_all(text: str) -> list[str]:
    """Texts that together hold every word of a prompt: of its parts, with each choice in place of another."""
    texts = []
    for part, _ in split_at_and(text):
        parts = parse(part)
        texts += [part] if parts is None else list(spread(parts))
    return texts


def spread(parts: Parts) -> Iterator[str]:
    """The text outside of what changes, then each of the choices."""
    yield "".join(part for part in parts if isinstance(part, str))
    for part in parts:
        if isinstance(part, Switch):
            yield from spread(part.before)
            yield from spread(part.after)
        elif isinstance(part, Alternation):
            for choice in part.choices:
                yield from spread(choice)


def split_at_and(text: str) -> list[tuple[str, float]]:
    """The prompts that AND joins, with the number that ends each after a colon, else 1. A prompt without AND keeps such
    a number as text: "at 10:30" is a time of day."""
    parts = AND.split(text)
    if len(parts) == 1:
        return [(text, 1.0)]
    weighted = []
    for part in parts:
        found = AND_WEIGHT.search(part)
        weighted.append((part[: found.start()].rstrip(), float(found[1])) if found else (part, 1.0))
    return weighted


def parse(text: str) -> Parts | None:
    """The parts of a prompt; None for a text outside of the grammar."""
    try:
        return read_parts(text)
    except OutsideGrammar:
        return None


class OutsideGrammar(Exception):
    """A bar that separates nothing, or a backslash with nothing to escape: A1111 reads no brackets in such a text."""


def read_parts(text: str) -> Parts:
    """Raises OutsideGrammar."""
    root: Parts = []
    opened: list[Bracket] = []
    end = 0
    for token in TOKEN.finditer(text):
        if token.start() != end:
            raise OutsideGrammar
        end = token.end()
        sign = token[0]
        if token["plain"]:
            innermost(root, opened).append(sign)
        elif sign in "([":
            opened.append(Bracket(sign))
        elif sign in ":|":
            if opened:
                opened[-1].separators.append(sign)
                opened[-1].fields.append([])
            elif sign == "|":
                raise OutsideGrammar
            else:
                root.append(sign)
        else:
            close(sign, root, opened)
    spill(root, opened)
    if end != len(text):
        raise OutsideGrammar
    return root


def innermost(root: Parts, opened: Sequence[Bracket]) -> Parts:
    return opened[-1].fields[-1] if opened else root


def close(sign: str, root: Parts, opened: list[Bracket]) -> None:
    """Give what a closing bracket ends to the bracket around it. If it ends nothing, no bracket that is open can end
    any more: all of them are text."""
    made = None
    if opened and opened[-1].sign == ("(" if sign == ")" else "["):
        made = make(opened[-1], sign)
    if made is None or opened[-1].level >= DEPTH:
        spill(root, opened)
        root.append(sign)
        return
    level = opened.pop().level + 1
    innermost(root, opened).extend(made)
    if opened:
        opened[-1].level = max(opened[-1].level, level)


def make(bracket: Bracket, sign: str) -> Parts | None:
    """What a closed bracket stands for; None if its separators make no sense."""
    fields = bracket.fields
    separators = "".join(bracket.separators)
    if not separators:
        return [bracket.sign, *fields[0], sign]
    if bracket.sign == "(":
        return ["(", *fields[0], ":", *fields[1], ")"] if separators == ":" else None
    if separators.strip("|") == "":
        return [Alternation(fields)]
    last = fields[-1]
    when = WHEN.fullmatch(last[0]) if len(last) == 1 and isinstance(last[0], str) else None
    if when is None or separators not in (":", "::"):
        return None
    before = fields[0] if separators == "::" else []
    return [Switch(before, fields[-2], when[1])]


def spill(root: Parts, opened: list[Bracket]) -> None:
    """Write open brackets, with what they hold, as text. Raises OutsideGrammar for a bar."""
    for bracket in opened:
        if "|" in bracket.separators:
            raise OutsideGrammar
        root.append(bracket.sign)
        for number, parts in enumerate(bracket.fields):
            if number > 0:
                root.append(bracket.separators[number - 1])
            root.extend(parts)
    opened.clear()
