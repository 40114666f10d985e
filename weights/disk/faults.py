"""What is wrong with a weight file, in words: nothing here runs while files are sound."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch

from ..errors import CheckpointError, shown
from .kinds import describe_bytes
from .settings import JSON_BYTES, without_texts

MINUS_ZERO = re.compile(rb"-0(?![0-9.eE])")


def refuse_fields(path: Path, key: str, value: Any, length: int) -> NoReturn:
    if len(key) > length:
        raise CheckpointError(f"{path}: {shown(key)} has a name of {len(key)} characters: at most {length} are read")
    wanted = "dtype, shape and data_offsets"
    raise CheckpointError(f"{path}: {shown(key)} must have {wanted} in the header, and has {shown(value)}")


def header_fault(path: Path, start: bytes, size: int, length: int) -> str:
    if size == 0:
        return " is empty: download it again"
    if start[8:9] != b"{" or length > JSON_BYTES:
        kind = describe_bytes(path)
        if kind:
            return f" {kind}"
    if size < 8:
        return f" has {size} bytes, too few to be a safetensors file: download it again"
    announced = f": a header of {length} bytes is announced"
    if length > JSON_BYTES:
        return f"{announced}, at most {JSON_BYTES} are allowed: this is no safetensors file"
    if length > size - 8:
        return f"{announced} and only {size - 8} follow: the file is cut off, download it again"
    return ": its header does not begin with '{': this is no safetensors file"


def refuse_end(path: Path, reached: int, room: int) -> NoReturn:
    fault = f"{room - reached} trailing bytes after the last tensor belong to none"
    if reached > room:
        fault = f"{reached} bytes of data are announced and only {room} follow: the file is cut off, download it again"
    raise CheckpointError(f"{path}: {fault}")


def misplaced(key: str, entries: Mapping[str, Any], reached: int, room: int) -> str:
    """What is wrong with a tensor that does not begin where the one before it ended. entries: by key."""
    for far, entry in entries.items():
        if entry.end > room:
            return f"{shown(far)} lies outside the file's {room} bytes of data, at {entry.begin} to {entry.end}"
    entry = entries[key]
    fault = "overlaps another tensor"
    if entry.begin > reached:
        fault = f"leaves a hole of {entry.begin - reached} bytes that belong to no tensor"
    return f"{shown(key)}, at bytes {entry.begin} to {entry.end} of the data, {fault}"


def check_zeros(path: Path, raw: bytes) -> None:
    """raw: the header. A whole number is not written so, and other readers take it for a fraction."""
    if MINUS_ZERO.search(without_texts(raw)):
        raise CheckpointError(f"{path}: its header has a number -0 where the library reads a floating point `-0.0`")


def refuse_stored(path: Path, key: str) -> NoReturn:
    raise CheckpointError(f"{path}: {key} holds NaN or infinity: the file is damaged")


def refuse_values(path: Path, key: str, dtype: torch.dtype) -> NoReturn:
    """Of a tensor that was converted to the dtype."""
    raise CheckpointError(
        f"{path}: {key} holds NaN or infinity as {str(dtype).removeprefix('torch.')}: "
        "the file is damaged, or the dtype too small for its values"
    )


def refuse_change(path: Path) -> NoReturn:
    raise CheckpointError(f"{path} has changed since its header was read: load it again when nothing writes to it")
