"""Weight files: a .safetensors file, or its shards.

A file is 8 bytes with the length of a JSON header, the header, the tensors' bytes. The header is checked here, by the
format's rules (github.com/huggingface/safetensors, README "Format"), before the library opens the file: so every fault
has a name, and no other room needs to doubt a file.
"""

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import isfinite, prod
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import CheckpointError, shown
from .kinds import describe_bytes
from .settings import JSON_BYTES, open_file, parse_json, read_json
from .variants import choose_variant

FLOATS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
OF_BITS = {
    4: ("F4",),
    6: ("F6_E2M3", "F6_E3M2"),
    8: ("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F8_E8M0"),
    16: ("U16", "I16", "F16", "BF16"),
    32: ("U32", "I32", "F32"),
    64: ("U64", "I64", "F64", "C64"),
}
BITS = {dtype: bits for bits, dtypes in OF_BITS.items() for dtype in dtypes}
CONVERTED = 16 * 2**20  # bytes converted before the file is mapped anew

SHARD_NAME = re.compile(r"\w[\w.-]{0,200}\.safetensors", re.ASCII)


@dataclass(frozen=True)
class Entry:
    """Where one tensor lies: bytes begin .. end of the data that follow the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class Header(NamedTuple):
    entries: dict[str, Entry]
    metadata: dict[str, str]


class Held(NamedTuple):
    """A tensor on disk."""

    file: Path
    key: str
    entry: Entry


Entries = dict[str, Entry]  # by key
NamedTensors = Iterator[tuple[str, Tensor]]
Stored = dict[str, Held]  # by key, perhaps without the prefix that it has in the file


def read_header(path: Path) -> Header:
    """What a file says it holds. CheckpointError for every way in which the file could contradict itself."""
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        length = header_length(path, file.read(64), size)
        file.seek(8)
        values = parse_json(file.read(length), f"{path}: its header")
    metadata = values.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise CheckpointError(f"{path}: __metadata__ in its header must hold texts only")
    entries = {key: check_entry(path, key, value) for key, value in values.items()}
    check_layout(path, entries, size - 8 - length)
    return Header(entries, metadata)


def header_length(path: Path, start: bytes, size: int) -> int:
    length = int.from_bytes(start[:8], "little")
    if start[8:9] == b"{" and 2 <= length <= min(size - 8, JSON_BYTES):
        return length
    raise CheckpointError(f"{path}{header_fault(path, start, size, length)}")


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


def check_entry(path: Path, key: str, value: Any) -> Entry:
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        wanted = "dtype, shape and data_offsets"
        raise CheckpointError(f"{path}: {shown(key)} must have {wanted} in the header, and has {shown(value)}")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    known = isinstance(dtype, str) and dtype in BITS
    if not known or not is_counts(shape) or not is_counts(offsets) or len(offsets) != 2:
        refuse_entry(path, key, dtype, shape, offsets)
    begin, end = offsets
    bits = prod(shape) * BITS[dtype]
    if bits != 8 * (end - begin) or prod(max(n, 1) for n in shape) * BITS[dtype] >= 2**63:
        refuse_entry(path, key, dtype, shape, offsets)
    return Entry(dtype, tuple(shape), begin, end)


def refuse_entry(path: Path, key: str, dtype: Any, shape: Any, offsets: Any) -> NoReturn:
    if not isinstance(dtype, str) or dtype not in BITS:
        fault = f"the unknown dtype {shown(dtype)}"
    elif not is_counts(shape):
        fault = f"the shape {shown(shape)}: whole numbers from 0 are expected"
    elif not is_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        fault = f"the data_offsets {shown(offsets)}: two increasing numbers from 0 are expected"
    elif prod(max(n, 1) for n in shape) * BITS[dtype] >= 2**63:
        fault = f"the shape {shown(shape)}, more than any memory can hold"
    else:
        needed = (prod(shape) * BITS[dtype] + 7) // 8
        found = offsets[1] - offsets[0]
        fault = f"{found} bytes of data, and its shape {shown(shape)} and dtype {dtype} need {needed}"
    raise CheckpointError(f"{path}: {shown(key)} has {fault}")


def is_counts(values: object) -> bool:
    return isinstance(values, list) and all(type(n) is int and n >= 0 for n in values)


def check_layout(path: Path, entries: Entries, room: int) -> None:
    """The tensors must fill the data exactly: bytes that none or two of them own could hide something else."""
    reached = 0
    for key, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != reached:
            raise CheckpointError(f"{path}: {misplaced(key, entries, reached, room)}")
        reached = entry.end
    if reached != room:
        refuse_end(path, reached, room)


def refuse_end(path: Path, reached: int, room: int) -> NoReturn:
    fault = f"{room - reached} trailing bytes after the last tensor belong to none"
    if reached > room:
        fault = f"{reached} bytes of data are announced and only {room} follow: the file is cut off, download it again"
    raise CheckpointError(f"{path}: {fault}")


def misplaced(key: str, entries: Entries, reached: int, room: int) -> str:
    """What is wrong with a tensor that does not begin where the one before it ended."""
    for far, entry in entries.items():
        if entry.end > room:
            return f"{shown(far)} lies outside the file's {room} bytes of data, at {entry.begin} to {entry.end}"
    entry = entries[key]
    fault = "overlaps another tensor"
    if entry.begin > reached:
        fault = f"leaves a hole of {entry.begin - reached} bytes that belong to no tensor"
    return f"{shown(key)}, at bytes {entry.begin} to {entry.end} of the data, {fault}"


def read_tensors(path: Path, entries: Entries, dtype: torch.dtype, device: torch.device) -> NamedTensors:
    """Key and tensor, as `dtype` on `device`, of these entries of a checked file. What needs no conversion is a view of
    the mapped file and takes memory only when it is used; do not change the file meanwhile. The rest is converted one
    tensor at a time. CheckpointError for a tensor that is not in FLOATS."""
    check_floats(Held(path, key, entry) for key, entry in entries.items())
    stay = [key for key, entry in entries.items() if FLOATS[entry.dtype] == dtype and device.type == "cpu"]
    for keys in [stay, *batches({key: entries[key] for key in entries.keys() - stay})]:
        with open_mapped(path) as file:
            for key in keys:
                yield key, file.get_tensor(key).to(device=device, dtype=dtype)


def check_floats(tensors: Iterable[Held]) -> None:
    for path, key, entry in tensors:
        if entry.dtype not in FLOATS:
            raise CheckpointError(f"{path}: {shown(key)} is of type {entry.dtype}: only {', '.join(FLOATS)} are read")


def batches(entries: Entries) -> Iterator[list[str]]:
    """Keys in the order of the file, cut about every CONVERTED bytes: pages that were read count as memory in use
    until the mapping they belong to is closed."""
    batch = []
    for key, entry in sorted(entries.items(), key=lambda item: item[1].begin):
        batch.append(key)
        if entry.end - entries[batch[0]].begin > CONVERTED:
            yield batch
            batch = []
    yield batch


def open_mapped(path: Path) -> safe_open:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:  # the file was changed meanwhile, or the library is stricter than we
        raise CheckpointError(f"{path} cannot be opened: {error}") from None


def is_finite(tensor: Tensor) -> bool:
    """NaN or infinity anywhere shows in the sum, the fastest look at all values. A sum can overflow on its own; then
    the smallest and the largest value decide. Neither needs memory of the tensor's size, except for float8."""
    if tensor.dtype.is_floating_point and tensor.itemsize == 1:  # PyTorch does not add in float8
        tensor = tensor.float()
    return isfinite(tensor.sum().item()) or all(isfinite(end.item()) for end in torch.aminmax(tensor))


