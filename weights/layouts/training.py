"""What a single file tells of its training, by marks that stand in it for nothing else, by metadata, by its values and
by what is published; and the marks that are written into it, as ComfyUI and diffusers know them too.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from math import isclose, prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.config import MODELS, ModelConfig, NoiseConfig, UNetConfig

from ..disk.safetensors import Held, Stored
from ..disk.settings import is_number
from ..errors import CheckpointError, shown
from .names import rename, unet_table

ReadValue = Callable[[Held], Tensor]  # of the few tensors that are looked into
MARK = "a mark that says how the model was trained"  # what read_marks reads
SPEC = "modelspec.prediction_type"  # of the metadata
SPEC_OF_COMFYUI = "modelspec.predict_key"
SPECS = {"epsilon": "eps", "v": "v", "sample": "x0"}  # written there -> our prediction
ZERO_SNR = "ztsnr"  # the mark of no signal at the last noise level
DECIDES_V = "up_blocks.3.attentions.2.transformer_blocks.0.norm1.bias"
V_DEVIATION = 0.09  # of that tensor: the published velocity models of SD 2 lie above it, the others below
ROUNDING = 2e-3  # of a number to float16; the published numbers are closer to what was meant
BY_CHANNELS = {  # family and input channels of the UNet -> row of MODELS
    ("sd1", 9): "sd15_inpaint",
    ("sd2", 9): "sd2_inpaint",
    ("sd2", 5): "sd2_depth",
    ("sdxl", 9): "sdxl_inpaint",
}


def published_row(family: str, unet: UNetConfig, layout: str, keys: Collection[str]) -> tuple[str, str]:
    """The row of MODELS, and what decided."""
    takes = f"a UNet of {unet.in_channels} input channels"
    if unet.class_count:
        return "sd_x4", "a table of noise levels, label_emb.weight"
    if unet.class_dim:
        row = "sd2_unclip_l" if unet.class_dim == 1536 else "sd2_unclip_h"
        return row, f"an image embedding of width {unet.class_dim}, label_emb.0.0.weight"
    if (family, unet.in_channels) in BY_CHANNELS:
        return BY_CHANNELS[family, unet.in_channels], takes
    if "edm_mean" in keys and "edm_std" in keys:
        return "playground_v25", "the keys edm_mean and edm_std"
    if family == "sd2" and layout == "sgm":
        return "sd_turbo", "SD 2 in the sgm layout, where no other model of SD 2 was published"
    return {
        "sd1": ("sd15", takes),
        "sd2": ("sd2_base", takes),
        "sdxl": ("sdxl", "SDXL, its Turbo and Lightning and Playground v2 cannot be told apart"),
        "sdxl_refiner": ("sdxl_refiner", "one text tower, and sizes in the time embedding"),
    }[family]


def read_marks(facts: ModelConfig, stored: Stored, value: ReadValue) -> tuple[ModelConfig, list[str]]:
    """The noise that a model says it was trained on, by tensors that stand in the file for nothing else; and what
    decided."""
    evidence = []
    if facts.latent.mean:
        count = len(facts.latent.mean)
        mean = read_numbers(stored["edm_mean"], count, value)
        std = read_numbers(stored["edm_std"], count, value)
        published = facts.latent.mean + facts.latent.std
        if not all(isclose(a, b, rel_tol=ROUNDING) for a, b in zip(mean + std, published)):
            facts = replace(facts, latent=replace(facts.latent, mean=mean, std=std))
            evidence.append("mean and deviation of its latents, other than Playground v2.5's: edm_mean and edm_std")
    if "edm_vpred.sigma_max" in stored:
        sigma_min = 0.002
        if "edm_vpred.sigma_min" in stored:
            (sigma_min,) = read_numbers(stored["edm_vpred.sigma_min"], 1, value)
        (sigma_max,) = read_numbers(stored["edm_vpred.sigma_max"], 1, value)
        noise = NoiseConfig(edm=True, sigma_min=sigma_min, sigma_max=sigma_max, sigma_data=1.0)
        facts = replace(facts, prediction="v", sampler="dpmpp_2m", schedule="karras", noise=noise)
        evidence.append("velocity on continuous noise levels: the keys edm_vpred.*")
    if ZERO_SNR in stored:  # settle_zero_snr has the last word
        facts = replace(facts, noise=replace(facts.noise, zero_snr=True), schedule="trailing")
    return facts, evidence


def settle_zero_snr(
    facts: ModelConfig, row: str, keys: Collection[str], is_asked: bool, path: Path
) -> tuple[ModelConfig, list[str], list[str]]:
    """Whether no signal is left at the last noise level, once the prediction is known; evidence and warnings. row: of
    MODELS. At that level the noise alone says nothing of the picture, so a model that predicts it cannot be meant."""
    if is_asked:
        return with_zero_snr(facts, path), ["no signal at the last noise level: as asked"], []
    if ZERO_SNR not in keys:
        return facts, [], []
    if facts.prediction != "eps":
        return facts, [f"no signal at the last noise level: the key {ZERO_SNR}"], []
    facts = replace(facts, noise=replace(facts.noise, zero_snr=False), schedule=MODELS[row].schedule)
    ignored = (
        f"the key {ZERO_SNR} is ignored: it belongs to models that predict v, and nothing says that this one does: "
        "choose the prediction v if so"
    )
    return facts, [], [ignored]


def with_zero_snr(facts: ModelConfig, path: Path) -> ModelConfig:
    """As a user asks for whom the files do not say it. CheckpointError where it cannot be."""
    if facts.noise.edm:
        raise CheckpointError(f"{path}: zero_snr is for discrete times, and this model has continuous noise levels")
    if facts.prediction == "eps":
        raise CheckpointError(
            f"{path}: zero_snr cannot be: the model predicts eps, and noise alone says nothing of a picture: choose "
            "the prediction v as well, or leave zero_snr out"
        )
    return replace(facts, noise=replace(facts.noise, zero_snr=True), schedule="trailing")


def write_marks(facts: ModelConfig) -> dict[str, Tensor]:
    """The tensors that read_marks understands."""
    if facts.latent.mean:  # Playground v2.5
        mean = torch.tensor(facts.latent.mean)
        std = torch.tensor(facts.latent.std)
        return {"edm_mean": mean[None, :, None, None], "edm_std": std[None, :, None, None]}
    marks = {}
    if facts.noise.edm:
        marks["edm_vpred.sigma_min"] = torch.tensor(facts.noise.sigma_min)
        marks["edm_vpred.sigma_max"] = torch.tensor(facts.noise.sigma_max)
    elif facts.family.name == "sdxl" and facts.prediction == "v":
        marks["v_pred"] = torch.zeros(())
    if facts.noise.zero_snr:
        marks[ZERO_SNR] = torch.zeros(())
    return marks


def read_numbers(held: Held, count: int, value: ReadValue) -> tuple[float, ...]:
    numbers = ()
    if prod(held.entry.shape) == count:
        numbers = tuple(value(held).flatten().tolist())
    if not numbers or not all(map(is_number, numbers)):
        raise CheckpointError(f"{held.file}: {held.key} of shape {shown(held.entry.shape)} should hold {count} numbers")
    return numbers


def read_prediction(
    facts: ModelConfig, row: str, stored: Stored, unet: Stored, metadata: Mapping[str, str], value: ReadValue
) -> tuple[ModelConfig, str, tuple[str, ...]]:
    """What the UNet predicts, with the evidence and warnings: a mark comes before metadata, and these before the habit
    of the family; SD 2 has both kinds and no mark. row: of MODELS."""
    warnings: tuple[str, ...] = ()
    key = SPEC if SPEC in metadata else SPEC_OF_COMFYUI
    spec = metadata.get(key, "").replace("v_prediction", "v")
    if "v_pred" in stored:
        kind, why = "v", "the key v_pred"
    elif spec in ("v", "epsilon"):
        kind, why = SPECS[spec], f"{key} in the metadata"
    elif row != "sd2_base":
        kind, why = facts.prediction, "all models of its kind do"
    else:
        kind, why = guess_prediction(facts.unet, unet, value)
        warnings = (
            f"the file does not say what its UNet predicts; {kind} is taken, for {why}: choose the prediction "
            "yourself if only noise comes out",
        )
    return with_prediction(facts, row, kind), f"it predicts {kind}: {why}", warnings


def guess_prediction(cfg: UNetConfig, unet: Stored, value: ReadValue) -> tuple[str, str]:
    """Of an SD 2 that does not say it; and why."""
    key = DECIDES_V if DECIDES_V in unet else rename(DECIDES_V, unet_table(cfg))
    spread = float(value(unet[key]).double().std(correction=0)) if key in unet else 0.0
    kind, side = ("v", "above") if spread > V_DEVIATION else ("eps", "not above")
    return kind, f"{key} deviates by {spread:.3f}, which is {side} {V_DEVIATION}"


def with_prediction(facts: ModelConfig, row: str, kind: str) -> ModelConfig:
    if row == "sd2_base" and kind == "v":  # SD 2's velocity models are larger, and published with DDIM
        facts = replace(facts, sampler="ddim", size=768)
    return replace(facts, prediction=kind)


def as_trained(facts: ModelConfig, row: str, training: Mapping[str, Any]) -> ModelConfig:
    """With what the source of a UNet says of it, if anything, where the model at hand has no UNet of its own."""
    kind = training.get("prediction", facts.prediction)
    return with_prediction(replace(facts, **training), row, kind)


def write_prediction(facts: ModelConfig) -> dict[str, str]:
    """The metadata that read_prediction understands."""
    names = {ours: theirs for theirs, ours in SPECS.items()}
    return {SPEC: names[facts.prediction]}
