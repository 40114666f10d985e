"""A model folder in diffusers' layout: model_index.json, and a sub-folder for each component.

Its JSON files are read as data: no class is looked up by name and nothing is executed. What is written loads in
diffusers 0.42 and transformers 5, except for depth and unCLIP models, whose image parts are not here; and, to equal
facts, in this package.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from ldm.config import FAMILIES, CLIPConfig, Family, ModelConfig, TinyVAEConfig, UNetConfig
from ldm.model import Model
from ldm.tokenizer import published_files

from ..asked import NOTHING, Asked
from ..checkpoint import Checkpoint, NetworkConfig, Part, check_fit, tokenizer_of
from ..disk.safetensors import choose_file, read_stored
from ..disk.settings import WIDTH, Settings, is_integer, is_number, names_in
from ..disk.variants import without_variant
from ..disk.write import write_json, write_shards, write_text
from ..errors import CheckpointError, shown
from . import diffusers_configs as configs
from .diffusers_pipelines import PIPELINES, write_index
from .diffusers_scheduler import read_scheduler, write_low_res_scheduler, write_scheduler
from .distilled import TITLES
from .incomplete import INDEX, complete, refuse_component, refuse_folder, with_published
from .training import with_zero_snr

COMPONENTS = {  # that we read -> their classes
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL", "AutoencoderTiny"),
    "text_encoder": ("CLIPTextModel", "CLIPTextModelWithProjection"),
    "text_encoder_2": ("CLIPTextModelWithProjection",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "tokenizer_2": ("CLIPTokenizer", "CLIPTokenizerFast"),
}
PADS = {"!": 0, "<|endoftext|>": 49407}
OWN_DEFAULTS = {  # what "_defaults" in model_index.json may hold
    "steps": lambda value: is_integer(value, 1),
    "guidance": is_number,
    "sampler": lambda value: isinstance(value, str),
    "schedule": lambda value: isinstance(value, str),
}


def matches(path: Path) -> bool:
    return path.is_dir()


def read(folder: Path, asked: Asked = NOTHING, variant: str | None = None) -> Checkpoint:
    """All that the JSON files say, and what the weight files hold. CheckpointError names what cannot be used."""
    if INDEX not in names_in(folder):
        refuse_folder(folder)
    index = Settings.read(folder / INDEX)
    index, known = complete(folder, index, asked.given) if asked.given else (index, {})
    unet_json = settings_of(folder, index, "unet", known)
    vae_json = settings_of(folder, index, "vae", known)
    unet = configs.read_unet(unet_json)
    vae = configs.read_vae(vae_json)
    family = family_of(folder, index, unet, known)
    texts = {tower: read_tower(folder, index, tower, known) for tower in family.towers}
    scheduler = Settings.read(component(folder, index, "scheduler") / "scheduler_config.json")
    has_sizes = family.numbers > 0
    choices = read_scheduler(scheduler, str(class_of(index, "scheduler")), has_sizes)
    choices["prediction"] = asked.prediction or choices["prediction"]
    choices |= read_defaults(index, unet, configs.read_size(unet_json, vae), choices)
    is_careful = (has_sizes or unet.class_count > 0) and not isinstance(vae, TinyVAEConfig)
    facts = ModelConfig(
        family=family, unet=unet, vae=vae, texts=tuple(texts.values()),
        latent=configs.read_latent(vae_json, vae), careful_vae=is_careful and vae_json.flag("force_upcast", True),
        pad_ids=tuple(read_pad_id(folder, index, name) for name in map(tokenizer_of, texts) if name not in known),
        zero_empty_prompt=has_sizes and index.flag("force_zeros_for_empty_prompt", True),
        **choices,
    )  # fmt: skip
    if any(asked):
        facts = amend(facts, asked, known, folder)
    check_fit(facts, unet_json.file, read_number_width(unet_json) if has_sizes and "unet" not in known else 0)
    own = {name: cfg for name, cfg in {"unet": unet, "vae": vae, **texts}.items() if name not in asked.given}
    plain = plain_parts(folder, own, variant) if variant else {}
    parts = {name: read_part(folder / name, own[name], None if name in plain else variant, folder) for name in own}
    evidence = TITLES.get(replace(unet, in_channels=4, guidance_dim=0), ())
    told = tuple(plain.values())
    return Checkpoint(facts, parts, folder, "diffusers", "", evidence, told, {}, other_components(index))


def read_number_width(unet_json: Settings) -> int:
    """Of each embedded size."""
    return unet_json.one("addition_time_embed_dim", None, WIDTH)


def amend(facts: ModelConfig, asked: Asked, known: Collection[str], folder: Path) -> ModelConfig:
    """As the user asks. known: components that are missing and were given."""
    if asked.ema:
        raise CheckpointError(
            f"{folder} is a folder, and averaged copies are in single files: choose a variant instead"
        )
    if known:
        facts = with_published(facts, known)
    return with_zero_snr(facts, folder) if asked.zero_snr else facts


def settings_of(folder: Path, index: Settings, name: str, known: Mapping[str, Settings]) -> Settings:
    if name in known:
        return known[name]
    return Settings.read(component(folder, index, name) / "config.json")


def plain_parts(folder: Path, parts: Mapping[str, NetworkConfig], variant: str) -> dict[str, str]:
    """The parts that lack a variant which others have, and a warning that names the file to be taken instead."""
    stems = {name: stem_of(cfg) for name, cfg in parts.items()}
    plain = without_variant({name: (names_in(folder / name), stem) for name, stem in stems.items()}, variant)
    warnings = {}
    for name in plain:
        file = choose_file(str(folder / name), names_in(folder / name), stems[name], None)
        warnings[name] = f"its {name} has no variant {shown(variant)}: the plain {name}/{file} is taken"
    return warnings


def read_part(folder: Path, config: NetworkConfig, variant: str | None, root: Path) -> Part:
    """One network's own folder."""
    path = folder / choose_file(str(folder), names_in(folder), stem_of(config), variant)
    return Part(config, read_stored(path), path, root, described_by=str(folder / "config.json"))


