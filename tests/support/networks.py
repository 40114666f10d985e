"""Small networks of every family, ours and the reference library's, with equal random weights; inputs for both; errors.

A tiny network keeps its family's levels, attention pattern, projection kind and conditioning; its sizes differ from
each other wherever the family's do, so that a mix-up shows. The reference's settings are written out, not derived.
"""

import functools
from dataclasses import replace

import torch
from einops import rearrange
from torch import Tensor, nn

from ldm import ops
from ldm.clip import EOT, CLIPText
from ldm.config import CLIPS, UNETS, VAES, CLIPConfig, UNetConfig, VAEConfig
from ldm.unet import UNet
from ldm.vae import VAE
from support.numbers import pair, randn

DOWN, CROSS_DOWN = "DownBlock2D", "CrossAttnDownBlock2D"
UP, CROSS_UP = "UpBlock2D", "CrossAttnUpBlock2D"
POOLED, TIME_ID = 24, 8  # widths of the pooled text and of each embedded size; 1280 and 256 in SDXL


def tiny_unet(name: str, **sizes) -> UNetConfig:
    return replace(UNETS[name], groups=16, context_dim=40, **sizes)


SD15 = dict(channels=(32, 64, 96, 96), heads=(2, 4, 3, 6))
SD2 = dict(channels=(32, 64, 96, 96), heads=(1, 2, 6, 3))
SD_X4 = dict(channels=(32, 64, 64, 96), heads=(8, 2, 4, 6), class_count=50)
SDXL = dict(channels=(32, 64, 96), heads=(8, 4, 6), depth=(0, 2, 3), mid_depth=3, vector_dim=POOLED + 6 * TIME_ID)
REFINER = dict(
    channels=(32, 64, 96, 96), heads=(8, 4, 6, 3), depth=(0, 2, 3, 0), mid_depth=1, vector_dim=POOLED + 5 * TIME_ID
)
BK_TINY = dict(channels=(32, 64, 96), heads=(2, 4, 3))
THREE_LEVELS = dict(channels=(32, 64, 96), heads=(8, 4, 6), vector_dim=POOLED + 6 * TIME_ID)

REFERENCE = dict(norm_num_groups=16, cross_attention_dim=40)
REFERENCE_SD15 = REFERENCE | dict(
    in_channels=4,
    block_out_channels=[32, 64, 96, 96],
    attention_head_dim=[2, 4, 3, 6],
    down_block_types=[CROSS_DOWN, CROSS_DOWN, CROSS_DOWN, DOWN],
    up_block_types=[UP, CROSS_UP, CROSS_UP, CROSS_UP],
)
REFERENCE_SD2 = REFERENCE_SD15 | dict(attention_head_dim=[1, 2, 6, 3], use_linear_projection=True)
REFERENCE_UNCLIP = REFERENCE_SD2 | dict(class_embed_type="projection")
REFERENCE_SD_X4 = REFERENCE | dict(
    in_channels=7,
    block_out_channels=[32, 64, 64, 96],
    attention_head_dim=[8, 2, 4, 6],
    use_linear_projection=True,
    down_block_types=[DOWN, CROSS_DOWN, CROSS_DOWN, CROSS_DOWN],
    up_block_types=[CROSS_UP, CROSS_UP, CROSS_UP, UP],
    only_cross_attention=[True, True, True, False],
    num_class_embeds=50,
)
REFERENCE_SDXL = REFERENCE | dict(
    in_channels=4,
    block_out_channels=[32, 64, 96],
    attention_head_dim=[8, 4, 6],
    use_linear_projection=True,
    down_block_types=[DOWN, CROSS_DOWN, CROSS_DOWN],
    up_block_types=[CROSS_UP, CROSS_UP, UP],
    transformer_layers_per_block=[1, 2, 3],
    addition_embed_type="text_time",
    addition_time_embed_dim=TIME_ID,
    projection_class_embeddings_input_dim=72,
)
REFERENCE_REFINER = REFERENCE_SDXL | dict(
    block_out_channels=[32, 64, 96, 96],
    attention_head_dim=[8, 4, 6, 3],
    down_block_types=[DOWN, CROSS_DOWN, CROSS_DOWN, DOWN],
    up_block_types=[UP, CROSS_UP, CROSS_UP, UP],
    transformer_layers_per_block=[4, 2, 3, 1],
    projection_class_embeddings_input_dim=64,
)
REFERENCE_BK_SMALL = REFERENCE_SD15 | dict(layers_per_block=1, mid_block_type=None)
REFERENCE_BK_TINY = REFERENCE_BK_SMALL | dict(
    block_out_channels=[32, 64, 96],
    attention_head_dim=[2, 4, 3],
    down_block_types=[CROSS_DOWN] * 3,
    up_block_types=[CROSS_UP] * 3,
)
REFERENCE_SSD_1B = REFERENCE_SDXL | dict(  # its depths, and those of the others, are as published
    mid_block_type="UNetMidBlock2D",
    transformer_layers_per_block=[1, [2, 2], [4, 4]],
    reverse_transformer_layers_per_block=[[4, 4, 10], [2, 1, 1], 1],
)
REFERENCE_VEGA = REFERENCE_SSD_1B | dict(
    transformer_layers_per_block=[1, [1, 1], [2, 2]], reverse_transformer_layers_per_block=[[2, 2, 2], [1, 1, 1], 1]
)
REFERENCE_KOALA_700M = REFERENCE_SDXL | dict(
    layers_per_block=1, mid_block_type=None, transformer_layers_per_block=[1, 2, 5]
)

