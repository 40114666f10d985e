"""The sizes of a network by the shapes of its tensors, for files that come without a config.json.

What shapes cannot tell is the same in every published network: 32 groups in each GroupNorm; heads of 64 channels, or
8 heads on every level in SD 1 and the x4 upscaler; the activation of CLIP-L, which no other tower has.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from ldm.config import CLIPS, CLIPConfig, Depth, TinyVAEConfig, UNetConfig, VAEConfig

from ..checkpoint import published_name
from ..disk.safetensors import Stored
from ..errors import CheckpointError, shown
from .distilled import depths, plain
from .names import Section, open_clip_table, rename, unet_outline, unet_table, vae_table

GROUPS = 32  # of every GroupNorm
HEAD = 64  # channels
UNCLIP_WIDTHS = ((2048,), (1536,))  # of its image embedding; SDXL and the refiner add vectors of 2816 and 2560
ROWS = {tower.width: row for row, tower in CLIPS.items()}  # of CLIPS, by width
MOST_MODULES = 64  # of one kind in a row; the tower of ViT-bigG has 32 layers
DEPTH = 12  # names in a path
WHOLE_H = 24  # layers of ViT-H's tower


class Shapes:
    """Shapes by the names of our parameters."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], what: str, path: Path):
        self.shapes = shapes
        self.modules = {module for name in shapes for module in modules_around(name)}
        self.what = what
        self.path = path

    def size(self, name: str, axis: int) -> int:
        """The length of one axis. CheckpointError if the tensor is not there or has no such axis."""
        shape = self.shapes.get(name)
        if shape is None:
            self.refuse(f"{name} is missing")
        if axis >= len(shape) or shape[axis] < 1:
            self.refuse(f"{name} has the shape {shown(shape)}")
        return shape[axis]

    def width(self, name: str) -> int:
        """What a linear layer takes, or 0 where there is no such layer."""
        return self.size(name, 1) if name in self.shapes else 0

    def count(self, path: str) -> int:
        """How many numbered modules 0, 1, ... without a gap there are below a path. CheckpointError for more than any
        network has: tables are made of so many, of levels times blocks."""
        count = 0
        while f"{path}.{count}" in self.modules:
            count += 1
        if count > MOST_MODULES:
            self.refuse(f"it has more than {MOST_MODULES} modules {path}.*")
        return count

    def refuse(self, problem: str) -> NoReturn:
        raise CheckpointError(f"{self.path} holds no complete {self.what}: {problem}")


def modules_around(name: str) -> list[str]:
    """a.0.b.1.weight -> a.0, a.0.b and a.0.b.1: the modules that hold a parameter, but the outermost. No parameter of a
    network lies in more than DEPTH."""
    parts = name.split(".", DEPTH)[:DEPTH]
    return [".".join(parts[:end]) for end in range(2, len(parts))]


def sizes_of(
    part: str, section: Section, stored: Stored, path: Path, layout: str = ""
) -> UNetConfig | VAEConfig | TinyVAEConfig | CLIPConfig:
    """part: "unet", "vae" or a text tower. stored: its tensors, without the section's prefix. path: for the errors.
    CheckpointError if a tensor that tells a size is missing."""
    if part == "unet":
        return unet_sizes(stored, section.names, path, layout)
    if part == "vae":
        return vae_sizes(stored, section.names, path)
    return text_sizes(stored, section.names, path, section.tower)