# The name of a network's weight file, without its ending.
def stem_of(config: object) -> str:
    return "model" if isinstance(config, CLIPConfig) else "diffusion_pytorch_model"


def class_of(index: Settings, name: str) -> str | None:
    """The class that model_index.json names for a component; None where it has none."""
    entry = index.values.get(name)
    if entry is None or entry == [None, None]:
        return None
    if not isinstance(entry, list) or len(entry) != 2 or not isinstance(entry[1], str):
        index.refuse(name, "a library and a class are expected")
    return entry[1]


def component(folder: Path, index: Settings, name: str) -> Path:
    """The folder of a component that the model needs."""
    found = class_of(index, name)
    if found is None or not (folder / name).is_dir():
        refuse_component(folder, name, found, index)
    if name in COMPONENTS and found not in COMPONENTS[name]:
        index.refuse(name, f"only {' or '.join(COMPONENTS[name])} is implemented")
    return folder / name


def other_components(index: Settings) -> dict[str, str]:
    """Those that are not read, such as a safety checker."""
    found = {}
    for name, entry in index.values.items():
        if name not in (*COMPONENTS, "scheduler") and isinstance(entry, list) and any(entry):
            found[name] = f"the component {name}"
    return found


def family_of(folder: Path, index: Settings, unet: UNetConfig, known: Mapping[str, Settings]) -> Family:
    """What the UNet adds to its time embedding decides, then the text tower: SD 1's alone has "quick_gelu"."""
    if unet.vector_dim:
        return FAMILIES["sdxl" if class_of(index, "text_encoder") else "sdxl_refiner"]
    if class_of(index, "text_encoder_2"):
        index.refuse("text_encoder_2", "the UNet of unet/config.json takes one text encoder, it is not SDXL's")
    return FAMILIES["sd1" if read_tower(folder, index, "text_encoder", known).quick_gelu else "sd2"]


def read_tower(folder: Path, index: Settings, name: str, known: Mapping[str, Settings]) -> CLIPConfig:
    json = settings_of(folder, index, name, known)
    return configs.read_clip(json, projected=class_of(index, name) == "CLIPTextModelWithProjection")


def read_pad_id(folder: Path, index: Settings, name: str) -> int:
    """The token that fills up prompts. Where the two files differ, as in SD 2, special_tokens_map.json is right."""
    home = component(folder, index, name)
    names = names_in(home)
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        if file in names:
            json = Settings.read(home / file)
            token = json.values.get("pad_token")
            token = token.get("content") if isinstance(token, dict) else token
            if token in list(PADS):
                return PADS[token]
            if token is not None:
                json.refuse("pad_token", f"only {' or '.join(map(shown, PADS))} is implemented")
    return usual_pad_id(home, names)


