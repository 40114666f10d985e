"""Small networks of every family, ours and the reference library's, with equal random weights; inputs for both; errors.

A tiny network keeps its family's levels, attention pattern, projection kind and conditioning; its sizes differ from
each other wherever the family's do, so that a mix-up shows. The reference's settings are written out, not derived.
"""

import copy
import functools
import math
from dataclasses import replace

import torch
from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
from einops import rearrange
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from ldm import ops
from ldm.clip import EOT, CLIPText
from ldm.config import CLIPS, UNETS, VAES, CLIPConfig, UNetConfig, VAEConfig
from ldm.unet import UNet
from ldm.vae import VAE

DOWN, CROSS_DOWN = "DownBlock2D", "CrossAttnDownBlock2D"
UP, CROSS_UP = "UpBlock2D", "CrossAttnUpBlock2D"
POOLED, TIME_ID = 24, 8   # widths of the pooled text and of each embedded size; 1280 and 256 in SDXL


def tiny_unet(name: str, **sizes) -> UNetConfig:
    return replace(UNETS[name], groups=16, context_dim=40, **sizes)


SD15 = dict(channels=(32, 64, 96, 96), heads=(2, 4, 3, 6))
SD2 = dict(channels=(32, 64, 96, 96), heads=(1, 2, 6, 3))
SD_X4 = dict(channels=(32, 64, 64, 96), heads=(8, 2, 4, 6), class_count=50)
SDXL = dict(channels=(32, 64, 96), heads=(8, 4, 6), depth=(0, 2, 3), mid_depth=3, vector_dim=POOLED + 6 * TIME_ID)
REFINER = dict(channels=(32, 64, 96, 96), heads=(8, 4, 6, 3), depth=(0, 2, 3, 0), mid_depth=1,
               vector_dim=POOLED + 5 * TIME_ID)

REFERENCE = dict(norm_num_groups=16, cross_attention_dim=40)
REFERENCE_SD15 = REFERENCE | dict(
    in_channels=4, block_out_channels=[32, 64, 96, 96], attention_head_dim=[2, 4, 3, 6],
    down_block_types=[CROSS_DOWN, CROSS_DOWN, CROSS_DOWN, DOWN], up_block_types=[UP, CROSS_UP, CROSS_UP, CROSS_UP])
REFERENCE_SD2 = REFERENCE_SD15 | dict(attention_head_dim=[1, 2, 6, 3], use_linear_projection=True)
REFERENCE_UNCLIP = REFERENCE_SD2 | dict(class_embed_type="projection")
REFERENCE_SD_X4 = REFERENCE | dict(
    in_channels=7, block_out_channels=[32, 64, 64, 96], attention_head_dim=[8, 2, 4, 6], use_linear_projection=True,
    down_block_types=[DOWN, CROSS_DOWN, CROSS_DOWN, CROSS_DOWN], up_block_types=[CROSS_UP, CROSS_UP, CROSS_UP, UP],
    only_cross_attention=[True, True, True, False], num_class_embeds=50)
REFERENCE_SDXL = REFERENCE | dict(
    in_channels=4, block_out_channels=[32, 64, 96], attention_head_dim=[8, 4, 6], use_linear_projection=True,
    down_block_types=[DOWN, CROSS_DOWN, CROSS_DOWN], up_block_types=[CROSS_UP, CROSS_UP, UP],
    transformer_layers_per_block=[1, 2, 3], addition_embed_type="text_time", addition_time_embed_dim=TIME_ID,
    projection_class_embeddings_input_dim=72)
REFERENCE_REFINER = REFERENCE_SDXL | dict(
    block_out_channels=[32, 64, 96, 96], attention_head_dim=[8, 4, 6, 3],
    down_block_types=[DOWN, CROSS_DOWN, CROSS_DOWN, DOWN], up_block_types=[UP, CROSS_UP, CROSS_UP, UP],
    transformer_layers_per_block=[4, 2, 3, 1], projection_class_embeddings_input_dim=64)