def unet_sizes(stored: Stored, names: str, path: Path, layout: str = "") -> UNetConfig:
    """layout: "ldm" or "sgm", where the name of a vector's embedding does not tell whose it is."""
    shapes = Shapes(unet_shapes(stored, names, layout), "UNet", path)
    levels = shapes.count("down_blocks")
    if not levels:
        shapes.refuse("down_blocks.0 is missing")
    channels = tuple(shapes.size(f"down_blocks.{level}.resnets.0.conv1.weight", 0) for level in range(levels))
    layers = shapes.count("down_blocks.0.resnets")
    down = [level_depth(shapes, f"down_blocks.{level}", layers) for level in range(levels)]
    up = [level_depth(shapes, f"up_blocks.{levels - 1 - level}", layers + 1) for level in range(levels)]
    attention = first_attention(shapes, down)
    linear = len(shapes.shapes.get(attention + "proj_in.weight", ())) == 2
    upscaler = "class_embedding.weight" in shapes.shapes
    heads = (8,) * levels if upscaler or not linear else tuple(max(c // HEAD, 1) for c in channels)
    return UNetConfig(
        in_channels=shapes.size("conv_in.weight", 1),
        out_channels=shapes.size("conv_out.weight", 0),
        channels=channels,
        heads=heads,
        mid_depth=middle_depth(shapes),
        context_dim=shapes.size(attention + "transformer_blocks.0.attn2.to_k.weight", 1),
        linear_projection=linear,
        layers=layers,
        groups=GROUPS,
        cross_only=tuple(level < levels - 1 for level in range(levels)) if upscaler else (),
        vector_dim=shapes.width("add_embedding.linear_1.weight"),
        class_dim=shapes.width("class_embedding.linear_1.weight"),
        class_count=shapes.size("class_embedding.weight", 0) if upscaler else 0,
        guidance_dim=shapes.width("time_embedding.cond_proj.weight"),
        **depths(down, up),
    )


def level_depth(shapes: Shapes, block: str, resnets: int) -> Depth:
    """Transformer blocks behind each resnet of a level. Where one resnet has attention all have it: of a file that
    lacks some, the missing tensors are to be named."""
    counts = [shapes.count(f"{block}.attentions.{i}.transformer_blocks") for i in range(resnets)]
    if not counts or 0 in counts:
        return counts[0] if counts else 0
    return plain(counts)


def middle_depth(shapes: Shapes) -> Depth:
    """Distilled UNets have one resnet in the middle, or nothing there."""
    blocks = shapes.count("mid_block.attentions.0.transformer_blocks")
    resnets = shapes.count("mid_block.resnets")
    if blocks or resnets > 1:
        return max(blocks, 1)  # if it is missing it is to be named
    return (0,) * resnets


def first_attention(shapes: Shapes, down: Sequence[Depth]) -> str:
    """The path of one attention, which shows what all have in common; a UNet without any is none."""
    middle = "mid_block.attentions.0."
    if shapes.count(middle + "transformer_blocks"):
        return middle
    return next((f"down_blocks.{level}.attentions.0." for level, depth in enumerate(down) if depth), middle)


def unet_shapes(stored: Stored, names: str, layout: str) -> dict[str, tuple[int, ...]]:
    if names == "diffusers":
        return shapes_of(stored)
    depth, layers = unet_outline(stored)
    width = stored["label_emb.0.0.weight"].entry.shape[-1:] if "label_emb.0.0.weight" in stored else ()
    class_dim = layout == "ldm" or layout == "" and width in UNCLIP_WIDTHS
    table = unet_table(
        UNetConfig(
            in_channels=0,
            channels=(0,) * len(depth),
            heads=(),
            depth=depth,
            mid_depth=1,
            context_dim=0,
            linear_projection=True,
            layers=layers,
            class_dim=int(class_dim),
            class_count=int("label_emb.weight" in stored),
        )
    )
    return shapes_of(stored, {theirs: ours for ours, theirs in table.items()})


def vae_sizes(stored: Stored, names: str, path: Path) -> VAEConfig | TinyVAEConfig:
    if "decoder.layers.0.weight" in stored:
        return tiny_vae_sizes(stored, path)
    raw = Shapes(shapes_of(stored), "VAE", path)
    table = {}
    if names == "ldm":
        layers = raw.count("encoder.down.0.block")
        table = vae_table(VAEConfig(channels=(0,) * raw.count("encoder.down"), layers=layers))
    shapes = Shapes(shapes_of(stored, {theirs: ours for ours, theirs in table.items()}), "VAE", path)
    levels = shapes.count("encoder.down_blocks")
    if not levels:
        shapes.refuse("its encoder is missing")
    return VAEConfig(
        channels=tuple(
            shapes.size(f"encoder.down_blocks.{level}.resnets.0.conv1.weight", 0) for level in range(levels)
        ),
        latent_channels=shapes.size("decoder.conv_in.weight", 1),
        image_channels=shapes.size("encoder.conv_in.weight", 1),
        layers=shapes.count("encoder.down_blocks.0.resnets"),
        groups=GROUPS,
    )


def text_sizes(stored: Stored, names: str, path: Path, tower: str = "") -> CLIPConfig:
    """tower: "l", "h" or "bigg"; by its width where nobody knows better."""
    raw = Shapes(shapes_of(stored), "text tower", path)
    transposed = names == "open_clip" and "text_projection.weight" not in stored  # one file keeps transformers' way
    table = {}
    if names == "open_clip":
        layers = raw.count("transformer.resblocks")
        table = open_clip_table(CLIPConfig(layers=layers, width=0, heads=0, hidden=0, quick_gelu=False))
    shapes = Shapes(shapes_of(stored, {theirs: ours for ours, theirs in table.items()}), "text tower", path)

    width = shapes.size("text_model.embeddings.token_embedding.weight", 1)
    layers = shapes.count("text_model.encoder.layers")
    if not layers:
        shapes.refuse("text_model.encoder.layers.0 is missing")
    tower = tower or ROWS.get(width, "h" if names == "open_clip" else "l")
    if tower == "h" and (layers == WHOLE_H or names == "open_clip" and "text_projection" in stored):
        layers -= 1  # SD 2 reads the layer before the last, so ours ends there
    projection = 0
    if tower == "bigg":
        projection = raw.size("text_projection", 1) if transposed else raw.size("text_projection.weight", 0)
    return CLIPConfig(
        layers=layers,
        width=width,
        heads=max(width // HEAD, 1),
        hidden=shapes.size("text_model.encoder.layers.0.mlp.fc1.weight", 0),
        quick_gelu=tower == "l",
        projection=projection,
        vocab=shapes.size("text_model.embeddings.token_embedding.weight", 0),
        length=shapes.size("text_model.embeddings.position_embedding.weight", 0),
    )


def tiny_vae_sizes(stored: Stored, path: Path) -> TinyVAEConfig:
    """Its encoder is one sequence: at each level a convolution, which has a weight of its own, then its blocks."""
    shapes = Shapes(shapes_of(stored), "TAESD", path)
    blocks = []
    for layer in range(shapes.count("encoder.layers")):
        if f"encoder.layers.{layer}.conv.0.weight" not in shapes.shapes:
            blocks.append(0)
        elif blocks:
            blocks[-1] += 1
    last = len(blocks) - 1  # the last convolution makes the latents
    return TinyVAEConfig(
        channels=shapes.size("encoder.layers.0.weight", 0),
        blocks=tuple(blocks[:last]),
        latent_channels=shapes.size("decoder.layers.0.weight", 1),
        image_channels=shapes.size("encoder.layers.0.weight", 1),
    )


def shapes_of(stored: Stored, table: Mapping[str, str] = {}) -> dict[str, tuple[int, ...]]:
    return {rename(published_name(key), table): held.entry.shape for key, held in stored.items()}
