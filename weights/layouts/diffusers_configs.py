"""The config.json of one network <-> the facts that ldm.config describes it by.

Names and defaults are those of UNet2DConditionModel and AutoencoderKL in diffusers 0.42 and of CLIPTextConfig in
transformers 5. A setting that our networks do not implement is refused, never ignored; a name that diffusers does not
know either is ignored, as it does. The tables *_FIELDS and *_ONLY serve both directions.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ldm.config import CLIPConfig, LatentConfig, TinyVAEConfig, UNetConfig, VAEConfig

from ..checkpoint import NetworkConfig
from ..disk.settings import COUNT, FLAG, NUMBER, WIDTH, Kind, Settings, among
from .diffusers_taesd import read_tiny_vae, write_tiny_vae
from .distilled import COUNTS, DEPTHS, MIDDLES, UP_DEPTHS, USUAL_MIDDLE, read_lists, write_depths


class Setting(NamedTuple):
    """A setting that is a field of ours: its name in the file, its default and its kind."""

    key: str
    default: Any
    kind: Kind


CHANNELS = "block_out_channels"
VERSION = {"_diffusers_version": "0.42.1"}  # whose names these are
SILU = ("silu", "swish")
# fmt: off
UNET_ONLY = {  # setting -> the values we implement, the first of them its default
    "_class_name": ("UNet2DConditionModel",), "act_fn": SILU, "norm_eps": (1e-5,), "center_input_sample": (False,),
    "flip_sin_to_cos": (True,), "freq_shift": (0,), "time_embedding_type": ("positional",),
    "time_embedding_dim": (None,), "time_embedding_act_fn": (None,), "timestep_post_act": (None,),
    "mid_block_type": (USUAL_MIDDLE, *MIDDLES), "mid_block_scale_factor": (1,),
    "mid_block_only_cross_attention": (None, False), "downsample_padding": (1,), "conv_in_kernel": (3,),
    "conv_out_kernel": (3,), "resnet_time_scale_shift": ("default",), "resnet_skip_time_act": (False,),
    "resnet_out_scale_factor": (1,), "dual_cross_attention": (False,), "attention_type": ("default",),
    "cross_attention_norm": (None,),
    "class_embeddings_concat": (False,), "encoder_hid_dim": (None,), "encoder_hid_dim_type": (None,),
    "class_embed_type": (None, "projection"), "addition_embed_type": (None, "text_time"),
}
VAE_ONLY = {
    "_class_name": ("AutoencoderKL",), "act_fn": SILU, "shift_factor": (None, 0), "mid_block_add_attention": (True,),
    "use_quant_conv": (True,), "use_post_quant_conv": (True,),
}
CLIP_ONLY = {"layer_norm_eps": (1e-5,), "hidden_act": ("quick_gelu", "gelu")}
# fmt: on

UNET_FIELDS = {
    "in_channels": Setting("in_channels", 4, WIDTH),
    "out_channels": Setting("out_channels", 4, WIDTH),
    "groups": Setting("norm_num_groups", 32, WIDTH),
}
DOWN = {"DownBlock2D": False, "CrossAttnDownBlock2D": True}  # has it attention?
UP = {"UpBlock2D": False, "CrossAttnUpBlock2D": True}
DOWN_BLOCK = among(DOWN)
UP_BLOCK = among(UP)
USUAL_DOWN = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
USUAL_UP = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
ADDED = {  # our field -> the setting that announces it, and the one that holds its width
    "class_dim": ("class_embed_type", "projection_class_embeddings_input_dim"),
    "class_count": ("num_class_embeds", "num_class_embeds"),
    "vector_dim": ("addition_embed_type", "projection_class_embeddings_input_dim"),
    "guidance_dim": ("time_cond_proj_dim", "time_cond_proj_dim"),
}

VAE_FIELDS = {
    "latent_channels": Setting("latent_channels", 4, WIDTH),
    "image_channels": Setting("in_channels", 3, WIDTH),
    "layers": Setting("layers_per_block", 1, COUNT),
    "groups": Setting("norm_num_groups", 32, WIDTH),
}
VAE_BLOCKS = {"down_block_types": "DownEncoderBlock2D", "up_block_types": "UpDecoderBlock2D"}
VAE_BLOCK = {key: among([name]) for key, name in VAE_BLOCKS.items()}

TINY_LATENT = LatentConfig(scale=1.0)  # TAESD reads and writes latents as the UNet has them
CLIP_FIELDS = {
    "layers": Setting("num_hidden_layers", 12, COUNT),
    "width": Setting("hidden_size", 512, WIDTH),
    "heads": Setting("num_attention_heads", 8, WIDTH),
    "hidden": Setting("intermediate_size", 2048, WIDTH),
    "vocab": Setting("vocab_size", 49408, WIDTH),
    "length": Setting("max_position_embeddings", 77, WIDTH),
}


def read_fields(json: Settings, table: Mapping[str, Setting]) -> dict:
    return {field: json.one(*setting) for field, setting in table.items()}


def write_fields(cfg: NetworkConfig, table: Mapping[str, Setting]) -> dict:
    return {setting.key: getattr(cfg, field) for field, setting in table.items()}


def write_only(table: Mapping[str, tuple], *keys: str) -> dict:
    return {key: table[key][0] for key in ("_class_name", *keys)} | VERSION


def check_divides(json: Settings, key: str, channels: Sequence[int], parts: Sequence[int]) -> None:
    for width, count in zip(channels, parts):
        if width % count:
            json.refuse(key, f"{count} does not divide the {width} channels of its level")


def read_unet(json: Settings) -> UNetConfig:
    """CheckpointError names the setting that is malformed or not implemented."""
    json.only(UNET_ONLY)
    fields = read_fields(json, UNET_FIELDS)
    channels = json.several(CHANNELS, (320, 640, 1280, 1280), WIDTH)
    levels = len(channels)
    attention = attention_levels(json, levels)
    heads_key = "attention_head_dim" if json.values.get("num_attention_heads") is None else "num_attention_heads"
    heads = json.per_level(heads_key, 8, WIDTH, levels)  # the number of heads, whatever its first name says
    kind = COUNT if json.values.get(UP_DEPTHS) is None else COUNTS
    depth = json.per_level(DEPTHS, 1, kind, levels)
    cross_only = json.per_level("only_cross_attention", False, FLAG, levels)
    check_divides(json, "norm_num_groups", channels, [fields["groups"]] * levels)
    used = [i for i in range(levels) if attention[i] or i == levels - 1]  # the middle has the heads of the last level
    check_divides(json, heads_key, [channels[i] for i in used], [heads[i] for i in used])
    cfg = UNetConfig(
        **fields,
        channels=channels,
        linear_projection=json.flag("use_linear_projection"),
        heads=heads,
        depth=tuple(blocks if here else 0 for blocks, here in zip(depth, attention)),
        mid_depth=MIDDLES.get(json.values.get("mid_block_type", USUAL_MIDDLE), depth[-1]),
        context_dim=json.equal("cross_attention_dim", 1280, WIDTH, levels),
        layers=json.equal("layers_per_block", 2, COUNT, levels),
        cross_only=cross_only if any(cross_only) else (),
        **added_embeddings(json),
    )
    return cfg if kind is COUNT else read_lists(cfg, json)


def attention_levels(json: Settings, levels: int) -> tuple[bool, ...]:
    """Which levels have attention, by the types of their blocks."""
    down = json.several("down_block_types", USUAL_DOWN, DOWN_BLOCK, levels)
    up = json.several("up_block_types", USUAL_UP, UP_BLOCK, levels)
    if [DOWN[name] for name in down] != [UP[name] for name in reversed(up)]:
        json.refuse("up_block_types", "the levels with attention must be those of down_block_types")
    return tuple(DOWN[name] for name in down)


def added_embeddings(json: Settings) -> dict[str, int]:
    """The fields of UNetConfig for what joins the time embedding."""
    fields = {}
    for field, (announced_by, width) in ADDED.items():
        is_second_class = field == "class_count" and "class_dim" in fields
        if json.values.get(announced_by) is not None and not is_second_class:
            fields[field] = json.one(width, None, WIDTH)
    return fields


def read_size(json: Settings, vae: VAEConfig | TinyVAEConfig) -> int:
    """Height in pixels of what the UNet of these settings was trained on; 64 latents where they do not say it."""
    size = json.values.get("sample_size")
    if not WIDTH.fits(size):
        size = other_size(json, size)
    levels = len(vae.blocks if isinstance(vae, TinyVAEConfig) else vae.channels)
    return size * 2 ** (levels - 1)


def other_size(json: Settings, size: object) -> int:
    if size is None:
        return 64
    if not isinstance(size, list) or len(size) != 2 or not WIDTH.fits(size[0]):
        json.refuse("sample_size", "a whole number, or two, is expected")
    return size[0]


def write_unet(cfg: UNetConfig, sample_size: int, number_width: int = 0) -> dict:
    """number_width: of each embedded size, 256 in SDXL."""
    attention = ["CrossAttn" if depth else "" for depth in cfg.depth]
    values = write_only(UNET_ONLY, "act_fn", "norm_eps", "flip_sin_to_cos", "freq_shift") | write_depths(cfg)
    values |= write_fields(cfg, UNET_FIELDS)
    values |= dict(
        block_out_channels=cfg.channels,
        use_linear_projection=cfg.linear_projection,
        sample_size=sample_size,
        down_block_types=[f"{name}DownBlock2D" for name in attention],
        up_block_types=[f"{name}UpBlock2D" for name in reversed(attention)],
        layers_per_block=cfg.layers,
        attention_head_dim=cfg.heads,
        cross_attention_dim=cfg.context_dim,
    )
    if cfg.cross_only:
        values["only_cross_attention"] = cfg.cross_only
    if cfg.vector_dim:
        values |= dict(addition_embed_type="text_time", addition_time_embed_dim=number_width)
        values["projection_class_embeddings_input_dim"] = cfg.vector_dim
    if cfg.class_dim:
        values |= dict(class_embed_type="projection", projection_class_embeddings_input_dim=cfg.class_dim)
    if cfg.class_count:
        values["num_class_embeds"] = cfg.class_count
    if cfg.guidance_dim:
        values["time_cond_proj_dim"] = cfg.guidance_dim
    return values


def read_vae(json: Settings) -> VAEConfig | TinyVAEConfig:
    if json.values.get("_class_name") == "AutoencoderTiny":
        return read_tiny_vae(json)
    json.only(VAE_ONLY)
    cfg = VAEConfig(json.several(CHANNELS, (64,), WIDTH), **read_fields(json, VAE_FIELDS))
    levels = len(cfg.channels)
    check_divides(json, "norm_num_groups", cfg.channels, [cfg.groups] * levels)
    for key, name in VAE_BLOCKS.items():
        json.several(key, (name,), VAE_BLOCK[key], levels)
    if json.one("out_channels", 3, WIDTH) != cfg.image_channels:
        json.refuse("out_channels", f"as many as in_channels, {cfg.image_channels}, are expected")
    return cfg


def write_vae(cfg: VAEConfig | TinyVAEConfig, latent: LatentConfig, sample_size: int, careful: bool) -> dict:
    if isinstance(cfg, TinyVAEConfig):
        return write_tiny_vae(cfg) | VERSION
    values = write_only(VAE_ONLY, "act_fn") | write_fields(cfg, VAE_FIELDS)
    values |= {key: [name] * len(cfg.channels) for key, name in VAE_BLOCKS.items()}
    values |= dict(block_out_channels=cfg.channels, sample_size=sample_size, out_channels=cfg.image_channels)
    values |= dict(scaling_factor=latent.scale, force_upcast=careful)
    if latent.mean:
        values |= dict(latents_mean=latent.mean, latents_std=latent.std)
    return values


def read_latent(json: Settings, vae: VAEConfig | TinyVAEConfig) -> LatentConfig:
    """How the UNet's latents follow from those of the VAE whose settings these are."""
    if isinstance(vae, TinyVAEConfig):
        return TINY_LATENT
    scale = json.number("scaling_factor", 0.18215)
    if scale <= 0:
        json.refuse("scaling_factor", "a number above 0 is expected")
    if json.values.get("latents_mean") is None and json.values.get("latents_std") is None:
        return LatentConfig(scale)
    return read_moved_latent(json, scale, vae.latent_channels)


