"""Sizes of every published network, as frozen facts.

A level is one resolution of a UNet or VAE. `channels`, `heads` and `depth` are given per level,
from the finest to the coarsest; `depth` counts transformer blocks, 0 means no attention.
A network that was distilled from another may have other depths behind each resnet, and less in its middle.
"""

from dataclasses import dataclass, replace

Depth = int | tuple[int, ...]  # transformer blocks behind each resnet: one number for all, or one for each of them


@dataclass(frozen=True)
class UNetConfig:
    in_channels: int
    channels: tuple[int, ...]
    heads: tuple[int, ...]
    depth: tuple[Depth, ...]
    mid_depth: Depth  # a number: between two resnets; (0,) is one resnet without attention, () is no middle
    context_dim: int
    linear_projection: bool  # proj_in/proj_out stored as Linear, or as 1x1 Conv2d (SD1)
    out_channels: int = 4
    layers: int = 2  # resnets per level on the way down; one more on the way up
    groups: int = 32
    cross_only: tuple[bool, ...] = ()  # levels whose first attention reads the text too (x4)
    vector_dim: int = 0  # width of the pooled text + sizes vector (SDXL)
    class_dim: int = 0  # width of the image-embedding vector (unCLIP)
    class_count: int = 0  # rows of the noise-level table (x4)
    guidance_dim: int = 0  # width of the embedded guidance scale (LCM)
    up_depth: tuple[Depth, ...] = ()  # of the way up, levels in the same order; () as on the way down


@dataclass(frozen=True)
class VAEConfig:
    channels: tuple[int, ...]
    latent_channels: int = 4
    image_channels: int = 3
    layers: int = 2  # resnets per encoder level; the decoder has one more
    groups: int = 32

    @property
    def factor(self) -> int:
        """Pixels per latent, in height and in width."""
        return 2 ** (len(self.channels) - 1)


@dataclass(frozen=True)
class TinyVAEConfig:
    """TAESD: one width on all levels, and latents as the UNet sees them, of scale 1."""

    channels: int = 64
    blocks: tuple[int, ...] = (1, 3, 3, 3)  # per level, from the finest; the decoder has as many
    latent_channels: int = 4
    image_channels: int = 3

    @property
    def factor(self) -> int:
        """Pixels per latent, in height and in width."""
        return 2 ** (len(self.blocks) - 1)


@dataclass(frozen=True)
class CLIPConfig:
    layers: int
    width: int
    heads: int
    hidden: int  # width of the MLP
    quick_gelu: bool
    projection: int = 0  # width of the pooled output; 0: no projection is stored
    vocab: int = 49408
    length: int = 77


@dataclass(frozen=True)
class LatentConfig:
    """How the latents that a UNet sees follow from those of its VAE: (z - mean) * scale / std."""

    scale: float
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


@dataclass(frozen=True)
class NoiseConfig:
    """The noise levels a network was trained with: `trained` betas, or with `edm` any sigma in a range."""

    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_law: str = "scaled_linear"  # or "linear", "squaredcos_cap_v2"
    trained: int = 1000
    precision: str = "float32"  # of the table, diffusers'; CompVis, Stability, sgm and ComfyUI have "float64"
    zero_snr: bool = False  # rescaled so that the last time is noise alone (arXiv 2305.08891)
    edm: bool = False
    sigma_min: float = 0.002  # these three for EDM only
    sigma_max: float = 80.0
    sigma_data: float = 0.5


@dataclass(frozen=True)
class Family:
    """What all models of one lineage have in common: which text towers they read and in which layouts they come.

    A family holds names and published facts. The sizes of a model at hand may be any.
    """

    name: str
    title: str  # as people write it
    towers: tuple[str, ...]  # its text towers in order, by the names of their folders
    clips: tuple[str, ...]  # the published sizes of each, a row of CLIPS
    layouts: tuple[str, ...]  # the layouts of its single files, the usual one first
    numbers: int = 0  # sizes and scores in the vector that joins the time embedding

    @property
    def widths(self) -> tuple[int, ...]:
        """Published widths of its text towers; the UNet reads their sum."""
        return tuple(CLIPS[row].width for row in self.clips)

    @property
    def has_sizes(self) -> bool:
        """SDXL and its refiner are conditioned on sizes; the others read text alone."""
        return self.numbers > 0


