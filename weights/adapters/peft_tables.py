"""peft's rank_pattern and alpha_pattern: names or regular expressions of modules -> numbers."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from ..disk.settings import Settings, is_number
from ..errors import shown
from .patterns import LONGEST, Node, fits_end, parse

MOST_NAMES = 5000  # in a table; SDXL has fewer modules
MOST_LETTERS = 2_000_000  # of modules and of the regular expressions that are tried on them, for all modules of a file
NAME = re.compile(r"\^?[\w.]+\$?")  # in patterns of peft; others are regular expressions


class Table:
    """The value of the first name or regular expression that describes a path, or the end of it after a dot. Names are
    looked up, however many there are; regular expressions are tried one by one."""

    def __init__(self, config: Settings, key: str):
        table = config.values.get(key) or {}
        if not isinstance(table, dict) or len(table) > MOST_NAMES or not all(map(is_number, table.values())):
            config.refuse(key, f"an object from names to numbers is expected, with at most {MOST_NAMES} of them")
        self.config = config
        self.key = key
        self.values = list(table.values())
        self.whole: dict[str, int] = {}  # name of a whole path -> its place in the table
        self.ends: dict[str, int] = {}  # name of the end of a path -> its place
        self.expressions: list[tuple[int, str]] = []  # place and text
        self.parsed: dict[str, Node] = {}
        self.letters = 0
        for place, pattern in enumerate(table):
            if not NAME.fullmatch(pattern):
                self.expressions.append((place, pattern))
            elif pattern.startswith("^"):
                self.whole.setdefault(pattern.removeprefix("^").removesuffix("$"), place)
            else:
                self.ends.setdefault(pattern.removesuffix("$"), place)
        self.deepest = max((name.count(".") + 1 for name in self.ends), default=0)

    def find(self, path: str, default: float) -> float:
        """CheckpointError for a regular expression that cannot be followed."""
        places = [self.ends[end] for end in ends_of(path, self.deepest) if end in self.ends]
        if path in self.whole:
            places.append(self.whole[path])
        named = min(places, default=len(self.values))
        length = len(path)
        for place, pattern in self.expressions:
            if place > named:
                break
            length += len(pattern)
            if self.fits(pattern, path, length):
                return self.values[place]
        return self.values[named] if places else default

    def fits(self, pattern: str, path: str, length: int) -> bool:
        """length: of the path and the expressions tried on it."""
        self.letters += len(path) + len(pattern)
        if length > LONGEST:
            self.config.refuse(
                self.key, f"regular expressions and names of more than {LONGEST} characters are not followed"
            )
        if self.letters > MOST_LETTERS:
            self.config.refuse(self.key, "these are too many regular expressions for so many modules: name the modules")
        try:
            if pattern not in self.parsed:
                self.parsed[pattern] = parse(pattern)
            return fits_end(self.parsed[pattern], path)
        except ValueError as error:
            self.config.refuse(self.key, f"the regular expression {shown(pattern)} cannot be followed, {error}")


def ends_of(path: str, deepest: int) -> Iterator[str]:
    """The last name of a path, the last two, and so on."""
    begin = len(path)
    for _ in range(deepest):
        begin = path.rfind(".", 0, begin)
        yield path[begin + 1 :]
        if begin < 0:
            return


@dataclass(frozen=True)
class PeftSettings(Settings):
    """peft's configuration of one network. tables: those that were looked into, by their keys."""

    tables: dict[str, Table] = field(default_factory=dict, compare=False)


def by_pattern(config: Settings, key: str, path: str, default: float) -> float:
    """The value that the table `key` of a configuration has for a path."""
    if not isinstance(config, PeftSettings):
        return Table(config, key).find(path, default)
    if key not in config.tables:
        config.tables[key] = Table(config, key)
    return config.tables[key].find(path, default)
