"""What a single file is, by its keys, shapes and metadata alone: which networks it holds and which published model they
make. A file's name says nothing here, and no network connection is needed. What decided is kept in words, for people.
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from math import isclose, prod
from pathlib import Path

import torch
from torch import Tensor

from ldm.config import MODELS, CLIPConfig, ModelConfig, NoiseConfig, TinyVAEConfig, UNetConfig, VAEConfig

from . import shapes
from .errors import CheckpointError, listed, shown
from .files import Held, Stored
from .layouts import SINGLE_FILES, Section, ema_key, renamed, unet_table
from .notes import with_notes
from .parts import Checkpoint, Part, check_fit, check_numbers
from .safetensors_file import read_header, read_tensors
from .settings import is_number

Words = tuple[str, ...]

LANDMARKS = (  # part, whose names, a tensor that every such network has and no other
    ("unet", "ldm", "input_blocks.0.0.weight"),
    ("unet", "diffusers", "time_embedding.linear_1.weight"),
    ("vae", "ldm", "decoder.norm_out.weight"),
    ("vae", "diffusers", "decoder.conv_norm_out.weight"),
    ("vae", "diffusers", "decoder.layers.0.weight"),  # TAESD
    ("text", "open_clip", "transformer.resblocks.0.ln_1.weight"),
    ("text", "diffusers", "text_model.encoder.layers.0.layer_norm1.weight"),
    ("text", "diffusers", "encoder.layers.0.layer_norm1.weight"),
)
ALONE = {  # prefixes under which a network is found in a file that is no whole model
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
SCHEDULE = "the noise schedule of its training"
EXTRAS = (  # keys outside the networks, and what they are
    (r"betas|(sqrt_|log_)?(one_minus_)?alphas_cumprod(_prev)?|sqrt_recip(m1)?_alphas_cumprod", SCHEDULE),
    (r"posterior_(variance|log_variance_clipped|mean_coef[12])|lvlb_weights|logvar|denoiser\.sigmas", SCHEDULE),
    (r"low_scale_model\..*", "the noise schedule for the small picture of the x4 upscaler"),
    (r"model_ema\..*", "averaged weights, or what counts them"),
    (r"edm_(mean|std)|edm_vpred\.sigma_(min|max)|v_pred|ztsnr", "a mark that says how the model was trained"),
    (r"depth_model\..*", "MiDaS, the network that estimates depth"),
    (r"embedder\..*", "the vision tower of CLIP"),
    (r"(embedding_manager|loss)\..*|global_step|scale_factor", "a remnant of training"),
)
NOT_MODELS = (  # what some keys of other files look like, what such a file is and what to do with it
    (
        r"lora_(unet|te\d?)_|\.lora_[AB]\.|\.lora\.(up|down)\.|lora_linear_layer|\.processor\..*_lora\.|hada_w|lokr_w",
        "is an adapter such as LoRA: load it with weights.load_adapter and the model it belongs to",
    ),
    (r"^(control_model|controlnet_|input_hint_block)", "is a ControlNet: it is no model of its own"),
    (r"^(image_proj|ip_adapter)\.", "is an IP-Adapter: it is no model of its own"),
    (r"^(emb_params|clip_[lg])$|^<.*>$", "is a textual inversion: weights.add_embedding adds it to a model"),
)
WORDS = {"unet": "a UNet", "vae": "a VAE", "text": "a text tower"}
TELLS_V = "up_blocks.3.attentions.2.transformer_blocks.0.norm1.bias"
ROUNDING = 2e-3  # of a number to float16; the published numbers are closer to what was meant
V_DEVIATION = 0.09  # of that tensor: the published velocity models of SD 2 lie above it, the others below


def recognize(path: Path, prediction: str | None = None, ema: bool = False) -> Checkpoint:
    """The whole model in a single file of the ldm or sgm layout.

    prediction: "eps" or "v", where the user knows better than the file. ema: take the averaged copy of the UNet.
    Raises CheckpointError that says what the file is instead.
    """
    header = read_header(path)
    stored = {key: Held(path, key, entry) for key, entry in header.entries.items()}
    checkpoint = recognize_stored(stored, header.metadata, path, value_of, prediction, ema)
    check_numbers(checkpoint.facts, str(path))  # of what is not written yet, they may become sound by its note
    return checkpoint


def recognize_stored(
    stored: Stored,
    metadata: Mapping[str, str],
    path: Path,
    value: Callable[[Held], Tensor],
    prediction: str | None = None,
    ema: bool = False,
) -> Checkpoint:
    """value: of the few tensors that are looked into. path: for the errors."""
    layout, towers = single_file(stored, path)
    sections = SINGLE_FILES[layout, towers]
    inside = {part: under(stored, section.prefix) for part, section in sections.items()}
    reasons = [f"{towers} in the {layout} layout: keys {', '.join(s.prefix + '*' for s in sections.values())}"]
    if ema:
        inside["unet"] = averaged(stored, inside["unet"], path)
        reasons.append("the UNet's averaged copy: model_ema.*, as asked")

    configs = {part: describe(part, section, inside[part], path, layout) for part, section in sections.items()}
    row, why = published(towers, configs["unet"], layout, stored)
    reasons.append(f"{row}: {why}")
    facts = replace(
        MODELS[row],
        unet=configs["unet"],
        vae=configs["vae"],
        texts=tuple(config for part, config in configs.items() if part.startswith("text_encoder")),
    )
    facts, marks = with_marks(facts, stored, value)
    facts, told, guesses = with_prediction(facts, row, stored, inside["unet"], metadata, value, prediction)
    facts, noted = with_notes(facts, metadata, path)
    facts = replace(facts, prediction=prediction or facts.prediction)  # the user's word before the note's
    check_fit(facts, str(path))
    configs = {"unet": facts.unet, "vae": facts.vae} | dict(zip(list(sections)[2:], facts.texts))
    parts = {
        part: Part(configs[part], inside[part], path, section.names, section.prefix, "the family it belongs to")
        for part, section in sections.items()
    }
    return Checkpoint(
        facts,
        parts,
        layout,
        (*reasons, *marks, *told, *noted),
        guesses,
        dict(metadata),
        extras(stored, [section.prefix for section in sections.values()], path),
    )


def single_file(keys: Collection[str], path: Path) -> tuple[str, str]:
    """Layout and family of a whole model. Both of SD 2 and the refiner keep one tower of open_clip in the same place:
    only the refiner adds sizes to its time embedding."""
    found = [
        kind
        for kind, sections in SINGLE_FILES.items()
        if all(has(keys, part, section) for part, section in sections.items())
    ]
    if not found:
        raise CheckpointError(f"{path} {what_else(keys, path)}")
    adds_sizes = "model.diffusion_model.label_emb.0.0.weight" in keys
    return found[-1] if found[0] == ("sgm", "sdxl_refiner") and not adds_sizes else found[0]


def is_whole(keys: Collection[str]) -> bool:
    return any(
        all(has(keys, part, section) for part, section in sections.items()) for sections in SINGLE_FILES.values()
    )


def has(keys: Collection[str], part: str, section: Section) -> bool:
    kind = part.split("_")[0]
    return any(section.prefix + mark in keys for of, names, mark in LANDMARKS if (of, names) == (kind, section.names))


def networks(keys: Collection[str]) -> dict[str, Section]:
    """The networks in a file that may be no whole model: "unet", "vae" or "text" -> where."""
    found: dict[str, Section] = {}
    for part, names, _ in LANDMARKS:
        for prefix in ALONE[part]:
            if part not in found and has(keys, part, Section(prefix, names)):
                found[part] = Section(prefix, names)
    return found


def what_else(keys: Iterable[str], path: Path) -> str:
    """Of a file that is no whole model: what it is, and what can be done with it."""
    for pattern, what in NOT_MODELS:
        if any(re.search(pattern, key) for key in keys):
            return what
    found = networks(set(keys))
    if not found:
        return f"holds no network known here but {listed(sorted(keys))}: give a model of Stable Diffusion's family"
    held, swap = " and ".join(WORDS[part] for part in found), next((part for part in found if part != "text"), None)
    return f"holds {held}, not a whole model" + (
        f": swap it into one with load(base, {swap}={str(path)!r})" if swap else ": weights.load_part reads it"
    )


def under(stored: Stored, prefix: str) -> Stored:
    return {key.removeprefix(prefix): held for key, held in stored.items() if key.startswith(prefix)}


def averaged(stored: Stored, unet: Stored, path: Path) -> Stored:
    """The UNet's names, and the tensors of model_ema."""
    copies = {key: ema_key("model.diffusion_model." + key) for key in unet}
    missing = [copy for copy in copies.values() if copy not in stored]
    if missing:
        raise CheckpointError(
            f"{path} has no averaged copy of its UNet, {listed(missing)} are missing: load it without ema"
        )
    return {key: stored[copy] for key, copy in copies.items()}


