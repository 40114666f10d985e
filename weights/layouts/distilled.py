"""UNets that were distilled from those of SD 1 and SDXL, by what they lack: fewer blocks behind some resnets, less in
the middle. The lists of a config.json <-> the depths of UNetConfig, and the names of those that were published.

Sources: the paper of BK-SDM (arXiv 2305.15798) and its repository's settings, which Segmind's small-sd and tiny-sd
share; that of SSD-1B and Segmind-Vega (arXiv 2401.02677); that of KOALA (arXiv 2312.04005).
"""

from collections.abc import Sequence
from dataclasses import replace

from ldm.config import UNETS, Depth, UNetConfig

from ..disk.settings import COUNT, DEEPEST, Kind, Settings
from ..errors import shown

DEPTHS = "transformer_layers_per_block"
UP_DEPTHS = "reverse_transformer_layers_per_block"  # of the way up; without it, diffusers takes no lists in DEPTHS
USUAL_MIDDLE = "UNetMidBlock2DCrossAttn"
MIDDLES = {"UNetMidBlock2D": (0,), None: ()}  # mid_block_type -> depth behind each resnet


def are_counts(value: object) -> bool:
    """One count, or a list of them."""
    if isinstance(value, list):
        return 0 < len(value) <= DEEPEST and all(map(COUNT.fits, value))
    return COUNT.fits(value)


COUNTS = Kind(are_counts, f"a whole number from 1 to {DEEPEST}, or a list of them, is expected")


PUBLISHED = {  # row of UNETS -> as people write it
    "bk_sdm_base": "BK-SDM-Base",
    "bk_sdm_small": "BK-SDM-Small",
    "bk_sdm_tiny": "BK-SDM-Tiny",
    "ssd_1b": "SSD-1B",
    "segmind_vega": "Segmind-Vega",
    "koala_700m": "KOALA-700M",
    "koala_1b": "KOALA-1B",
}
SAME_SIZES = {"bk_sdm_base": " and small-sd", "bk_sdm_tiny": " and tiny-sd"}  # Segmind's


def titles() -> dict[UNetConfig, tuple[str, ...]]:
    """Distilled UNets -> a line of evidence. BK-SDM was made of SD 2 too."""
    found = {}
    for row, title in PUBLISHED.items():
        unet = UNETS[row]
        found[unet] = (f"its UNet has the sizes of {title}{SAME_SIZES.get(row, '')}",)
        if row in ("bk_sdm_base", "bk_sdm_small", "bk_sdm_tiny"):
            heads = UNETS["sd2"].heads[: len(unet.heads)]
            of_sd2 = replace(unet, context_dim=1024, heads=heads, linear_projection=True)
            found[of_sd2] = (f"its UNet has the sizes of {title} for SD 2",)
    return found


TITLES = titles()


def title_of(unet: UNetConfig) -> tuple[str, ...]:
    """Evidence of what a UNet was published as, if it was distilled; inpainting and LCM variants have the same name."""
    return TITLES.get(replace(unet, in_channels=4, guidance_dim=0), ())


def doubts(unet: UNetConfig) -> tuple[str, ...]:
    """A warning where the shapes in a file without config.json make up a UNet that lacks other blocks than those that
    were published: somebody may have distilled it, or the file is damaged."""
    is_whole = isinstance(unet.mid_depth, int) and not unet.up_depth
    if is_whole or outline(unet) in map(outline, UNETS.values()):
        return ()
    way_up = unet.up_depth or unet.depth
    return (
        f"its UNet has transformers of {shown(unet.depth)} blocks on the way down, {shown(unet.mid_depth)} in the "
        f"middle and {shown(way_up)} on the way up, as no published model has: the file may be incomplete",
    )


def outline(unet: UNetConfig) -> tuple:
    return unet.layers, unet.depth, unet.mid_depth, unet.up_depth


def read_lists(cfg: UNetConfig, json: Settings) -> UNetConfig:
    """A UNet whose depths are still lists, as its config.json has them -> one in the form of UNetConfig."""
    levels = len(cfg.channels)
    up = json.several(UP_DEPTHS, None, COUNTS, levels)[::-1]
    down_depth = []
    up_depth = []
    for level in range(levels):
        has_attention = cfg.depth[level] != 0
        down_depth.append(read_depth(json, DEPTHS, cfg.depth[level], cfg.layers))
        up_depth.append(read_depth(json, UP_DEPTHS, up[level], cfg.layers + 1) if has_attention else 0)
    middle = cfg.mid_depth
    if isinstance(middle, list):  # of which diffusers gives the first to its one transformer in the middle
        middle = middle[0]
    return replace(cfg, mid_depth=middle, **depths(down_depth, up_depth))


def read_depth(json: Settings, key: str, blocks: Depth | list[int], resnets: int) -> Depth:
    """Of one level. diffusers passes over the rest of a list that is too long."""
    if not isinstance(blocks, list):
        return blocks
    if len(blocks) < resnets:
        json.refuse(key, f"a number for each of the {resnets} resnets of a level is expected")
    return plain(blocks[:resnets])


def plain(blocks: Sequence[int]) -> Depth:
    """One number where all are equal, or one for each."""
    return blocks[0] if len(set(blocks)) == 1 else tuple(blocks)


def depths(down: Sequence[Depth], up: Sequence[Depth]) -> dict[str, tuple[Depth, ...]]:
    """The fields of UNetConfig, from the finest level to the coarsest."""
    return {"depth": tuple(down), "up_depth": () if up == down else tuple(up)}


def write_depths(cfg: UNetConfig) -> dict:
    """The settings of a config.json, in which the middle has the number of the last level."""
    last = cfg.depth[-1]
    if not last and isinstance(cfg.mid_depth, int):
        last = cfg.mid_depth
    values: dict = {"mid_block_type": USUAL_MIDDLE, DEPTHS: [write_depth(depth) for depth in (*cfg.depth[:-1], last)]}
    for kind, middle in MIDDLES.items():
        if cfg.mid_depth == middle:
            values["mid_block_type"] = kind
    if cfg.up_depth:
        values[UP_DEPTHS] = [write_depth(depth) for depth in reversed(cfg.up_depth)]
    return values


def write_depth(depth: Depth) -> int | list[int]:
    """A level without attention has its number too."""
    return list(depth) if isinstance(depth, tuple) else max(depth, 1)
