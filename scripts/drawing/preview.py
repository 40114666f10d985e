"""Previews: the estimate of every few steps as preview.png, written whole each time, while a picture is drawn.

Latents become colors by a small decoder (TAESD, `taesd=SOURCE`), or by a linear map, which costs next to nothing and
shows an eighth of the resolution. Nothing of the run is changed: a preview only looks at a step.
"""

from collections.abc import Callable
from contextlib import suppress
from math import ceil
from pathlib import Path

import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

import weights
from ldm import pictures
from ldm.config import LatentConfig
from ldm.model import Model
from ldm.scratch import together
from ldm.taesd import TinyVAE
from ldm.vae import VAE, decode_latents
from samplers.step import Step

PREVIEW = "preview.png"

# Latents as the UNet sees them -> red, green, blue in [-1, 1]; the last row is added. As ComfyUI publishes them.
SD_COLORS = (
    (0.3512, 0.2297, 0.3227), (0.3250, 0.4974, 0.2350), (-0.2829, 0.1762, 0.2721), (-0.2120, -0.2616, -0.7177),
    (0.0, 0.0, 0.0),
)  # fmt: skip
SDXL_COLORS = (
    (0.3651, 0.4232, 0.4341), (-0.2533, -0.0042, 0.1068), (0.1076, 0.1111, -0.0362), (-0.3165, -0.2492, -0.2188),
    (0.1084, -0.0175, -0.0011),
)  # fmt: skip
PUBLISHED = {LatentConfig(0.18215): SD_COLORS, LatentConfig(0.13025): SDXL_COLORS}
F8_CHANNELS = (128, 256, 512, 512)  # of the decoders whose colors these are


class Preview:
    """Call it with each Step. path: of the picture to write. decode: latents (b 4 h w) -> pictures (b 3 ...).
    every: steps from one preview to the next. steps: of the run that is watched, whose last one is always shown."""

    def __init__(self, path: Path, decode: Callable[[Tensor], Tensor], every: int, steps: int = 0):
        self.path = path
        self.decode = decode
        self.every = every
        self.steps = steps

    @torch.no_grad()
    def __call__(self, step: Step) -> None:
        if step.i % self.every and step.i + 1 < self.steps:
            return
        images = self.decode(step.x0).float().nan_to_num().clamp(-1, 1)
        self.write(pictures.to_pil(pictures.grid(images, ceil(len(images) ** 0.5))))

    def write(self, picture: Image.Image) -> None:
        """Whoever looks at the file finds a whole picture. One that cannot be written stops no drawing."""
        with suppress(OSError), together(self.path.parent) as scratch:
            picture.save(scratch / self.path.name, format="PNG", compress_level=1)


def make_decoder(model: Model, kind: str, offline: bool = False) -> Callable[[Tensor], Tensor]:
    """kind: "linear", or "taesd=SOURCE". Raises ValueError for another kind, or a decoder of another model."""
    name, equals, source = kind.partition("=")
    if kind == "linear":
        return linear_decoder(model)
    if name != "taesd" or not source:
        raise ValueError(f"--preview {kind[:60]}: give --preview alone, or --preview taesd=SOURCE")
    tiny = weights.load_part(source, "vae", device=model.device, offline=offline)
    if not isinstance(tiny, TinyVAE):
        raise ValueError(f"--preview {kind[:200]}: that is no TAESD, which previews are decoded by")
    return tiny.decode


def linear_decoder(model: Model) -> Callable[[Tensor], Tensor]:
    """The colors of latents by a linear map, each latent a square of the picture's pixels."""
    colors = published_colors(model)
    if colors is None:
        colors = fit_colors(model)

    def decode(latents: Tensor) -> Tensor:
        weight = colors.to(latents)
        small = torch.einsum("b c h w, c k -> b k h w", latents, weight[:-1]) + weight[-1][:, None, None]
        return torch.nn.functional.interpolate(small, scale_factor=model.vae.factor, mode="bicubic")

    return decode


def published_colors(model: Model) -> Tensor | None:
    """Known for the decoders of Stable Diffusion and SDXL."""
    if not isinstance(model.vae, VAE) or model.vae.config.channels != F8_CHANNELS:
        return None
    colors = PUBLISHED.get(model.facts.latent)
    return None if colors is None else torch.tensor(colors)


@torch.no_grad()
def fit_colors(model: Model) -> Tensor:
    """(c + 1 3): the linear map that comes nearest to this decoder, on 16 smooth random latents. Always the same."""
    channels = model.facts.vae.latent_channels
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(16, channels, 2, 2, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(4, 4), mode="bilinear", align_corners=False)
    latents = smooth / smooth.std()
    factor = model.vae.factor
    images = decode_latents(model.vae, model.facts.latent, latents.to(model.device)).float().cpu()
    colors = rearrange(torch.nn.functional.avg_pool2d(images, factor), "b k h w -> (b h w) k")
    points = rearrange(latents, "b c h w -> (b h w) c")
    points = torch.cat([points, torch.ones(len(points), 1)], dim=1)
    return torch.linalg.lstsq(points, colors).solution
