"""A model folder in diffusers' layout: model_index.json, and a sub-folder for each component.

Its JSON files are read as data: no class is looked up by name and nothing is executed. What is written loads in
diffusers 0.42 and transformers 5, except for depth and unCLIP models, whose image parts are not here; and, to equal
facts, in this package.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import torch
from torch import nn

from ldm.config import FAMILIES, CLIPConfig, Family, ModelConfig, TinyVAEConfig, UNetConfig
from ldm.model import Model
from ldm.tokenizer import published_files

from ..checkpoint import Checkpoint, NetworkConfig, Part, check_fit
from ..disk.safetensors import choose_file, read_stored
from ..disk.settings import WIDTH, Settings, is_integer, is_number, names_in
from ..disk.write import write_json, write_shards, write_text
from ..errors import CheckpointError, shown
from . import diffusers_configs as configs
from .diffusers_scheduler import read_scheduler, write_low_res_scheduler, write_scheduler
from .distilled import TITLES

INDEX = "model_index.json"
COMPONENTS = {  # that we read -> their classes
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL", "AutoencoderTiny"),
    "text_encoder": ("CLIPTextModel", "CLIPTextModelWithProjection"),
    "text_encoder_2": ("CLIPTextModelWithProjection",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "tokenizer_2": ("CLIPTokenizer", "CLIPTokenizerFast"),
}
UPSCALE = "StableDiffusionUpscalePipeline"
PIPELINES = {  # steps and guidance where a pipeline's own defaults are not those of its family
    UPSCALE: (75, 9.0),
    "StableDiffusionXLInpaintPipeline": (50, 7.5),
    "StableUnCLIPPipeline": (20, 10.0),
    "StableUnCLIPImg2ImgPipeline": (20, 10.0),
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


def read(
    folder: Path, variant: str | None = None, prediction: str | None = None, without: Collection[str] = ()
) -> Checkpoint:
    """All that the JSON files say, and what the weight files hold, except those of the parts `without`. CheckpointError
    names the file and the setting that this program cannot use."""
    if INDEX not in names_in(folder):
        raise CheckpointError(f"{folder}: {INDEX} is missing: this is no model folder in diffusers' layout")
    index = Settings.read(folder / INDEX)
    unet_json = Settings.read(component(folder, index, "unet") / "config.json")
    vae_json = Settings.read(component(folder, index, "vae") / "config.json")
    unet = configs.read_unet(unet_json)
    vae = configs.read_vae(vae_json)
    family = family_of(folder, index, unet)
    texts = {tower: read_tower(folder, index, tower) for tower in family.towers}
    scheduler = Settings.read(component(folder, index, "scheduler") / "scheduler_config.json")
    has_sizes = family.numbers > 0
    choices = read_scheduler(scheduler, str(class_of(index, "scheduler")), has_sizes)
    if prediction:
        choices["prediction"] = prediction
    choices |= read_defaults(index, unet, configs.read_size(unet_json, vae), choices)
    is_careful = (has_sizes or unet.class_count > 0) and not isinstance(vae, TinyVAEConfig)
    facts = ModelConfig(
        family=family, unet=unet, vae=vae, texts=tuple(texts.values()),
        latent=configs.read_latent(vae_json, vae),
        pad_ids=tuple(read_pad_id(folder, index, tokenizer_of(tower)) for tower in family.towers),
        careful_vae=is_careful and vae_json.flag("force_upcast", True),
        zero_empty_prompt=has_sizes and index.flag("force_zeros_for_empty_prompt", True),
        **choices,
    )  # fmt: skip
    check_fit(facts, unet_json.file, unet_json.one("addition_time_embed_dim", None, WIDTH) if family.numbers else 0)
    parts = {"unet": unet, "vae": vae, **texts}
    parts = {name: read_part(folder / name, cfg, variant, folder) for name, cfg in parts.items() if name not in without}
    evidence = TITLES.get(replace(unet, in_channels=4, guidance_dim=0), ())
    return Checkpoint(facts, parts, folder, "diffusers", evidence=evidence, extras=other_components(index))


def read_part(folder: Path, config: NetworkConfig, variant: str | None, root: Path) -> Part:
    """One network's own folder."""
    path = folder / choose_file(str(folder), names_in(folder), stem_of(config), variant)
    return Part(config, read_stored(path), path, root, described_by=str(folder / "config.json"))


def stem_of(config: object) -> str:
    """The name of a network's weight file, without its ending."""
    return "model" if isinstance(config, CLIPConfig) else "diffusion_pytorch_model"


