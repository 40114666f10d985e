"""Autoencoders in tiles, for pictures whose activations do not fit in memory: equal to the whole, to rounding.

    large = tiles.tiled(model)                  # a Model that any task takes
    image = tiles.decode(model.vae, z)          # or by hand

Three things make a tile differ from the same place of the whole picture, and none is left to chance. Its convolutions
see an edge where there is none: a tile is computed with a margin as wide as the layers reach. Its norms know only the
tile: sums over all tiles are taken first, without their margins and in float64. Attention looks everywhere: the middle
block, on the smallest activations, is computed whole.

A norm needs its whole input before the first of its outputs, so all tiles go through the layers once for each norm.
Activations are kept for the whole picture wherever they are small, so that this begins again from there.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from math import ceil, floor, inf, prod

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor, nn

from . import ops, taesd
from .model import Model
from .taesd import TinyVAE
from .vae import VAE, Downsample, Level, Posterior, Resnet, Upsample

Autoencoder = VAE | TinyVAE
Span = tuple[int, int]  # rows or columns: the first, and the one after the last
Known = dict[nn.GroupNorm, tuple[Tensor, Tensor]]  # a norm of this picture is scale * x + shift, both (b c 1 1)


def tiled(model: Model, tile: int = 64) -> Model:
    """The same model, whose autoencoder encodes and decodes in tiles of `tile` latents, one picture at a time. It
    shares its parameters. Raises ValueError for a tile without latents."""
    check_tile(tile)
    vae = model.vae
    return replace(model, vae=with_coders(vae, partial(encode, vae, tile=tile), partial(decode, vae, tile=tile)))


def sliced(model: Model) -> Model:
    """The same model, whose autoencoder encodes and decodes one picture at a time. It shares its parameters."""
    vae = model.vae
    return replace(model, vae=with_coders(vae, partial(encode_each, vae.encode), partial(decode_each, vae.decode)))


def with_coders(
    vae: Autoencoder, encode: Callable[[Tensor], Posterior], decode: Callable[[Tensor], Tensor]
) -> Autoencoder:
    """The same autoencoder, layers and all, with these in place of its own methods."""
    other = copy.copy(vae)
    other.__dict__.update(encode=encode, decode=decode)
    return other


def encode_each(encode: Callable[[Tensor], Posterior], image: Tensor) -> Posterior:
    found = [encode(one) for one in image.split(1)]
    return Posterior(torch.cat([one.mean for one in found]), torch.cat([one.logvar for one in found]))


def decode_each(decode: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    return torch.cat([decode(one) for one in z.split(1)])


def decode(vae: Autoencoder, z: Tensor, tile: int = 64) -> Tensor:
    """vae.decode(z) in tiles of `tile` latents: unscaled latents z (b 4 h w) -> image (b 3 f*h f*w)."""
    check_tile(tile)
    if max(z.shape[2:]) <= tile:
        return decode_each(vae.decode, z)
    return decode_each(partial(decode_one, vae, tile=tile), z)


def encode(vae: Autoencoder, image: Tensor, tile: int = 64) -> Posterior:
    """vae.encode(image) in tiles of `tile` latents: image (b 3 f*h f*w) in [-1, 1] -> Posterior over unscaled latents.
    Raises ValueError for a picture that is not whole latents."""
    check_tile(tile)
    if image.shape[2] % vae.factor or image.shape[3] % vae.factor:
        raise ValueError(f"picture {tuple(image.shape)}: height and width must be multiples of {vae.factor}")
    if max(image.shape[2:]) <= tile * vae.factor:
        return encode_each(vae.encode, image)
    return encode_each(partial(encode_one, vae, tile=tile), image)


def check_tile(tile: int) -> None:
    if tile < 1:
        raise ValueError(f"tile {tile}: at least 1 latent is needed, such as 64")


def decode_one(vae: Autoencoder, z: Tensor, tile: int) -> Tensor:
    if isinstance(vae, TinyVAE):
        return run(tiny_layers(vae.decoder.layers), torch.tanh(z / 3) * 3, z.shape[2:], tile) * 2 - 1
    x = vae.decoder.mid_block(vae.decoder.conv_in(vae.post_quant_conv(z)))
    return run(decoder_layers(vae), x, z.shape[2:], tile)


def encode_one(vae: Autoencoder, image: Tensor, tile: int) -> Posterior:
    size = torch.Size([image.shape[2] // vae.factor, image.shape[3] // vae.factor])
    if isinstance(vae, TinyVAE):
        z = run(tiny_layers(vae.encoder.layers), (image + 1) / 2, size, tile)
        return Posterior(z, logvar=torch.full_like(z, -inf))
    encoder = vae.encoder
    x = encoder.mid_block(run(encoder_layers(vae), image, size, tile))
    x = encoder.conv_out(ops.group_norm(x, encoder.conv_norm_out, silu=True))
    mean, logvar = vae.quant_conv(x).chunk(2, dim=1)
    return Posterior(mean, logvar.clamp(-30, 20))


# What a tile needs to know of a layer


@dataclass(frozen=True)
class Layer:
    """run(x, known) -> its output. channels: of that. reach: how far a pixel looks to each side, in pixels of the
    output. zoom: 2 or 1/2 where the layer changes the size. norms: those inside, in order, each with what comes before
    it in this layer."""

    run: Callable[[Tensor, Known], Tensor]
    channels: int
    reach: float = 0
    zoom: float = 1
    norms: "tuple[tuple[nn.GroupNorm, tuple[Layer, ...]], ...]" = ()


def plain_layer(module: nn.Module, channels: int, reach: float = 0, zoom: float = 1) -> Layer:
    """A layer without a norm."""
    return Layer(lambda x, known: module(x), channels, reach, zoom)


def norm_and_conv(norm: nn.GroupNorm, conv: nn.Conv2d) -> Layer:
    """A norm, SiLU and a 3x3 convolution."""
    return Layer(lambda x, known: conv(normalise(x, norm, known)), conv.out_channels, 1, norms=((norm, ()),))


def resnet_layer(block: Resnet) -> Layer:
    first = norm_and_conv(block.norm1, block.conv1)
    second = norm_and_conv(block.norm2, block.conv2)

    def run(x: Tensor, known: Known) -> Tensor:
        return second.run(first.run(x, known), known).add_(block.conv_shortcut(x))

    norms = (block.norm1, ()), (block.norm2, (first,))
    return Layer(run, block.conv2.out_channels, first.reach + second.reach, norms=norms)


def level_layers(level: Level) -> list[Layer]:
    layers = [resnet_layer(block) for block in level.resnets if isinstance(block, Resnet)]
    for change in (*level.downsamplers, *level.upsamplers):
        if isinstance(change, Downsample):
            layers.append(plain_layer(change, change.conv.out_channels, 1 / 2, 1 / 2))
        if isinstance(change, Upsample):
            layers.append(plain_layer(change, change.conv.out_channels, 1, 2))
    return layers


def decoder_layers(vae: VAE) -> list[Layer]:
    """All that comes after the middle block."""
    decoder = vae.decoder
    layers = [layer for level in decoder.up_blocks if isinstance(level, Level) for layer in level_layers(level)]
    return [*layers, norm_and_conv(decoder.conv_norm_out, decoder.conv_out)]


def encoder_layers(vae: VAE) -> list[Layer]:
    """All that comes before the middle block."""
    encoder = vae.encoder
    layers = [layer for level in encoder.down_blocks if isinstance(level, Level) for layer in level_layers(level)]
    return [plain_layer(encoder.conv_in, encoder.conv_in.out_channels, 1), *layers]


def tiny_layers(modules: nn.Sequential) -> list[Layer]:
    """TAESD has no norms and no attention: everything is tiles."""
    layers: list[Layer] = []
    channels = 0
    for module in modules:
        if isinstance(module, nn.Conv2d):
            channels = module.out_channels
            layers.append(plain_layer(module, channels, 1 / module.stride[0], 1 / module.stride[0]))
        elif isinstance(module, taesd.Block):
            layers.append(plain_layer(module, channels, 3))
        else:
            layers.append(plain_layer(module, channels, 0, 2 if isinstance(module, nn.Upsample) else 1))
    return layers


def reach_in_latents(layers: list[Layer], zoom: float = 1) -> float:
    """How far a pixel of the last layer looks to each side of the first layer's input, whose pixels are 1/zoom latents:
    12.25 for the published decoders. It is the margin of a tile that goes through all layers at once."""
    total = 0.0
    for layer in layers:
        zoom *= layer.zoom
        total += layer.reach / zoom
    return total


# The work


def run(layers: list[Layer], x: Tensor, size: torch.Size, tile: int) -> Tensor:
    """All layers on x (1 c h w), in tiles. size: of the latents, of which a tile has `tile` in height and width."""
    known: Known = {}
    for stage in cut_into_stages(layers, x.shape):
        for i, layer in enumerate(stage):
            for norm, before in layer.norms:
                known[norm] = measure([*stage[:i], *before], x, norm, known, size, tile)
        x = assemble(stage, x, known, size, tile)
    return x


def cut_into_stages(layers: list[Layer], shape: torch.Size) -> list[list[Layer]]:
    """Groups of layers, between which the activations (b c h w) of the whole picture are kept. The input and the output
    of a group are at most half as large as the largest activation; the whole decoder holds three of that size."""
    channels, pixels = shape[1], shape[2] * shape[3]
    sizes = [float(channels * pixels)]
    for layer in layers:
        pixels *= layer.zoom**2
        sizes.append(layer.channels * pixels)
    stages = []
    begin = 0
    for i in range(1, len(layers) + 1):
        if sizes[begin] + sizes[i] <= max(sizes) / 2 or i == len(layers):
            stages.append(layers[begin:i])
            begin = i
    return stages


def normalise(x: Tensor, norm: nn.GroupNorm, known: Known) -> Tensor:
    """ops.group_norm(x, norm, silu=True) with the statistics of the whole picture."""
    scale, shift = known[norm]
    return F.silu((x * scale).add_(shift), inplace=True).to(x.dtype)


def measure(
    layers: list[Layer], x: Tensor, norm: nn.GroupNorm, known: Known, size: torch.Size, tile: int
) -> tuple[Tensor, Tensor]:
    """The norm as scale and shift (b c 1 1), from the sums over all tiles of the layers' output, its input."""
    total = x.new_zeros(len(x), norm.num_channels, dtype=torch.float64)
    squares = torch.zeros_like(total)
    pixels = 0
    for rows, columns in tiles_of(layers, x, size, tile):
        values = part(layers, x, known, rows, columns)
        # Channel by channel, since all of them in float64 are a copy of twice the size
        for channel, plane in enumerate(values.unbind(1)):
            plane = plane.double()
            total[:, channel] += plane.sum((1, 2))
            squares[:, channel] += plane.square().sum((1, 2))
        pixels += values.shape[2] * values.shape[3]
    count = pixels * norm.num_channels // norm.num_groups
    mean = reduce(total, "b (g c) -> b g 1", "sum", g=norm.num_groups) / count
    var = reduce(squares, "b (g c) -> b g 1", "sum", g=norm.num_groups) / count - mean.square()
    weight = rearrange(norm.weight.double(), "(g c) -> g c", g=norm.num_groups)
    bias = rearrange(norm.bias.double(), "(g c) -> g c", g=norm.num_groups)
    scale = weight / (var.clamp(min=0) + norm.eps).sqrt()
    shift = bias - mean * scale
    dtype = torch.promote_types(x.dtype, torch.float32)
    scale, shift = (rearrange(a, "b g c -> b (g c) 1 1").to(dtype) for a in (scale, shift))
    return scale, shift


