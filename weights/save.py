"""A Model to disk, in any published layout: what `load` reads back is equal, tensor by tensor. Nothing is left half
written: files appear under their names when they are complete.
"""

from collections.abc import Mapping
from pathlib import Path

import torch

from ldm.model import Model

from .checkpoint import Network
from .disk.write import atomic_path, write_tensors
from .errors import CheckpointError, shown
from .layouts import diffusers, one_network, single_file
from .layouts.overrides import without_overrides
from .load import dtype_of_name


def save(
    model: Model,
    path: str | Path,
    layout: str | None = None,
    dtype: torch.dtype | str | None = None,
    variant: str | None = None,
    shard_size: int | None = None,
    metadata: Mapping[str, str] = {},
) -> None:
    """Write a model as a folder ("diffusers") or as one file ("ldm" for SD 1 and 2, "sgm" for SDXL and SD 2).

    layout: where not given, by the path: .safetensors stands for the family's single file. dtype: of all tensors, else
    as they are. variant: a word in the file names of a folder, such as fp16. shard_size: bytes of the largest file of a
    folder. metadata: texts to put into every file.
    Raises CheckpointError if the path is taken, cannot be written or the model has no such layout.
    """
    path = Path(path)
    dtype = dtype_of_name(dtype) if isinstance(dtype, str) else dtype
    if model.tokenizer.added:
        raise CheckpointError(
            f"{path}: no layout holds added words, {shown(next(iter(model.tokenizer.added)))}: save "
            "the model that they were added to"
        )
    metadata = without_overrides(metadata)
    if layout is None:
        layout = model.facts.family.layouts[0] if path.suffix == ".safetensors" else "diffusers"
    with atomic_path(path) as part:
        if layout == "diffusers":
            # each file of a folder can be used alone, so each gets what its shapes cannot say
            own = {
                name: {**metadata, **one_network.overrides_of(network, network.state_dict())}
                for name, network in {"unet": model.unet, "vae": model.vae, **model.texts}.items()
            }
            diffusers.write(part, model, dtype, variant, shard_size, own)
        else:
            tensors, own = single_file.write(model, layout)
            write_tensors(part, tensors, dtype, {**metadata, **own})


def save_part(
    network: Network,
    path: str | Path,
    names: str = "diffusers",
    dtype: torch.dtype | str | None = None,
    metadata: Mapping[str, str] = {},
) -> None:
    """Write one network as one file. names: "diffusers"; "ldm", of a UNet or VAE; "open_clip", of a text tower.

    Raises CheckpointError if the path is taken, cannot be written or the network was never published so.
    """
    path = Path(path)
    dtype = dtype_of_name(dtype) if isinstance(dtype, str) else dtype
    tensors, own = one_network.write(network, path, names)
    with atomic_path(path) as part:
        write_tensors(part, tensors, dtype, {**without_overrides(metadata), **own})
