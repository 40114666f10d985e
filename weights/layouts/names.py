"""Where each parameter lies in the published layouts, as pure renaming: nothing here reads a file.

Our parameters carry the names of the diffusers files. Single files name the same tensors in their own way: UNet and VAE
as CompVis' ldm does, text towers as open_clip or transformers do. A table maps modules of ours to theirs; `rename`
applies it to any path below such a module. A Piece says where in a file one parameter of ours lies.

    diffusers    a folder, a network in each sub-folder
    ldm          SD 1 and 2 in one file (github.com/CompVis/stable-diffusion, Stability-AI/stablediffusion)
    sgm          SDXL, its refiner, and SD 2 as SD-Turbo has it (github.com/Stability-AI/generative-models)
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple, TypeVar

from ldm.config import CLIPConfig, TinyVAEConfig, UNetConfig, VAEConfig

T = TypeVar("T")
Table = dict[str, str]  # module or parameter of ours -> theirs

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
DEPTH = 8  # names in the longest path of a table
MOST_BLOCKS = 100  # input_blocks of a UNet in ldm's names; SD 1 has 12
MID_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
TEXT_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


class Piece(NamedTuple):
    """The stored tensor `key`, or one third of its rows (open_clip keeps queries, keys and values together), or its
    transpose (open_clip multiplies from the other side)."""

    key: str
    third: int | None = None
    transposed: bool = False


class Section(NamedTuple):
    """A network in a single file: the prefix of its keys, and whose names follow it."""

    prefix: str
    names: str  # "ldm", "open_clip" or "diffusers"; transformers' names of a text tower count as the last
    tower: str = ""  # of config.CLIPS


UNET_AND_VAE = {"unet": Section("model.diffusion_model.", "ldm"), "vae": Section("first_stage_model.", "ldm")}
SINGLE_FILES = {  # (layout, what it is by its towers) -> part -> where it lies
    ("ldm", "sd1"): UNET_AND_VAE | {"text_encoder": Section("cond_stage_model.transformer.", "diffusers", "l")},
    ("ldm", "sd2"): UNET_AND_VAE | {"text_encoder": Section("cond_stage_model.model.", "open_clip", "h")},
    ("sgm", "sdxl"): UNET_AND_VAE
    | {
        "text_encoder": Section("conditioner.embedders.0.transformer.", "diffusers", "l"),
        "text_encoder_2": Section("conditioner.embedders.1.model.", "open_clip", "bigg"),
    },
    ("sgm", "sdxl_refiner"): UNET_AND_VAE
    | {"text_encoder_2": Section("conditioner.embedders.0.model.", "open_clip", "bigg")},
    ("sgm", "sd2"): UNET_AND_VAE | {"text_encoder": Section("conditioner.embedders.0.model.", "open_clip", "h")},
}


def unet_table(cfg: UNetConfig) -> Table:
    """Modules of a UNet -> their names in ldm and sgm, whose blocks are numbered through all levels."""
    table = {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "conv_in": "input_blocks.0.0",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }
    if cfg.class_count:
        table["class_embedding"] = "label_emb"
    else:
        vector = "class_embedding" if cfg.class_dim else "add_embedding"
        table |= {f"{vector}.linear_1": "label_emb.0.0", f"{vector}.linear_2": "label_emb.0.2"}

    n = 0
    last = len(cfg.channels) - 1
    for level, depth in enumerate(cfg.depth):
        for i in range(cfg.layers):
            n += 1
            table |= nest(f"down_blocks.{level}.resnets.{i}", f"input_blocks.{n}.0", RESNET)
            if depth:
                table[f"down_blocks.{level}.attentions.{i}"] = f"input_blocks.{n}.1"
        if level < last:
            n += 1
            table[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{n}.0.op"

    table |= nest("mid_block.resnets.0", "middle_block.0", RESNET) | {"mid_block.attentions.0": "middle_block.1"}
    table |= nest("mid_block.resnets.1", "middle_block.2", RESNET)

    n = 0
    for block, depth in enumerate(reversed(cfg.depth)):
        for i in range(cfg.layers + 1):
            table |= nest(f"up_blocks.{block}.resnets.{i}", f"output_blocks.{n}.0", RESNET)
            if depth:
                table[f"up_blocks.{block}.attentions.{i}"] = f"output_blocks.{n}.1"
            if block < last and i == cfg.layers:
                table[f"up_blocks.{block}.upsamplers.0.conv"] = f"output_blocks.{n}.{2 if depth else 1}.conv"
            n += 1
    return table


def vae_table(cfg: VAEConfig) -> Table:
    """Modules of a VAE -> their names in ldm, whose decoder numbers its levels from the last that runs."""
    levels = len(cfg.channels)
    table = {}
    for level in range(levels):
        sides = (
            ("encoder", f"down_blocks.{level}", f"down.{level}", cfg.layers),
            ("decoder", f"up_blocks.{levels - 1 - level}", f"up.{level}", cfg.layers + 1),
        )
        for side, ours, theirs, layers in sides:
            for i in range(layers):
                resnet = f"{side}.{ours}.resnets.{i}"
                block = f"{side}.{theirs}.block.{i}"
                table |= {resnet: block} | nest(resnet, block, {"conv_shortcut": "nin_shortcut"})
        table[f"encoder.down_blocks.{level}.downsamplers.0.conv"] = f"encoder.down.{level}.downsample.conv"
        table[f"decoder.up_blocks.{levels - 1 - level}.upsamplers.0.conv"] = f"decoder.up.{level}.upsample.conv"
    for side in ("encoder", "decoder"):
        table[f"{side}.conv_norm_out"] = f"{side}.norm_out"
        table |= {f"{side}.mid_block.resnets.{i}": f"{side}.mid.block_{i + 1}" for i in range(2)}
        table |= nest(f"{side}.mid_block.attentions.0", f"{side}.mid.attn_1", MID_ATTENTION)
    return table


def open_clip_table(cfg: CLIPConfig) -> Table:
    table = {
        "text_model.embeddings.token_embedding": "token_embedding",
        "text_model.embeddings.position_embedding.weight": "positional_embedding",
        "text_model.final_layer_norm": "ln_final",
        "text_projection.weight": "text_projection",
    }
    for i in range(cfg.layers):
        table |= nest(f"text_model.encoder.layers.{i}", f"transformer.resblocks.{i}", TEXT_LAYER)
    return table


def nest(ours: str, theirs: str, tails: Mapping[str, str]) -> Table:
    """The entries of a table for the modules inside one: tails maps our names there to theirs."""
    return {f"{ours}.{a}": f"{theirs}.{b}" for a, b in tails.items()}


def rename(path: str, table: Mapping[str, str]) -> str:
    """A module or parameter of ours by the longest entry of the table that it is, or lies below."""
    parts = path.split(".")
    for end in range(min(len(parts), DEPTH), 0, -1):
        theirs = table.get(".".join(parts[:end]))
        if theirs is not None:
            return ".".join([theirs, *parts[end:]])
    return path


def pieces(
    names: Iterable[str], cfg: UNetConfig | VAEConfig | TinyVAEConfig | CLIPConfig, whose: str
) -> dict[str, Piece]:
    """Where the parameters `names` of a network lie in a file that calls them as "diffusers", "ldm" or "open_clip"."""
    match whose, cfg:
        case "ldm", UNetConfig():
            table = unet_table(cfg)
        case "ldm", VAEConfig():
            table = vae_table(cfg)
        case "open_clip", CLIPConfig():
            table = open_clip_table(cfg)
            return {name: open_clip_piece(name, table) for name in names}
        case _:  # diffusers' names are ours
            table = {}
    return {name: Piece(rename(name, table)) for name in names}


def open_clip_piece(name: str, table: Table) -> Piece:
    parts = name.split(".")
    if parts[-2] in ("q_proj", "k_proj", "v_proj"):  # text_model.encoder.layers.3.self_attn.q_proj.weight
        return Piece(
            f"transformer.resblocks.{parts[3]}.attn.in_proj_{parts[-1]}",
            third=("q_proj", "k_proj", "v_proj").index(parts[-2]),
        )
    return Piece(rename(name, table), transposed=name == "text_projection.weight")


def strip_prefix(stored: Mapping[str, T], prefix: str) -> dict[str, T]:
    """The tensors whose keys begin with the prefix, by the rest of their keys."""
    return {key.removeprefix(prefix): held for key, held in stored.items() if key.startswith(prefix)}


def ema_key(key: str) -> str:
    """The averaged copy of a UNet's tensor in an ldm file: the name without the dots, for PyTorch allows none there."""
    return "model_ema." + key.removeprefix("model.").replace(".", "")


def unet_outline(keys: Iterable[str]) -> tuple[tuple[int, ...], int]:
    """Of a UNet in ldm's names: depth per level, as 0 or 1, and resnets per level; enough for unet_table."""
    keys = set(keys)
    downs = [n for n in range(1, min(len(keys), MOST_BLOCKS)) if f"input_blocks.{n}.0.op.weight" in keys]
    layers = downs[0] - 1 if downs else 2
    starts = [1, *(n + 1 for n in downs)]
    return tuple(int(f"input_blocks.{n}.1.norm.weight" in keys) for n in starts), layers
