"""Bytes and JSON from disk: whatever cannot be read is a CheckpointError that names the file."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import BinaryIO

from .errors import CheckpointError, shown

HALF = re.compile("[\ud800-\udfff]")  # of a character beyond 16 bits; JSON can write one alone
LARGEST = 100_000_000  # bytes of JSON; the same limit as in the safetensors format


def size_of(path: Path) -> int:
    """Bytes of a regular file; links are followed."""
    try:
        status = path.stat()
    except FileNotFoundError:
        problem = "is a link to a file that does not exist" if path.is_symlink() else "is missing"
        raise CheckpointError(f"{path} {problem}: download it again") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    if not S_ISREG(status.st_mode):
        kind = "a folder" if S_ISDIR(status.st_mode) else "no regular file"
        raise CheckpointError(f"{path} is {kind} where a file is expected")
    return status.st_size


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
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
    if size > LARGEST:
        raise CheckpointError(f"{path} has {size} bytes; a JSON file here has at most {LARGEST}")
    with opened(path) as file:
        raw = file.read()
    return parse_json(raw, str(path))


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