def describe(
    part: str, section: Section, stored: Stored, path: Path, layout: str = ""
) -> UNetConfig | VAEConfig | TinyVAEConfig | CLIPConfig:
    """The sizes of one network by its shapes."""
    match part:
        case "unet":
            return shapes.unet_config(stored, section.names, path, layout)
        case "vae":
            return shapes.vae_config(stored, section.names, path)
        case _:
            return shapes.clip_config(stored, section.names, path, section.tower)


def published(towers: str, unet: UNetConfig, layout: str, keys: Collection[str]) -> tuple[str, str]:
    """The row of MODELS, and what decided."""
    takes = f"a UNet of {unet.in_channels} input channels"
    rows = {("sd1", 9): "sd15_inpaint", ("sd2", 9): "sd2_inpaint", ("sd2", 5): "sd2_depth", ("sdxl", 9): "sdxl_inpaint"}
    if unet.class_count:
        return "sd_x4", "a table of noise levels, label_emb.weight"
    if unet.class_dim:
        return (
            "sd2_unclip_l" if unet.class_dim == 1536 else "sd2_unclip_h",
            f"an image embedding of width {unet.class_dim}, label_emb.0.0.weight",
        )
    if (towers, unet.in_channels) in rows:
        return rows[towers, unet.in_channels], takes
    if "edm_mean" in keys and "edm_std" in keys:
        return "playground_v25", "the keys edm_mean and edm_std"
    match towers, layout:
        case "sd1", _:
            return "sd15", takes
        case "sd2", "ldm":
            return "sd2_base", takes
        case "sd2", _:
            return "sd_turbo", "SD 2 in the sgm layout, where no other model of SD 2 was published"
        case "sdxl", _:
            return "sdxl", "SDXL, its Turbo and Lightning and Playground v2 cannot be told apart"
        case _:
            return "sdxl_refiner", "one text tower, and sizes in the time embedding"


