"""Layers in tiles, on activations that do not fit in memory as a whole; ldm/tiles.py makes them from the networks.

A norm needs its whole input before the first of its outputs, so all tiles go through the layers once for each norm.
Activations are kept for the whole picture wherever they are small, so that this begins again from there.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil, floor, prod

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor, nn

Span = tuple[int, int]  # rows or columns: the first, and the one after the last
Known = dict[nn.GroupNorm, tuple[Tensor, Tensor]]  # a norm of this picture is scale * x + shift, both (b c 1 1)


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


def run(layers: list[Layer], x: Tensor, size: Sequence[int], tile: int) -> Tensor:
    """All layers on x (1 c h w), in tiles. size: of the latents, of which a tile has `tile` in height and width."""
    known: Known = {}
    for stage in cut_into_stages(layers, x.shape):
        for i, layer in enumerate(stage):
            for norm, before in layer.norms:
                known[norm] = measure([*stage[:i], *before], x, norm, known, size, tile)
        x = assemble(stage, x, known, size, tile)
    return x


def cut_into_stages(layers: list[Layer], shape: Sequence[int]) -> list[list[Layer]]:
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
    layers: list[Layer], x: Tensor, norm: nn.GroupNorm, known: Known, size: Sequence[int], tile: int
) -> tuple[Tensor, Tensor]:
    """The norm as scale and shift (b c 1 1), from the sums over all tiles of the layers' output, its input."""
    total = x.new_zeros(len(x), norm.num_channels, dtype=torch.float64)
    squares = torch.zeros_like(total)
    pixels = 0
    for rows, columns in tiles_of(layers, x, size, tile):
        values = part(layers, x, known, rows, columns)
        # A few channels at a time, since all of them in float64 are a copy of twice the size
        few = values.split(ceil(norm.num_channels / 16), dim=1)
        total += torch.cat([channels.sum((2, 3), dtype=torch.float64) for channels in few], dim=1)
        squares += torch.cat([channels.double().square().sum((2, 3)) for channels in few], dim=1)
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


def assemble(layers: list[Layer], x: Tensor, known: Known, size: Sequence[int], tile: int) -> Tensor:
    """The layers' output for the whole of x, tile by tile."""
    zoom = zoom_of(layers)
    out = x.new_empty(len(x), layers[-1].channels, round(x.shape[2] * zoom), round(x.shape[3] * zoom))
    for rows, columns in tiles_of(layers, x, size, tile):
        out[:, :, slice(*rows), slice(*columns)] = part(layers, x, known, rows, columns)
    return out


def tiles_of(layers: list[Layer], x: Tensor, size: Sequence[int], tile: int) -> Iterator[tuple[Span, Span]]:
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


def reach_in_latents(layers: list[Layer], zoom: float = 1) -> float:
    """How far a pixel of the last layer looks to each side of the first layer's input, whose pixels are 1/zoom latents:
    12.25 for the published decoders. It is the margin of a tile that goes through all layers at once."""
    total = 0.0
    for layer in layers:
        zoom *= layer.zoom
        total += layer.reach / zoom
    return total
