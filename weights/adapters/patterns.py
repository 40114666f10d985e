r"""Regular expressions from files, matched in time that grows with pattern and text, whatever they are.

peft's rank_pattern and alpha_pattern hold them. Python's `re` goes back and tries again, so that a short pattern can
keep it busy for years; here all ways through a pattern are followed at once.

    letters . [a-c_] [^0-9] \d \w \s \.    one character
    (a|b) (?:a) (?=a) (?!a)                groups; what follows, or must not
    * + ? {2} {2,3}                        repetitions; a ? behind them changes nothing
    ^ $                                    begin and end of the text
"""

from collections.abc import Callable
from dataclasses import dataclass

LONGEST = 1000  # of a pattern and of a text, in characters
DEEPEST = 20  # groups in groups
MANY = LONGEST + 1  # repetitions, for which no text is long enough
KINDS = {"d": str.isdecimal, "s": str.isspace, "w": lambda letter: letter.isalnum() or letter == "_"}
Fits = Callable[[str], bool]  # of one character
Positions = int  # a set of positions in a text: bit k stands for the one before its k-th character


class Text:
    def __init__(self, letters: str):
        self.letters = letters
        self.known: dict[Fits, Positions] = {}

    def where(self, fits: Fits) -> Positions:
        """The positions before characters of a kind."""
        if fits not in self.known:
            self.known[fits] = sum(1 << k for k, letter in enumerate(self.letters) if fits(letter))
        return self.known[fits]


@dataclass(frozen=True)
class One:
    fits: Fits

    def ends(self, text: Text, starts: Positions) -> Positions:
        """Where the node can end if it begins at one of `starts`; so for each kind of node."""
        return (starts & text.where(self.fits)) << 1


@dataclass(frozen=True)
class Edge:
    at_end: bool

    def ends(self, text: Text, starts: Positions) -> Positions:
        return starts & (1 << (len(text.letters) if self.at_end else 0))


@dataclass(frozen=True)
class Chain:
    """One node after the other."""

    nodes: tuple["Node", ...]

    def ends(self, text: Text, starts: Positions) -> Positions:
        for node in self.nodes:
            starts = node.ends(text, starts) if starts else 0
        return starts


@dataclass(frozen=True)
class Choice:
    nodes: tuple["Node", ...]

    def ends(self, text: Text, starts: Positions) -> Positions:
        found = 0
        for node in self.nodes:
            found |= node.ends(text, starts)
        return found


@dataclass(frozen=True)
class Repeat:
    node: "Node"
    least: int
    most: int

    def ends(self, text: Text, starts: Positions) -> Positions:
        for _ in range(self.least):
            before = starts
            starts = self.node.ends(text, before)
            if starts == before:  # so it stays
                break
        found = starts
        new = starts
        for _ in range(self.most - self.least):
            new = self.node.ends(text, new) & ~found
            if not new:
                break
            found |= new
        return found


@dataclass(frozen=True)
class Ahead:
    """What follows must match, or must not; it is not used up."""

    node: "Node"
    wanted: bool

    def ends(self, text: Text, starts: Positions) -> Positions:
        found = 0
        for k in range(len(text.letters) + 1):
            here = starts & (1 << k)
            if here and bool(self.node.ends(text, here)) == self.wanted:
                found |= here
        return found


Node = One | Edge | Chain | Choice | Repeat | Ahead


def fits_end(pattern: Node, letters: str) -> bool:
    """Whether a name, or what follows one of its dots, is what the pattern describes; so peft compares them."""
    text = Text(letters)
    starts = 1 | text.where(".".__eq__) << 1
    return bool(pattern.ends(text, starts) >> len(letters))


def parse(pattern: str) -> Node:
    """ValueError, which says why, for a text that is no pattern or holds what is not followed here."""
    if len(pattern) > LONGEST:
        raise ValueError(f"it is longer than {LONGEST} characters")
    parser = Parser(pattern)
    node = parser.choice(0)
    if parser.rest:
        raise ValueError("it has a ) too many")
    return node


