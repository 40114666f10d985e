"""Samplers as text_to_image uses them, on the small model that ships."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

import weights
from ldm import conditioning, tasks
from ldm.config import NoiseConfig
from samplers import SAMPLERS, noise
from samplers.denoiser import denoiser
from samplers.noise import BrownianTree, Streams
from samplers.schedules import choose, noise_table, start_std
from support.numbers import relative_l2

PROMPT = "a red apple"


@pytest.fixture(scope="module")
def model():
    return weights.load(weights.MINIATURE)


def draw(model, sampler: str, **options) -> torch.Tensor:
    return tasks.text_to_image(model, PROMPT, sampler=sampler, decode=False, **dict(steps=4, seeds=[3]) | options)


@torch.no_grad()
def test_cfg_pp_is_its_formula_on_two_runs_of_the_network(model):
    """x' = guided + (lower / sigma) (x - unguided), each estimate from a UNet call of its own."""
    facts, sizes = model.facts, conditioning.Sizes((64, 64), (64, 64))
    cond, uncond = (conditioning.encode(model, [text], sizes) for text in (PROMPT, None))
    levels, scale = noise_table(), 0.7
    given, free = (
        denoiser(lambda x, t, c=c: model.unet(x, t, c.context, c.vector), levels, facts.prediction)
        for c in (cond, uncond)
    )
    sigmas, _ = choose(levels, facts.schedule, 4)
    x = Streams([3], (4, 8, 8)).draw() * start_std(sigmas[0], facts.schedule, SAMPLERS["euler_cfg_pp"].convention)
    for sigma, lower in pairwise(sigmas):
        without = free(x, sigma)
        x = without + scale * (given(x, sigma) - without) + lower / sigma * (x - without)
    assert relative_l2(draw(model, "euler_cfg_pp", guidance=scale), x) < 1e-4  # batches of two and of one round apart


def test_scale_of_cfg_pp_is_a_usual_one_divided(model):
    usual = draw(model, "euler_cfg_pp")
    assert torch.equal(usual, draw(model, "DDIM CFG++", guidance=model.facts.guidance / 12.5))
    assert relative_l2(usual, draw(model, "euler_cfg_pp", guidance=0.0)) > 1e-2  # below 1 it is not off
    assert tasks.defaults(model.facts, "Euler a")["guidance"] == model.facts.guidance


def test_distilled_samplers_take_their_own_schedule(model):
    seen = []
    draw(model, "LCM", watch=seen.append)
    assert [round(noise_table().t(step.sigma)) for step in seen] == [999, 759, 499, 259]
    assert tasks.defaults(model.facts, "tcd")["schedule"] == "lcm"
    assert draw(model, "tcd", schedule="trailing").isfinite().all()


def test_brownian_samplers_get_one_path_per_picture(model, monkeypatch):
    made = []

    class Recorded(BrownianTree):
        def __init__(self, *args):
            made.append(args)
            super().__init__(*args)

    monkeypatch.setattr(noise, "BrownianTree", Recorded)
    both = draw(model, "dpmpp_sde", seeds=[3, 4], schedule="karras")
    ((seeds, shape, low, high, _),) = made
    assert (list(seeds), shape) == ([3, 4], (4, 8, 8)) and low < 0.03 and 14.6 < high < 14.7
    assert relative_l2(both[:1], draw(model, "dpmpp_sde", schedule="karras")) < 1e-4
    draw(model, "euler_ancestral")
    assert len(made) == 2  # white noise for others


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_draws(model, name):
    """Latents of about unit deviation, as the network was trained with; half of it or twice it is no picture."""
    assert 0.7 < draw(model, name, schedule="karras", steps=10, guidance=1.0).std() < 1.4


def test_models_without_trained_times_refuse_samplers_that_need_them(model):
    edm = replace(model, facts=replace(model.facts, noise=NoiseConfig(edm=True)))
    with pytest.raises(ValueError, match="^this sampler needs trained time steps and this model has none"):
        draw(edm, "lcm", schedule="karras")
