"""Models that lack a network: merges without a VAE or without text towers, UNets alone, folders without a sub-folder.

What is there decides which model it is; what is missing must be given, and all the rest comes from the file or folder.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, NoReturn

from ldm.config import FAMILIES, MODELS, CLIPConfig, Family, ModelConfig, TinyVAEConfig, UNetConfig, VAEConfig

from ..asked import Given
from ..checkpoint import tokenizer_of
from ..disk.kinds import PICKLED, convert_command
from ..disk.safetensors import Stored, read_stored
from ..disk.settings import Settings, names_in
from ..errors import CheckpointError, listed, shown
from . import diffusers_configs as configs
from .gaps import close_gaps
from .landmarks import describe_other, find_networks, has_network, other_kind, single_file_layout, whole_models
from .names import SINGLE_FILES, Section, strip_prefix
from .shapes import unet_sizes
from .training import published_row

INDEX = "model_index.json"
TITLES = {  # part -> what it is, with its article
    "unet": "a UNet",
    "vae": "a VAE",
    "text_encoder": "a text tower",
    "text_encoder_2": "the text tower text_encoder_2",
}
TOWERS = {  # the prefixes that only one layout and family has
    ("ldm", "sd1"): ("text_encoder",),
    ("ldm", "sd2"): ("text_encoder",),
    ("sgm", "sdxl"): ("text_encoder", "text_encoder_2"),
}


class Outline(NamedTuple):
    """layout, family: of SINGLE_FILES. sections: where the networks lie that are there."""

    layout: str
    family: str
    sections: Mapping[str, Section]


def outline(stored: Stored, path: Path, given: Mapping[str, Given] = {}) -> Outline | None:
    """Of a file that is no whole model; None where it holds neither a UNet nor a text tower of one. given: a UNet from
    elsewhere helps to tell the family."""
    if other_kind(stored):
        return None
    found = find_networks(stored)
    unet = found.get("unet")
    config = given["unet"].part.config if "unet" in given else None
    if unet is not None:
        config = unet_sizes(close_gaps(strip_prefix(stored, unet.prefix)), unet.names, path)
    assert config is None or isinstance(config, UNetConfig)  # nothing else is given as one
    kind = kind_by_text(stored, config)
    if kind is None and unet is not None and config is not None:
        kind = kind_by_unet(stored, config)
    if kind is None:
        return None
    sections = {part: section for part, section in SINGLE_FILES[kind].items() if has_network(stored, part, section)}
    if unet is not None:
        sections = {"unet": unet, **sections}
    return Outline(*kind, sections)


def kind_by_text(stored: Stored, unet: UNetConfig | None) -> tuple[str, str] | None:
    """Layout and family by the prefixes of the text towers, as far as there are any."""
    for kind, towers in TOWERS.items():
        if any(has_network(stored, tower, SINGLE_FILES[kind][tower]) for tower in towers):
            return kind
    # SD 2 and the refiner keep theirs in the same place
    section = SINGLE_FILES["sgm", "sd2"]["text_encoder"]
    if not has_network(stored, "text_encoder", section):
        return None
    token = stored.get(section.prefix + "token_embedding.weight")
    is_wide = token is not None and token.entry.shape[-1:] == FAMILIES["sdxl_refiner"].widths
    adds_sizes = unet.vector_dim > 0 if unet else is_wide
    return ("sgm", "sdxl_refiner") if adds_sizes else ("sgm", "sd2")


def kind_by_unet(stored: Stored, unet: UNetConfig) -> tuple[str, str]:
    """Layout and family by the text that the UNet reads and the sizes that it adds to its time embedding."""
    family = family_of(unet)
    of_sgm = "denoiser.sigmas" in stored and "sgm" in FAMILIES[family].layouts
    return "sgm" if of_sgm else FAMILIES[family].layouts[0], family


def family_of(unet: UNetConfig) -> str:
    for name, family in FAMILIES.items():
        if unet.context_dim == sum(family.widths):
            return name
    if unet.vector_dim:  # of sizes that were never published: the refiner has one level more
        return "sdxl" if len(unet.channels) < 4 else "sdxl_refiner"
    return "sd2" if unet.linear_projection else "sd1"


def refuse(stored: Collection[str], path: Path, found: Outline | None, given: Collection[str] = ()) -> NoReturn:
    """Say what a file is that is no whole model, and what can be done with it: never by what drops its own networks."""
    own = list(found.sections) if found else []
    if len(own) < 2 and not (own and given):
        raise CheckpointError(f"{path} {describe_other(stored, path)}")
    assert found is not None
    family = FAMILIES[found.family]
    missing = [part for part in ("unet", "vae", *family.towers) if part not in own and part not in given]
    titles = [TITLES[part] for part in own]
    if {"text_encoder", "text_encoder_2"} <= set(own):
        titles[-2:] = ["two text towers"]
    held = f"{', '.join(titles[:-1])} and {titles[-1]}" if len(titles) > 1 else titles[0]
    raise CheckpointError(f"{path} holds {held}, not a whole model: {advise(missing, family, own)}")


def advise(missing: Collection[str], family: Family, own: Collection[str]) -> str:
    """What is missing, and how to give it."""
    towers = [part for part in missing if part in family.towers]
    names = [{"unet": "UNet", "vae": "VAE"}[part] for part in missing if part not in towers]
    arguments = [f'{part}="owner/name"' for part in missing if part not in towers]
    flags = [f"--{part} owner/name" for part in missing if part not in towers]
    if towers and len(towers) == len(family.towers):
        names.append("text towers" if len(towers) > 1 else "text tower")
        arguments.append('text="owner/name"')
        flags.append("--text owner/name")
    elif towers:  # the other one stays
        names.append(f"text tower {towers[0]}")
        arguments.append(f'text={{"{towers[0]}": "owner/name"}}')
        flags.append(f"--text {towers[0]}=owner/name")
    lack = "its " + " and ".join(names) + (" are" if len(missing) > 1 else " is") + " missing"
    what = "them" if len(missing) > 1 else "it"
    return (
        f"{lack}: give {what} with load(..., {', '.join(arguments)}) or {' '.join(flags)}, from a model of "
        f"{family.title} or a file of {what} alone"
    )


# a source of text towers, which does not always say for which tower of a model they are


def choose_towers(path: Path, source: Path) -> list[str]:
    """The text towers of the model at `path` that those of a source are for. CheckpointError where that is open."""
    needed, own = towers_of(path)
    _, offered = towers_of(source)
    missing = [tower for tower in needed if tower not in own]
    taken = [tower for tower in needed if tower in offered]
    if not offered:  # it holds one by itself, without a name
        taken = missing if missing else list(needed)
        is_clear = len(taken) < 2
    else:
        is_clear = len(taken) == len(needed) or (missing and set(missing) <= set(taken))
    if not is_clear:
        held = " and ".join(offered) if offered else "one text tower"
        raise CheckpointError(
            f"{source} holds {held}, and the model reads {' and '.join(needed)}: say which of them it is for, as in "
            f'text={{"{needed[-1]}": "owner/name"}} or --text {needed[-1]}=owner/name'
        )
    return taken


def towers_of(path: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The text towers that the model at a path reads, as far as it is one, and those that are there."""
    if path.is_dir():
        return towers_in_folder(path)
    stored = read_stored(path)
    if whole_models(stored):
        _, family = single_file_layout(stored, path)
        return FAMILIES[family].towers, FAMILIES[family].towers
    found = outline(stored, path)
    if found is None:
        return (), ()
    towers = FAMILIES[found.family].towers
    return towers, tuple(tower for tower in towers if tower in found.sections)


