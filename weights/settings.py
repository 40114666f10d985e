"""Settings read from a JSON object as data: each reader checks the kind of what it finds and names what it refuses."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn

from .errors import CheckpointError, shown

LARGEST = 2**20  # of a width; no network comes near it
DEEPEST = 256  # of a number of layers or levels: nobody should wait for a file to build a million of them


@dataclass(frozen=True)
class Settings:
    """file: where `values` were read, for the errors. A default applies where the key is absent."""

    file: str
    values: Mapping

    def refuse(self, key: str, wanted: str) -> NoReturn:
        raise CheckpointError(f"{self.file}: {key} is {shown(self.values.get(key))}: {wanted}")

    def only(self, table: Mapping[str, tuple]) -> None:
        """Refuse a setting whose value is not among those that this program implements."""
        for key, allowed in table.items():
            value = self.values.get(key, allowed[0])
            if not any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in allowed):
                self.refuse(key, f"only {' or '.join(map(shown, allowed))} is implemented")

    def choice(self, key: str, table: Mapping, default: object) -> object:
        """The entry of the table that the setting names."""
        value = self.values.get(key, default)
        if not isinstance(value, str | None) or value not in table:
            self.refuse(key, f"only {' or '.join(map(shown, table))} is implemented")
        return table[value]

    def whole(self, key: str, default: int | None, least: int = 1, most: int = LARGEST) -> int:
        value = self.values.get(key, default)
        if not is_whole(value, least, most):
            self.refuse(key, f"a whole number from {least} to {most} is expected")
        return value

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

    def wholes(self, key: str, default: tuple[int, ...], most: int = LARGEST) -> tuple[int, ...]:
        value = self.values.get(key, default)
        if not isinstance(value, list | tuple) or not 1 <= len(value) <= DEEPEST:
            self.refuse(key, "a list of whole numbers is expected")
        if not all(is_whole(n, 1, most) for n in value):
            self.refuse(key, f"whole numbers from 1 to {most} are expected")
        return tuple(value)

    def per_level(self, key: str, default: int, levels: int, most: int = LARGEST) -> tuple[int, ...]:
        """A list with a number for each level, or one number for all."""
        if not isinstance(self.values.get(key), list | tuple):
            return (self.whole(key, default, most=most),) * levels
        numbers = self.wholes(key, (), most)
        if len(numbers) != levels:
            self.refuse(key, f"one number for each of the {levels} levels is expected")
        return numbers

    def equal(self, key: str, default: int, levels: int, most: int = LARGEST) -> int:
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


def is_whole(value: object, least: int, most: int = LARGEST) -> bool:
    return type(value) is int and least <= value <= most


def is_number(value: object) -> bool:
    return type(value) in (int, float) and abs(value) < 1e30  # NaN is not
