"""Single-file checkpoints as other programs write them, at published size as names and shapes, and tiny with values.

The names come from our own tables, which test_layouts proves against the sizes of published files, to the byte, and
against diffusers' converters. The values of the tiny ones come from networks of diffusers, transformers and open_clip.
"""

import functools
import json
from collections.abc import Callable
from math import prod
from pathlib import Path

import open_clip
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders import single_file_utils as converters
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from ldm.clip import CLIPText
from ldm.config import MODELS
from ldm.unet import UNet
from ldm.vae import VAE
from support.networks import (
    REFERENCE_REFINER,
    REFERENCE_SD2,
    REFERENCE_SD15,
    REFERENCE_SD_X4,
    REFERENCE_SDXL,
    REFERENCE_TEXT,
    REFERENCE_UNCLIP,
)
from support.numbers import randomize
from weights.disk.safetensors import Entry, Held
from weights.disk.settings import Settings
from weights.layouts import diffusers_configs as configs
from weights.layouts.names import SINGLE_FILES, UNET_AND_VAE, Piece, ema_key, pieces
from weights.layouts.one_network import tensors_of

UNET_PREFIX, VAE_PREFIX = UNET_AND_VAE["unet"].prefix, UNET_AND_VAE["vae"].prefix
SD1_TEXT, SD2_TEXT = "cond_stage_model.transformer.text_model.", "cond_stage_model.model."
SGM_TEXT, SDXL_TEXT_2 = "conditioner.embedders.0.model.", "conditioner.embedders.1.model."
POSITION_IDS = {SD1_TEXT + "embeddings.position_ids": ("I64", (1, 77))}
SDXL_POSITION_IDS = "conditioner.embedders.0.transformer.text_model.embeddings.position_ids"
LOW = (
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
)
BUFFERS = {
    name: ("F32", (1000,))
    for name in (
        *LOW,
        "posterior_variance",
        "posterior_log_variance_clipped",
        "posterior_mean_coef1",
        "posterior_mean_coef2",
    )
}
LOW_BUFFERS = {"low_scale_model." + name: ("F32", (1000,)) for name in LOW}
COUNTERS = {"model_ema.decay": ("F32", ()), "model_ema.num_updates": ("I32", ())}
BYTES = {"F32": 4, "F16": 2, "I64": 8, "I32": 4}
LAYOUTS = (
    {name: ("ldm", "sd1") for name in ("sd15", "sd15_inpaint")}
    | {
        name: ("ldm", "sd2")
        for name in ("sd2_base", "sd2_v", "sd2_inpaint", "sd2_depth", "sd2_unclip_h", "sd2_unclip_l", "sd_x4")
    }
    | {
        "sd_turbo": ("sgm", "sd2"),
        "sdxl": ("sgm", "sdxl"),
        "sdxl_inpaint": ("sgm", "sdxl"),
        "playground_v25": ("sgm", "sdxl"),
        "sdxl_refiner": ("sgm", "sdxl_refiner"),
    }
)

Listed = dict[str, tuple[str, tuple[int, ...]]]  # key -> dtype and shape


@functools.cache
def network_keys(model: str) -> dict[str, tuple[int, ...]]:
    """The keys and shapes of all networks of a published model in its single file."""
    facts = MODELS[model]
    with torch.device("meta"):
        networks = {"unet": UNet(facts.unet), "vae": VAE(facts.vae)}
        networks |= {tower: CLIPText(cfg) for tower, cfg in zip(facts.family.towers, facts.texts)}
    return {
        key: tuple(tensor.shape)
        for part, section in SINGLE_FILES[LAYOUTS[model]].items()
        for key, tensor in tensors_of(networks[part], section).items()
    }


def published(model: str, dtype: str = "F32", **extra: tuple[str, tuple[int, ...]]) -> Listed:
    """The whole content of a published file, but for the extras that only some of them have."""
    keys = {key: (dtype, shape) for key, shape in network_keys(model).items()}
    layout, towers = LAYOUTS[model]
    if towers == "sd2":  # the whole tower of ViT-H is there; the model reads all of it but the last block
        prefix = SINGLE_FILES[layout, towers]["text_encoder"].prefix
        block = {
            key.replace("resblocks.22.", "resblocks.23."): value
            for key, value in keys.items()
            if key.startswith(prefix + "transformer.resblocks.22.")
        }
        keys |= block | {prefix + "text_projection": (dtype, (1024, 1024)), prefix + "logit_scale": (dtype, ())}
    if towers in ("sdxl", "sdxl_refiner"):
        keys[(SDXL_TEXT_2 if towers == "sdxl" else SGM_TEXT) + "logit_scale"] = (dtype, ())
    if layout == "ldm":
        keys |= BUFFERS
    return keys | extra


