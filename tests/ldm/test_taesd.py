"""TAESD equals AutoencoderTiny of diffusers, by value, and serves wherever the KL autoencoder does.

The bounds are those of test_networks.
"""

import functools
from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderTiny
from torch import Tensor

import weights
from ldm import tasks
from ldm.config import TAESD, LatentConfig, TinyVAEConfig
from ldm.taesd import TinyVAE
from support.numbers import as_float, pair, randn, relative_error, relative_l2

SIZES = {
    "published": (TAESD, dict()),  # diffusers' defaults
    "tiny": (
        TinyVAEConfig(channels=16, blocks=(2, 1, 3), latent_channels=5),
        dict(
            encoder_block_out_channels=[16] * 3,
            decoder_block_out_channels=[16] * 3,
            num_encoder_blocks=[2, 1, 3],
            num_decoder_blocks=[3, 1, 2],
            latent_channels=5,
        ),
    ),
}


@functools.cache
def tiny_vae_pair(name: str) -> tuple[TinyVAE, AutoencoderTiny]:
    config, settings = SIZES[name]
    return pair(TinyVAE(config), AutoencoderTiny(**settings), seed=2)


@torch.no_grad()
def errors(pair: tuple, image: Tensor, z: Tensor, error=relative_error) -> dict[str, float]:
    ours, reference = pair
    return {
        "encoded": error(ours.encode(image).mode(), reference.encode(image).latents),
        "decoded": error(ours.decode(z), reference.decode(z).sample),
    }


@pytest.mark.parametrize("name", SIZES)
def test_equals_diffusers(name):
    pair = tiny_vae_pair(name)
    factor, channels = pair[0].config.factor, pair[0].config.latent_channels
    image, z = randn(2, 3, 5 * factor, 3 * factor), 2 * randn(2, channels, 5, 3, seed=1)  # some of z beyond 3
    found = errors(pair, image, z)
    assert pair[0].encode(image).mode().shape == z.shape and max(found.values()) <= 1e-12, found
    found = errors(as_float(pair), image.float(), z.float(), relative_l2)
    assert max(found.values()) <= 2e-6, found


def test_posterior_is_a_point():
    posterior = tiny_vae_pair("tiny")[0].encode(randn(2, 3, 20, 12))
    assert torch.equal(posterior.sample(randn(2, 5, 5, 3, seed=3)), posterior.mode())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_stands_in_for_the_vae_of_a_model(dtype):
    """It reads latents as the UNet sees them; those of the KL autoencoder here are 1 / 0.72 times as large."""
    model = weights.load(weights.MINIATURE)
    taesd = as_float(tiny_vae_pair("published"))[0].to(dtype)
    swapped = replace(model, vae=taesd, facts=replace(model.facts, vae=TAESD, latent=LatentConfig(scale=1.0)))
    z = tasks.text_to_image(model, "a red apple", seeds=[0], steps=2, decode=False)
    image = tasks.text_to_image(swapped, "a red apple", seeds=[0], steps=2)
    assert image.shape == (1, 3, 64, 64)
    assert torch.equal(image, taesd.decode(z.to(dtype)).float().clamp(-1, 1))
    assert torch.equal(swapped.to_latents(taesd.encode(image.to(dtype))), taesd.encode(image.to(dtype)).mode())


def test_previews_the_guess_of_every_step():
    model, taesd, previews = weights.load(weights.MINIATURE), as_float(tiny_vae_pair("published"))[0], []
    tasks.text_to_image(
        model,
        "a red apple",
        seeds=[0, 1],
        steps=3,
        sampler="euler",
        watch=lambda step: previews.append(taesd.decode(step.x0)),
    )
    assert [preview.shape for preview in previews] == [(2, 3, 64, 64)] * 3
    assert all(preview.isfinite().all() for preview in previews)
