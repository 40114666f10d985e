"""All networks of a model in one .safetensors file, in the layouts ldm and sgm: by its keys, shapes and metadata alone.
A file's name says nothing here, and no network connection is needed. What decided is kept in words, for people.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from ldm.config import FAMILIES, MODELS, ModelConfig, TinyVAEConfig, UNetConfig, VAEConfig
from ldm.model import Model

from ..asked import NOTHING, Asked, Given
from ..checkpoint import Checkpoint, Part, check_fit
from ..disk.safetensors import Held, Stored, read_header, read_stored, read_value
from ..errors import CheckpointError, listed
from ..leftovers import outside_networks
from ..misfits import TOKENS
from . import incomplete, overrides, training
from .distilled import doubts, title_of
from .gaps import close_gaps
from .incomplete import Outline
from .landmarks import single_file_layout, whole_models
from .names import SINGLE_FILES, Section, ema_key, strip_prefix
from .one_network import tensors_of
from .shapes import sizes_of


def matches(path: Path) -> bool:
    """Whether a file holds all networks of a model."""
    return bool(whole_models(read_stored(path)))


def read(path: Path, asked: Asked = NOTHING, variant: str | None = None) -> Checkpoint:
    """The whole model in a file, or all of it but for networks that are given. CheckpointError that says what the file
    is instead. variant: of folders; a file has none."""
    if path.suffix == ".json":  # an index of shards
        stored = read_stored(path)
        metadata = {}
    else:
        header = read_header(path)
        stored = {key: Held(path, key, entry) for key, entry in header.entries.items()}
        metadata = header.metadata
    checkpoint = describe_stored(stored, metadata, path, read_value, asked)
    check_numbers(checkpoint.facts, str(path))
    return checkpoint


def describe_stored(
    stored: Stored, metadata: Mapping[str, str], path: Path, value: training.ReadValue, asked: Asked = NOTHING
) -> Checkpoint:
    """value: reads the few tensors that are looked into. path: for the errors."""
    layout, family, sections = outline(stored, path, asked.given)
    inside = {part: strip_prefix(stored, section.prefix) for part, section in sections.items()}
    evidence = [f"{family} in the {layout} layout: keys {', '.join(s.prefix + '*' for s in sections.values())}"]
    if asked.ema:
        inside["unet"] = averaged_copy(stored, inside.get("unet", {}), path)
        evidence.append("the UNet's averaged copy: model_ema.*, as asked")
    if "unet" in inside:
        inside["unet"] = close_gaps(inside["unet"])

    sizes = {part: sizes_of(part, section, inside[part], path, layout) for part, section in sections.items()}
    sizes |= {part: given.part.config for part, given in asked.given.items() if part not in sections}
    assert isinstance(sizes["unet"], UNetConfig)  # nothing else is given as one
    row, why = training.published_row(family, sizes["unet"], layout, stored)
    evidence += [f"{row}: {why}", *title_of(sizes["unet"])]
    texts = tuple(sizes[tower] for tower in MODELS[row].family.towers)
    facts = replace(MODELS[row], unet=sizes["unet"], vae=sizes["vae"], texts=texts)
    facts, marks = training.read_marks(facts, stored, value)
    unet = inside["unet"] if "unet" in sections else asked.given["unet"].part.stored
    if asked.prediction:
        facts = training.with_prediction(facts, row, asked.prediction)
        why = f"it predicts {asked.prediction}: as asked"
        warnings = ()
    else:
        facts, why, warnings = training.read_prediction(facts, row, stored, unet, metadata, value)
    if "unet" not in sections:
        facts = training.as_trained(facts, row, asked.given["unet"].training)
    facts, overridden = overrides.read(facts, metadata, path)
    facts = replace(facts, prediction=asked.prediction or facts.prediction)  # the user's word before the overrides'
    facts, about_zero_snr, ignored = training.settle_zero_snr(facts, row, stored, asked.zero_snr, path)
    check_fit(facts, str(path))

    return Checkpoint(
        facts,
        parts_of(facts, sections, inside, path),
        path,
        layout,
        evidence=(*evidence, *marks, why, *overridden, *about_zero_snr),
        warnings=(*warnings, *doubts(facts.unet), *ignored),
        metadata=dict(metadata),
        extras=extras(stored, prefixes(sections, layout, family), path),
    )


def outline(stored: Stored, path: Path, given: Mapping[str, Given]) -> Outline:
    """Layout, family and where the networks lie. CheckpointError where one is missing and not given."""
    if whole_models(stored):
        layout, family = single_file_layout(stored, path)
        return Outline(layout, family, SINGLE_FILES[layout, family])
    found = incomplete.outline(stored, path, given)
    needed = ("unet", "vae", *FAMILIES[found.family].towers) if found else ()
    if found is None or any(part not in found.sections and part not in given for part in needed):
        incomplete.refuse(stored, path, found, given)
    return found


def prefixes(sections: Mapping[str, Section], layout: str, family: str) -> list[str]:
    """Of the networks that are there, and of those that are not: what is left of them may lie there."""
    return [section.prefix for section in (*sections.values(), *SINGLE_FILES[layout, family].values())]


def parts_of(
    facts: ModelConfig, sections: Mapping[str, Section], inside: Mapping[str, Stored], path: Path
) -> dict[str, Part]:
    """inside: the tensors of each part, without the prefix of its section."""
    sizes = {"unet": facts.unet, "vae": facts.vae, **dict(zip(facts.family.towers, facts.texts))}
    parts = {}
    for name, section in sections.items():
        by = "the family it belongs to"
        parts[name] = Part(sizes[name], inside[name], path, path, section.names, section.prefix, by)
    return parts


def averaged_copy(stored: Stored, unet: Stored, path: Path) -> Stored:
    """The UNet's names, and the tensors of model_ema."""
    copies = {key: ema_key("model.diffusion_model." + key) for key in unet}
    missing = [copy for copy in copies.values() if copy not in stored]
    if not unet:
        raise CheckpointError(f"{path} has no UNet, so no averaged copy of one: load it without ema")
    if missing:
        raise CheckpointError(
            f"{path} has no averaged copy of its UNet, {listed(missing)} are missing: load it without ema"
        )
    return {key: stored[copy] for key, copy in copies.items()}


