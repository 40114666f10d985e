"""Write weights/manifests/: the name and shape of every tensor of every published network, one JSON file each.

They come from diffusers and transformers, built on the meta device from the published configurations below, and not
from ldm: so a mistake in ldm cannot enter its own contract. Names are those of the files on disk.

    python scripts/write_manifests.py
"""

if __name__ == "__main__":
    from ldm import stopping

    stopping.listen()

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from tqdm import tqdm
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

Settings = dict[str, Any]  # arguments of a class of diffusers or transformers

DOWN, CROSS_DOWN = "DownBlock2D", "CrossAttnDownBlock2D"
UP, CROSS_UP = "UpBlock2D", "CrossAttnUpBlock2D"

SD15: Settings = dict(
    in_channels=4,
    block_out_channels=[320, 640, 1280, 1280],
    down_block_types=[CROSS_DOWN, CROSS_DOWN, CROSS_DOWN, DOWN],
    up_block_types=[UP, CROSS_UP, CROSS_UP, CROSS_UP],
    attention_head_dim=8,  # the number of heads, whatever its name says
    cross_attention_dim=768,
)
SD2: Settings = SD15 | dict(attention_head_dim=[5, 10, 20, 20], cross_attention_dim=1024, use_linear_projection=True)
SD_X4: Settings = dict(
    in_channels=7,
    block_out_channels=[256, 512, 512, 1024],
    down_block_types=[DOWN, CROSS_DOWN, CROSS_DOWN, CROSS_DOWN],
    up_block_types=[CROSS_UP, CROSS_UP, CROSS_UP, UP],
    attention_head_dim=8,
    cross_attention_dim=1024,
    use_linear_projection=True,
    only_cross_attention=[True, True, True, False],
    num_class_embeds=1000,
)
SDXL: Settings = dict(
    in_channels=4,
    block_out_channels=[320, 640, 1280],
    down_block_types=[DOWN, CROSS_DOWN, CROSS_DOWN],
    up_block_types=[CROSS_UP, CROSS_UP, UP],
    attention_head_dim=[5, 10, 20],
    transformer_layers_per_block=[1, 2, 10],
    cross_attention_dim=2048,
    use_linear_projection=True,
    addition_embed_type="text_time",
    addition_time_embed_dim=256,
    projection_class_embeddings_input_dim=2816,
)
SDXL_REFINER: Settings = SDXL | dict(
    block_out_channels=[384, 768, 1536, 1536],
    down_block_types=[DOWN, CROSS_DOWN, CROSS_DOWN, DOWN],
    up_block_types=[UP, CROSS_UP, CROSS_UP, UP],
    attention_head_dim=[6, 12, 24, 24],
    transformer_layers_per_block=4,
    cross_attention_dim=1280,
    projection_class_embeddings_input_dim=2560,
)
UNCLIP: Settings = SD2 | dict(class_embed_type="projection")

# The settings of BK-SDM are those in its repository (src/unet_config); SSD-1B's and Segmind-Vega's follow from what
# ComfyUI and AUTOMATIC1111 know of their files, and from the sizes of these; KOALA's from ComfyUI and its paper.
BK_BASE: Settings = SD15 | dict(layers_per_block=1)
BK_SMALL: Settings = BK_BASE | dict(mid_block_type=None)
BK_TINY: Settings = BK_SMALL | dict(
    block_out_channels=[320, 640, 1280], down_block_types=[CROSS_DOWN] * 3, up_block_types=[CROSS_UP] * 3
)
SSD_1B: Settings = SDXL | dict(
    mid_block_type="UNetMidBlock2D",
    transformer_layers_per_block=[1, [2, 2], [4, 4]],
    reverse_transformer_layers_per_block=[[4, 4, 10], [2, 1, 1], 1],
)
SEGMIND_VEGA: Settings = SDXL | dict(
    mid_block_type="UNetMidBlock2D",
    transformer_layers_per_block=[1, [1, 1], [2, 2]],
    reverse_transformer_layers_per_block=[[2, 2, 2], [1, 1, 1], 1],
)
KOALA_700M: Settings = SDXL | dict(layers_per_block=1, mid_block_type=None, transformer_layers_per_block=[1, 2, 5])

