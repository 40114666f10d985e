"""What is written appears under its name when it is complete: a file, a folder, the shards of a network."""

import json
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ldm.scratch import at_home, place, scratch_folder, sweep

from ..errors import CheckpointError, shown
from .safetensors import is_finite


@contextmanager
def atomic_path(path: Path) -> Generator[Path]:
    """A name to write a file or folder under: it is renamed to `path` at the end, and vanishes after an error.
    CheckpointError if `path` is taken or cannot be written."""
    path = at_home(path)
    try:
        if path.exists() or path.is_symlink():
            sweep(path.parent)  # a program may have been killed just after it was done
            raise taken(path)
        with scratch_folder(path.parent) as scratch:
            part = scratch / path.name
            yield part
            move_complete(part, path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be written: {getattr(error, 'strerror', None) or error}") from None


def move_complete(part: Path, path: Path) -> None:
    if part.is_dir():
        part.rename(path)
        return
    try:
        place(part, path)
    except FileExistsError:  # since the beginning
        raise taken(path) from None


def taken(path: Path) -> CheckpointError:
    return CheckpointError(f"{path} exists already: choose another name, or remove it")


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype | None, metadata: Mapping[str, str]
) -> None:
    """One .safetensors file. dtype: of all tensors; None leaves each as it is. CheckpointError if a value is too large
    for the dtype."""
    converted = {key: tensor.detach().to(dtype or tensor.dtype).contiguous() for key, tensor in tensors.items()}
    for key, tensor in converted.items():
        if tensor.dtype != tensors[key].dtype and not is_finite(tensor):
            raise CheckpointError(
                f"{shown(key)} holds values beyond {str(dtype).removeprefix('torch.')}: choose bfloat16 or float32"
            )
    save_file(converted, path, metadata={"format": "pt", **metadata})
    path.chmod(0o644)  # the library keeps it to its owner


def write_shards(
    folder: Path,
    stem: str,
    tensors: Mapping[str, Tensor],
    dtype: torch.dtype | None,
    variant: str | None,
    size: int | None,
    metadata: Mapping[str, str],
) -> None:
    """One file, or several of at most `size` bytes each, unless a tensor is larger, with an index that lists them."""
    word = f".{variant}" if variant else ""
    shards, total = divide(tensors, dtype, size)
    if len(shards) == 1:
        write_tensors(folder / f"{stem}{word}.safetensors", tensors, dtype, metadata)
        return
    weight_map = {}
    for i, shard in enumerate(shards, 1):
        name = f"{stem}{word}-{i:05d}-of-{len(shards):05d}.safetensors"
        write_tensors(folder / name, shard, dtype, metadata)
        weight_map |= dict.fromkeys(shard, name)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    write_json(folder / f"{stem}.safetensors.index{word}.json", index)


def divide(
    tensors: Mapping[str, Tensor], dtype: torch.dtype | None, size: int | None
) -> tuple[list[dict[str, Tensor]], int]:
    """The tensors of each shard, in their order, and the bytes of all."""
    shards: list[dict[str, Tensor]] = [{}]
    filled = 0
    total = 0
    for key, tensor in tensors.items():
        count = tensor.numel() * (dtype or tensor.dtype).itemsize
        if size and shards[-1] and filled + count > size:
            shards.append({})
            filled = 0
        shards[-1][key] = tensor
        filled += count
        total += count
    return shards, total


def write_json(path: Path, value: dict) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
