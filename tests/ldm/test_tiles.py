"""Autoencoders in tiles against the whole, and the memory that both take."""

import copy
from dataclasses import replace

import pytest
import torch

import weights
from ldm import tasks, tiles, tiling
from ldm.config import VAES, TinyVAEConfig, VAEConfig
from ldm.taesd import TinyVAE
from ldm.vae import VAE
from support.allocations import peak_of
from support.numbers import randn, randomize, relative_error, relative_l2
from support.pictures import pictures

# Sums over tiles are rounded in another order; with random weights that grows over some thirty layers.
DOUBLE = 1e-11
CONFIG = VAEConfig(channels=(4, 8, 12, 16), groups=4)


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def vae():
    return randomize(VAE(CONFIG).double(), seed=1).eval()


@pytest.fixture(scope="module")
def tiny():
    return randomize(TinyVAE(TinyVAEConfig(channels=6)).double(), seed=2).eval()


@pytest.fixture(scope="module")
def miniature():
    return weights.load(weights.MINIATURE)


@pytest.mark.parametrize("size, tile", [((7, 10), 4), ((2, 3), 1), ((3, 20), 16)])
def test_tiles_are_the_whole(vae, size, tile):
    """Sides that are no multiples of the tile, tiles far smaller than the reach of their layers, a strip."""
    z = 3 * randn(2, 4, *size)
    assert relative_error(tiles.decode(vae, z, tile), vae.decode(z)) < DOUBLE
    image = pictures(2, 8 * size[0], 8 * size[1]).double()
    whole = vae.encode(image)
    found = tiles.encode(vae, image, tile)
    assert relative_error(found.mean, whole.mean) < DOUBLE
    assert relative_error(found.logvar, whole.logvar) < DOUBLE


@pytest.mark.parametrize("size, tile", [((9, 14), 4), ((3, 20), 7)])
def test_tiles_without_norms_are_the_whole(tiny, size, tile):
    z = 3 * randn(2, 4, *size)
    assert relative_error(tiles.decode(tiny, z, tile), tiny.decode(z)) < DOUBLE
    image = pictures(2, 8 * size[0], 8 * size[1]).double()
    found = tiles.encode(tiny, image, tile)
    assert relative_error(found.mode(), tiny.encode(image).mode()) < DOUBLE
    assert found.logvar.eq(-torch.inf).all()


def test_a_picture_of_the_miniature_within_a_thousandth_of_a_level(miniature):
    """Its one group of channels is the hardest case of statistics: tiles with their own are off by 149 of 255."""
    z = miniature.vae.encode(pictures(1, 96, 160)).mode()
    whole = miniature.vae.decode(z)
    assert ((tiles.decode(miniature.vae, z, tile=8) - whole).abs().max() * 127.5).item() < 1e-3


def test_statistics_survive_a_large_mean(vae):
    """A mean of a thousand times the spread: sums in float32 would leave nothing of the variance."""
    norm = vae.decoder.conv_norm_out
    x = 1000 + randn(1, norm.num_channels, 30, 40).float()
    scale, shift = tiling.measure([], x, norm, {}, (30, 40), 16)
    expected = torch.nn.functional.group_norm(x.double(), norm.num_groups, norm.weight, norm.bias, norm.eps)
    assert relative_error(x.double() * scale + shift, expected) < 2e-4  # what float32 leaves of 1000 +- 1: 6e-5


def test_reach_of_the_published_layers():
    """In latents: resnets 2 a piece, three per level, on pixels of 1, 1/2, 1/4 and 1/8; three upsamplers; the last."""
    with torch.device("meta"):
        published = VAE(VAES["sdxl"])
    assert tiling.reach_in_latents(tiles.decoder_layers(published)) == 12.25
    assert tiling.reach_in_latents(tiles.encoder_layers(published), zoom=8) == 8.5


