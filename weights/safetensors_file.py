"""A .safetensors file: 8 bytes that give the length of a JSON header, the header, the tensors' bytes.

The header is read and checked here, by the rules of the format (github.com/huggingface/safetensors, README "Format"),
before the library opens the file: so every fault has a name, and no other part of the program needs to doubt a file.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .disk import LARGEST, opened, parse_json, size_of
from .errors import CheckpointError, shown

FLOATS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
BITS = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "U16": 16,
    "I16": 16,
    "U32": 32,
    "I32": 32,
    "U64": 64,
    "I64": 64,
    "C64": 64,
    "F64": 64,
    "F32": 32,
    "F16": 16,
    "BF16": 16,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "F8_E8M0": 8,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "F4": 4,
}
CONVERTED = 16 * 2**20  # bytes converted before the file is mapped anew

PICKLE = "holds pickled Python objects, which are never read here: convert it to safetensors"
OTHERS = (  # the first bytes, in lower case, of what people save as .safetensors by mistake
    (b"version https://git-lfs", "is a git-LFS pointer and not the file itself: run git lfs pull"),
    (b"<!doctype", "is a web page: the download went wrong, perhaps for want of a licence or a token"),
    (b"<html", "is a web page: the download went wrong, perhaps for want of a licence or a token"),
    (b"<?xml", "is an XML page: the download went wrong"),
    (b"pk\x03\x04", "is a zip archive as torch.save writes it and " + PICKLE),
    *((bytes([0x80, protocol]), PICKLE) for protocol in range(2, 6)),
    (b"\x1f\x8b", "is compressed by gzip: unpack it"),
    (b"gguf", "is a GGUF file: this program reads safetensors"),
    (b"{", "is JSON text: the download went wrong"),
)


@dataclass(frozen=True)
class Entry:
    """Where one tensor lies: bytes begin .. end of the data that follow the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    entries: dict[str, Entry]
    metadata: dict[str, str]


def read_header(path: Path) -> Header:
    """What a file says it holds. CheckpointError for every way in which the file could contradict itself."""
    size = size_of(path)
    with opened(path) as file:
        start = file.read(64)
        length = check_start(path, start, size)
        file.seek(8)
        raw = file.read(length)
    values = parse_json(raw, f"{path}: its header")
    metadata = values.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise CheckpointError(f"{path}: __metadata__ in its header must hold texts only")
    entries = {key: check_entry(f"{path}: {shown(key)}", value) for key, value in values.items()}
    check_layout(path, entries, size - 8 - length)
    return Header(entries, metadata)


def check_start(path: Path, start: bytes, size: int) -> int:
    """The length of the header."""
    if size == 0:
        raise CheckpointError(f"{path} is empty: download it again")
    if start[8:9] != b"{":
        text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
        for first, problem in OTHERS:
            if text.startswith(first):
                raise CheckpointError(f"{path} {problem}")
    if size < 8:
        raise CheckpointError(f"{path} has {size} bytes, too few to be a safetensors file: download it again")
    length = int.from_bytes(start[:8], "little")
    if length > LARGEST:
        raise CheckpointError(
            f"{path}: a header of {length} bytes is announced, at most {LARGEST} are allowed: "
            "this is no safetensors file"
        )
    if length > size - 8:
        raise CheckpointError(
            f"{path}: a header of {length} bytes is announced and only {size - 8} follow: "
            "the file is cut off, download it again"
        )
    if start[8:9] != b"{" or length < 2:
        raise CheckpointError(f"{path}: its header does not begin with '{{': this is no safetensors file")
    return length


def check_entry(where: str, value: object) -> Entry:
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{where} must have dtype, shape and data_offsets in the header, and has {shown(value)}")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise CheckpointError(f"{where} has the unknown dtype {shown(dtype)}")
    if not is_counts(shape):
        raise CheckpointError(f"{where} has the shape {shown(shape)}: whole numbers from 0 are expected")
    if not is_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointError(
            f"{where} has the data_offsets {shown(offsets)}: two increasing numbers from 0 are expected"
        )
    if prod(max(n, 1) for n in shape) * BITS[dtype] >= 2**63:
        raise CheckpointError(f"{where} has the shape {shown(shape)}, more than any memory can hold")
    needed, found = prod(shape) * BITS[dtype], 8 * (offsets[1] - offsets[0])
    if needed != found:
        raise CheckpointError(
            f"{where} has {found // 8} bytes of data, and its shape {shown(shape)} and dtype {dtype} "
            f"need {-(-needed // 8)}"
        )
    return Entry(dtype, tuple(shape), *offsets)


def is_counts(values: object) -> bool:
    return isinstance(values, list) and all(type(n) is int and n >= 0 for n in values)


def check_layout(path: Path, entries: dict[str, Entry], room: int) -> None:
    """The tensors must fill the data exactly: bytes that none or two of them own could hide something else."""
    reached = 0
    for key, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != reached:
            for far in (name for name, other in entries.items() if other.end > room):
                raise CheckpointError(
                    f"{path}: {shown(far)} lies outside the file's {room} bytes of data, at "
                    f"{entries[far].begin} to {entries[far].end}"
                )
            fault = (
                "overlaps another tensor"
                if entry.begin < reached
                else f"leaves a hole of {entry.begin - reached} bytes that belong to no tensor"
            )
            raise CheckpointError(f"{path}: {shown(key)}, at bytes {entry.begin} to {entry.end} of the data, {fault}")
        reached = entry.end
    if reached > room:
        raise CheckpointError(
            f"{path}: {reached} bytes of data are announced and only {room} follow: "
            "the file is cut off, download it again"
        )
    if reached < room:
        raise CheckpointError(f"{path}: {room - reached} trailing bytes after the last tensor belong to none")


def read_tensors(
    path: Path, entries: dict[str, Entry], dtype: torch.dtype, device: torch.device
) -> Iterator[tuple[str, Tensor]]:
    """Key and tensor, as `dtype` on `device`, of those entries of a checked file.

    What needs no conversion is a view of the mapped file and takes memory only when it is used; do not change the
    file meanwhile. The rest is converted one tensor at a time.
    """
    for key, entry in entries.items():
        check_float(path, key, entry)
    stay = [key for key, entry in entries.items() if FLOATS[entry.dtype] == dtype and device.type == "cpu"]
    for keys in [stay, *batches({key: entries[key] for key in entries.keys() - stay})]:
        with mapped(path) as file:
            for key in keys:
                yield key, file.get_tensor(key).to(device=device, dtype=dtype)


def check_float(path: Path, key: str, entry: Entry) -> None:
    if entry.dtype not in FLOATS:
        raise CheckpointError(f"{path}: {shown(key)} is of type {entry.dtype}: only {', '.join(FLOATS)} are read")


def batches(entries: dict[str, Entry]) -> Iterator[list[str]]:
    """Keys in the order of the file, cut about every CONVERTED bytes: pages that were read count as memory in use
    until the mapping they belong to is closed."""
    batch, size = [], 0
    for key, entry in sorted(entries.items(), key=lambda item: item[1].begin):
        batch.append(key)
        size += entry.end - entry.begin
        if size > CONVERTED:
            yield batch
            batch, size = [], 0
    yield batch


def mapped(path: Path) -> safe_open:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:  # the file was changed meanwhile, or the library is stricter than we
        raise CheckpointError(f"{path} cannot be opened: {error}") from None