@dataclass(frozen=True)
class ModelConfig:
    """One published model: its networks and the facts needed to sample from it."""

    family: Family
    unet: UNetConfig
    vae: VAEConfig | TinyVAEConfig
    texts: tuple[CLIPConfig, ...]
    latent: LatentConfig
    pad_ids: tuple[int, ...]  # the token that fills a prompt up, per text tower
    prediction: str = "eps"  # "eps", "v" or "x0"
    noise: NoiseConfig = NoiseConfig()
    sampler: str = "euler"  # from here on: defaults of a task
    schedule: str = "leading"
    offset: int = 1  # added to every time step of the leading schedule
    steps: int = 50
    guidance: float = 7.5
    size: int = 512  # native height and width in pixels
    zero_empty_prompt: bool = False  # no prompt: zeros in place of the encoded ""
    careful_vae: bool = False  # float16 is too small for what goes through its VAE


# fmt: off
SD15_UNET = UNetConfig(in_channels=4, channels=(320, 640, 1280, 1280), heads=(8, 8, 8, 8), depth=(1, 1, 1, 0),
                       mid_depth=1, context_dim=768, linear_projection=False)
SD2_UNET = UNetConfig(in_channels=4, channels=(320, 640, 1280, 1280), heads=(5, 10, 20, 20), depth=(1, 1, 1, 0),
                      mid_depth=1, context_dim=1024, linear_projection=True)
X4_UNET = UNetConfig(in_channels=7, channels=(256, 512, 512, 1024), heads=(8, 8, 8, 8), depth=(0, 1, 1, 1),
                     mid_depth=1, context_dim=1024, linear_projection=True,
                     cross_only=(True, True, True, False), class_count=1000)
SDXL_UNET = UNetConfig(in_channels=4, channels=(320, 640, 1280), heads=(5, 10, 20), depth=(0, 2, 10),
                       mid_depth=10, context_dim=2048, linear_projection=True, vector_dim=2816)
REFINER_UNET = UNetConfig(in_channels=4, channels=(384, 768, 1536, 1536), heads=(6, 12, 24, 24), depth=(0, 4, 4, 0),
                          mid_depth=4, context_dim=1280, linear_projection=True, vector_dim=2560)

# Distilled from SD 1: BK-SDM (arXiv 2305.15798), whose sizes Segmind's small-sd (base) and tiny-sd (tiny) have.
BK_BASE_UNET = replace(SD15_UNET, layers=1)
BK_TINY_UNET = replace(BK_BASE_UNET, channels=(320, 640, 1280), heads=(8, 8, 8), depth=(1, 1, 1), mid_depth=())
# Distilled from SDXL: SSD-1B and Vega (arXiv 2401.02677), KOALA (arXiv 2312.04005).
SSD_1B_UNET = replace(SDXL_UNET, depth=(0, 2, 4), mid_depth=(0,), up_depth=(0, (2, 1, 1), (4, 4, 10)))
KOALA_700M_UNET = replace(SDXL_UNET, layers=1, depth=(0, 2, 5), mid_depth=())

UNETS = {
    "sd15": SD15_UNET,
    "sd15_inpaint": replace(SD15_UNET, in_channels=9),
    "sd2": SD2_UNET,
    "sd2_inpaint": replace(SD2_UNET, in_channels=9),
    "sd2_depth": replace(SD2_UNET, in_channels=5),
    "sd2_unclip_h": replace(SD2_UNET, class_dim=2048),
    "sd2_unclip_l": replace(SD2_UNET, class_dim=1536),
    "sd_x4": X4_UNET,
    "sdxl": SDXL_UNET,
    "sdxl_inpaint": replace(SDXL_UNET, in_channels=9),
    "sdxl_refiner": REFINER_UNET,
    "lcm_sdxl": replace(SDXL_UNET, guidance_dim=256),
    "bk_sdm_base": BK_BASE_UNET,
    "bk_sdm_small": replace(BK_BASE_UNET, mid_depth=()),
    "bk_sdm_tiny": BK_TINY_UNET,
    "ssd_1b": SSD_1B_UNET,
    "segmind_vega": replace(SDXL_UNET, depth=(0, 1, 2), mid_depth=(0,)),
    "koala_700m": KOALA_700M_UNET,
    "koala_1b": replace(KOALA_700M_UNET, depth=(0, 2, 6), mid_depth=6),
}

F8_VAE = VAEConfig(channels=(128, 256, 512, 512))
VAES = {"sd": F8_VAE, "sdxl": F8_VAE, "playground_v25": F8_VAE, "sd_x4": VAEConfig(channels=(128, 256, 512))}
TAESD = TinyVAEConfig()                      # of SD; TAESDXL has the same sizes

