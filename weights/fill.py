"""From the tensors of weight files into the parameters of a network, with every tensor accounted for."""

import gc
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ldm.config import FAMILIES

from .errors import CheckpointError, listed, shown
from .files import Held
from .layouts import Piece, pieces, published_name
from .parts import Part
from .safetensors_file import FLOATS, check_float, read_tensors

HARMLESS = (  # a tensor without a place in our networks, and what it is, and so why it can be left out
    (r"(.*\.)?embeddings\.position_ids", "the numbers 0 to 76, which older versions of transformers stored"),
    (r"attn_mask", "the causal mask, which needs no storing"),
    (r"logit_scale", "the temperature of CLIP's training"),
    (r"text_projection(\.weight)?", "the projection of a pooled output that the model does not use"),
)
LAST_BLOCK = "the last block of the text tower: the model reads the one before it"
READS_TEXT = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"  # in every UNet; (width, text width)
TEXT_WIDTHS = {sum(family.widths): family.title for family in FAMILIES.values()}


class Place(NamedTuple):
    """Where one parameter lies: a tensor on disk, and which piece of it."""

    held: Held
    piece: Piece


Places = dict[str, Place]  # by the names of the network


class Uninitialised(TorchFunctionMode):
    """No initial values: on the meta device they are nothing, and PyTorch would load its compiler to compute them."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if getattr(function, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs or {})


@contextmanager
def uncollected() -> Iterator[None]:
    """Without the garbage collector, which would look through all modules and parameters again and again while many
    are made, and find no garbage: a tenth of the time of loading SDXL."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def empty(part: Part) -> nn.Module:
    """The network without memory for its parameters, frozen and in evaluation mode."""
    try:
        with torch.device("meta"), Uninitialised():
            return part.network(part.config).eval().requires_grad_(False)
    except (ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{part.path}: no such {part.network.__name__} as {part.described_by} describes can be built: {error}"
        ) from None


def account(network: nn.Module, part: Part) -> Places:
    """A place for each parameter, and a parameter or a line of HARMLESS for each tensor; else CheckpointError."""
    needed = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    stored: dict[str, Held] = {}
    for key, held in part.stored.items():
        name = published_name(key)
        if name in stored:
            raise CheckpointError(
                f"{part.path}: {shown(held.key)} and {shown(stored[name].key)} are two names of one tensor"
            )
        stored[name] = held
    found = pieces(needed, part.config, part.names)
    if "text_projection.weight" in stored and "text_projection.weight" in needed:
        found["text_projection.weight"] = Piece("text_projection.weight")  # Playground v2's first file
    places = {name: Place(stored[piece.key], piece) for name, piece in found.items() if piece.key in stored}
    used = {piece.key for piece in found.values()}
    extra = [held.key for key, held in stored.items() if key not in used and not harmless(key, part)]
    check_family(needed, places, extra, part)
    check_names([name for name in needed if name not in places], len(needed), extra, part)
    check_shapes(needed, places, part)
    return places


def harmless(key: str, part: Part) -> str | None:
    """What a tensor is that no parameter of ours needs; None if nobody knows."""
    if part.names == "open_clip" and key.startswith(f"transformer.resblocks.{part.config.layers}."):
        return LAST_BLOCK
    return next((what for pattern, what in HARMLESS if re.fullmatch(pattern, key)), None)


def check_family(needed: Mapping, places: Places, extra: list[str], part: Part) -> None:
    """A file of quite another network deserves a better word than its thousand differences."""
    if extra and not places:
        raise CheckpointError(
            f"{part.path} holds no tensor of this network but {listed(extra)}: "
            "is it a single-file checkpoint, an adapter or another part?"
        )
    if READS_TEXT in needed and READS_TEXT in places:
        expected, shape = needed[READS_TEXT][1], places[READS_TEXT].held.entry.shape
        if len(shape) == 2 and shape[1] != expected:
            names = [
                f"{width} ({TEXT_WIDTHS[width]})" if width in TEXT_WIDTHS else str(width)
                for width in (shape[1], expected)
            ]
            raise CheckpointError(
                f"{part.path} is of another family: it reads text of width {names[0]}, and "
                f"{part.described_by} says {names[1]}: put the files of one model together"
            )


