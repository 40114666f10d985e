"""Another UNet or VAE in a model: a fine-tune that was published alone, a repaired or a smaller autoencoder."""

from dataclasses import replace
from pathlib import Path

from ldm.config import ModelConfig, TinyVAEConfig, VAEConfig

from .alone import read_part
from .configs import TINY_LATENT
from .disk import names_in, read_json
from .errors import CheckpointError
from .files import read_stored
from .folder import read_folder
from .parts import Checkpoint, check_fit
from .recognize import is_whole, recognize


def swapped(base: Checkpoint, part: str, path: Path, variant: str | None = None) -> Checkpoint:
    """The checkpoint with its "unet" or "vae" taken from what lies at a path: that part alone, or a whole model.

    Raises CheckpointError where it cannot belong to such a model.
    """
    found = read_part(path, part, variant)
    if part == "unet":
        facts = with_unet(base.facts, found.config, whole_model(path, variant), path)
    else:
        facts = with_vae(base.facts, found.config, vae_settings(path), path)
    check_fit(facts, str(path))
    return replace(base, facts=facts, parts=base.parts | {part: found})


def whole_model(path: Path, variant: str | None) -> Checkpoint | None:
    """All that is known of the model a part is taken from, where it is one."""
    if path.is_dir():
        return read_folder(path, variant) if "model_index.json" in names_in(path) else None
    return recognize(path) if is_whole(read_stored(path)) else None


def with_unet(facts: ModelConfig, unet, other: Checkpoint | None, path: Path) -> ModelConfig:
    """A UNet brings no text towers and no noise levels: those it was trained with must be the model's."""
    if other:
        for name in ("noise", "prediction", "latent"):
            found, expected = getattr(other.facts, name), getattr(facts, name)
            if found != expected:
                raise CheckpointError(f"{path}: its UNet was trained with the {name} {found}, and the model's with "
                                      f"{expected}: it cannot be swapped in, load it whole")
    facts = replace(facts, unet=unet)
    return replace(facts, sampler="lcm", steps=4, guidance=8.5) if unet.guidance_dim else facts


def with_vae(facts: ModelConfig, vae: VAEConfig | TinyVAEConfig, settings: dict, path: Path) -> ModelConfig:
    """The scale of the latents belongs to the UNet, which was trained on it, so the model keeps its own."""
    if vae.factor != facts.vae.factor:
        raise CheckpointError(f"{path}: its VAE makes latents of one {vae.factor}th of the picture's height, and the "
                              f"model's of one {facts.vae.factor}th: it cannot be swapped in")
    if isinstance(vae, TinyVAEConfig):
        return replace(facts, vae=vae, latent=TINY_LATENT, careful_vae=False)
    scale = settings.get("scaling_factor")
    if scale is not None and scale != facts.latent.scale and not facts.latent.mean:
        raise CheckpointError(f"{path}: its VAE scales latents by {scale}, and the model's by {facts.latent.scale}: "
                              "it is the VAE of another family")
    return replace(facts, vae=vae, careful_vae=facts.careful_vae and settings.get("force_upcast", True))


def vae_settings(path: Path) -> dict:
    """Its config.json, where it has one."""
    found = [folder / "config.json" for folder in (path / "vae", path) if (folder / "config.json").is_file()]
    return read_json(found[0]) if found else {}