def usual_pad_id(folder: Path, names: list[str]) -> int:
    """That of the tokenizer's class, where its settings name none."""
    if "tokenizer_config.json" not in names:
        raise CheckpointError(f"{folder}: special_tokens_map.json and tokenizer_config.json are missing")
    return PADS["<|endoftext|>"]


def read_defaults(index: Settings, unet: UNetConfig, size: int, choices: Mapping) -> dict:
    """Size, steps and guidance as the model's publishers recommend. Our own folders may say better in "_defaults":
    diffusers passes over names that begin with an underscore."""
    steps, guidance = PIPELINES.get(str(index.values.get("_class_name")), (50, 5.0 if unet.vector_dim else 7.5))
    of_turbo = unet.context_dim in (1024, 2048) and size == 512
    if of_turbo and choices["schedule"] == "trailing" and choices["prediction"] == "eps":
        steps, guidance = 1, 0.0  # SD-Turbo and SDXL-Turbo
    elif choices["noise"].edm:
        guidance = 3.0  # Playground v2.5
    elif unet.guidance_dim:
        steps, guidance = 4, 8.5  # LCM
    usual = dict(size=size, steps=steps, guidance=guidance)
    if "_defaults" in index.values:
        return usual | own_defaults(index)
    return usual


def own_defaults(index: Settings) -> dict:
    own = index.values["_defaults"]
    if not isinstance(own, dict) or not all(key in OWN_DEFAULTS and OWN_DEFAULTS[key](own[key]) for key in own):
        index.refuse("_defaults", f"an object with some of {', '.join(OWN_DEFAULTS)} is expected")
    return own


def write(
    folder: Path,
    model: Model,
    dtype: torch.dtype | None,
    variant: str | None,
    shard_size: int | None,
    metadata: Mapping[str, Mapping[str, str]],
) -> None:
    """A new folder. dtype: of all tensors, or None as they are. variant: a word in the names of the weight files.
    shard_size: bytes of the largest of them. metadata: by part."""
    write_facts(folder, model.facts)
    networks: dict[str, nn.Module] = {"unet": model.unet, "vae": model.vae, **model.texts}
    for name, network in networks.items():
        stem = stem_of(network.config)
        write_shards(folder / name, stem, network.state_dict(), dtype, variant, shard_size, metadata[name])


def write_facts(folder: Path, facts: ModelConfig) -> None:
    """All files of a folder but the weights."""
    for name, values in describe_components(facts).items():
        write_json(folder / name, values)
    for tower, cfg, pad_id in zip(facts.family.towers, facts.texts, facts.pad_ids):
        write_tokenizer(folder / tokenizer_of(tower), pad_id, cfg.length)


def describe_components(facts: ModelConfig) -> dict[str, dict]:
    """The JSON files of a folder, except those of the tokenizers."""
    number_width = 0
    if facts.family.numbers:
        number_width = (facts.unet.vector_dim - facts.texts[-1].projection) // facts.family.numbers
    vae = configs.write_vae(facts.vae, facts.latent, facts.size, facts.careful_vae)
    found = {
        "unet/config.json": configs.write_unet(facts.unet, facts.size // facts.vae.factor, number_width),
        "vae/config.json": vae,
        "scheduler/scheduler_config.json": write_scheduler(facts),
    }
    for tower, cfg in zip(facts.family.towers, facts.texts):
        found[f"{tower}/config.json"] = configs.write_clip(cfg)
    if facts.unet.class_count:
        found["low_res_scheduler/scheduler_config.json"] = write_low_res_scheduler(facts.noise)
    found[INDEX] = write_index(facts, vae["_class_name"], found["scheduler/scheduler_config.json"]["_class_name"])
    return found


def write_tokenizer(folder: Path, pad_id: int, length: int) -> None:
    end = "<|endoftext|>"
    pads = {number: token for token, number in PADS.items()}
    specials = dict(bos_token="<|startoftext|>", eos_token=end, unk_token=end, pad_token=pads[pad_id])
    config = dict(tokenizer_class="CLIPTokenizer", model_max_length=length, do_lower_case=True)
    for name, text in published_files().items():
        write_text(folder / name, text)
    write_json(folder / "special_tokens_map.json", specials)
    write_json(folder / "tokenizer_config.json", specials | config)