def read_moved_latent(json: Settings, scale: float, channels: int) -> LatentConfig:
    """Of a VAE whose latents have a mean and a deviation for each channel."""
    if json.values.get("latents_mean") is None or json.values.get("latents_std") is None:
        json.refuse("latents_mean", "it is expected together with latents_std, or neither of them")
    mean = json.several("latents_mean", None, NUMBER, channels)
    std = json.several("latents_std", None, NUMBER, channels)
    if any(n <= 0 for n in std):
        json.refuse("latents_std", "numbers above 0 are expected")
    return LatentConfig(scale, tuple(map(float, mean)), tuple(map(float, std)))


def read_clip(json: Settings, projected: bool) -> CLIPConfig:
    """projected: the tower is a CLIPTextModelWithProjection; the others name a projection_dim that means nothing."""
    json.only(CLIP_ONLY)
    fields = read_fields(json, CLIP_FIELDS)
    check_divides(json, "num_attention_heads", [fields["width"]], [fields["heads"]])
    quick_gelu = json.values.get("hidden_act", "quick_gelu") == "quick_gelu"
    projection = json.one("projection_dim", 512, WIDTH) if projected else 0
    return CLIPConfig(**fields, quick_gelu=quick_gelu, projection=projection)


def write_clip(cfg: CLIPConfig) -> dict:
    return write_fields(cfg, CLIP_FIELDS) | dict(
        architectures=["CLIPTextModelWithProjection" if cfg.projection else "CLIPTextModel"],
        model_type="clip_text_model",
        hidden_act="quick_gelu" if cfg.quick_gelu else "gelu",
        layer_norm_eps=1e-5,
        projection_dim=cfg.projection or cfg.width,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=1,
        dtype="float32",  # or transformers would run it in the dtype of the file, beside a float32 UNet
    )
