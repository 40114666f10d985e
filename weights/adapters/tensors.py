"""The tensors of an adapter's file: what is large stays in the file, what is computed with at once is read."""

from collections.abc import Collection
from pathlib import Path

import torch
from torch import Tensor

from ..disk.safetensors import FLOATS, Entries, map_tensors, read_header, read_tensors
from ..disk.settings import WIDEST
from ..errors import CheckpointError, shown

WHOLE = ("I64", "I32", "I16", "I8", "U8", "BOOL")  # an alpha may be of these types
SMALL = 2**16  # numbers of a tensor that is read: what is computed with at once, (IA)^3's factors for example


def read_all(
    path: Path, keys: Collection[str] | None = None, small: int = SMALL
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file, or those of the keys, all finite; and its metadata. Those of more than `small` numbers are
    views of the file. Float8, in which nothing is computed, becomes float32."""
    header = read_header(path)
    entries = {key: entry for key, entry in header.entries.items() if keys is None or key in keys}
    check_entries(path, entries)
    eights = {key: entry for key, entry in entries.items() if entry.dtype.startswith("F8")}
    others = {key: entry for key, entry in entries.items() if key not in eights}
    tensors = dict(map_tensors(path, others, True, small)) if others else {}
    if eights:
        tensors |= read_tensors(path, eights, torch.float32, torch.device("cpu"), True)
    found = {key: tensors[key] for key in entries}
    found = {key: tensor.float() if tensor.itemsize == 1 else tensor for key, tensor in found.items()}  # numbers alone
    return found, header.metadata


def read_as_stored(path: Path, entries: Entries) -> dict[str, Tensor]:
    """Views of the file, in the dtypes that it has."""
    check_entries(path, entries)
    return dict(map_tensors(path, entries, False)) if entries else {}


def check_entries(path: Path, entries: Entries) -> None:
    for key, entry in entries.items():
        if entry.dtype not in FLOATS and (entry.dtype not in WHOLE or entry.shape not in ((), (1,))):
            raise CheckpointError(f"{path}: {shown(key)} is of type {entry.dtype}: only {', '.join(FLOATS)} are read")
        if max(entry.shape, default=0) > WIDEST:
            raise CheckpointError(f"{path}: {shown(key)} has the shape {shown(entry.shape)}: no layer is so large")