def ema_of(keys: Listed) -> Listed:
    return {ema_key(key): value for key, value in keys.items() if key.startswith("model.diffusion_model.")}


def on_disk(keys: Listed) -> dict[str, Held]:
    """As if a file held them; their values are nowhere."""
    return {key: Held("published", key, Entry(dtype, shape, 0, 0)) for key, (dtype, shape) in keys.items()}


def file_size(keys: Listed, metadata: dict | None, by_name: bool, padded: bool) -> int:
    """Bytes of the safetensors file. Older versions of the library sorted tensors by name and padded no header."""
    order = sorted(keys, key=lambda key: (0 if by_name else -BYTES[keys[key][0]], key))
    header, end = {} if metadata is None else {"__metadata__": metadata}, 0
    for key in order:
        dtype, shape = keys[key]
        begin, end = end, end + BYTES[dtype] * prod(shape)
        header[key] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    length = len(json.dumps(header, separators=(",", ":")))
    return 8 + length + (-length % 8 if padded else 0) + end


# tiny ones, with values

VAE_SETTINGS = dict(
    block_out_channels=[32, 64, 96, 96],
    norm_num_groups=32,
    layers_per_block=2,
    latent_channels=4,
    down_block_types=["DownEncoderBlock2D"] * 4,
    up_block_types=["UpDecoderBlock2D"] * 4,
)
X4_VAE = VAE_SETTINGS | dict(
    block_out_channels=[32, 64, 96],
    down_block_types=["DownEncoderBlock2D"] * 3,
    up_block_types=["UpDecoderBlock2D"] * 3,
)
G32 = dict(norm_num_groups=32)
SD1 = REFERENCE_SD15 | G32 | dict(block_out_channels=[32, 64, 96, 96], attention_head_dim=8, cross_attention_dim=64)
SD2_SIZES = G32 | dict(block_out_channels=[64, 64, 128, 128], attention_head_dim=[1, 1, 2, 2], cross_attention_dim=64)
SD2 = REFERENCE_SD2 | SD2_SIZES
UNCLIP = REFERENCE_UNCLIP | SD2_SIZES
X4 = (
    REFERENCE_SD_X4
    | G32
    | dict(block_out_channels=[32, 64, 64, 96], attention_head_dim=8, cross_attention_dim=64, num_class_embeds=1000)
)
SDXL = (
    REFERENCE_SDXL
    | G32
    | dict(
        block_out_channels=[64, 128, 128],
        attention_head_dim=[1, 2, 2],
        cross_attention_dim=192,
        projection_class_embeddings_input_dim=48 + 6 * 8,
    )
)
REFINER = (
    REFERENCE_REFINER
    | G32
    | dict(
        block_out_channels=[64, 128, 128, 192],
        attention_head_dim=[1, 2, 2, 3],
        transformer_layers_per_block=[1, 2, 3, 1],
        cross_attention_dim=128,
        projection_class_embeddings_input_dim=48 + 5 * 8,
    )
)
TINY = {  # model -> settings of its UNet
    "sd15": SD1,
    "sd15_inpaint": SD1 | dict(in_channels=9),
    "sd2_base": SD2,
    "sd2_v": SD2,
    "sd2_inpaint": SD2 | dict(in_channels=9),
    "sd2_depth": SD2 | dict(in_channels=5),
    "sd2_unclip_h": UNCLIP | dict(projection_class_embeddings_input_dim=48),
    "sd2_unclip_l": UNCLIP | dict(projection_class_embeddings_input_dim=1536),
    "sd_x4": X4,
    "sd_turbo": SD2,
    "sdxl": SDXL,
    "sdxl_inpaint": SDXL | dict(in_channels=9),
    "playground_v25": SDXL,
    "sdxl_refiner": REFINER,
}
OPEN_CLIP = {
    "h": dict(width=64, heads=1, layers=4, mlp_ratio=1.5),
    "bigg": dict(width=128, heads=2, layers=3, mlp_ratio=2.0),
}
PROJECTION = 48


