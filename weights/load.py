"""A checkpoint, wherever it lies and in whichever layout: described, or read into ldm.model.Model or one network of it.

Loading is strict: every tensor of every file has its place in a network, or is on a list of known extras, or is an
error. A file's tensors stay in the file, mapped into memory, unless the dtype asked for is another.
"""

import hashlib
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ldm.model import Model
from ldm.tokenizer import Tokenizer

from . import sources
from .asked import Asked, Given
from .checkpoint import PARTS, Checkpoint, Network, Part, Places, take
from .disk.safetensors import FLOATS, read_tensors
from .disk.settings import open_file
from .errors import CheckpointError, shown
from .hub.wanted import model_files, part_files, text_files
from .layouts import diffusers, incomplete, one_network, single_file
from .swap import swap, training_of

Source = str | os.PathLike[str]
Texts = Source | Mapping[str, Source]
DType = torch.dtype | str | None
Wanted = Callable[[list[str]], list[str]]  # names of files -> those that are needed
DTYPES = {  # and how people write them
    torch.float32: ("float32", "fp32", "f32", "float", "single", "full"),
    torch.bfloat16: ("bfloat16", "bf16"),
    torch.float16: ("float16", "fp16", "f16", "half"),
    torch.float64: ("float64", "fp64", "f64", "double"),
}


def load(
    source: Source | Checkpoint, dtype: DType = torch.float32, device: str | torch.device = "cpu", *,
    variant: str | None = None, revision: str | None = None, offline: bool = False, unet: Source | None = None,
    vae: Source | None = None, text: Texts | None = None, prediction: str | None = None, zero_snr: bool = False,
    ema: bool = False, check_finite: bool = True,
) -> Model:  # fmt: skip
    """Read a model, or what `describe` found. help(weights) describes the arguments. The networks are frozen and in
    evaluation mode. Raises CheckpointError, one line, for whatever is wrong with the files, ValueError for other
    arguments; warns where a file leaves something to guess."""
    dtype = read_dtype(dtype)
    if not isinstance(source, Checkpoint):
        source = describe(
            source, variant=variant, revision=revision, offline=offline, unet=unet, vae=vae, text=text,
            prediction=prediction, zero_snr=zero_snr, ema=ema,
        )  # fmt: skip
    for warning in source.warnings:
        warnings.warn(f"{source.path}: {warning}", stacklevel=2)
    return read_model(source, dtype, torch.device(device), check_finite)


def read_model(checkpoint: Checkpoint, dtype: DType, device: torch.device, check_finite: bool) -> Model:
    networks = {}
    places = {}
    for name, part in checkpoint.parts.items():
        networks[name], places[name] = part.match()
    dtypes = choose_dtypes(checkpoint, places, dtype)
    for name, network in networks.items():  # every part was matched before the first is read
        fill(network, places[name], dtypes[name], device, check_finite)
    facts = checkpoint.facts
    return Model(
        unet=networks["unet"], vae=networks["vae"],
        texts={tower: networks[tower] for tower in facts.family.towers},
        tokenizer=Tokenizer(length=facts.texts[0].length), facts=facts,
        source=checkpoint.source, files=name_files(checkpoint, places), revisions=checkpoint.revisions,
    )  # fmt: skip


def load_part(
    source: Source, part: str | None = None, dtype: DType = torch.float32,
    device: str | torch.device = "cpu", *, variant: str | None = None, revision: str | None = None,
    offline: bool = False, check_finite: bool = True,
) -> Network:  # fmt: skip
    """Read the network that `describe_part` finds: an ldm UNet, VAE, TinyVAE or CLIPText. help(weights) describes the
    arguments. Raises CheckpointError."""
    dtype = read_dtype(dtype)
    found = describe_part(source, part, variant=variant, revision=revision, offline=offline)
    network, places = found.match()
    chosen = dtype or stored_dtype(places)
    fill(network, places, None if isinstance(chosen, str) else chosen, torch.device(device), check_finite)
    return network


def read_dtype(dtype: DType) -> DType:
    """None, "stored" or one of DTYPES, which may be given by its name."""
    return dtype if dtype in (None, "stored", *DTYPES) else dtype_of_name(dtype)


def dtype_of_name(name: object) -> torch.dtype:
    for dtype, names in DTYPES.items():
        if str(name).strip().lower().removeprefix("torch.") in names:
            return dtype
    offer = ", ".join(map(str, DTYPES))
    raise ValueError(f"unknown dtype {shown(name)}: choose one of {offer}, None or 'stored'")


def describe(
    source: Source, *, variant: str | None = None, revision: str | None = None, offline: bool = False,
    unet: Source | None = None, vae: Source | None = None, text: Texts | None = None, prediction: str | None = None,
    zero_snr: bool = False, ema: bool = False,
) -> Checkpoint:  # fmt: skip
    """What a model is: its facts and parts, what decided, what is left out. Only headers and a few small tensors are
    read. help(weights) describes the arguments. Raises CheckpointError for whatever is wrong with the files."""
    if prediction not in (None, "eps", "v"):
        raise ValueError(f"unknown prediction {prediction!r}: choose eps or v")
    swaps = {part: other for part, other in (("unet", unet), ("vae", vae), ("text", text)) if other is not None}
    without = names_of(swaps) if swaps else ()
    path, commit = locate(source, partial(model_files, variant=variant, without=without), revision, offline)
    given = read_given(path, swaps, variant, offline) if swaps else {}
    asked = Asked(prediction, zero_snr, ema, given)
    read = diffusers.read if diffusers.matches(path) else single_file.read
    name = os.fspath(source)
    checkpoint = replace(read(path, asked, variant), source=name, revisions={name: commit} if commit else {})
    return swap(checkpoint, asked) if given else checkpoint