def choose_file(where: str, names: list[str], stem: str, variant: str | None) -> str:
    """The file or index to read: that of the variant; without one the plain one, else the only one there is. Raises
    CheckpointError that lists what is offered instead; `where` begins it."""
    plain = f"{stem}.safetensors"
    if plain in names and not variant:
        return plain
    return choose_variant(where, names, stem, variant)


def read_stored(path: Path) -> Stored:
    """What a weight file, or all shards of an index, hold."""
    if path.suffix == ".json":
        return read_shards(path)
    return {key: Held(path, key, entry) for key, entry in read_header(path).entries.items()}


def read_shards(path: Path) -> Stored:
    listing = read_json(path).get("weight_map")
    if not isinstance(listing, dict) or not listing or not all(isinstance(name, str) for name in listing.values()):
        raise CheckpointError(f"{path} has no weight_map from tensors to shards: download it again")
    stored: Stored = {}
    for name in sorted(set(listing.values())):
        if not SHARD_NAME.fullmatch(name):
            raise CheckpointError(f"{path} lists the shard {shown(name)}: a .safetensors file beside it is expected")
        for key, entry in read_header(path.with_name(name)).entries.items():
            if key in stored:
                raise CheckpointError(f"{path}: {shown(key)} is in two shards, {stored[key].file.name} and {name}")
            stored[key] = Held(path.with_name(name), key, entry)
    for key, name in listing.items():
        if key not in stored or stored[key].file.name != name:
            raise CheckpointError(f"{path}: {shown(key)} is not in {name}, where the index says it is")
    return stored