class Written:
    """A tiny single file and the networks whose weights it holds."""

    def __init__(
        self, model: str, path: Path, dtype: torch.dtype = torch.float32, metadata: dict | None = None, **extra: Tensor
    ):
        self.path, self.model = path, model
        layout, towers = LAYOUTS[model]
        self.unet = randomize(UNet2DConditionModel(**TINY[model]), seed=21).eval()
        self.vae = randomize(AutoencoderKL(**X4_VAE if model == "sd_x4" else VAE_SETTINGS), seed=22).eval()
        if model in ("sd2_base", "sd2_v"):  # as the published ones: see recognize.TELLS_V
            bias = self.unet.up_blocks[3].attentions[2].transformer_blocks[0].norm1.bias
            bias.data *= (0.12 if model == "sd2_v" else 0.05) / bias.data.std(correction=0)
        self.towers: dict[str, nn.Module] = {}
        tensors = unet_to_ldm(self.unet) | vae_to_ldm(self.vae)
        for part, section in SINGLE_FILES[layout, towers].items():
            if section.tower == "l":
                self.towers[part] = clip_l()
                state = {
                    "text_model." + key.removeprefix("text_model."): value
                    for key, value in self.towers[part].state_dict().items()
                }
                tensors |= {section.prefix + key: value for key, value in state.items()}
            elif section.tower:
                self.towers[part] = open_clip_tower(section.tower)
                tensors |= {
                    section.prefix + key: value
                    for key, value in self.towers[part].state_dict().items()
                    if not key.startswith("visual.")
                }
        self.tensors = {key: value.to(dtype).contiguous() for key, value in tensors.items()} | extra
        save_file(self.tensors, path, metadata)


def clip_l() -> nn.Module:
    config = CLIPTextConfig(
        **REFERENCE_TEXT
        | dict(
            num_hidden_layers=3, hidden_size=64, num_attention_heads=1, intermediate_size=96, hidden_act="quick_gelu"
        )
    )
    return randomize(CLIPTextModel(config), seed=23).eval()


def open_clip_tower(name: str) -> nn.Module:
    """open_clip's own CLIP; its vision tower is as small as can be."""
    model = open_clip.CLIP(
        PROJECTION,
        dict(layers=1, width=64, head_width=64, patch_size=16, image_size=16),
        dict(context_length=77, vocab_size=49408, **OPEN_CLIP[name]),
        output_dict=False,
    )
    model = randomize(model, seed=24).eval()
    model.positional_embedding.data *= 10  # as large as the words
    return model


def unet_to_ldm(unet: nn.Module) -> dict[str, Tensor]:
    cfg = configs.read_unet(Settings("the tiny UNet", json.loads(unet.to_json_string())))
    return inverse(converters.convert_ldm_unet_checkpoint, unet, pieces(unet.state_dict(), cfg, "ldm"), UNET_PREFIX)


def vae_to_ldm(vae: nn.Module) -> dict[str, Tensor]:
    cfg = configs.read_vae(Settings("the tiny VAE", json.loads(vae.to_json_string())))
    return inverse(converters.convert_ldm_vae_checkpoint, vae, pieces(vae.state_dict(), cfg, "ldm"), VAE_PREFIX)


def inverse(convert: Callable, network: nn.Module, ours: dict[str, Piece], prefix: str) -> dict[str, Tensor]:
    """A network's tensors by ldm's keys, as diffusers' converter from ldm pairs them: each key goes through it with a
    number of its own. Our pieces say which keys there are, not where they lead."""
    state = network.state_dict()
    keys = [prefix + piece.key for piece in ours.values()]
    attends = [key for key in keys if ".mid.attn_1." in key and key.endswith("weight") and ".norm." not in key]
    marked = {key: torch.full((1, 1, 1, 1) if key in attends else (1,), float(i)) for i, key in enumerate(keys)}
    found = {keys[int(mark.flatten()[0])]: state[name] for name, mark in convert(marked, network.config).items()}
    assert len(found) == len(state) == len(keys)
    return {key: tensor[:, :, None, None] if key in attends else tensor for key, tensor in found.items()}
