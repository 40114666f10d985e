"""A checkpoint, wherever it lies and in whichever layout -> ldm.model.Model, or one of its networks alone.

Loading is strict: every tensor of every file has its place in a network, or is on a list of known extras, or is an
error. A file's tensors stay in the file, mapped into memory, unless the dtype asked for is another.
"""

import hashlib
import os
import warnings
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from ldm.model import Model
from ldm.tokenizer import Tokenizer

from .alone import read_part
from .disk import opened
from .errors import CheckpointError
from .fill import account, empty, fill, stored_dtype, uncollected
from .folder import read_folder
from .hub_files import model_files, part_files
from .parts import Checkpoint
from .recognize import recognize
from .swap import swapped

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@uncollected()
def load(
    source: str | Path,
    dtype: torch.dtype | str | None = torch.float32,
    device: str | torch.device = "cpu",
    variant: str | None = None,
    revision: str | None = None,
    offline: bool = False,
    unet: str | Path | None = None,
    vae: str | Path | None = None,
    prediction: str | None = None,
    ema: bool = False,
    check_finite: bool = True,
) -> Model:
    """The model in a folder of diffusers' layout, a single .safetensors file or a repository of the Hugging Face hub
    ("owner/name", or "owner/name/file.safetensors"), frozen and in evaluation mode.

    dtype: of all networks; None takes that of the UNet's file for UNet and texts, and the VAE keeps its own. A VAE that
    overflows in float16 (SDXL's and the x4 upscaler's, unless its config.json denies it) gets float32 in its place.
    "stored" leaves each tensor in the dtype of its file, to be saved again.
    variant: "fp16" takes the files named so. revision: a branch, tag or commit of the repository. offline: only what
    was downloaded before. unet, vae: the source of another UNet or VAE to put in place of the model's own.
    prediction: "eps" or "v", for a file that does not say which. ema: a single file's averaged UNet.
    On the CPU, tensors that have the dtype in the file stay there until they are used: leave the files as they are
    meanwhile.

    Raises CheckpointError, one line, for whatever is wrong with the files; ValueError for other arguments.
    Warns where a file leaves something to guess.
    """
    if dtype not in (None, "stored", *DTYPES):
        raise ValueError(f"unknown dtype {dtype}: choose one of {', '.join(map(str, DTYPES))}, None or 'stored'")
    if prediction not in (None, "eps", "v"):
        raise ValueError(f"unknown prediction {prediction!r}: choose eps or v")
    swaps = {part: other for part, other in (("unet", unet), ("vae", vae)) if other is not None}
    path, commit = located(source, lambda names: model_files(names, variant, swaps), revision, offline)
    checkpoint = read_checkpoint(path, variant, prediction, ema, without=swaps)
    for guess in checkpoint.guesses:
        warnings.warn(f"{path}: {guess}", stacklevel=3)  # through the decorator
    roots, revisions = dict.fromkeys(checkpoint.parts, (path, "")), {str(source): commit} if commit else {}
    for part, other in swaps.items():
        place, commit = located(other, lambda names, part=part: part_files(names, part, variant), None, offline)
        checkpoint = swapped(checkpoint, part, place, variant)
        roots[part], revisions = (place, str(other)), revisions | ({str(other): commit} if commit else {})

    ordered = ("unet", "vae", "text_encoder", "text_encoder_2")
    parts = {name: checkpoint.parts[name] for name in ordered if name in checkpoint.parts}
    networks = {name: empty(part) for name, part in parts.items()}
    places = {name: account(networks[name], part) for name, part in parts.items()}  # before any is read
    dtypes = choose_dtypes(checkpoint, places, dtype)
    for name, network in networks.items():
        fill(network, places[name], dtypes[name], torch.device(device), check_finite)

    files = {}
    for name, (root, label) in roots.items():
        for file in sorted({place.held.file for place in places[name].values()}):
            short = file.relative_to(root).as_posix() if root.is_dir() else file.name
            files["/".join([label, short] if label else [short])] = file
    facts = checkpoint.facts
    return Model(
        networks.pop("unet"),
        networks.pop("vae"),
        networks,
        Tokenizer(length=facts.texts[0].length),
        facts,
        str(source),
        files,
        revisions,
    )


@uncollected()
def load_part(
    source: str | Path,
    part: str | None = None,
    dtype: torch.dtype | str | None = torch.float32,
    device: str | torch.device = "cpu",
    variant: str | None = None,
    revision: str | None = None,
    offline: bool = False,
    check_finite: bool = True,
) -> nn.Module:
    """One network, "unet", "vae", "text_encoder" or "text_encoder_2", of a model or of a source that holds no other:
    its own folder, a file with just its tensors, a repository of either kind. part: needed where there are several.

    Returns an ldm UNet, VAE, TinyVAE or CLIPText. Raises CheckpointError; the arguments are those of `load`.
    """
    path, _ = located(source, lambda names: part_files(names, part, variant), revision, offline)
    found = read_part(path, part, variant)
    network = empty(found)
    places = account(network, found)
    if dtype is None:
        dtype = stored_dtype(places, next(iter(places)))
    fill(network, places, None if dtype == "stored" else dtype, torch.device(device), check_finite)
    return network


def located(
    source: str | Path, wanted: Callable[[list[str]], list[str]], revision: str | None = None, offline: bool = False
) -> tuple[Path, str]:
    """Where a source lies on this machine, and the commit of the repository that it came from, if any."""
    path = Path(source)
    if os.path.lexists(path):  # which has no error for a name that is too long
        return path, ""
    from . import hub  # a third of the time that importing this package would take

    if not hub.is_repo(str(source)):
        raise CheckpointError(
            f"{source} does not exist: give a folder in diffusers' layout, a .safetensors file or "
            "the name of a repository, owner/name"
        )
    fetched = hub.fetch(str(source), wanted, revision, offline)
    return fetched.path, fetched.commit


def read_checkpoint(
    path: Path,
    variant: str | None = None,
    prediction: str | None = None,
    ema: bool = False,
    without: Collection[str] = (),
) -> Checkpoint:
    """What lies at a path, described and not yet read. without: parts of a folder that may be missing."""
    if not path.is_dir():
        return recognize(path, prediction, ema)
    if ema:
        raise CheckpointError(f"{path} is a folder, and averaged copies are in single files: choose a variant instead")
    checkpoint = read_folder(path, variant, without)
    return replace(checkpoint, facts=replace(checkpoint.facts, prediction=prediction or checkpoint.facts.prediction))


def choose_dtypes(checkpoint: Checkpoint, places: dict, dtype: torch.dtype | str | None) -> dict:
    """By part; None leaves each tensor as it is."""
    if dtype == "stored":
        return dict.fromkeys(places)
    own = {part: stored_dtype(places[part], next(iter(places[part]))) for part in ("unet", "vae")} if not dtype else {}
    dtypes = {part: dtype or own.get(part, own.get("unet")) for part in places}
    if dtypes["vae"] == torch.float16 and checkpoint.facts.careful_vae:
        dtypes["vae"] = torch.float32
    return dtypes


def file_hashes(model: Model) -> dict[str, str]:
    """Weight file -> its SHA-256, for the record of a picture. It reads them all: seconds for a large model."""
    return {name: file_hash(path) for name, path in model.files.items()}


def file_hash(path: Path) -> str:
    with opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