TINY_UNETS: dict[str, tuple[UNetConfig, dict]] = {
    "sd15": (tiny_unet("sd15", **SD15), REFERENCE_SD15),
    "sd15_inpaint": (tiny_unet("sd15_inpaint", **SD15), REFERENCE_SD15 | dict(in_channels=9)),
    "sd2": (tiny_unet("sd2", **SD2), REFERENCE_SD2),
    "sd2_inpaint": (tiny_unet("sd2_inpaint", **SD2), REFERENCE_SD2 | dict(in_channels=9)),
    "sd2_depth": (tiny_unet("sd2_depth", **SD2), REFERENCE_SD2 | dict(in_channels=5)),
    "sd2_unclip_h": (tiny_unet("sd2_unclip_h", **SD2, class_dim=48),
                     REFERENCE_UNCLIP | dict(projection_class_embeddings_input_dim=48)),
    "sd2_unclip_l": (tiny_unet("sd2_unclip_l", **SD2, class_dim=36),
                     REFERENCE_UNCLIP | dict(projection_class_embeddings_input_dim=36)),
    "sd_x4": (tiny_unet("sd_x4", **SD_X4), REFERENCE_SD_X4),
    "sdxl": (tiny_unet("sdxl", **SDXL), REFERENCE_SDXL),
    "sdxl_inpaint": (tiny_unet("sdxl_inpaint", **SDXL), REFERENCE_SDXL | dict(in_channels=9)),
    "sdxl_refiner": (tiny_unet("sdxl_refiner", **REFINER), REFERENCE_REFINER),
    "lcm_sdxl": (tiny_unet("lcm_sdxl", **SDXL, guidance_dim=20), REFERENCE_SDXL | dict(time_cond_proj_dim=20)),
    "miniature": (UNetConfig(in_channels=4, channels=(32, 48, 64), heads=(2, 3, 4), depth=(1, 1, 1), mid_depth=1,
                             context_dim=40, linear_projection=True, layers=1, groups=16),
                  REFERENCE | dict(
        in_channels=4, block_out_channels=[32, 48, 64], attention_head_dim=[2, 3, 4], use_linear_projection=True,
        down_block_types=[CROSS_DOWN] * 3, up_block_types=[CROSS_UP] * 3, layers_per_block=1)),
}

TINY_VAES: dict[str, tuple[VAEConfig, dict]] = {
    "sd": (replace(VAES["sd"], channels=(16, 32, 48, 48), groups=8),
           dict(block_out_channels=[16, 32, 48, 48], norm_num_groups=8, layers_per_block=2, latent_channels=4,
                down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4)),
    "sd_x4": (replace(VAES["sd_x4"], channels=(16, 32, 48), groups=8),
              dict(block_out_channels=[16, 32, 48], norm_num_groups=8, layers_per_block=2, latent_channels=4,
                   down_block_types=["DownEncoderBlock2D"] * 3, up_block_types=["UpDecoderBlock2D"] * 3)),
    "miniature": (VAEConfig(channels=(16, 24, 32, 40), layers=1, groups=8),
                  dict(block_out_channels=[16, 24, 32, 40], norm_num_groups=8, layers_per_block=1, latent_channels=4,
                       down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4)),
}

# eos_token_id is 2 in every published config: transformers then pools at the largest id
REFERENCE_TEXT = dict(vocab_size=49408, max_position_embeddings=77, eos_token_id=2)
TINY_CLIPS: dict[str, tuple[CLIPConfig, type[nn.Module], dict]] = {
    "l": (replace(CLIPS["l"], layers=3, width=32, heads=4, hidden=80), CLIPTextModel, REFERENCE_TEXT | dict(
        num_hidden_layers=3, hidden_size=32, num_attention_heads=4, intermediate_size=80, hidden_act="quick_gelu")),
    "h": (replace(CLIPS["h"], layers=3, width=48, heads=3, hidden=80), CLIPTextModel, REFERENCE_TEXT | dict(
        num_hidden_layers=3, hidden_size=48, num_attention_heads=3, intermediate_size=80, hidden_act="gelu")),
    "bigg": (replace(CLIPS["bigg"], layers=4, width=40, heads=5, hidden=72, projection=24),
             CLIPTextModelWithProjection, REFERENCE_TEXT | dict(
        num_hidden_layers=4, hidden_size=40, num_attention_heads=5, intermediate_size=72, hidden_act="gelu",
        projection_dim=24)),
}


@torch.no_grad()
def randomize(module: nn.Module, seed: int) -> nn.Module:
    """Give every parameter a value that matters: layers keep the size of their input, none is zero or tiny."""
    generator = torch.Generator().manual_seed(seed)
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            if name == "bias":
                noise = 0.3 * noise
            elif isinstance(part, nn.GroupNorm | nn.LayerNorm):
                noise = 1 + 0.3 * noise
            elif not isinstance(part, nn.Embedding) and noise.ndim:
                noise = noise / math.sqrt(noise[0].numel())
            parameter.copy_(noise)
    return module


def copy_weights(source: nn.Module, target: nn.Module) -> None:
    """Every tensor, strictly; either may be ours."""
    state, wanted = source.state_dict(), target.state_dict().keys()
    level = "text_model."                  # transformers >= 5.6 drops it in memory, for CLIPTextModel only
    if not any(key.startswith(level) for key in wanted):
        state = {key.removeprefix(level): tensor for key, tensor in state.items()}
    elif not any(key.startswith(level) for key in state):
        state = {level + key: tensor for key, tensor in state.items()}
    target.load_state_dict(state)


def pair(ours: nn.Module, reference: nn.Module, seed: int) -> tuple[nn.Module, nn.Module]:
    """Both with the same random float64 weights, in evaluation mode."""
    randomize(ours.double(), seed)
    copy_weights(ours, reference.double())
    return ours.eval(), reference.eval()


@functools.cache
def unet_pair(name: str) -> tuple[UNet, UNet2DConditionModel]:
    """Float64; shared between tests, so copy before a change."""
    config, settings = TINY_UNETS[name]
    return pair(UNet(config), UNet2DConditionModel(**settings), seed=1)