def test_a_layer_that_looks_less_far_than_it_does_is_noticed(vae):
    """The margin is needed to its last pixel: one less per layer changes the picture."""
    layers = tiles.decoder_layers(vae)
    x = randn(1, 16, 6, 10)
    right = tiling.run(layers, x, (6, 10), 4)
    short = [replace(layer, reach=max(layer.reach - 1, 0)) for layer in layers]
    assert relative_error(tiling.run(short, x, (6, 10), 4), right) > 1e-3


def test_peak_memory_is_at_most_a_fifth():
    """Channels grow as in the published VAEs. Of a picture of 1024 latents in width: see docs/large.md."""
    vae = randomize(VAE(VAEConfig(channels=(8, 16, 16, 16), layers=1, groups=4)), seed=1).eval()
    z = randn(1, 4, 8, 224).float()
    assert peak_of(lambda: tiles.decode(vae, z, tile=8)) < peak_of(lambda: vae.decode(z)) / 5
    image = randn(1, 3, 64, 640).float()
    assert peak_of(lambda: tiles.encode(vae, image, tile=8)) < peak_of(lambda: vae.encode(image)) / 5


def test_a_model_in_tiles_is_used_by_tasks(miniature):
    """The picture is the same, the parameters are shared, and the model that was given stays as it was."""
    large = tiles.tiled(miniature, tile=4)
    sized = dict(height=64, width=96, steps=2, seeds=[3, 8])
    expected = tasks.image_to_image(miniature, pictures(2), "a red apple", **sized)
    called = []
    large.vae.decoder.up_blocks[0].register_forward_hook(lambda *inputs: called.append(inputs))
    assert (tasks.image_to_image(large, pictures(2), "a red apple", **sized) - expected).abs().max() < 1e-4
    assert not called  # the level is not run as one, but by its layers
    assert list(large.vae.state_dict()) == list(miniature.vae.state_dict())
    assert next(large.vae.parameters()) is next(miniature.vae.parameters())
    assert isinstance(large.vae, VAE) and "decode" not in vars(miniature.vae)


def test_one_picture_at_a_time(miniature):
    one = tiles.sliced(miniature)
    z = randn(3, 4, 6, 5).float()
    batches = []
    hook = miniature.vae.decoder.register_forward_hook(lambda module, inputs, output: batches.append(len(output)))
    found = one.vae.decode(z)
    hook.remove()
    assert batches == [1, 1, 1]
    assert relative_l2(found, miniature.vae.decode(z)) < 1e-5
    image = pictures(3, 48, 40)
    assert relative_l2(one.vae.encode(image).mean, miniature.vae.encode(image).mean) < 1e-5


def test_what_does_not_fit_is_refused(vae, miniature):
    with pytest.raises(ValueError, match="^tile 0: at least 1 latent is needed, such as 64$"):
        tiles.tiled(miniature, tile=0)
    with pytest.raises(ValueError, match=r"^picture \(1, 3, 60, 64\): height and width must be multiples of 8$"):
        tiles.encode(vae, torch.zeros(1, 3, 60, 64), tile=4)


def test_gradients_go_through_tiles(vae):
    """Those of a guidance by the picture, say: the statistics are a function of the latents too."""
    gradients = []
    for decode in (vae.decode, lambda z: tiles.decode(vae, z, tile=2)):
        z = randn(1, 4, 3, 5).requires_grad_()
        with torch.enable_grad():
            gradients += torch.autograd.grad(decode(z).square().sum(), z)
    assert relative_error(gradients[1], gradients[0]) < DOUBLE


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_as_good_as_the_whole(vae, dtype):
    half = copy.deepcopy(vae).to(dtype)
    z = randn(1, 4, 5, 7)
    exact = vae.decode(z)
    error = relative_l2(half.decode(z.to(dtype)).double(), exact)
    found = tiles.decode(half, z.to(dtype), tile=4)
    assert found.dtype == dtype
    assert relative_l2(found.double(), exact) < 2 * error
