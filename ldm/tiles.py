"""Autoencoders in tiles, for pictures whose activations do not fit in memory: equal to the whole, to rounding.

    large = tiles.tiled(model)                  # a Model that any task takes
    image = tiles.decode(model.vae, z)          # or by hand

Three things make a tile differ from the same place of the whole picture, and none is left to chance. Its convolutions
see an edge where there is none: a tile is computed with a margin as wide as the layers reach. Its norms know only the
tile: sums over all tiles are taken first, without their margins and in float64. Attention looks everywhere: the middle
block, on the smallest activations, is computed whole.

This file has the doors and the layers of each network; ldm/tiling.py the work.
"""

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import inf

import torch
from torch import Tensor, nn

from . import ops
from .model import Model
from .taesd import Block, TinyVAE
from .tiling import Known, Layer, normalise, run
from .vae import VAE, Downsample, Level, Posterior, Resnet, Upsample

Autoencoder = VAE | TinyVAE


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
    size = (image.shape[2] // vae.factor, image.shape[3] // vae.factor)
    if isinstance(vae, TinyVAE):
        z = run(tiny_layers(vae.encoder.layers), (image + 1) / 2, size, tile)
        return Posterior(z, logvar=torch.full_like(z, -inf))
    encoder = vae.encoder
    x = encoder.mid_block(run(encoder_layers(vae), image, size, tile))
    x = encoder.conv_out(ops.group_norm(x, encoder.conv_norm_out, silu=True))
    mean, logvar = vae.quant_conv(x).chunk(2, dim=1)
    return Posterior(mean, logvar.clamp(-30, 20))


# The layers of each network


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
        elif isinstance(module, Block):
            layers.append(plain_layer(module, channels, 3))
        else:
            layers.append(plain_layer(module, channels, 0, 2 if isinstance(module, nn.Upsample) else 1))
    return layers
