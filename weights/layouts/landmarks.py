"""Which networks a file holds, by the names of its tensors alone; and what it is where it holds no whole model."""

import re
from collections.abc import Collection
from pathlib import Path

from ..disk.safetensors import read_stored
from ..errors import CheckpointError, listed
from .names import SINGLE_FILES, Section

LANDMARKS = (  # kind of network, whose names, a tensor that every such network has and no other
    ("unet", "ldm", "input_blocks.0.0.weight"),
    ("unet", "diffusers", "time_embedding.linear_1.weight"),
    ("vae", "ldm", "decoder.norm_out.weight"),
    ("vae", "diffusers", "decoder.conv_norm_out.weight"),
    ("vae", "diffusers", "decoder.layers.0.weight"),  # TAESD
    ("text", "open_clip", "transformer.resblocks.0.ln_1.weight"),
    ("text", "diffusers", "text_model.encoder.layers.0.layer_norm1.weight"),
    ("text", "diffusers", "encoder.layers.0.layer_norm1.weight"),
)
PREFIXES = {  # under which a network is found in a file that is no whole model
    "unet": ("", "model.diffusion_model.", "diffusion_model.", "unet."),
    "vae": ("", "first_stage_model.", "vae."),
    "text": (
        "",
        "text.",
        "text_encoder.",
        "text_encoder_2.",
        "cond_stage_model.transformer.",
        "cond_stage_model.model.",
        "conditioner.embedders.0.transformer.",
        "conditioner.embedders.0.model.",
        "conditioner.embedders.1.model.",
    ),
}
NOT_MODELS = (  # what some keys of other files look like, what such a file is and what to do with it
    (
        r"lora_(unet|te\d?)_|\.lora_[AB]\.|[._]lora[._](up|down)\.|lora_linear_layer|\.processor\..*_lora\.|hada_w|lokr_w"
        r"|^lycoris_|\.b?oft_|\.ia3_l|\.(dora_scale|diff|diff_b|set_weight)$",
        "is an adapter such as LoRA: load it with weights.load_adapter and the model it belongs to",
    ),
    (r"^(control_model|controlnet_|input_hint_block)", "is a ControlNet: it is no model of its own"),
    (r"^(image_proj|ip_adapter)\.", "is an IP-Adapter: it is no model of its own"),
    (r"motion_modules\.", "is a motion module of AnimateDiff: it is no model of its own"),
    (
        r"^(emb_params|clip_[lgh]|text_encoders_\d|string_to_param\.\*|\*)$|^<.*>$",
        "is a textual inversion: weights.add_embedding adds it to a model",
    ),
)
TITLES = {"unet": "a UNet", "vae": "a VAE", "text": "a text tower"}


def single_file_layout(keys: Collection[str], path: Path) -> tuple[str, str]:
    """Layout and family of a whole model; CheckpointError that says what the file is instead. Both SD 2 and the refiner
    keep one tower of open_clip in the same place: only the refiner adds sizes to its time embedding."""
    found = whole_models(keys)
    if not found:
        raise CheckpointError(f"{path} {describe_other(keys, path)}")
    adds_sizes = "model.diffusion_model.label_emb.0.0.weight" in keys
    if found[0] == ("sgm", "sdxl_refiner") and not adds_sizes:
        return "sgm", "sd2"
    return found[0]


def whole_models(keys: Collection[str]) -> list[tuple[str, str]]:
    """The layouts and families of which all networks are there."""
    return [
        kind
        for kind, sections in SINGLE_FILES.items()
        if all(has_network(keys, part, section) for part, section in sections.items())
    ]


def has_network(keys: Collection[str], part: str, section: Section) -> bool:
    """part: a kind of network, or the name of a text tower's folder."""
    kind = part.split("_")[0]
    return any(section.prefix + mark in keys for of, names, mark in LANDMARKS if (of, names) == (kind, section.names))


def find_networks(keys: Collection[str]) -> dict[str, Section]:
    """The networks in a file that may be no whole model: "unet", "vae" or "text" -> where."""
    found: dict[str, Section] = {}
    for kind, names, _ in LANDMARKS:
        for prefix in PREFIXES[kind]:
            if kind not in found and has_network(keys, kind, Section(prefix, names)):
                found[kind] = Section(prefix, names)
    return found


def holds_one_network(path: Path) -> bool:
    """Whether a file holds one network and no more of a model, as a VAE's fine-tune does."""
    stored = read_stored(path)
    return not other_kind(stored) and len(find_networks(stored)) == 1 and not whole_models(stored)


def other_kind(keys: Collection[str]) -> str:
    """What a file is that belongs to a model and is none, and what to do with it; else ""."""
    for pattern, what in NOT_MODELS:
        if any(re.search(pattern, key) for key in keys):
            return what
    return ""


def describe_other(keys: Collection[str], path: Path) -> str:
    """Of a file that is no whole model: what it is, and what can be done with it."""
    other = other_kind(keys)
    if other:
        return other
    found = find_networks(set(keys))
    if not found:
        held = listed(sorted(keys)) or "no tensor at all"
        return f"holds no network known here but {held}: give a model of Stable Diffusion's family"
    held = f"holds {' and '.join(TITLES[kind] for kind in found)}, not a whole model"
    if len(found) > 1:
        return f"{held}: weights.load_part reads each"
    (kind,) = found
    rest = ", or give it the rest of one, vae= and text=" if kind == "unet" else ""
    return f"{held}: swap it into one with load(base, {kind}={str(path)!r}){rest}"