def names_of(swaps: Mapping[str, Any]) -> list[str]:
    """The parts that come from elsewhere, as far as the arguments alone tell it."""
    text = swaps.get("text")
    return [*swaps, *text] if isinstance(text, Mapping) else list(swaps)


def read_given(path: Path, swaps: Mapping[str, Any], variant: str | None, offline: bool) -> dict[str, Given]:
    """By part, the networks that take the place of those at `path`, or of those that are missing there."""
    sources = {part: other for part, other in swaps.items() if part != "text"}
    text = swaps.get("text")
    if isinstance(text, Mapping):
        sources |= text
    elif text is not None:
        found, _ = locate(text, partial(text_files, variant=variant), None, offline)
        sources |= dict.fromkeys(incomplete.choose_towers(path, found), text)
    given = {}
    for part, source in sources.items():
        if part not in PARTS:
            raise CheckpointError(f"unknown text tower {shown(part)}: choose one of {', '.join(PARTS[2:])}")
        found, commit = locate(source, partial(part_files, part=part, variant=variant, is_mixed=True), None, offline)
        chosen = one_network.nearest_variant(found, part, variant)
        network = replace(describe_part(found, part, variant=chosen), root=found, label=os.fspath(source))
        training = training_of(found) if part == "unet" else {}
        warning = ""
        if chosen != variant:
            warning = f"{network.label} has no variant {shown(variant)} of the {part}: {network.path.name} is taken"
        given[part] = Given(network, found, commit, training, warning)
    return given


def describe_part(
    source: Source, part: str | None = None, *,
    variant: str | None = None, revision: str | None = None, offline: bool = False,
) -> Part:  # fmt: skip
    """One network of a model, or of a source that holds no other: its own folder, a file with just its tensors, a
    repository of either kind. help(weights) describes the arguments. Raises CheckpointError where it is not there."""
    if part not in (None, *PARTS):
        raise CheckpointError(f"unknown part {shown(part)}: choose one of {', '.join(PARTS)}")
    path, _ = locate(source, partial(part_files, part=part, variant=variant), revision, offline)
    if path.is_dir() or not single_file.matches(path):
        return one_network.read(path, part, variant)
    checkpoint = single_file.read(path)
    if part not in checkpoint.parts:
        raise CheckpointError(f"{path} is a whole model: choose its part, it has {', '.join(checkpoint.parts)}")
    return replace(checkpoint.parts[part], metadata=checkpoint.metadata)


def locate(source: Source, wanted: Wanted, revision: str | None = None, offline: bool = False) -> tuple[Path, str]:
    """Where a source lies on this machine, and the commit of the repository that it came from, or "". wanted: chooses
    from the names of all files of a repository those that are needed, as `one_file` does."""
    path = Path(source)
    if os.path.lexists(path) and path.suffix != ".json":  # exists() raises where a name is too long
        return path, ""
    return sources.find(os.fspath(source), wanted, revision, offline)


def choose_dtypes(checkpoint: Checkpoint, places: Mapping[str, Places], dtype: DType) -> dict:
    """By part; None leaves each tensor as it is."""
    if dtype == "stored":
        return dict.fromkeys(places)
    dtypes = dict.fromkeys(places, dtype or stored_dtype(places["unet"]))
    if dtype is None:
        dtypes["vae"] = stored_dtype(places["vae"])
    if dtypes["vae"] == torch.float16 and checkpoint.facts.careful_vae:
        dtypes["vae"] = torch.float32
    return dtypes


def stored_dtype(places: Places) -> torch.dtype:
    """That of a part's first tensor, to stand for all."""
    held = next(iter(places.values())).held
    if held.entry.dtype not in ("F64", "F32", "F16", "BF16"):
        raise CheckpointError(
            f"{held.file}: {held.key} is of type {held.entry.dtype}, in which nothing can be computed: choose a dtype"
        )
    return FLOATS[held.entry.dtype]


def fill(network: Network, places: Places, dtype: torch.dtype | None, device: torch.device, check_finite: bool) -> None:
    """Give an empty network its parameters. dtype: None leaves each as it is stored."""
    needed = dict(network.named_parameters())
    groups: dict[tuple[Path, torch.dtype], dict[str, list[str]]] = {}  # file and dtype -> key -> parameters
    for name, (held, _) in places.items():
        kind = dtype or FLOATS[held.entry.dtype]
        groups.setdefault((held.file, kind), {}).setdefault(held.key, []).append(name)
    for (file, kind), names in groups.items():
        entries = {key: places[first].held.entry for key, (first, *_) in names.items()}
        for key, tensor in read_tensors(file, entries, kind, device, check_finite):
            for name in names[key]:
                owner, _, parameter = name.rpartition(".")
                value = take(places[name].piece, tensor, needed[name].shape)
                setattr(network.get_submodule(owner), parameter, nn.Parameter(value, requires_grad=False))


def name_files(checkpoint: Checkpoint, places: Mapping[str, Places]) -> dict[str, Path]:
    """The weight files that were read, by the names they have in their folder; behind the source of a swapped part."""
    files = {}
    for name, part in checkpoint.parts.items():
        for file in sorted({place.held.file for place in places[name].values()}):
            short = file.relative_to(part.root).as_posix() if part.root.is_dir() else file.name
            files[f"{part.label}/{short}" if part.label else short] = file
    return files


def file_hashes(model: Model) -> dict[str, str]:
    """Weight file -> its SHA-256, for the record of a picture. It reads them all: seconds for a large model."""
    return {name: file_hash(path) for name, path in model.files.items()}


def file_hash(path: Path) -> str:
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