TINY_UNETS: dict[str, tuple[UNetConfig, dict]] = {
    "sd15": (tiny_unet("sd15", **SD15), REFERENCE_SD15),
    "sd15_inpaint": (tiny_unet("sd15_inpaint", **SD15), REFERENCE_SD15 | dict(in_channels=9)),
    "sd2": (tiny_unet("sd2", **SD2), REFERENCE_SD2),
    "sd2_inpaint": (tiny_unet("sd2_inpaint", **SD2), REFERENCE_SD2 | dict(in_channels=9)),
    "sd2_depth": (tiny_unet("sd2_depth", **SD2), REFERENCE_SD2 | dict(in_channels=5)),
    "sd2_unclip_h": (
        tiny_unet("sd2_unclip_h", **SD2, class_dim=48),
        REFERENCE_UNCLIP | dict(projection_class_embeddings_input_dim=48),
    ),
    "sd2_unclip_l": (
        tiny_unet("sd2_unclip_l", **SD2, class_dim=36),
        REFERENCE_UNCLIP | dict(projection_class_embeddings_input_dim=36),
    ),
    "sd_x4": (tiny_unet("sd_x4", **SD_X4), REFERENCE_SD_X4),
    "sdxl": (tiny_unet("sdxl", **SDXL), REFERENCE_SDXL),
    "sdxl_inpaint": (tiny_unet("sdxl_inpaint", **SDXL), REFERENCE_SDXL | dict(in_channels=9)),
    "sdxl_refiner": (tiny_unet("sdxl_refiner", **REFINER), REFERENCE_REFINER),
    "lcm_sdxl": (tiny_unet("lcm_sdxl", **SDXL, guidance_dim=20), REFERENCE_SDXL | dict(time_cond_proj_dim=20)),
    "bk_sdm_base": (tiny_unet("bk_sdm_base", **SD15), REFERENCE_SD15 | dict(layers_per_block=1)),
    "bk_sdm_small": (tiny_unet("bk_sdm_small", **SD15), REFERENCE_BK_SMALL),
    "bk_sdm_tiny": (tiny_unet("bk_sdm_tiny", **BK_TINY), REFERENCE_BK_TINY),
    "ssd_1b": (tiny_unet("ssd_1b", **THREE_LEVELS), REFERENCE_SSD_1B),
    "segmind_vega": (tiny_unet("segmind_vega", **THREE_LEVELS), REFERENCE_VEGA),
    "koala_700m": (tiny_unet("koala_700m", **THREE_LEVELS), REFERENCE_KOALA_700M),
    "koala_1b": (
        tiny_unet("koala_1b", **THREE_LEVELS),
        REFERENCE_SDXL | dict(layers_per_block=1, transformer_layers_per_block=[1, 2, 6]),
    ),
    "miniature": (
        UNetConfig(
            in_channels=4,
            channels=(32, 48, 64),
            heads=(2, 3, 4),
            depth=(1, 1, 1),
            mid_depth=1,
            context_dim=40,
            linear_projection=True,
            layers=1,
            groups=16,
        ),
        REFERENCE
        | dict(
            in_channels=4,
            block_out_channels=[32, 48, 64],
            attention_head_dim=[2, 3, 4],
            use_linear_projection=True,
            down_block_types=[CROSS_DOWN] * 3,
            up_block_types=[CROSS_UP] * 3,
            layers_per_block=1,
        ),
    ),
}

