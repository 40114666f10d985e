"""The settings of one network, as its config.json holds them -> the facts that ldm.config describes it by.

Names and defaults are those of UNet2DConditionModel and AutoencoderKL in diffusers 0.42 and of CLIPTextConfig in
transformers 5. A setting that our networks do not implement is refused, never ignored; a name that diffusers does not
know either is ignored, as it does.
"""

from collections.abc import Sequence

from ldm.config import CLIPConfig, LatentConfig, TinyVAEConfig, UNetConfig, VAEConfig

from .settings import DEEPEST, Settings, is_whole

SILU = ("silu", "swish")
UNET_ONLY = {  # setting -> the values we implement, the first of them its default
    "_class_name": ("UNet2DConditionModel",),
    "act_fn": SILU,
    "norm_eps": (1e-5,),
    "center_input_sample": (False,),
    "flip_sin_to_cos": (True,),
    "freq_shift": (0,),
    "time_embedding_type": ("positional",),
    "time_embedding_dim": (None,),
    "time_embedding_act_fn": (None,),
    "timestep_post_act": (None,),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "mid_block_scale_factor": (1,),
    "mid_block_only_cross_attention": (None, False),
    "downsample_padding": (1,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "resnet_time_scale_shift": ("default",),
    "resnet_skip_time_act": (False,),
    "resnet_out_scale_factor": (1,),
    "reverse_transformer_layers_per_block": (None,),
    "dual_cross_attention": (False,),
    "attention_type": ("default",),
    "cross_attention_norm": (None,),
    "class_embeddings_concat": (False,),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "class_embed_type": (None, "projection"),
    "addition_embed_type": (None, "text_time"),
}
VAE_ONLY = {
    "_class_name": ("AutoencoderKL",),
    "act_fn": SILU,
    "shift_factor": (None, 0),
    "mid_block_add_attention": (True,),
    "use_quant_conv": (True,),
    "use_post_quant_conv": (True,),
}
TINY_ONLY = {
    "_class_name": ("AutoencoderTiny",),
    "act_fn": ("relu",),
    "upsample_fn": ("nearest",),
    "upsampling_scaling_factor": (2,),
    "scaling_factor": (1.0,),
    "shift_factor": (0.0, None),
}
TINY_LATENT = LatentConfig(scale=1.0)  # TAESD reads and writes latents as the UNet has them
CLIP_ONLY = {"layer_norm_eps": (1e-5,), "hidden_act": ("quick_gelu", "gelu")}

DOWN = {"DownBlock2D": False, "CrossAttnDownBlock2D": True}  # has it attention?
UP = {"UpBlock2D": False, "CrossAttnUpBlock2D": True}


def unet_config(json: Settings) -> UNetConfig:
    """CheckpointError names the setting that is malformed or not implemented."""
    json.only(UNET_ONLY)
    channels = json.wholes("block_out_channels", (320, 640, 1280, 1280))
    levels = len(channels)
    attention = attention_levels(json, levels)
    heads_key = "attention_head_dim" if json.values.get("num_attention_heads") is None else "num_attention_heads"
    heads = json.per_level(heads_key, 8, levels)  # the number of heads, whatever its first name says
    depth = json.per_level("transformer_layers_per_block", 1, levels, DEEPEST)
    cross_only = json.flags("only_cross_attention", levels)
    groups = json.whole("norm_num_groups", 32)
    check_divides(json, "norm_num_groups", channels, [groups] * levels)
    used = [i for i in range(levels) if attention[i] or i == levels - 1]  # the middle has the heads of the last level
    check_divides(json, heads_key, [channels[i] for i in used], [heads[i] for i in used])
    return UNetConfig(
        in_channels=json.whole("in_channels", 4),
        out_channels=json.whole("out_channels", 4),
        channels=channels,
        heads=heads,
        depth=tuple(blocks if here else 0 for blocks, here in zip(depth, attention)),
        mid_depth=depth[-1],
        context_dim=json.equal("cross_attention_dim", 1280, levels),
        linear_projection=json.flag("use_linear_projection"),
        layers=json.equal("layers_per_block", 2, levels, DEEPEST),
        groups=groups,
        cross_only=cross_only if any(cross_only) else (),
        **added_embeddings(json),
    )


def attention_levels(json: Settings, count: int) -> tuple[bool, ...]:
    """Which levels have attention, by the types of their blocks."""
    down = json.words("down_block_types", ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",))
    up = json.words("up_block_types", ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3)
    for key, names, known in (("down_block_types", down, DOWN), ("up_block_types", up, UP)):
        if len(names) != count:
            json.refuse(key, f"one for each of the {count} block_out_channels is expected")
        if not set(names) <= known.keys():
            json.refuse(key, f"only {' and '.join(known)} are implemented")
    if [DOWN[name] for name in down] != [UP[name] for name in reversed(up)]:
        json.refuse("up_block_types", "the levels with attention must be those of down_block_types")
    return tuple(DOWN[name] for name in down)


def added_embeddings(json: Settings) -> dict[str, int]:
    """The fields of UNetConfig for what joins the time embedding."""
    by_class, by_addition = json.values.get("class_embed_type"), json.values.get("addition_embed_type")
    width = json.whole("projection_class_embeddings_input_dim", None) if by_class or by_addition else 0
    rows = None if by_class else json.values.get("num_class_embeds")
    guidance = json.values.get("time_cond_proj_dim")
    return dict(
        vector_dim=width if by_addition else 0,
        class_dim=width if by_class else 0,
        class_count=0 if rows is None else json.whole("num_class_embeds", None),
        guidance_dim=0 if guidance is None else json.whole("time_cond_proj_dim", None),
    )


def check_divides(json: Settings, key: str, channels: Sequence[int], parts: Sequence[int]) -> None:
    for width, count in zip(channels, parts):
        if width % count:
            json.refuse(key, f"{count} does not divide the {width} channels of its level")


def latent_size(json: Settings) -> int:
    """Height of the latents that the UNet was trained on; 64 where the file leaves it open."""
    size = json.values.get("sample_size")
    size = size[0] if isinstance(size, list) and len(size) == 2 else 64 if size is None else size
    if not is_whole(size, 1):
        json.refuse("sample_size", "a whole number, or two, is expected")
    return size


def vae_config(json: Settings) -> VAEConfig:
    json.only(VAE_ONLY)
    channels, groups = json.wholes("block_out_channels", (64,)), json.whole("norm_num_groups", 32)
    check_divides(json, "norm_num_groups", channels, [groups] * len(channels))
    for key, name in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
        if json.words(key, (name,)) != (name,) * len(channels):
            json.refuse(key, f"{name} for each of the {len(channels)} block_out_channels is expected")
    image = json.whole("in_channels", 3)
    if json.whole("out_channels", 3) != image:
        json.refuse("out_channels", f"as many as in_channels, {image}, are expected")
    return VAEConfig(
        channels=channels,
        latent_channels=json.whole("latent_channels", 4),
        image_channels=image,
        layers=json.whole("layers_per_block", 1, most=DEEPEST),
        groups=groups,
    )


def tiny_vae_config(json: Settings) -> TinyVAEConfig:
    json.only(TINY_ONLY)
    widths = json.wholes("encoder_block_out_channels", (64,) * 4)
    blocks = json.wholes("num_encoder_blocks", (1, 3, 3, 3), DEEPEST)
    if len(set(widths)) > 1 or len(widths) != len(blocks):
        json.refuse("encoder_block_out_channels", f"the same width on each of the {len(blocks)} levels is expected")
    for key, mirrored in (("decoder_block_out_channels", widths), ("num_decoder_blocks", blocks[::-1])):
        if json.wholes(key, mirrored) != mirrored:
            json.refuse(key, f"{list(mirrored)}, the mirror of the encoder's, is expected")
    image = json.whole("in_channels", 3)
    if json.whole("out_channels", 3) != image:
        json.refuse("out_channels", f"as many as in_channels, {image}, are expected")
    return TinyVAEConfig(widths[0], blocks, json.whole("latent_channels", 4), image)


def latent_config(json: Settings, vae: VAEConfig) -> LatentConfig:
    """How the UNet's latents follow from those of the VAE whose settings these are."""
    scale = json.number("scaling_factor", 0.18215)
    mean, std = (json.numbers(key, vae.latent_channels) for key in ("latents_mean", "latents_std"))
    if scale <= 0:
        json.refuse("scaling_factor", "a number above 0 is expected")
    if any(n <= 0 for n in std):
        json.refuse("latents_std", "numbers above 0 are expected")
    if bool(mean) != bool(std):
        json.refuse("latents_mean", "it is expected together with latents_std, or neither of them")
    return LatentConfig(scale, mean, std)


def clip_config(json: Settings, projected: bool) -> CLIPConfig:
    """projected: the tower is a CLIPTextModelWithProjection; the others name a projection_dim that means nothing."""
    json.only(CLIP_ONLY)
    width, heads = json.whole("hidden_size", 512), json.whole("num_attention_heads", 8)
    check_divides(json, "num_attention_heads", [width], [heads])
    return CLIPConfig(
        layers=json.whole("num_hidden_layers", 12, most=DEEPEST),
        width=width,
        heads=heads,
        hidden=json.whole("intermediate_size", 2048),
        quick_gelu=json.values.get("hidden_act", "quick_gelu") == "quick_gelu",
        projection=json.whole("projection_dim", 512) if projected else 0,
        vocab=json.whole("vocab_size", 49408),
        length=json.whole("max_position_embeddings", 77),
    )


def part_config(json: Settings) -> UNetConfig | VAEConfig | TinyVAEConfig | CLIPConfig:
    """A network by its config.json alone, which names its class."""
    if "CLIPTextModel" in str(json.values.get("architectures")) or json.values.get("model_type") == "clip_text_model":
        return clip_config(json, "WithProjection" in str(json.values.get("architectures")))
    readers = {"UNet2DConditionModel": unet_config, "AutoencoderKL": vae_config, "AutoencoderTiny": tiny_vae_config}
    return json.choice("_class_name", readers, None)(json)
