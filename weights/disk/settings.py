"""JSON files as data, and a typed reader of the settings in them: it checks each against the kind that is expected and
names what it refuses.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from stat import S_ISREG
from typing import Any, NamedTuple, NoReturn

from ..errors import CheckpointError, shown

HALF = re.compile("[\ud800-\udfff]")  # of a character beyond 16 bits; JSON can write one alone
JSON_BYTES = 20_000_000  # at most; those of published files, lists of the training's captions included, have 10 MB
USUAL_BYTES = 2**20  # up to these, no text makes trouble
VALUES = 250_000  # in one JSON text, at most: 20,000 tensors in a header, of which no published file has 5,000
DIGITS = 500  # of one number: to read it takes a time that grows with the square of its digits
ALL_DIGITS = 400_000  # of all numbers that have forty or more
LONG = re.compile(rb"(?<![0-9])[0-9]{40,}+")
TEXT = re.compile(rb'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)', re.DOTALL)  # the last may have no end
WIDEST = 2**20  # of a width; no network comes near it
NO_WAIT = getattr(os, "O_NONBLOCK", 0)  # a pipe put in a file's place would keep us waiting; Windows has none
DEEPEST = 256  # of a number of layers or levels: nobody should wait for a file to build a million of them


@contextmanager
def open_file(path: Path) -> Generator[BufferedReader]:
    """A regular file, to be read; links are followed."""
    try:
        if not S_ISREG(path.stat().st_mode):
            refuse_file(path)
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | NO_WAIT)) as file:
            yield file
    except OSError as error:
        raise unreadable(path, error) from None


def refuse_file(path: Path) -> NoReturn:
    kind = "a folder" if path.is_dir() else "no regular file"
    raise CheckpointError(f"{path} is {kind} where a file is expected")


def unreadable(path: Path, error: OSError) -> CheckpointError:
    if not isinstance(error, FileNotFoundError):
        return CheckpointError(f"{path} cannot be read: {error.strerror}")
    problem = "is a link to a file that does not exist" if path.is_symlink() else "is missing"
    return CheckpointError(f"{path} {problem}: download it again")


def names_in(folder: Path) -> list[str]:
    """Names of all that lies in a folder, sorted."""
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read as a folder: {error.strerror}") from None


def read_json(path: Path) -> dict:
    """The object in a JSON file."""
    with open_file(path) as file:
        return parse_json(file.read(JSON_BYTES + 1) or b"", str(path))  # None: a pipe took its place


def parse_json(raw: bytes, where: str) -> dict:
    """The object that raw holds; `where` begins each error."""
    if len(raw) > USUAL_BYTES:
        check_size(raw, where)
    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=lambda pairs: unique(pairs, where))
    except (ValueError, RecursionError) as error:
        refuse_json(error, where)
    if not isinstance(value, dict):
        raise CheckpointError(f"{where} holds a JSON {type(value).__name__}, not an object")
    return value


def count_values(raw: bytes) -> int:
    """No fewer than a JSON text has: what looks like one in its texts counts too."""
    return raw.count(b",") + raw.count(b"[") + raw.count(b"{")


def check_size(raw: bytes, where: str) -> None:
    if len(raw) > JSON_BYTES:
        raise CheckpointError(f"{where} has more than {JSON_BYTES} bytes, which no such text has")
    count = count_values(raw)
    if count > VALUES:
        count = count_values(without_texts(raw))
    if LONG.search(raw):
        check_digits(without_texts(raw), where)
    if count > VALUES:
        raise CheckpointError(f"{where} is not valid JSON here: it has {count} values, and at most {VALUES} are read")


def check_digits(raw: bytes, where: str) -> None:
    """raw: without its texts."""
    counts = [len(digits) for digits in LONG.findall(raw)]
    if max(counts, default=0) > DIGITS:
        raise CheckpointError(f"{where} is not valid JSON here: it has a number of more than {DIGITS} digits")
    if sum(counts) > ALL_DIGITS:
        raise CheckpointError(f"{where} is not valid JSON here: its long numbers have more than {ALL_DIGITS} digits")


def without_texts(raw: bytes) -> bytes:
    """A JSON text in which each text is empty."""
    return TEXT.sub(b'""', raw)


def refuse_json(error: Exception, where: str) -> NoReturn:
    if isinstance(error, CheckpointError):
        raise error
    if isinstance(error, UnicodeDecodeError):
        raise CheckpointError(f"{where} is not UTF-8 at byte {error.start}: download it again") from None
    raise CheckpointError(f"{where} is not valid JSON: download it again") from None


def unique(pairs: list[tuple[str, object]], where: str) -> dict:
    """Refuse what two readers of one file could take for different things: a key given twice, half a character."""
    values = dict(pairs)
    texts = [*values, *(value for value in values.values() if isinstance(value, str))]
    if len(values) < len(pairs) or any(map(HALF.search, texts)):
        refuse_pairs(pairs, texts, where)
    return values


def refuse_pairs(pairs: list[tuple[str, object]], texts: list[str], where: str) -> NoReturn:
    counts = Counter(name for name, _ in pairs)
    ((name, count),) = counts.most_common(1)
    if count > 1:
        raise CheckpointError(f"{where} has the key {shown(name)} more than once")
    half = next(filter(HALF.search, texts))
    raise CheckpointError(f"{where} has the text {shown(half)}, which is not Unicode")


def is_integer(value: object, least: int, most: int = WIDEST) -> bool:
    """True and False are none."""
    return type(value) is int and least <= value <= most


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30  # NaN is not


class Kind(NamedTuple):
    """What a setting may be: the test, and what an error says of a value that fails it."""

    fits: Callable[[Any], bool]
    wanted: str


def whole(least: int, most: int = WIDEST) -> Kind:
    return Kind(lambda value: is_integer(value, least, most), f"a whole number from {least} to {most} is expected")


def among(names: Collection[str]) -> Kind:
    wanted = f"only {' or '.join(map(shown, names))} is implemented"
    return Kind(lambda value: isinstance(value, str) and value in names, wanted)


WIDTH = whole(1)
COUNT = whole(1, DEEPEST)  # of layers
NUMBER = Kind(is_number, "a number is expected")
FLAG = Kind(lambda value: isinstance(value, bool), "true or false is expected")


@dataclass(frozen=True)
class Settings:
    """file: where `values` were read, for the errors. A default applies where the key is absent."""

    file: str
    values: Mapping

    @staticmethod
    def read(path: Path) -> "Settings":
        """CheckpointError if there is no such file, or no JSON object in it."""
        return Settings(str(path), read_json(path))

    def refuse(self, key: str, wanted: str) -> NoReturn:
        raise CheckpointError(f"{self.file}: {key} is {shown(self.values.get(key))}: {wanted}")

    def only(self, table: Mapping[str, tuple]) -> None:
        """Refuse a setting whose value is not among those that this program implements."""
        for key, allowed in table.items():
            value = self.values.get(key, allowed[0])
            if not any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in allowed):
                self.refuse(key, f"only {' or '.join(map(shown, allowed))} is implemented")

    def one(self, key: str, default: Any, kind: Kind) -> Any:
        value = self.values.get(key, default)
        if not kind.fits(value):
            self.refuse(key, kind.wanted)
        return value

    def number(self, key: str, default: float) -> float:
        return float(self.one(key, default, NUMBER))

    def flag(self, key: str, default: bool = False) -> bool:
        """null stands for the default."""
        return default if self.values.get(key) is None else self.one(key, default, FLAG)

    def several(self, key: str, default: Any, kind: Kind, count: int | None = None) -> tuple:
        """A list with a value for each of `count` levels, or of any length."""
        values = self.values.get(key, default)
        right = isinstance(values, list | tuple) and 1 <= len(values) <= DEEPEST and all(map(kind.fits, values))
        if not right or count not in (None, len(values)):
            self.refuse_list(key, kind, count)
        return tuple(values)

    def refuse_list(self, key: str, kind: Kind, count: int | None) -> NoReturn:
        length = f"at most {DEEPEST}" if count is None else str(count)
        self.refuse(key, f"a list of {length} values is expected, in which {kind.wanted}")

    def per_level(self, key: str, default: Any, kind: Kind, levels: int) -> tuple:
        """A list with a value for each level, or one value for all."""
        if isinstance(self.values.get(key), list | tuple):
            return self.several(key, default, kind, levels)
        return (self.one(key, default, kind),) * levels

    def equal(self, key: str, default: int, kind: Kind, levels: int) -> int:
        """One number, or a list that repeats it: the networks here have the same on every level."""
        numbers = self.per_level(key, default, kind, levels)
        if len(set(numbers)) > 1:
            self.refuse(key, "only the same number on every level is implemented")
        return numbers[0]