CLIPS = {
    "l": CLIPConfig(layers=12, width=768, heads=12, hidden=3072, quick_gelu=True),
    "h": CLIPConfig(layers=23, width=1024, heads=16, hidden=4096, quick_gelu=False),   # block 24 is not used by SD2
    "bigg": CLIPConfig(layers=32, width=1280, heads=20, hidden=5120, quick_gelu=False, projection=1280),
}

SD_LATENT = LatentConfig(scale=0.18215)
SDXL_LATENT = LatentConfig(scale=0.13025)
PLAYGROUND_V25_LATENT = LatentConfig(scale=0.5, mean=(-1.6574, 1.886, -1.383, 2.5155),
                                     std=(8.4927, 5.9022, 6.5498, 5.2299))

FIRST, SECOND = "text_encoder", "text_encoder_2"
FAMILIES = {
    "sd1": Family("sd1", "SD 1", towers=(FIRST,), clips=("l",), layouts=("ldm",)),
    "sd2": Family("sd2", "SD 2", towers=(FIRST,), clips=("h",), layouts=("ldm", "sgm")),
    "sdxl": Family("sdxl", "SDXL", towers=(FIRST, SECOND), clips=("l", "bigg"), layouts=("sgm",), numbers=6),
    "sdxl_refiner": Family("sdxl_refiner", "SDXL's refiner", towers=(SECOND,), clips=("bigg",), layouts=("sgm",),
                           numbers=5),
}

SD15_MODEL = ModelConfig(family=FAMILIES["sd1"], unet=SD15_UNET, vae=F8_VAE, texts=(CLIPS["l"],), latent=SD_LATENT,
                         pad_ids=(49407,), sampler="plms")
SD2_MODEL = replace(SD15_MODEL, family=FAMILIES["sd2"], unet=SD2_UNET, texts=(CLIPS["h"],), pad_ids=(0,))
SD2_V_MODEL = replace(SD2_MODEL, prediction="v", sampler="ddim", size=768)
UNCLIP_MODEL = replace(SD2_V_MODEL, steps=20, guidance=10.0)
SDXL_MODEL = ModelConfig(family=FAMILIES["sdxl"], unet=SDXL_UNET, vae=F8_VAE, texts=(CLIPS["l"], CLIPS["bigg"]),
                         latent=SDXL_LATENT, pad_ids=(49407, 0), guidance=5.0, size=1024, zero_empty_prompt=True,
                         careful_vae=True)

MODELS = {
    "sd15": SD15_MODEL,
    "sd15_inpaint": replace(SD15_MODEL, unet=UNETS["sd15_inpaint"], sampler="ddim"),
    "sd2": SD2_V_MODEL,                    # the repository named stable-diffusion-2 holds the 768-v model
    "sd2_base": SD2_MODEL,
    "sd2_v": SD2_V_MODEL,
    "sd2_inpaint": replace(SD2_MODEL, unet=UNETS["sd2_inpaint"]),
    "sd2_depth": replace(SD2_MODEL, unet=UNETS["sd2_depth"]),
    "sd2_unclip_h": replace(UNCLIP_MODEL, unet=UNETS["sd2_unclip_h"]),
    "sd2_unclip_l": replace(UNCLIP_MODEL, unet=UNETS["sd2_unclip_l"]),
    "sd_turbo": replace(SD2_MODEL, sampler="euler", schedule="trailing", steps=1, guidance=0.0),
    "sd_x4": replace(SD2_V_MODEL, unet=X4_UNET, vae=VAES["sd_x4"], latent=LatentConfig(scale=0.08333), size=512,
                     steps=75, guidance=9.0, noise=NoiseConfig(beta_start=0.0001, beta_end=0.02), careful_vae=True),
    "sdxl": SDXL_MODEL,
    "sdxl_inpaint": replace(SDXL_MODEL, unet=UNETS["sdxl_inpaint"], guidance=7.5, careful_vae=False),
    "sdxl_refiner": replace(SDXL_MODEL, family=FAMILIES["sdxl_refiner"], unet=REFINER_UNET, texts=(CLIPS["bigg"],),
                            pad_ids=(0,), zero_empty_prompt=False),
    "sdxl_turbo": replace(SDXL_MODEL, sampler="euler_ancestral", schedule="trailing", steps=1, guidance=0.0, size=512),
    "lcm_sdxl": replace(SDXL_MODEL, unet=UNETS["lcm_sdxl"], sampler="lcm", steps=4, guidance=8.5),
    "playground_v2": replace(SDXL_MODEL, guidance=3.0),
    "playground_v25": replace(SDXL_MODEL, latent=PLAYGROUND_V25_LATENT, noise=NoiseConfig(edm=True), guidance=3.0,
                              sampler="dpmpp_2m", schedule="karras"),
}
# fmt: on
