"""Tiny pipelines of every family with random weights, saved by diffusers in the layout of the published folders.

A builder writes one folder and returns the diffusers pipeline that it saved. `unet`, `vae` and `text` change settings
of those parts, `scheduler` replaces the family's own; further arguments, such as variant and max_shard_size, go to
save_pretrained. The text towers have their true vocabulary, so any prompt works; pictures are 64 x 64, latents 8 x 8.
"""

import functools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTokenizer

from ldm.tokenizer import published_files
from support.networks import REFERENCE_REFINER, REFERENCE_SD2, REFERENCE_SD15, REFERENCE_SDXL, TINY_CLIPS, TINY_VAES
from support.numbers import randomize

UNET_FILE, VAE_FILE = (f"{part}/diffusion_pytorch_model.safetensors" for part in ("unet", "vae"))
TEXT_FILE = "text_encoder/model.safetensors"
SIZE = 8  # of the latents
BETAS = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1)
SDXL_VAE = {"scaling_factor": 0.13025}
NO_CHECKER = dict(safety_checker=None, feature_extractor=None, requires_safety_checker=False)
SPECIALS = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
PADS = {"l": "<|endoftext|>", "h": "!", "bigg": "!"}  # as the published folders fill up their prompts


def tiny_sd(
    folder: Path,
    scheduler=None,
    dtype: torch.dtype = torch.float32,
    unet: dict = {},
    vae: dict = {},
    text: dict = {},
    **saving,
) -> StableDiffusionPipeline:
    """Shapes of SD 1.5."""
    scheduler = scheduler or PNDMScheduler(**BETAS, skip_prk_steps=True)
    parts = dict(
        unet=make_unet(REFERENCE_SD15 | {"cross_attention_dim": 32} | unet),
        vae=make_vae(vae),
        text_encoder=make_text("l", text),
        tokenizer=tokenizer("l"),
        scheduler=scheduler,
        **NO_CHECKER,
    )
    return save(StableDiffusionPipeline(**parts), folder, dtype, saving)


def tiny_sd2(
    folder: Path,
    scheduler=None,
    dtype: torch.dtype = torch.float32,
    unet: dict = {},
    vae: dict = {},
    text: dict = {},
    **saving,
) -> StableDiffusionPipeline:
    """Shapes of SD 2, v-prediction."""
    scheduler = scheduler or DDIMScheduler(
        **BETAS, clip_sample=False, set_alpha_to_one=False, prediction_type="v_prediction"
    )
    parts = dict(
        unet=make_unet(REFERENCE_SD2 | {"cross_attention_dim": 48} | unet),
        vae=make_vae(vae),
        text_encoder=make_text("h", text),
        tokenizer=tokenizer("h"),
        scheduler=scheduler,
        **NO_CHECKER,
    )
    return save(StableDiffusionPipeline(**parts), folder, dtype, saving)


def tiny_sdxl(
    folder: Path,
    scheduler=None,
    dtype: torch.dtype = torch.float32,
    unet: dict = {},
    vae: dict = {},
    text: dict = {},
    **saving,
) -> StableDiffusionXLPipeline:
    """Both text towers; their widths 32 and 40 make a context of 72."""
    parts = dict(
        unet=make_unet(REFERENCE_SDXL | {"cross_attention_dim": 72} | unet),
        vae=make_vae(SDXL_VAE | vae),
        text_encoder=make_text("l", text),
        tokenizer=tokenizer("l"),
        text_encoder_2=make_text("bigg", text),
        tokenizer_2=tokenizer("bigg"),
        scheduler=scheduler or EulerDiscreteScheduler(**BETAS, timestep_spacing="leading"),
    )
    return save(StableDiffusionXLPipeline(**parts, add_watermarker=False), folder, dtype, saving)


def tiny_refiner(
    folder: Path,
    scheduler=None,
    dtype: torch.dtype = torch.float32,
    unet: dict = {},
    vae: dict = {},
    text: dict = {},
    **saving,
) -> StableDiffusionXLImg2ImgPipeline:
    """The second text tower alone; an aesthetic score in place of the target size."""
    parts = dict(
        unet=make_unet(REFERENCE_REFINER | {"cross_attention_dim": 40} | unet),
        vae=make_vae(SDXL_VAE | vae),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=make_text("bigg", text),
        tokenizer_2=tokenizer("bigg"),
        scheduler=scheduler or EulerDiscreteScheduler(**BETAS, timestep_spacing="leading"),
    )
    return save(
        StableDiffusionXLImg2ImgPipeline(
            **parts, requires_aesthetics_score=True, add_watermarker=False, force_zeros_for_empty_prompt=False
        ),
        folder,
        dtype,
        saving,
    )


def make_unet(settings: dict) -> UNet2DConditionModel:
    return randomize(UNet2DConditionModel(**{"sample_size": SIZE} | settings), seed=11).eval()


def make_vae(changes: dict) -> AutoencoderKL:
    return randomize(AutoencoderKL(**TINY_VAES["sd"][1] | changes), seed=12).eval()


def make_text(name: str, changes: dict) -> nn.Module:
    _, tower, settings = TINY_CLIPS[name]
    network = getattr(transformers, tower)(CLIPTextConfig(**settings | changes))
    return randomize(network, seed=13 + list(PADS).index(name)).eval()


@functools.cache
def tokenizer(name: str) -> CLIPTokenizer:
    with tempfile.TemporaryDirectory() as folder:
        return CLIPTokenizer.from_pretrained(write_tokenizer(Path(folder), PADS[name]))


def write_tokenizer(folder: Path, pad: str) -> Path:
    """The four files of a published tokenizer folder. As there, the pad token of SD 2 stands in one of two places."""
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": 77,
        "do_lower_case": True,
        "errors": "replace",
        "pad_token": "<|endoftext|>",
        **SPECIALS,
    }
    texts = published_files() | {
        "tokenizer_config.json": json.dumps(config),
        "special_tokens_map.json": json.dumps({**SPECIALS, "pad_token": pad}),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def save(pipeline: DiffusionPipeline, folder: Path, dtype: torch.dtype, saving: dict) -> DiffusionPipeline:
    pipeline.set_progress_bar_config(disable=True)
    if dtype != torch.float32:
        pipeline.to(dtype=dtype)
    pipeline.save_pretrained(folder, **saving)
    return pipeline


def edit_json(path: Path, change: Callable[[dict], dict]) -> None:
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def edit_tensors(path: Path, change: Callable[[dict], dict | None]) -> None:
    """Rewrite a .safetensors file; change may return new tensors or alter those it is given."""
    tensors = {key: tensor.clone() for key, tensor in load_file(path).items()}
    save_file(change(tensors) or tensors, path)