def check_names(missing: list[str], count: int, extra: list[str], part: Part) -> None:
    faults = [f"of {count} tensors {len(missing)} are missing, {listed(missing)}"] * bool(missing)
    faults += [f"{len(extra)} unexpected tensors, {listed(extra)}"] * bool(extra)
    if faults:
        raise CheckpointError(
            f"{part.path} is not the network of {part.described_by}: {'; '.join(faults)}: "
            "put the files of one model together"
        )


def check_shapes(needed: Mapping, places: Places, part: Part) -> None:
    wrong = [
        f"{place.held.key} {place.held.entry.shape} for {needed[name]}"
        for name, place in places.items()
        if shape_of(place.piece, place.held.entry.shape, needed[name]) != needed[name]
    ]
    if wrong:
        raise CheckpointError(
            f"{part.path} has {len(wrong)} tensors of another shape than {part.described_by} "
            f"describes, {listed(wrong)}: put the files of one model together"
        )
    for held, _ in places.values():
        check_float(held.file, held.key, held.entry)


def shape_of(piece: Piece, shape: tuple[int, ...], needed: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a piece of a tensor; a 1x1 convolution can serve as a linear layer."""
    if piece.third is not None and shape and shape[0] % 3 == 0:
        shape = (shape[0] // 3, *shape[1:])
    if piece.transposed:
        shape = shape[::-1]
    return shape[:-2] if shape == (*needed, 1, 1) else shape


def take(piece: Piece, tensor: Tensor, shape: torch.Size) -> Tensor:
    """A view: it needs no memory of its own."""
    if piece.third is not None:
        tensor = tensor.chunk(3)[piece.third]
    return tensor.T if piece.transposed else tensor.view(shape)


def left_out(part: Part) -> dict[str, str]:
    """The keys of tensors that the network is published with and ours has no place for -> what they are."""
    used = {place.held.key for place in account(empty(part), part).values()}
    return {held.key: harmless(published_name(key), part) for key, held in part.stored.items() if held.key not in used}


def stored_dtype(places: Places, name: str) -> torch.dtype:
    """The dtype of one tensor of a file, to stand for all."""
    held = places[name].held
    if held.entry.dtype not in ("F64", "F32", "F16", "BF16"):
        raise CheckpointError(
            f"{held.file}: {held.key} is of type {held.entry.dtype}, in which nothing can be computed: choose a dtype"
        )
    return FLOATS[held.entry.dtype]


def fill(
    network: nn.Module, places: Places, dtype: torch.dtype | None, device: torch.device, check_finite: bool
) -> None:
    """Give an empty network its parameters. dtype: None leaves each as it is stored."""
    needed = dict(network.named_parameters())
    groups: dict[tuple[Path, torch.dtype], dict[str, list[str]]] = {}  # file and dtype -> key -> parameters
    for name, (held, _) in places.items():
        kind = dtype or FLOATS[held.entry.dtype]
        groups.setdefault((held.file, kind), {}).setdefault(held.key, []).append(name)
    for (file, kind), names in groups.items():
        entries = {key: places[first].held.entry for key, (first, *_) in names.items()}
        for key, tensor in read_tensors(file, entries, kind, device):
            if check_finite and not is_finite(tensor):
                raise CheckpointError(
                    f"{file}: {key} holds NaN or infinity as {str(kind).removeprefix('torch.')}: "
                    "the file is damaged, or the dtype too small for its values"
                )
            for name in names[key]:
                owner, _, parameter = name.rpartition(".")
                value = take(places[name].piece, tensor, needed[name].shape)
                setattr(network.get_submodule(owner), parameter, nn.Parameter(value, requires_grad=False))


def is_finite(tensor: Tensor) -> bool:
    """NaN or infinity anywhere shows in the sum, the fastest look at all values. A sum can overflow on its own; then
    the smallest and the largest value tell. Neither needs memory of the tensor's size, but for float8, in which PyTorch
    does not add."""
    tensor = tensor.float() if tensor.dtype.is_floating_point and tensor.itemsize == 1 else tensor
    return isfinite(tensor.sum().item()) or all(isfinite(end.item()) for end in torch.aminmax(tensor))
