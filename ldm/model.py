"""Model: the networks of one checkpoint, its tokenizer and its facts, frozen in one bundle."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from .clip import CLIPText
from .config import ModelConfig
from .taesd import TinyVAE
from .tokenizer import Tokenizer
from .unet import UNet
from .vae import VAE, Posterior, affine, decode_latents


@dataclass(frozen=True)
class Model:
    """texts: the text towers in published order, by the names of their folders, "text_encoder" and "text_encoder_2".
    For the record of a picture: source, where the model was loaded from; files, its weight files by the names they have
    there; revisions, the commit of each repository it came from."""

    unet: UNet
    vae: VAE | TinyVAE
    texts: Mapping[str, CLIPText]
    tokenizer: Tokenizer
    facts: ModelConfig
    source: str = ""
    files: Mapping[str, Path] = field(default_factory=dict)
    revisions: Mapping[str, str] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        return self.unet.conv_in.weight.device

    def to_latents(self, posterior: Posterior, noise: Tensor | None = None) -> Tensor:
        """What the VAE's encoder found -> latents as the UNet sees them: a sample if given noise, else the mode."""
        z = posterior.mode() if noise is None else posterior.sample(noise)
        mean, spread = affine(self.facts.latent, z)
        return (z - mean) / spread

    def to_image(self, latents: Tensor) -> Tensor:
        """Latents (b 4 h w) as the UNet sees them -> image (b 3 f*h f*w), about [-1, 1]."""
        return decode_latents(self.vae, self.facts.latent, latents)
