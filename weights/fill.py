"""From the tensors of weight files into the parameters of a network, with every tensor accounted for."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .errors import CheckpointError, listed, shown
from .files import Stored
from .safetensors_file import FLOATS, Entry, read_tensors

HARMLESS = {   # a tensor without a place in our networks -> what it is, and so why it can be left out
    "text_model.embeddings.position_ids": "the numbers 0 to 76, which older versions of transformers stored",
    "logit_scale": "the temperature of CLIP's training",
    "text_projection.weight": "the projection of a pooled output that the model does not use",
}
RENAMED = (   # as older or newer versions of the libraries wrote them -> as published
    (re.compile(r"^(.*mid_block\.attentions\.0)\.query\."), r"\1.to_q."),
    (re.compile(r"^(.*mid_block\.attentions\.0)\.key\."), r"\1.to_k."),
    (re.compile(r"^(.*mid_block\.attentions\.0)\.value\."), r"\1.to_v."),
    (re.compile(r"^(.*mid_block\.attentions\.0)\.proj_attn\."), r"\1.to_out.0."),
    (re.compile(r"^(embeddings|encoder\.layers|final_layer_norm)\."), r"text_model.\1."),
)
READS_TEXT = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"   # in every UNet; (width, text width)
TEXT_WIDTHS = {768: "SD 1", 1024: "SD 2", 2048: "SDXL", 1280: "SDXL's refiner"}


class Place(NamedTuple):
    """Where the tensor for one parameter lies."""

    key: str
    file: Path
    entry: Entry


Places = dict[str, Place]   # by the names of the network


def empty(network: Callable[..., nn.Module], config: object, folder: Path) -> nn.Module:
    """The network without memory for its parameters, frozen and in evaluation mode."""
    try:
        with torch.device("meta"):
            return network(config).eval().requires_grad_(False)
    except (ValueError, RuntimeError) as error:
        raise CheckpointError(f"{folder / 'config.json'}: no such {network.__name__} can be built: {error}") from None


def account(network: nn.Module, stored: Stored, path: Path) -> Places:
    """A place for each parameter, and a parameter or a line of HARMLESS for each tensor; else CheckpointError."""
    needed = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    places: Places = {}
    for key, (file, entry) in stored.items():
        name = published_name(key)
        if name in places:
            raise CheckpointError(f"{path}: {shown(key)} and {shown(places[name].key)} are two names of one tensor")
        if name in needed or name not in HARMLESS:
            places[name] = Place(key, file, entry)
    check_family(needed, places, path)
    check_names(needed, places, path)
    check_shapes(needed, places, path)
    return places


def published_name(key: str) -> str:
    for old, new in RENAMED:
        key = old.sub(new, key)
    return key


def check_family(needed: dict, places: Places, path: Path) -> None:
    """A file of quite another network deserves a better word than its thousand differences."""
    if places and not needed.keys() & places.keys():
        raise CheckpointError(f"{path} holds no tensor of this network but {listed([p.key for p in places.values()])}: "
                              "is it a single-file checkpoint, an adapter or another part?")
    if READS_TEXT in needed and READS_TEXT in places:
        expected, shape = needed[READS_TEXT][1], places[READS_TEXT].entry.shape
        if len(shape) == 2 and shape[1] != expected:
            names = [f"{width} ({TEXT_WIDTHS[width]})" if width in TEXT_WIDTHS else str(width)
                     for width in (shape[1], expected)]
            raise CheckpointError(f"{path} is of another family: it reads text of width {names[0]}, and config.json "
                                  f"says {names[1]}: put the files of one model together")


def check_names(needed: dict, places: Places, path: Path) -> None:
    missing = [name for name in needed if name not in places]
    extra = [place.key for name, place in places.items() if name not in needed]
    faults = [f"of {len(needed)} tensors {len(missing)} are missing, {listed(missing)}"] * bool(missing)
    faults += [f"{len(extra)} unexpected tensors, {listed(extra)}"] * bool(extra)
    if faults:
        raise CheckpointError(f"{path} is not the network of config.json: {'; '.join(faults)}: "
                              "put the files of one model together")


def check_shapes(needed: dict, places: Places, path: Path) -> None:
    wrong = [f"{places[name].key} {places[name].entry.shape} for {shape}" for name, shape in needed.items()
             if places[name].entry.shape != shape]
    if wrong:
        raise CheckpointError(f"{path} has {len(wrong)} tensors of another shape than config.json describes, "
                              f"{listed(wrong)}: put the files of one model together")
    for key, file, entry in places.values():
        if entry.dtype not in FLOATS:
            raise CheckpointError(f"{file}: {shown(key)} is of type {entry.dtype}: only {', '.join(FLOATS)} are read")


def stored_dtype(places: Places, name: str) -> torch.dtype:
    """The dtype of one tensor of a file, to stand for all."""
    place = places[name]
    if place.entry.dtype not in ("F64", "F32", "F16", "BF16"):
        raise CheckpointError(f"{place.file}: {place.key} is of type {place.entry.dtype}, in which nothing can be "
                              "computed: choose a dtype")
    return FLOATS[place.entry.dtype]


def fill(network: nn.Module, places: Places, dtype: torch.dtype, device: torch.device, check_finite: bool) -> None:
    """Give an empty network its parameters."""
    state = {}
    for file in dict.fromkeys(place.file for place in places.values()):
        names = {place.key: name for name, place in places.items() if place.file == file}
        entries = {key: places[name].entry for key, name in names.items()}
        for key, tensor in read_tensors(file, entries, dtype, device):
            if check_finite and not is_finite(tensor):
                raise CheckpointError(f"{file}: {key} holds NaN or infinity as {str(dtype).removeprefix('torch.')}: "
                                      "the file is damaged, or the dtype too small for its values")
            state[names[key]] = tensor
    network.load_state_dict(state, strict=True, assign=True)


def is_finite(tensor: Tensor) -> bool:
    """NaN and infinity both show in the smallest and largest value, which need no memory of the tensor's size."""
    return tensor.numel() == 0 or bool(torch.stack(torch.aminmax(tensor)).isfinite().all())