def assemble(layers: list[Layer], x: Tensor, known: Known, size: torch.Size, tile: int) -> Tensor:
    """The layers' output for the whole of x, tile by tile."""
    zoom = zoom_of(layers)
    out = x.new_empty(len(x), layers[-1].channels, round(x.shape[2] * zoom), round(x.shape[3] * zoom))
    for rows, columns in tiles_of(layers, x, size, tile):
        out[:, :, slice(*rows), slice(*columns)] = part(layers, x, known, rows, columns)
    return out


def tiles_of(layers: list[Layer], x: Tensor, size: torch.Size, tile: int) -> Iterator[tuple[Span, Span]]:
    """Rows and columns of each tile of the layers' output."""
    zoom = zoom_of(layers)
    height, width = round(x.shape[2] * zoom), round(x.shape[3] * zoom)
    side = tile * height // size[0]
    for top in range(0, height, side):
        for left in range(0, width, side):
            yield (top, min(top + side, height)), (left, min(left + side, width))


def part(layers: list[Layer], x: Tensor, known: Known, rows: Span, columns: Span) -> Tensor:
    """These rows and columns of the layers' output, from as much of x as they depend on."""
    zoom = zoom_of(layers)
    above, below = needed(layers, rows, x.shape[2])
    left, right = needed(layers, columns, x.shape[3])
    out = x[:, :, above:below, left:right]
    for layer in layers:
        out = layer.run(out, known)
    top = rows[0] - round(above * zoom)
    side = columns[0] - round(left * zoom)
    return out[:, :, top : top + rows[1] - rows[0], side : side + columns[1] - columns[0]]


def needed(layers: list[Layer], span: Span, size: int) -> Span:
    """The rows (or columns) of the input, which has `size` of them, that a span of the layers' output depends on."""
    start, stop = span
    for layer in reversed(layers):
        start = floor((start - layer.reach) / layer.zoom)
        stop = ceil((stop + layer.reach) / layer.zoom)
    # Layers that halve the size must find pairs of rows as in the whole
    step = max(1, round(1 / zoom_of(layers)))
    return max(0, start // step * step), min(size, ceil(stop / step) * step)


def zoom_of(layers: list[Layer]) -> float:
    return prod(layer.zoom for layer in layers)