def tokenizer_of(tower: str) -> str:
    return tower.replace("text_encoder", "tokenizer")


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
        refuse_missing(folder, index, name)
    if name in COMPONENTS and found not in COMPONENTS[name]:
        index.refuse(name, f"only {' or '.join(COMPONENTS[name])} is implemented")
    return folder / name


def refuse_missing(folder: Path, index: Settings, name: str) -> NoReturn:
    what = shown(index.values.get("_class_name", "this pipeline"))
    where = f"in {INDEX}" if class_of(index, name) is None else "as a folder"
    raise CheckpointError(f"{folder}: the component {name} of {what} is missing {where}: it is needed")


def other_components(index: Settings) -> dict[str, str]:
    """Those that are not read, such as a safety checker."""
    found = {}
    for name, entry in index.values.items():
        if name not in (*COMPONENTS, "scheduler") and isinstance(entry, list) and any(entry):
            found[name] = f"the component {name}"
    return found


def family_of(folder: Path, index: Settings, unet: UNetConfig) -> Family:
    """What the UNet adds to its time embedding decides, then the text tower: SD 1's alone has "quick_gelu"."""
    if unet.vector_dim:
        return FAMILIES["sdxl" if class_of(index, "text_encoder") else "sdxl_refiner"]
    if class_of(index, "text_encoder_2"):
        index.refuse("text_encoder_2", "the UNet of unet/config.json takes one text encoder, it is not SDXL's")
    return FAMILIES["sd1" if read_tower(folder, index, "text_encoder").quick_gelu else "sd2"]


def read_tower(folder: Path, index: Settings, name: str) -> CLIPConfig:
    json = Settings.read(component(folder, index, name) / "config.json")
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


def write_index(facts: ModelConfig, vae: str, scheduler: str) -> dict:
    """vae, scheduler: their classes."""
    defaults = dict(steps=facts.steps, guidance=facts.guidance, sampler=facts.sampler, schedule=facts.schedule)
    values: dict[str, object] = {
        "_class_name": pipeline_of(facts),
        **configs.VERSION,
        "_defaults": defaults,
        "unet": ["diffusers", "UNet2DConditionModel"],
        "scheduler": ["diffusers", scheduler],
        "vae": ["diffusers", vae],
    }
    if facts.family.name == "sdxl_refiner":
        values |= {"text_encoder": [None, None], "tokenizer": [None, None], "requires_aesthetics_score": True}
    for tower, cfg in zip(facts.family.towers, facts.texts):
        values[tower] = ["transformers", "CLIPTextModelWithProjection" if cfg.projection else "CLIPTextModel"]
        values[tokenizer_of(tower)] = ["transformers", "CLIPTokenizer"]
    if values["_class_name"] == UPSCALE:
        return values | dict(low_res_scheduler=["diffusers", "DDPMScheduler"])
    if facts.family.has_sizes:
        return values | dict(force_zeros_for_empty_prompt=facts.zero_empty_prompt)
    return values | dict(safety_checker=[None, None], feature_extractor=[None, None], requires_safety_checker=False)


def pipeline_of(facts: ModelConfig) -> str:
    """The class of diffusers that runs such a model."""
    unet = facts.unet
    if facts.family.name == "sdxl_refiner":
        return "StableDiffusionXLImg2ImgPipeline"
    if facts.family.has_sizes:
        return "StableDiffusionXLInpaintPipeline" if unet.in_channels == 9 else "StableDiffusionXLPipeline"
    if unet.in_channels == 9:
        return "StableDiffusionInpaintPipeline"
    if unet.in_channels == 5:
        return "StableDiffusionDepth2ImgPipeline"
    if unet.class_count:
        return UPSCALE
    if unet.class_dim:
        return "StableUnCLIPImg2ImgPipeline"
    return "LatentConsistencyModelPipeline" if unet.guidance_dim else "StableDiffusionPipeline"


def write_tokenizer(folder: Path, pad_id: int, length: int) -> None:
    end = "<|endoftext|>"
    pads = {number: token for token, number in PADS.items()}
    specials = dict(bos_token="<|startoftext|>", eos_token=end, unk_token=end, pad_token=pads[pad_id])
    config = dict(tokenizer_class="CLIPTokenizer", model_max_length=length, do_lower_case=True)
    for name, text in published_files().items():
        write_text(folder / name, text)
    write_json(folder / "special_tokens_map.json", specials)
    write_json(folder / "tokenizer_config.json", specials | config)
