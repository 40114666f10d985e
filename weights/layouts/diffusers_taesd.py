"""The config.json of TAESD, AutoencoderTiny in diffusers, <-> the facts that ldm.config describes it by."""

from ldm.config import TinyVAEConfig

from ..disk.settings import COUNT, WIDTH, Settings

# fmt: off
TINY_ONLY = {  # setting -> the values we implement, the first of them its default
    "_class_name": ("AutoencoderTiny",), "act_fn": ("relu",), "upsample_fn": ("nearest",),
    "upsampling_scaling_factor": (2,), "scaling_factor": (1.0,), "shift_factor": (0.0, None),
}
# fmt: on


def read_tiny_vae(json: Settings) -> TinyVAEConfig:
    """CheckpointError names the setting that is malformed or not implemented."""
    json.only(TINY_ONLY)
    widths = json.several("encoder_block_out_channels", (64,) * 4, WIDTH)
    blocks = json.several("num_encoder_blocks", (1, 3, 3, 3), COUNT)
    if len(set(widths)) > 1 or len(widths) != len(blocks):
        json.refuse("encoder_block_out_channels", f"the same width on each of the {len(blocks)} levels is expected")
    for key, mirrored in (("decoder_block_out_channels", widths), ("num_decoder_blocks", blocks[::-1])):
        if json.several(key, mirrored, WIDTH) != mirrored:
            json.refuse(key, f"{list(mirrored)}, the mirror of the encoder's, is expected")
    image_channels = json.one("in_channels", 3, WIDTH)
    if json.one("out_channels", 3, WIDTH) != image_channels:
        json.refuse("out_channels", f"as many as in_channels, {image_channels}, are expected")
    return TinyVAEConfig(widths[0], blocks, json.one("latent_channels", 4, WIDTH), image_channels)


def write_tiny_vae(cfg: TinyVAEConfig) -> dict:
    widths = [cfg.channels] * len(cfg.blocks)
    values = {key: TINY_ONLY[key][0] for key in ("_class_name", "act_fn", "upsample_fn", "scaling_factor")}
    return values | dict(
        in_channels=cfg.image_channels,
        out_channels=cfg.image_channels,
        latent_channels=cfg.latent_channels,
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        num_encoder_blocks=cfg.blocks,
        num_decoder_blocks=cfg.blocks[::-1],
    )