TINY_VAES: dict[str, tuple[VAEConfig, dict]] = {
    "sd": (
        replace(VAES["sd"], channels=(16, 32, 48, 48), groups=8),
        dict(
            block_out_channels=[16, 32, 48, 48],
            norm_num_groups=8,
            layers_per_block=2,
            latent_channels=4,
            down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4,
        ),
    ),
    "sd_x4": (
        replace(VAES["sd_x4"], channels=(16, 32, 48), groups=8),
        dict(
            block_out_channels=[16, 32, 48],
            norm_num_groups=8,
            layers_per_block=2,
            latent_channels=4,
            down_block_types=["DownEncoderBlock2D"] * 3,
            up_block_types=["UpDecoderBlock2D"] * 3,
        ),
    ),
    "miniature": (
        VAEConfig(channels=(16, 24, 32, 40), layers=1, groups=8),
        dict(
            block_out_channels=[16, 24, 32, 40],
            norm_num_groups=8,
            layers_per_block=1,
            latent_channels=4,
            down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4,
        ),
    ),
}

# eos_token_id is 2 in every published config: transformers then pools at the largest id
REFERENCE_TEXT = dict(vocab_size=49408, max_position_embeddings=77, eos_token_id=2)
TINY_CLIPS: dict[str, tuple[CLIPConfig, str, dict]] = {
    "l": (
        replace(CLIPS["l"], layers=3, width=32, heads=4, hidden=80),
        "CLIPTextModel",
        REFERENCE_TEXT
        | dict(
            num_hidden_layers=3, hidden_size=32, num_attention_heads=4, intermediate_size=80, hidden_act="quick_gelu"
        ),
    ),
    "h": (
        replace(CLIPS["h"], layers=3, width=48, heads=3, hidden=80),
        "CLIPTextModel",
        REFERENCE_TEXT
        | dict(num_hidden_layers=3, hidden_size=48, num_attention_heads=3, intermediate_size=80, hidden_act="gelu"),
    ),
    "bigg": (
        replace(CLIPS["bigg"], layers=4, width=40, heads=5, hidden=72, projection=24),
        "CLIPTextModelWithProjection",
        REFERENCE_TEXT
        | dict(
            num_hidden_layers=4,
            hidden_size=40,
            num_attention_heads=5,
            intermediate_size=72,
            hidden_act="gelu",
            projection_dim=24,
        ),
    ),
}


@functools.cache
def unet_pair(name: str) -> tuple[UNet, nn.Module]:
    """Float64; shared between tests, so copy before a change."""
    from diffusers import UNet2DConditionModel

    config, settings = TINY_UNETS[name]
    return pair(UNet(config), UNet2DConditionModel(**settings), seed=1)


@functools.cache
def vae_pair(name: str) -> tuple[VAE, nn.Module]:
    from diffusers import AutoencoderKL

    config, settings = TINY_VAES[name]
    return pair(VAE(config), AutoencoderKL(**settings), seed=2)


@functools.cache
def clip_pair(name: str) -> tuple[CLIPText, nn.Module]:
    import transformers

    config, tower, settings = TINY_CLIPS[name]
    return pair(CLIPText(config), getattr(transformers, tower)(transformers.CLIPTextConfig(**settings)), seed=3)


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
        sizes = sizes[:, : (cfg.vector_dim - POOLED) // TIME_ID]
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


def token_ids(name: str, length: int = 77) -> Tensor:
    """Three prompts: empty, short, and as long as fits; padded as the published tokenizer pads for this tower."""
    ids = torch.full((3, length), EOT if name == "l" else 0)
    words = torch.randint(1, 49406, ids.shape, generator=torch.Generator().manual_seed(8))
    ids[:, 0] = 49406
    for row, end in enumerate((1, 9, length - 1)):
        ids[row, 1:end] = words[row, 1:end]
        ids[row, end] = EOT
    return ids
