"""Panoramas against diffusers' pipeline, which averages the steps of windows where we average what the network says."""

from functools import partial

import diffusers
import torch

import weights
from ldm import tasks
from support.numbers import relative_l2
from support.pictures import PROMPTS, scheduler
from support.tiny import tiny_sd


def test_equals_diffusers(tmp_path):
    """Windows of 8 latents, each 4 from the last; its own are 64, each 8 from the last."""
    built = tiny_sd(tmp_path)
    pipeline = diffusers.StableDiffusionPanoramaPipeline(**built.components, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = scheduler("ddim", built.scheduler.config)
    pipeline.get_views = partial(pipeline.get_views, window_size=8, stride=4)
    noise = torch.randn(1, 4, 12, 16, generator=torch.Generator().manual_seed(7))
    expected = pipeline(
        prompt=PROMPTS[0], negative_prompt="blurry", height=96, width=128, num_inference_steps=3, guidance_scale=5.0,
        latents=noise.clone(), output_type="latent",
    ).images  # fmt: skip
    ours = tasks.panorama(
        weights.load(tmp_path), PROMPTS[0], window=8, stride=4, negative="blurry", height=96, width=128, steps=3,
        guidance=5.0, sampler="ddim", schedule="leading", noise=noise, decode=False,
    )  # fmt: skip
    assert relative_l2(ours, expected) < 1e-4  # as other tasks; 1e-6 is usual