@functools.cache
def vae_pair(name: str) -> tuple[VAE, AutoencoderKL]:
    config, settings = TINY_VAES[name]
    return pair(VAE(config), AutoencoderKL(**settings), seed=2)


@functools.cache
def clip_pair(name: str) -> tuple[CLIPText, nn.Module]:
    config, tower, settings = TINY_CLIPS[name]
    return pair(CLIPText(config), tower(CLIPTextConfig(**settings)), seed=3)


def as_float(pair: tuple[nn.Module, nn.Module]) -> tuple[nn.Module, nn.Module]:
    return copy.deepcopy(pair[0]).float(), copy.deepcopy(pair[1]).float()


def randn(*shape: int, seed: int = 0) -> Tensor:
    """The same numbers in float64 and, rounded, in float32."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unet_inputs(name: str, size: tuple[int, int] = (16, 24), t: Tensor | float | None = None) -> tuple[dict, dict]:
    """Keyword arguments of our UNet and of diffusers' for the same two pictures; t: a time step for each if None.

    The coarsest of four levels has at least 2 x 2 pixels, or the edges of its 3x3 kernels would only see padding.
    """
    cfg = TINY_UNETS[name][0]
    x, context = randn(2, cfg.in_channels, *size, seed=4), randn(2, 7, cfg.context_dim, seed=5)
    t = torch.tensor([981.0, 17.25]) if t is None else t
    ours, reference = dict(x=x, t=t, context=context), dict(sample=x, timestep=t, encoder_hidden_states=context)
    if cfg.vector_dim:
        pooled = randn(2, POOLED, seed=6)
        sizes = torch.tensor([[1024, 768, 16, 0, 896, 1152], [512, 640, 0, 48, 1024, 1024]], dtype=torch.float64)
        sizes = sizes[:, :(cfg.vector_dim - POOLED) // TIME_ID]
        embedded = rearrange(ops.sinusoid(sizes.flatten(), TIME_ID), "(b n) d -> b (n d)", b=2)
        ours["vector"] = torch.cat([pooled, embedded.double()], dim=1)
        reference["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": sizes}
    if cfg.class_dim:
        ours["vector"] = reference["class_labels"] = randn(2, cfg.class_dim, seed=6)
    if cfg.class_count:
        ours["vector"] = reference["class_labels"] = torch.tensor([20, 3])
    if cfg.guidance_dim:
        ours["guidance"] = reference["timestep_cond"] = randn(2, cfg.guidance_dim, seed=7)
    return ours, reference


def to_float(inputs: dict) -> dict:
    """float64 tensors become float32, also those inside added_cond_kwargs; integers stay."""
    convert = {dict: to_float, Tensor: lambda a: a.float() if a.is_floating_point() else a}
    return {key: convert.get(type(value), lambda a: a)(value) for key, value in inputs.items()}


def token_ids(name: str, length: int = 77) -> Tensor:
    """Three prompts: empty, short, and as long as fits; padded as the published tokenizer pads for this tower."""
    ids = torch.full((3, length), EOT if name == "l" else 0)
    words = torch.randint(1, 49406, ids.shape, generator=torch.Generator().manual_seed(8))
    ids[:, 0] = 49406
    for row, end in enumerate((1, 9, length - 1)):
        ids[row, 1:end] = words[row, 1:end]
        ids[row, end] = EOT
    return ids


def relative_error(a: Tensor, b: Tensor) -> float:
    """Largest difference over the largest value of b, the reference; shapes must agree."""
    assert a.shape == b.shape and a.dtype == b.dtype, (a.shape, a.dtype, b.shape, b.dtype)
    return ((a - b).abs().max() / b.abs().max()).item()


def relative_l2(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape and a.dtype == b.dtype, (a.shape, a.dtype, b.shape, b.dtype)
    return ((a - b).norm() / b.norm()).item()


def network(x: Tensor, t: float) -> Tensor:
    """A smooth, bounded stand-in for a UNet where only the sampler matters, a function of all that it is given."""
    return torch.tanh(0.9 * x.roll(1, dims=-1) - 0.3 * x + 0.7 * torch.cos(torch.as_tensor(t) / 150))


def denoise(x: Tensor, sigma: float) -> Tensor:
    """The like for samplers alone: an estimate of the clean picture."""
    return torch.tanh(0.9 * x.roll(1, dims=-1) - 0.3 * x + torch.cos(torch.tensor(sigma).log()))


def trajectory(scheduler, x: Tensor, network=network, **options) -> list[Tensor]:
    """x after every step of diffusers' scheduler; not after the first half of a step, nor after the trial of PNDM."""
    xs = []
    for t in scheduler.timesteps:
        x = scheduler.step(network(scheduler.scale_model_input(x, t), t), t, x, **options).prev_sample
        xs.append(x)
    if isinstance(scheduler, PNDMScheduler):
        return xs[1:] or xs
    return [*xs[1:-1:2], xs[-1]] if scheduler.order == 2 else xs


def unit_noise(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(5)).to(dtype)