UNETS = {
    "sd15": SD15,
    "sd15_inpaint": SD15 | dict(in_channels=9),
    "sd2": SD2,
    "sd2_inpaint": SD2 | dict(in_channels=9),
    "sd2_depth": SD2 | dict(in_channels=5),
    "sd2_unclip_h": UNCLIP | dict(projection_class_embeddings_input_dim=2048),
    "sd2_unclip_l": UNCLIP | dict(projection_class_embeddings_input_dim=1536),
    "sd_x4": SD_X4,
    "sdxl": SDXL,
    "sdxl_inpaint": SDXL | dict(in_channels=9),
    "sdxl_refiner": SDXL_REFINER,
    "lcm_sdxl": SDXL | dict(time_cond_proj_dim=256),
    "bk_sdm_base": BK_BASE,
    "bk_sdm_small": BK_SMALL,
    "bk_sdm_tiny": BK_TINY,
    "ssd_1b": SSD_1B,
    "segmind_vega": SEGMIND_VEGA,
    "koala_700m": KOALA_700M,
    "koala_1b": SDXL | dict(layers_per_block=1, transformer_layers_per_block=[1, 2, 6]),
}

F8: Settings = dict(
    block_out_channels=[128, 256, 512, 512],
    down_block_types=["DownEncoderBlock2D"] * 4,
    up_block_types=["UpDecoderBlock2D"] * 4,
    layers_per_block=2,
    latent_channels=4,
)
F4: Settings = F8 | dict(
    block_out_channels=[128, 256, 512],
    down_block_types=["DownEncoderBlock2D"] * 3,
    up_block_types=["UpDecoderBlock2D"] * 3,
)
VAES = {"sd": F8, "sd_x4": F4}
TAESD: Settings = dict(
    encoder_block_out_channels=[64] * 4,
    decoder_block_out_channels=[64] * 4,
    num_encoder_blocks=[1, 3, 3, 3],
    num_decoder_blocks=[3, 3, 3, 1],
)

CLIP_L: Settings = dict(num_hidden_layers=12, hidden_size=768, num_attention_heads=12, intermediate_size=3072)
CLIP_H: Settings = dict(num_hidden_layers=23, hidden_size=1024, num_attention_heads=16, intermediate_size=4096)
CLIP_BIGG: Settings = dict(
    num_hidden_layers=32, hidden_size=1280, num_attention_heads=20, intermediate_size=5120, projection_dim=1280
)
CLIPS: dict[str, tuple[type, Settings]] = {
    "l": (CLIPTextModel, CLIP_L),
    "h": (CLIPTextModel, CLIP_H),
    "bigg": (CLIPTextModelWithProjection, CLIP_BIGG),
}


def shapes(module: Any) -> dict[str, list[int]]:
    """module: a network of diffusers or transformers."""
    return {key: list(tensor.shape) for key, tensor in module.state_dict().items()}


def disk_name(key: str) -> str:
    """transformers >= 5.6 drops the level "text_model." of CLIPTextModel in memory; every published file has it."""
    return key if key.startswith(("text_model.", "text_projection.")) else "text_model." + key


def write(path: Path, manifest: dict[str, list[int]]) -> None:
    lines = [f"{json.dumps(key)}:{json.dumps(manifest[key], separators=(',', ':'))}" for key in sorted(manifest)]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "weights" / "manifests")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    with torch.device("meta"):
        for name, config in tqdm(UNETS.items(), desc="UNets", disable=None):
            write(args.out / f"unet_{name}.json", shapes(UNet2DConditionModel(**config)))
        for name, config in VAES.items():
            write(args.out / f"vae_{name}.json", shapes(AutoencoderKL(**config)))
        write(args.out / "vae_taesd.json", shapes(AutoencoderTiny(**TAESD)))
        for name, (tower, config) in CLIPS.items():
            found = shapes(tower(CLIPTextConfig(vocab_size=49408, max_position_embeddings=77, **config)))
            write(args.out / f"clip_{name}.json", {disk_name(key): shape for key, shape in found.items()})


if __name__ == "__main__":
    stopping.run(main)