def towers_in_folder(folder: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """By model_index.json, for unet/config.json may be what is missing."""
    there = tuple(tower for tower in ("text_encoder", "text_encoder_2") if (folder / tower).is_dir())
    if not (folder / INDEX).is_file():
        return (), there
    index = Settings.read(folder / INDEX).values
    family = "sd1"  # whose towers are those of SD 2
    if "XL" in str(index.get("_class_name")):
        family = "sdxl_refiner" if index.get("requires_aesthetics_score") else "sdxl"
    return FAMILIES[family].towers, tuple(tower for tower in there if is_listed(index, tower))


# folders


def refuse_folder(folder: Path) -> NoReturn:
    """Of a folder without model_index.json: what it has instead."""
    names = names_in(folder)
    files = [name for name in names if name.endswith(".safetensors")]
    pickled = [name for name in names if name.endswith(PICKLED)]
    advice = ""
    if "config.json" in names:
        advice = ": weights.load_part reads a network alone, and unet=, vae= and text= put it into a model"
    elif "snapshots" in names:
        inner = next(iter(names_in(folder / "snapshots")), "")
        advice = f": it is a folder of the hub's cache: give the model in it, {folder / 'snapshots' / inner}"
    elif files:
        advice = f": name one of its files, {listed(files)}"
    elif pickled:
        advice = f": it has {listed(pickled)}, pickled Python: {convert_command(str(folder / pickled[0]))}"
    raise CheckpointError(f"{folder}: {INDEX} is missing: this is no model folder in diffusers' layout{advice}")


def refuse_component(folder: Path, name: str, found: str | None, index: Settings) -> NoReturn:
    """found: the class that model_index.json names for it."""
    where = f"in {INDEX}" if found is None else "as a folder"
    pipeline = shown(index.values.get("_class_name", "this pipeline"))
    what = f"{folder}: the component {name} of {pipeline} is missing {where}: it is needed"
    match name:
        case "unet" | "vae":
            what += f', or one from elsewhere with load(..., {name}="owner/name") or --{name} owner/name'
        case "text_encoder" | "text_encoder_2":
            argument = f'text={{"{name}": "owner/name"}}'
            what += f", or one from elsewhere with load(..., {argument}) or --text {name}=owner/name"
    raise CheckpointError(what)


def complete(folder: Path, index: Settings, given: Mapping[str, Given]) -> tuple[Settings, dict[str, Settings]]:
    """model_index.json as if the networks that are missing and were given stood in it, and the settings of those."""
    values = dict(index.values)
    known = {}
    for part, (found, path, *_) in given.items():
        if (folder / part).is_dir() and is_listed(values, part):
            continue
        known[part] = Settings(str(path), write_settings(found.config))
        values[part] = ["given", class_of(found.config)]
        if isinstance(found.config, CLIPConfig) and not (folder / tokenizer_of(part)).is_dir():
            known[tokenizer_of(part)] = Settings(str(path), {})
    return replace(index, values=values), known


def usual_pad_id(text: CLIPConfig) -> int:
    """The token that fills up the prompts of a tower in the published folders, where no tokenizer says it."""
    return MODELS["sd15" if text.quick_gelu else "sd2"].pad_ids[0]


def is_listed(index: Mapping, component: str) -> bool:
    return index.get(component) not in (None, [None, None])


def class_of(config: object) -> str:
    match config:
        case UNetConfig():
            return "UNet2DConditionModel"
        case VAEConfig():
            return "AutoencoderKL"
        case TinyVAEConfig():
            return "AutoencoderTiny"
        case CLIPConfig(projection=0):
            return "CLIPTextModel"
    return "CLIPTextModelWithProjection"


def write_settings(config: object) -> dict:
    """A config.json from which the sizes of a network can be read; what else such a file says is not known."""
    match config:
        case UNetConfig():
            values = configs.write_unet(config, sample_size=0)
            del values["sample_size"]
            values.pop("addition_time_embed_dim", None)
            return values
        case VAEConfig():
            return configs.write_vae(config, configs.TINY_LATENT, 0, careful=True)
        case TinyVAEConfig():
            return configs.write_tiny_vae(config)
        case CLIPConfig():
            return configs.write_clip(config)
    raise TypeError(type(config).__name__)


def with_published(facts: ModelConfig, known: Collection[str]) -> ModelConfig:
    """What the config.json of a missing UNet or VAE would have said, as in the published model of the kind."""
    row, _ = published_row(facts.family.name, facts.unet, "diffusers", ())
    if row == "sd2_base" and facts.prediction == "v":
        row = "sd2_v"
    if row == "sdxl" and facts.noise.edm:
        row = "playground_v25"
    published = MODELS[row]
    pads = iter(facts.pad_ids)  # of the towers whose tokenizer is there
    ids = []
    for tower, text in zip(facts.family.towers, facts.texts):
        is_there = tokenizer_of(tower) not in known
        ids.append(next(pads) if is_there else usual_pad_id(text))
    facts = replace(facts, pad_ids=tuple(ids))
    if "unet" in known:
        facts = replace(facts, size=published.size)
    if "vae" in known and isinstance(facts.vae, VAEConfig):
        facts = replace(facts, latent=published.latent, careful_vae=published.careful_vae)
    return facts
