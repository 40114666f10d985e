"""Weight files: a .safetensors file, or its shards.

A file is 8 bytes with the length of a JSON header, the header, the tensors' bytes. The header is checked here, by the
format's rules (github.com/huggingface/safetensors, README "Format"): so every fault has a name, and no other room needs
to doubt a file. What is wrong is put into words by `faults`.

A file may change while it is read. So its values are read by system calls, which report an error where a mapped page
that is no longer there would end the process; and whoever reads them finds the file whose header was read, or none.
"""

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import BufferedReader
from math import isfinite, prod
from mmap import ACCESS_COPY, mmap
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from ..errors import CheckpointError, shown
from . import faults
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
WHOLE = {"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8}
TORCH = FLOATS | WHOLE | {"BOOL": torch.bool}
PIECE = 2**18  # numbers read at a time: they stay in the processor's cache until they were looked at
AXES = 64  # of a tensor; PyTorch computes with no more
MOST_TENSORS = 20_000  # in all shards of an index; a single header holds hardly more
KEY_LENGTH = 500  # characters of a name; the longest published ones have 150

SHARD_NAME = re.compile(r"\w[\w.-]{0,200}\.safetensors", re.ASCII)


class FileState(NamedTuple):
    """Of a file when its header was read: another one, wherever something was written to it or put in its place.
    start: of its data, after the header. modified: in nanoseconds."""

    start: int = 0
    device: int = 0
    inode: int = 0
    size: int = 0
    modified: int = 0


@dataclass(frozen=True)
class Entry:
    """Where one tensor lies: bytes begin .. end of the data that follow the header. file: the state of its file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int
    file: FileState = FileState()


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
        length = header_length(path, file.read(64) or b"", size)
        state = state_of(file, 8 + length)
        file.seek(8)
        raw = file.read(length)
    values = parse_json(raw, f"{path}: its header")
    if b"-0" in raw:
        faults.check_zeros(path, raw)
    metadata = values.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise CheckpointError(f"{path}: __metadata__ in its header must hold texts only")
    entries = {key: check_entry(path, key, value, state) for key, value in values.items()}
    check_layout(path, entries, size - 8 - length)
    return Header(entries, metadata)


def state_of(file: BufferedReader, start: int) -> FileState:
    found = os.fstat(file.fileno())
    return FileState(start, found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


def header_length(path: Path, start: bytes, size: int) -> int:
    length = int.from_bytes(start[:8], "little")
    if start[8:9] == b"{" and 2 <= length <= min(size - 8, JSON_BYTES):
        return length
    raise CheckpointError(f"{path}{faults.header_fault(path, start, size, length)}")


def check_entry(path: Path, key: str, value: Any, state: FileState) -> Entry:
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"} or len(key) > KEY_LENGTH:
        faults.refuse_fields(path, key, value, KEY_LENGTH)
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    known = isinstance(dtype, str) and dtype in BITS
    if not known or not is_counts(shape) or not is_counts(offsets) or len(offsets) != 2:
        refuse_entry(path, key, dtype, shape, offsets)
    begin, end = offsets
    bits = prod(shape) * BITS[dtype]
    if bits != 8 * (end - begin) or prod(max(n, 1) for n in shape) * BITS[dtype] >= 2**63:
        refuse_entry(path, key, dtype, shape, offsets)
    return Entry(dtype, tuple(shape), begin, end, state)


def refuse_entry(path: Path, key: str, dtype: Any, shape: Any, offsets: Any) -> NoReturn:
    if not isinstance(dtype, str) or dtype not in BITS:
        fault = f"the unknown dtype {shown(dtype)}"
    elif not is_counts(shape):
        fault = f"the shape {shown(shape)}: at most {AXES} whole numbers from 0 are expected"
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
    return isinstance(values, list) and len(values) <= AXES and all(type(n) is int and 0 <= n < 2**64 for n in values)


def check_layout(path: Path, entries: Entries, room: int) -> None:
    """The tensors must fill the data exactly: bytes that none or two of them own could hide something else."""
    reached = 0
    for key, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != reached:
            raise CheckpointError(f"{path}: {faults.misplaced(key, entries, reached, room)}")
        reached = entry.end
    if reached != room:
        faults.refuse_end(path, reached, room)


def read_tensors(path: Path, entries: Entries, dtype: torch.dtype, device: torch.device, check: bool) -> NamedTensors:
    """Key and tensor, as `dtype` on `device`, of these entries of a checked file. check: refuse NaN and infinity."""
    stay = {key: entry for key, entry in entries.items() if FLOATS[entry.dtype] == dtype and device.type == "cpu"}
    if stay:
        yield from map_tensors(path, stay, check)
    with open_file(path) as file:
        check_state(path, file, entries)
        for key in sorted(entries.keys() - stay, key=lambda key: entries[key].begin):
            tensor = copied(path, file, entries[key], dtype, device)
            if check and not is_finite(tensor):
                faults.refuse_values(path, key, dtype)
            yield key, tensor
        check_state(path, file, entries)


def copied(path: Path, file: BufferedReader, entry: Entry, dtype: torch.dtype, device: torch.device) -> Tensor:
    tensor = torch.empty(entry.shape, dtype=dtype, device=device)
    for part, piece in zip(tensor.view(-1).split(PIECE), pieces(path, file, entry)):
        part.copy_(piece)
    return tensor


def map_tensors(path: Path, entries: Entries, check: bool, small: int = 1) -> NamedTensors:
    """Views of the mapped file, which take memory only when they are used; do not change it meanwhile. To touch a page
    that a shortened file no longer has ends the process, so none is touched here. Of up to `small` numbers, copies."""
    size = next(iter(entries.values())).file.size
    with open_file(path) as file:
        check_state(path, file, entries)
        mapped = memoryview(map_file(path, file, size))
        for key, entry in sorted(entries.items(), key=lambda item: item[1].begin):
            dtype = TORCH[entry.dtype]
            if check and not all(map(is_finite, pieces(path, file, entry))):
                faults.refuse_stored(path, key)
            if prod(entry.shape) > small:
                begin = entry.file.start + entry.begin
                end = entry.file.start + entry.end
                yield key, torch.frombuffer(mapped[begin:end], dtype=dtype).view(entry.shape)
            else:
                yield key, copied(path, file, entry, dtype, torch.device("cpu"))
        check_state(path, file, entries)


def map_file(path: Path, file: BufferedReader, size: int) -> mmap:
    """What is written to the mapping does not reach the file."""
    try:
        return mmap(file.fileno(), size, access=ACCESS_COPY)
    except ValueError:  # it is shorter by now
        faults.refuse_change(path)


def check_state(path: Path, file: BufferedReader, entries: Entries) -> None:
    seen = next(iter(entries.values())).file
    if state_of(file, seen.start) != seen:
        faults.refuse_change(path)


def pieces(path: Path, file: BufferedReader, entry: Entry) -> Iterator[Tensor]:
    """The values of a tensor, PIECE of them at a time; each piece (n) lies in the memory of the one before."""
    dtype = TORCH[entry.dtype]
    size = PIECE * dtype.itemsize
    buffer = memoryview(bytearray(min(size, entry.end - entry.begin)))
    file.seek(entry.file.start + entry.begin)
    for begin in range(entry.begin, entry.end, size):
        piece = buffer[: entry.end - begin]
        if file.readinto(piece) != len(piece):
            faults.refuse_change(path)
        yield torch.frombuffer(piece, dtype=dtype)


def read_value(held: Held) -> Tensor:
    """One tensor as float32, in memory of its own. Raises as `read_tensors`."""
    check_floats([held])
    entries = {held.key: held.entry}
    with open_file(held.file) as file:
        check_state(held.file, file, entries)
        tensor = copied(held.file, file, held.entry, torch.float32, torch.device("cpu"))
        check_state(held.file, file, entries)
    return tensor


def check_floats(tensors: Iterable[Held]) -> None:
    for path, key, entry in tensors:
        if entry.dtype not in FLOATS:
            raise CheckpointError(f"{path}: {shown(key)} is of type {entry.dtype}: only {', '.join(FLOATS)} are read")


def is_finite(tensor: Tensor) -> bool:
    """NaN or infinity anywhere shows in the sum, the fastest look at all values. A sum can overflow on its own; then
    the smallest and the largest value decide. Neither needs memory of the tensor's size, except for float8."""
    if tensor.dtype.is_floating_point and tensor.itemsize == 1:  # PyTorch does not add in float8
        tensor = tensor.float()
    return isfinite(tensor.sum().item()) or all(isfinite(end.item()) for end in torch.aminmax(tensor))


def choose_file(where: str, names: list[str], stem: str, variant: str | None) -> str:
    """The file or index to read: that of the variant; without one the plain one, else the only one there is."""
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
        if len(stored) > MOST_TENSORS:
            raise CheckpointError(f"{path}: its shards hold more than {MOST_TENSORS} tensors, and no model has so many")
    for key, name in listing.items():
        if key not in stored or stored[key].file.name != name:
            raise CheckpointError(f"{path}: {shown(key)} is not in {name}, where the index says it is")
    return stored
