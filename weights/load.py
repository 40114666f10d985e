"""A model folder in diffusers' layout -> ldm.model.Model.

Loading is strict: every tensor of every file has its place in a network, or is in fill.HARMLESS, or is an error.
"""

import hashlib
from pathlib import Path

import torch

from ldm.clip import CLIPText
from ldm.model import Model
from ldm.tokenizer import Tokenizer
from ldm.unet import UNet
from ldm.vae import VAE

from .disk import opened
from .errors import CheckpointError
from .files import find_weights, read_stored
from .fill import account, empty, fill, stored_dtype
from .folder import read_folder

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def load(source: str | Path, dtype: torch.dtype | None = torch.float32, device: str | torch.device = "cpu",
         variant: str | None = None, check_finite: bool = True) -> Model:
    """The model in a folder of diffusers' layout, frozen and in evaluation mode.

    dtype: of all networks; None takes that of the UNet's file for UNet and texts, and the VAE keeps its own. A VAE that
    overflows in float16 (SDXL's and the x4 upscaler's, unless its config.json denies it) gets float32 in its place.
    variant: "fp16" takes the files named so. On the CPU, tensors that have the dtype in the file stay there until they
    are used: leave the files as they are meanwhile.
    Raises CheckpointError, one line, for whatever is wrong with the folder; ValueError for another dtype.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"unknown dtype {dtype}: choose one of {', '.join(map(str, DTYPES))}, or None")
    folder, device = as_folder(source), torch.device(device)
    described = read_folder(folder)
    facts = described.facts
    networks = {"unet": empty(UNet, facts.unet, folder / "unet"), "vae": empty(VAE, facts.vae, folder / "vae")}
    networks |= {tower: empty(CLIPText, text, folder / tower) for tower, text in zip(described.towers, facts.texts)}

    places = {}   # every file is accounted for before the first tensor is read
    for part, network in networks.items():
        path = find_weights(folder / part, "model" if part in described.towers else "diffusion_pytorch_model", variant)
        places[part] = account(network, read_stored(path), path)
    dtypes = dict.fromkeys(networks, dtype or stored_dtype(places["unet"], "conv_in.weight"))
    dtypes["vae"] = dtype or stored_dtype(places["vae"], "encoder.conv_in.weight")
    if dtypes["vae"] == torch.float16 and described.careful_vae:
        dtypes["vae"] = torch.float32
    for part, network in networks.items():
        fill(network, places[part], dtypes[part], device, check_finite)

    files = {place.file.relative_to(folder).as_posix() for part in places.values() for place in part.values()}
    return Model(networks["unet"], networks["vae"], tuple(networks[tower] for tower in described.towers),
                 Tokenizer(length=facts.texts[0].length), facts, str(source), tuple(sorted(files)))


def as_folder(source: str | Path) -> Path:
    folder = Path(source)
    if not folder.is_dir():
        problem = "is a file" if folder.is_file() else "does not exist"
        raise CheckpointError(f"{folder} {problem}: give the folder of a model in diffusers' layout")
    return folder


def file_hashes(model: Model) -> dict[str, str]:
    """Weight file -> its SHA-256, for the record of a picture. It reads them all: seconds for a large model."""
    hashes = {}
    for name in model.files:
        with opened(Path(model.source) / name) as file:
            hashes[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes
