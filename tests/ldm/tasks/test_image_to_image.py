"""Picture to picture against diffusers' pipelines: the same folder, the same pictures, a generator for each."""

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

import weights
from ldm import tasks
from ldm.conditioning import Sizes
from samplers.step import Step
from support.numbers import relative_l2
from support.pictures import PROMPTS, generators, pictures, scheduler
from support.tiny import tiny_refiner, tiny_sd, tiny_sd2, tiny_sdxl

LIMIT = 1e-4  # relative, of final latents: a dozen steps of float32, each magnified by guidance; 1e-6 is usual
PLAYGROUND_VAE = dict(
    scaling_factor=0.5, latents_mean=[-1.6574, 1.886, -1.383, 2.5155], latents_std=[8.4927, 5.9022, 6.5498, 5.2299]
)
MODELS = {  # name -> (folder's builder, diffusers' class)
    "sd15": (tiny_sd, diffusers.StableDiffusionImg2ImgPipeline),
    "sd2_v": (tiny_sd2, diffusers.StableDiffusionImg2ImgPipeline),
    "sdxl": (tiny_sdxl, diffusers.StableDiffusionXLImg2ImgPipeline),
    "refiner": (tiny_refiner, diffusers.StableDiffusionXLImg2ImgPipeline),
    "v25": (
        lambda folder: tiny_sdxl(folder, diffusers.EDMDPMSolverMultistepScheduler(sigma_max=80.0), vae=PLAYGROUND_VAE),
        diffusers.StableDiffusionXLImg2ImgPipeline,
    ),
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """name -> (diffusers' pipeline, our model), made when first asked for."""
    made = {}

    def get(name: str):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            build, kind = MODELS[name]
            parts = {k: v for k, v in build(folder).components.items() if k != "add_watermarker"}
            extra = dict(requires_safety_checker=False) if "XL" not in kind.__name__ else {}
            if name == "refiner":
                extra = dict(requires_aesthetics_score=True, force_zeros_for_empty_prompt=False)
            if "XL" in kind.__name__:
                extra["add_watermarker"] = False
            pipeline = kind(**parts, **extra)
            pipeline.set_progress_bar_config(disable=True)
            made[name] = pipeline, weights.load(folder)
        return made[name]

    return get


CASES = [
    ("sd15", "ddim", 0.6),
    ("sd15", "heun", 0.5),
    ("sd2_v", "dpmpp_2m", 0.7),
    ("sdxl", "euler", 1.0),
    ("sdxl", "dpmpp_2m", 0.3),
    ("refiner", "euler", 0.3),
    ("v25", None, 0.6),
]


@pytest.mark.parametrize("name, sampler, strength", CASES)
def test_equals_diffusers(pair, name, sampler, strength):
    """Two pictures, two prompts and a negative one, not square; posterior and noise from each picture's generator."""
    pipeline, model = pair(name)
    options = dict(strength=strength, seeds=[4, 9], negative="blurry", steps=10, guidance=5.0)
    if sampler is not None:
        pipeline.scheduler = scheduler(sampler, pipeline.scheduler.config)
        options |= dict(sampler=sampler, schedule="leading")
    image = pictures(2)
    ours = tasks.image_to_image(model, image, PROMPTS, decode=False, **options)
    expected = pipeline(
        prompt=PROMPTS,
        image=(image + 1) / 2,
        negative_prompt=["blurry"] * 2,
        strength=strength,
        num_inference_steps=10,
        guidance_scale=5.0,
        generator=generators(4, 9),
        output_type="latent",
    ).images
    assert relative_l2(ours, expected) < LIMIT
    drawn = tasks.image_to_image(model, image, PROMPTS, **options)
    assert drawn.shape == image.shape and relative_l2(ours[:1], ours[1:]) > 0.1


def test_plms_begins_anew_on_the_cut_list(pair):
    """diffusers' PNDM goes on inside its list, where its warm-up takes a wrong entry. Here the last steps of a run are
    a run of their own: a first step of Euler and its correction, then the memory grows."""
    _, model = pair("sd15")
    told = []

    def network(x, t, context, vector=None):
        told.append(float(t))
        return model.unet(x, t, context, vector)

    tasks.image_to_image(
        model, pictures(1), PROMPTS[0], strength=0.5, steps=10, sampler="plms", schedule="leading", network=network
    )
    assert told == [401.0, 301.0, 301.0, 201.0, 101.0, 1.0]


@pytest.mark.parametrize(
    "rule, strength, steps", [("diffusers", 0.5, 5), ("a1111", 0.5, 6), ("exact", 0.5, 10), ("comfyui", 0.5, 10)]
)
def test_rules_of_strength(pair, rule, strength, steps):
    """As many steps as each program does, and all begin at about the same level."""
    _, model = pair("sd15")
    seen: list[Step] = []
    tasks.image_to_image(
        model, pictures(1), "", strength=strength, steps=10, rule=rule, sampler="euler", watch=seen.append, decode=False
    )
    assert len(seen) == steps and 1.0 < seen[0].sigma < 2.5


def test_a_picture_file_in_any_mode_is_the_picture(pair):
    """RGBA lies on white and is no latents; greys become three channels; a size that does not fit is rounded down."""
    _, model = pair("sd15")
    pixels = np.random.default_rng(0).integers(0, 255, (66, 97, 3), dtype=np.uint8)
    rgb = Image.fromarray(pixels)
    clear = Image.fromarray(np.dstack([pixels, np.full((66, 97), 255, np.uint8)]))
    options = dict(strength=0.3, steps=4, sampler="euler", seeds=[1])
    drawn = tasks.image_to_image(model, rgb, "", **options)
    assert drawn.shape == (1, 3, 64, 96)
    assert torch.equal(tasks.image_to_image(model, clear, "", **options), drawn)
    assert tasks.image_to_image(model, rgb.convert("L"), "", **options).shape == (1, 3, 64, 96)


def test_negative_sizes_are_told_for_the_negative_prompt(pair):
    """diffusers' SDXL sends the crop of the prompt for both."""
    _, model = pair("sdxl")
    told = []

    def network(x, t, context, vector):
        told.append(vector)
        return model.unet(x, t, context, vector)

    size = (64, 96)
    tasks.image_to_image(
        model, pictures(1), "a fox", steps=4, strength=0.3, network=network, decode=False,
        sizes=Sizes(size, size, crop=(5, 5)), negative_sizes=Sizes(size, size, crop=(9, 9)),
    )  # fmt: skip
    pooled = model.facts.texts[-1].projection
    width = (told[0].shape[1] - pooled) // 6
    crops = told[0][:, pooled + 2 * width : pooled + 4 * width]
    from ldm.ops import sinusoid

    expected = torch.stack([sinusoid(torch.tensor(crop), width).flatten() for crop in ((9.0, 9.0), (5.0, 5.0))])
    assert relative_l2(crops, expected) < 1e-6


def test_noise_given_is_the_noise_that_is_added(pair):
    """At a strength below 1: picture + sigma * noise, whatever diffusers' `latents` does."""
    _, model = pair("sd15")
    seen: list[Step] = []
    noise = torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(0))

    def network(x, t, context, vector=None):
        seen.append(x.clone())
        return model.unet(x, t, context, vector)

    options = dict(strength=0.4, steps=10, sampler="euler", guidance=1.0, network=network, decode=False)
    for given in (noise, torch.zeros_like(noise)):
        tasks.image_to_image(model, pictures(1), "", noise=given, **options)
    sigma = tasks.plan_part(model, 10, "euler", None, None, 0.4).sigmas[0]
    first, clean = seen[0], seen[4]
    assert relative_l2((first - clean) * (1 + sigma**2) ** 0.5, sigma * noise) < 1e-5