def extras(keys: Iterable[str], prefixes: Collection[str], path: Path) -> dict[str, str]:
    """The tensors outside all networks -> what they are; CheckpointError for one that nobody knows."""
    outside = [key for key in keys if not key.startswith(tuple(prefixes))]
    told = {key: outside_networks(key) for key in outside}
    known = {key: what for key, what in told.items() if what}
    unknown = [key for key in outside if key not in known]
    if unknown:
        raise CheckpointError(f"{path} has {len(unknown)} unexpected tensors outside its networks, {listed(unknown)}")
    return known


def check_numbers(facts: ModelConfig, where: str) -> None:
    """Nothing that a single file says leads to a division by 0 or to the root of a negative number."""
    unet = facts.unet
    vae = facts.vae
    noise = facts.noise
    latent = facts.latent
    shares = [(width, heads) for width, heads in zip(unet.channels, unet.heads)]
    shares += [(width, unet.groups) for width in unet.channels]
    shares += [(text.width, text.heads) for text in facts.texts]
    if isinstance(vae, VAEConfig):
        shares += [(width, vae.groups) for width in vae.channels]
    noise_is_sound = 0 < noise.beta_start <= noise.beta_end < 1
    if noise.edm:
        noise_is_sound = 0 < noise.sigma_min < noise.sigma_max
    latent_is_sound = latent.scale > 0 and min(latent.std, default=1) > 0
    latent_is_sound &= len(latent.mean) == len(latent.std) in (0, vae.latent_channels)
    sound = {
        "counts of heads and groups": all(count > 0 and width % count == 0 for width, count in shares),
        "counts of pixels and steps": facts.size > 0 and facts.steps > 0,
        "tokens that fill up prompts": all(0 <= token < TOKENS for token in facts.pad_ids),
        "noise": noise_is_sound,
        "scale, mean and deviation of latents": latent_is_sound,
    }
    for what, good in sound.items():
        if not good:
            raise CheckpointError(f"{where} says impossible things of the {what} of its model")


def write(model: Model, layout: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a single file and the metadata that it needs. CheckpointError if no such model was ever published
    in the layout."""
    facts = model.facts
    name = facts.family.name
    if isinstance(facts.vae, TinyVAEConfig) or facts.unet.guidance_dim:
        raise CheckpointError("no single file was ever published with TAESD or an LCM UNet: save a folder instead")
    if layout not in facts.family.layouts:
        offer = ", ".join(facts.family.layouts)
        raise CheckpointError(f"{name} was never published in the layout {layout!r}: choose diffusers or {offer}")
    networks = {"unet": model.unet, "vae": model.vae, **model.texts}
    tensors = training.write_marks(facts)
    for part, section in SINGLE_FILES[layout, name].items():
        tensors |= tensors_of(networks[part], section)

    # Whoever opens this file sees names, shapes and marks. So it is described here as if it had been opened, and where
    # that description differs from the model's facts, the file gets overrides that lead from the one to the other.
    metadata = training.write_prediction(facts)
    seen = describe_stored(
        overrides.in_memory(tensors), metadata, overrides.NEW, lambda held: tensors[held.key].float()
    )
    return tensors, metadata | overrides.write(facts, seen.facts)