class Parser:
    """rest: what is still to be read. ahead: inside of (?=...)."""

    def __init__(self, pattern: str):
        self.rest = pattern
        self.ahead = False

    def letter(self) -> str:
        if not self.rest:
            raise ValueError("it is not complete")
        first = self.rest[0]
        self.rest = self.rest[1:]
        return first

    def skip(self, expected: str) -> bool:
        """Whether this comes next; then go past it."""
        found = self.rest.startswith(expected)
        if found:
            self.rest = self.rest.removeprefix(expected)
        return found

    def choice(self, depth: int) -> Node:
        if depth > DEEPEST:
            raise ValueError(f"it has more than {DEEPEST} groups in groups")
        nodes = [self.chain(depth)]
        while self.skip("|"):
            nodes.append(self.chain(depth))
        return Choice(tuple(nodes))

    def chain(self, depth: int) -> Node:
        nodes = []
        while self.rest and self.rest[0] not in "|)":
            node = self.atom(depth)
            nodes.append(self.repeated(node))
        return Chain(tuple(nodes))

    def atom(self, depth: int) -> Node:
        match self.letter():
            case ".":
                return One("\n".__ne__)
            case "^":
                return Edge(at_end=False)
            case "$":
                return Edge(at_end=True)
            case "[":
                return One(self.letters())
            case "\\":
                return One(self.escaped())
            case "(":
                return self.group(depth)
            case "*" | "+" | "?" | "{" as sign:
                raise ValueError(f"its {sign} repeats nothing")
            case letter:
                return One(letter.__eq__)

    def group(self, depth: int) -> Node:
        if self.skip("?=") or self.rest.startswith("?!"):
            return self.look_ahead(depth, wanted=not self.skip("?!"))
        if not self.skip("?:") and self.rest.startswith("?"):
            raise ValueError(f"(?{self.rest[1:2]} is not followed here")
        return self.inside(depth)

    def look_ahead(self, depth: int, wanted: bool) -> Node:
        if self.ahead:
            raise ValueError("(?= inside of (?= is not followed here")
        self.ahead = True
        node = self.inside(depth)
        self.ahead = False
        return Ahead(node, wanted)

    def inside(self, depth: int) -> Node:
        node = self.choice(depth + 1)
        if not self.skip(")"):
            raise ValueError("a ) is missing")
        return node

    def repeated(self, node: Node) -> Node:
        """The node as often as a sign behind it says. Python refuses a second sign; ? asks for the shortest match."""
        if not self.rest or self.rest[0] not in "*+?{":
            return node
        match self.letter():
            case "*":
                least, most = 0, MANY
            case "+":
                least, most = 1, MANY
            case "?":
                least, most = 0, 1
            case _:
                least, most = self.counts()
        self.skip("?")
        if self.rest and self.rest[0] in "*+?{":
            raise ValueError(f"its {self.rest[0]} repeats nothing")
        return Repeat(node, least, most)

    def counts(self) -> tuple[int, int]:
        """{2}, {2,}, {,3} or {2,3}, behind the first brace."""
        inner, brace, self.rest = self.rest.partition("}")
        first, comma, last = inner.partition(",")
        texts = [text for text in (first, last) if text]
        if not brace or not texts or not all(text.isdecimal() and len(text) < 5 for text in texts):
            raise ValueError("its braces hold no counts")
        least = int(first or 0)
        most = min(int(last), MANY) if last else MANY
        return least, most if comma else least

    def letters(self) -> Fits:
        """What stands in brackets, behind the first."""
        inverted = self.skip("^")
        kinds: list[Fits] = []
        while not kinds or not self.skip("]"):
            kinds.append(self.one_of_letters())
        return lambda letter: any(fits(letter) for fits in kinds) != inverted

    def one_of_letters(self) -> Fits:
        if self.rest.startswith("\\") and self.rest[1:2].isalnum():
            self.skip("\\")
            return self.escaped()
        first = self.literal()
        if not self.rest.startswith("-") or self.rest.startswith("-]"):
            return first.__eq__
        self.skip("-")
        last = self.literal()
        if last < first:
            raise ValueError(f"{first}-{last} is no range")
        return lambda letter: first <= letter <= last

    def literal(self) -> str:
        """A character in brackets, for itself; a sign may have \\ before it."""
        escaped = self.skip("\\")
        letter = self.letter()
        if escaped and letter.isalnum():
            raise ValueError(f"\\{letter} is not followed here")
        return letter

    def escaped(self) -> Fits:
        letter = self.letter()
        if letter in KINDS:
            return KINDS[letter]
        if letter.lower() in KINDS:
            fits = KINDS[letter.lower()]
            return lambda other: not fits(other)
        if letter.isalnum():
            raise ValueError(f"\\{letter} is not followed here")
        return letter.__eq__
