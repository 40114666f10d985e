"""The latents of the miniature's training pictures: made once by the trained autoencoder, then read from a file."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ldm.config import VAEConfig
from ldm.vae import VAE
from progress import save

BATCH = 256  # pictures encoded at a time


def load_latents(folder: Path, device: str) -> tuple[Tensor, float]:
    """Latents (n 4 h w) of all pictures on the CPU, scaled to unit standard deviation, and that scale.

    Reads latents.pt if the encoder of vae.pt made it; else makes and writes it.
    """
    path = folder / "latents.pt"
    state = torch.load(folder / "vae.pt", weights_only=True, map_location="cpu")
    encoder = state["vae"]["quant_conv.weight"]  # another encoder has other numbers here
    if path.exists():
        cache = torch.load(path, weights_only=True)
        if torch.equal(cache["encoder"], encoder):
            return cache["latents"], cache["scale"]
    latents = encode(np.load(folder / "pictures.npy", mmap_mode="r"), state, device)
    scale = 1 / latents.std().item()
    latents *= scale
    save(path, dict(latents=latents, scale=scale, encoder=encoder))
    return latents, scale


@torch.no_grad()
def encode(pictures: np.ndarray, state: dict[str, Any], device: str) -> Tensor:
    """Pictures (n 8h 8w 3) uint8 -> their most likely latents (n 4 h w). state: a checkpoint of train_vae.py."""
    vae = VAE(VAEConfig(**state["config"])).to(device).eval()
    vae.load_state_dict(state["vae"])
    latents = []
    for start in tqdm(range(0, len(pictures), BATCH), desc="latents", disable=None):
        batch = torch.from_numpy(pictures[start : start + BATCH].copy()).to(device)
        image = batch.permute(0, 3, 1, 2).float() / 127.5 - 1
        latents.append(vae.encode(image).mode().cpu())
    return torch.cat(latents)
