"""JSON files as data, and a typed reader of the settings in them: each method checks the kind of what it finds and
names what it refuses.
"""

import json
import re
from collections.abc import Collection, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import NoReturn

from ..errors import CheckpointError, shown

HALF = re.compile("[\ud800-\udfff]")  # of a character beyond 16 bits; JSON can write one alone
JSON_BYTES = 100_000_000  # at most; the same limit as in the safetensors format
WIDEST = 2**20  # of a width; no network comes near it
DEEPEST = 256  # of a number of layers or levels: nobody should wait for a file to build a million of them


def size_of(path: Path) -> int:
    """Bytes of a regular file; links are followed."""
    try:
        status = path.stat()
    except OSError as error:
        raise unreadable(path, error) from None
    if not S_ISREG(status.st_mode):
        kind = "a folder" if S_ISDIR(status.st_mode) else "no regular file"
        raise CheckpointError(f"{path} is {kind} where a file is expected")
    return status.st_size


def unreadable(path: Path, error: OSError) -> CheckpointError:
    if not isinstance(error, FileNotFoundError):
        return CheckpointError(f"{path} cannot be read: {error.strerror}")
    problem = "is a link to a file that does not exist" if path.is_symlink() else "is missing"
    return CheckpointError(f"{path} {problem}: download it again")


@contextmanager
def open_file(path: Path) -> Generator[BufferedReader]:
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None


def names_in(folder: Path) -> list[str]:
    """Names of all that lies in a folder, sorted."""
    try:
        return sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read as a folder: {error.strerror}") from None


def read_json(path: Path) -> dict:
    """The object in a JSON file."""
    size = size_of(path)
    if size > JSON_BYTES:
        raise CheckpointError(f"{path} has {size} bytes; a JSON file here has at most {JSON_BYTES}")
    with open_file(path) as file:
        return parse_json(file.read(), str(path))


def parse_json(raw: bytes, where: str) -> dict:
    """The object that raw holds; `where` begins each error."""
    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=lambda pairs: unique(pairs, where))
    except CheckpointError:
        raise
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{where} is not UTF-8 at byte {error.start}: download it again") from None
    except (ValueError, RecursionError):
        raise CheckpointError(f"{where} is not valid JSON: download it again") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{where} holds a JSON {type(value).__name__}, not an object")
    return value


def unique(pairs: list[tuple[str, object]], where: str) -> dict:
    """Refuse what two readers of one file could take for different things: a key given twice, half a character."""
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise CheckpointError(f"{where} has the key {shown(max(names, key=names.count))} more than once")
    for text in names + [value for _, value in pairs if isinstance(value, str)]:
        if HALF.search(text):
            raise CheckpointError(f"{where} has the text {shown(text)}, which is not Unicode")
    return dict(pairs)


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

    def one_of(self, key: str, names: Collection, default: object = None):
        """The setting, one of these names."""
        value = self.values.get(key, default)
        if not isinstance(value, str | None) or value not in names:
            self.refuse(key, f"only {' or '.join(map(shown, names))} is implemented")
        return value

    def integer(self, key: str, default: int | None, least: int = 1, most: int = WIDEST) -> int:
        value = self.values.get(key, default)
        if not is_integer(value, least, most):
            self.refuse(key, f"a whole number from {least} to {most} is expected")
        return value

    def layers(self, key: str, default: int) -> int:
        return self.integer(key, default, most=DEEPEST)

    def number(self, key: str, default: float) -> float:
        value = self.values.get(key, default)
        if not is_number(value):
            self.refuse(key, "a number is expected")
        return float(value)

    def flag(self, key: str, default: bool = False) -> bool:
        """null stands for the default."""
        value = self.values.get(key)
        if not isinstance(value, bool | None):
            self.refuse(key, "true or false is expected")
        return default if value is None else value

    def integers(self, key: str, default: tuple[int, ...], most: int = WIDEST) -> tuple[int, ...]:
        value = self.values.get(key, default)
        if not isinstance(value, list | tuple) or not 1 <= len(value) <= DEEPEST:
            self.refuse(key, "a list of whole numbers is expected")
        if not all(is_integer(n, 1, most) for n in value):
            self.refuse(key, f"whole numbers from 1 to {most} are expected")
        return tuple(value)

    def per_level(self, key: str, default: int, levels: int, most: int = WIDEST) -> tuple[int, ...]:
        """A list with a number for each level, or one number for all."""
        if not isinstance(self.values.get(key), list | tuple):
            return (self.integer(key, default, most=most),) * levels
        numbers = self.integers(key, (), most)
        if len(numbers) != levels:
            self.refuse(key, f"one number for each of the {levels} levels is expected")
        return numbers

    def equal(self, key: str, default: int, levels: int, most: int = WIDEST) -> int:
        """One number, or a list that repeats it: the networks here have the same on every level."""
        numbers = self.per_level(key, default, levels, most)
        if len(set(numbers)) > 1:
            self.refuse(key, "only the same number on every level is implemented")
        return numbers[0]

    def flags(self, key: str, count: int) -> tuple[bool, ...]:
        """One for each level, or one for all; false where absent."""
        value = self.values.get(key, False)
        value = [value] * count if isinstance(value, bool) else value
        if not isinstance(value, list) or len(value) != count or not all(isinstance(flag, bool) for flag in value):
            self.refuse(key, f"true, false or a list of {count} of them is expected")
        return tuple(value)

    def numbers(self, key: str, count: int) -> tuple[float, ...]:
        """`count` numbers, or none where the setting is absent or null."""
        value = self.values.get(key)
        if value is None:
            return ()
        if not isinstance(value, list) or len(value) != count or not all(map(is_number, value)):
            self.refuse(key, f"a list of {count} numbers is expected")
        return tuple(map(float, value))

    def words(self, key: str, default: tuple[str, ...]) -> tuple[str, ...]:
        value = self.values.get(key, default)
        if not isinstance(value, list | tuple) or not all(isinstance(word, str) for word in value):
            self.refuse(key, "a list of names is expected")
        return tuple(value)


def is_integer(value: object, least: int, most: int = WIDEST) -> bool:
    """True and False are none."""
    return type(value) is int and least <= value <= most


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30  # NaN is not
