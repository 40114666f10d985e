"""Another UNet, VAE or text tower in a model: a fine-tune that was published alone, a repaired or a smaller
autoencoder, or whatever a file lacks.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ldm.config import CLIPConfig, ModelConfig, TinyVAEConfig, UNetConfig, VAEConfig

from .asked import Asked
from .checkpoint import PARTS, Checkpoint, check_fit
from .disk.settings import Settings
from .errors import CheckpointError
from .layouts import single_file
from .layouts.diffusers_configs import TINY_LATENT
from .layouts.diffusers_scheduler import read_scheduler


def swap(base: Checkpoint, asked: Asked) -> Checkpoint:
    """The checkpoint with the networks that are given: each was found alone, or in a whole model.

    Raises CheckpointError where one cannot belong to such a model.
    """
    given = asked.given
    facts = base.facts
    for name, (part, path, _, training, _) in given.items():
        if isinstance(part.config, UNetConfig):
            facts = with_unet(facts, part.config, as_asked(training, asked), path)
        elif isinstance(part.config, CLIPConfig):
            facts = with_text(facts, name, part.config, path)
        else:
            facts = with_vae(facts, part.config, vae_settings(path), path)
    check_fit(facts, " and ".join(dict.fromkeys(str(other.path) for other in given.values())))
    parts = base.parts | {name: other.part for name, other in given.items()}
    return replace(
        base,
        facts=facts,
        parts={name: parts[name] for name in PARTS if name in parts},
        warnings=(*base.warnings, *(other.warning for other in given.values() if other.warning)),
        revisions={**base.revisions, **{other.part.label: other.commit for other in given.values() if other.commit}},
    )


def as_asked(training: Mapping[str, Any], asked: Asked) -> dict[str, Any]:
    """What a UNet was trained for, where the user knows better than its files."""
    known = dict(training)
    if asked.prediction:
        known["prediction"] = asked.prediction
    if asked.zero_snr and "noise" in known:
        known["noise"] = replace(known["noise"], zero_snr=True)
    return known


def training_of(path: Path) -> dict[str, Any]:
    """What the UNet there was trained for, as far as the file around it says, or the scheduler of the model whose
    folder, sub-folder or file was given. A file of a UNet alone says nothing."""
    found = {}
    whole = whole_file(path)
    if whole:
        found = vars(whole.facts)
    for folder in (path, *path.absolute().parents[:2]):
        file = folder / "scheduler" / "scheduler_config.json"
        if not found and file.is_file():
            json = Settings.read(file)
            found = read_scheduler(json, str(json.values.get("_class_name")), has_sizes=False)
    return {name: found[name] for name in ("noise", "prediction", "latent") if name in found}


def whole_file(path: Path) -> Checkpoint | None:
    """The model in a single file, if it holds a whole one."""
    return single_file.read(path) if path.is_file() and single_file.matches(path) else None


def with_unet(facts: ModelConfig, unet: UNetConfig, training: Mapping[str, Any], path: Path) -> ModelConfig:
    """A UNet brings no text towers and no noise levels: those it was trained with must be the model's."""
    for name, found in training.items():
        if found != getattr(facts, name):
            raise CheckpointError(
                f"{path}: its UNet was trained with the {name} {found}, and the model's with "
                f"{getattr(facts, name)}: it cannot be swapped in, load it whole"
            )
    facts = replace(facts, unet=unet)
    return replace(facts, sampler="lcm", steps=4, guidance=8.5) if unet.guidance_dim else facts


def with_text(facts: ModelConfig, name: str, text: CLIPConfig, path: Path) -> ModelConfig:
    """name: of the tower's folder."""
    towers = facts.family.towers
    if name not in towers:
        raise CheckpointError(
            f"{path}: a model of {facts.family.title} has no {name}, its text is {' and '.join(towers)}"
        )
    texts = list(facts.texts)
    texts[towers.index(name)] = text
    return replace(facts, texts=tuple(texts))


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
    whole = whole_file(path)
    if whole:
        facts = whole.facts
        return Settings(str(path), dict(scaling_factor=facts.latent.scale, force_upcast=facts.careful_vae))
    for folder in (path / "vae", path, path.absolute().parent):
        if (folder / "config.json").is_file():
            return Settings.read(folder / "config.json")
    return Settings(str(path), {})
