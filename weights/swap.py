"""Another UNet or VAE in a model: a fine-tune that was published alone, a repaired or a smaller autoencoder."""

from dataclasses import replace
from pathlib import Path

from ldm.config import ModelConfig, TinyVAEConfig, UNetConfig, VAEConfig

from .alone import read_part
from .configs import TINY_LATENT
from .disk import read_json
from .errors import CheckpointError
from .files import read_stored
from .folder import sampling
from .parts import Checkpoint, check_fit
from .recognize import is_whole, recognize
from .settings import Settings


def swapped(base: Checkpoint, part: str, path: Path, variant: str | None = None) -> Checkpoint:
    """The checkpoint with its "unet" or "vae" taken from what lies at a path: that part alone, or a whole model.

    Raises CheckpointError where it cannot belong to such a model.
    """
    found = read_part(path, part, variant)
    if part == "unet":
        facts = with_unet(base.facts, found.config, training_of(path), path)
    else:
        facts = with_vae(base.facts, found.config, vae_settings(path), path)
    check_fit(facts, str(path))
    return replace(base, facts=facts, parts=base.parts | {part: found})


def training_of(path: Path) -> dict:
    """What the UNet there was trained for, as far as the file around it tells, or the scheduler of the model whose
    folder, sub-folder or file was given. A file of a UNet alone tells nothing."""
    told = vars(whole.facts) if (whole := whole_file(path)) else {}
    for folder in (path, *path.absolute().parents[:2]):
        file = folder / "scheduler" / "scheduler_config.json"
        if not told and file.is_file():
            json = Settings(str(file), read_json(file))
            told = sampling(json, str(json.values.get("_class_name")), False)
    return {name: told[name] for name in ("noise", "prediction", "latent") if name in told}


def whole_file(path: Path) -> Checkpoint | None:
    return recognize(path) if path.is_file() and is_whole(read_stored(path)) else None


def with_unet(facts: ModelConfig, unet: UNetConfig, training: dict, path: Path) -> ModelConfig:
    """A UNet brings no text towers and no noise levels: those it was trained with must be the model's."""
    for name, found in training.items():
        if found != getattr(facts, name):
            raise CheckpointError(
                f"{path}: its UNet was trained with the {name} {found}, and the model's with "
                f"{getattr(facts, name)}: it cannot be swapped in, load it whole"
            )
    facts = replace(facts, unet=unet)
    return replace(facts, sampler="lcm", steps=4, guidance=8.5) if unet.guidance_dim else facts


def with_vae(facts: ModelConfig, vae: VAEConfig | TinyVAEConfig, settings: Settings, path: Path) -> ModelConfig:
    """The scale of the latents belongs to the UNet, which was trained on it, so the model keeps its own."""
    if vae.factor != facts.vae.factor:
        raise CheckpointError(
            f"{path}: its VAE makes latents of one {vae.factor}th of the picture's height, and the "
            f"model's of one {facts.vae.factor}th: it cannot be swapped in"
        )
    if isinstance(vae, TinyVAEConfig):
        return replace(facts, vae=vae, latent=TINY_LATENT, careful_vae=False)
    scale = settings.number("scaling_factor", facts.latent.scale)
    if scale != facts.latent.scale and not facts.latent.mean:
        raise CheckpointError(
            f"{path}: its VAE scales latents by {scale}, and the model's by {facts.latent.scale}: "
            "it is the VAE of another family"
        )
    return replace(facts, vae=vae, careful_vae=facts.careful_vae and settings.flag("force_upcast", True))


def vae_settings(path: Path) -> Settings:
    """Its config.json, where it has one, or what the file around it says."""
    if whole := whole_file(path):
        return Settings(str(path), dict(scaling_factor=whole.facts.latent.scale, force_upcast=whole.facts.careful_vae))
    found = [
        folder / "config.json"
        for folder in (path / "vae", path, path.absolute().parent)
        if (folder / "config.json").is_file()
    ]
    return Settings(str(found[0]), read_json(found[0])) if found else Settings(str(path), {})