def with_marks(facts: ModelConfig, stored: Stored, value: Callable[[Held], Tensor]) -> tuple[ModelConfig, list[str]]:
    """The noise that a model says it was trained on, by tensors that stand in the file for nothing else."""
    reasons = []
    if facts.latent.mean:
        mean, std = (numbers(stored[f"edm_{which}"], len(facts.latent.mean), value) for which in ("mean", "std"))
        if not all(isclose(a, b, rel_tol=ROUNDING) for a, b in zip(mean + std, facts.latent.mean + facts.latent.std)):
            facts = replace(facts, latent=replace(facts.latent, mean=mean, std=std))
            reasons.append("mean and deviation of its latents, other than Playground v2.5's: edm_mean and edm_std")
    if "edm_vpred.sigma_max" in stored:
        low, high = (
            numbers(stored[f"edm_vpred.sigma_{end}"], 1, value)[0] if f"edm_vpred.sigma_{end}" in stored else default
            for end, default in (("min", 0.002), ("max", 120.0))
        )
        facts = replace(
            facts,
            prediction="v",
            sampler="dpmpp_2m",
            schedule="karras",
            noise=NoiseConfig(edm=True, sigma_min=low, sigma_max=high, sigma_data=1.0),
        )
        reasons.append("velocity on continuous noise levels: the keys edm_vpred.*")
    if "ztsnr" in stored:
        facts = replace(facts, noise=replace(facts.noise, zero_snr=True), schedule="trailing")
        reasons.append("no signal at the last noise level: the key ztsnr")
    return facts, reasons


def numbers(held: Held, count: int, value: Callable[[Held], Tensor]) -> tuple[float, ...]:
    found = tuple(value(held).flatten().tolist()) if prod(held.entry.shape) == count else ()
    if not found or not all(map(is_number, found)):
        raise CheckpointError(f"{held.file}: {held.key} of shape {shown(held.entry.shape)} should hold {count} numbers")
    return found


def with_prediction(
    facts: ModelConfig,
    row: str,
    stored: Stored,
    unet: Stored,
    metadata: Mapping[str, str],
    value: Callable[[Held], Tensor],
    asked: str | None,
) -> tuple[ModelConfig, Words, Words]:
    """What the UNet predicts, with what told it and what had to be guessed: the caller's word before a mark before
    metadata before the habit of the family; SD 2 has both kinds and no mark."""
    spec = {"v": "v", "v_prediction": "v", "epsilon": "eps"}.get(metadata.get("modelspec.prediction_type", ""))
    told = [
        (asked, "as asked"),
        ("v" if "v_pred" in stored else None, "the key v_pred"),
        (spec, "modelspec.prediction_type in the metadata"),
    ]
    kind, why = next(((kind, why) for kind, why in told if kind), (None, ""))
    guesses = ()
    if kind is None and row != "sd2_base":
        kind, why = facts.prediction, "all models of its kind do"
    elif kind is None:
        key = renamed(TELLS_V, unet_table(facts.unet))
        spread = float(value(unet[key]).double().std(correction=0)) if key in unet else 0.0
        kind, side = ("v", "above") if spread > V_DEVIATION else ("eps", "not above")
        why = f"{key} deviates by {spread:.3f}, which is {side} {V_DEVIATION}"
        guesses = (
            f"the file does not say what its UNet predicts; {kind} is taken, for {why}: choose the prediction "
            "yourself if only noise comes out",
        )
    if row == "sd2_base" and kind == "v":
        facts = replace(facts, sampler="ddim", size=768)
    return replace(facts, prediction=kind), (f"it predicts {kind}: {why}",), guesses


def value_of(held: Held) -> Tensor:
    ((_, tensor),) = read_tensors(held.file, {held.key: held.entry}, torch.float32, torch.device("cpu"))
    return tensor


def extras(keys: Iterable[str], prefixes: Collection[str], path: Path) -> dict[str, str]:
    """The tensors outside all networks -> what they are; CheckpointError for one that nobody knows."""
    outside = [key for key in keys if not key.startswith(tuple(prefixes))]
    known = {key: what for key in outside for pattern, what in EXTRAS if re.fullmatch(pattern, key)}
    unknown = [key for key in outside if key not in known]
    if unknown:
        raise CheckpointError(f"{path} has {len(unknown)} unexpected tensors outside its networks, {listed(unknown)}")
    return known
