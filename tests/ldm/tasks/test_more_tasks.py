"""Editing, depth, enlarging, two models, two passes, interpolation and inversion."""

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

import weights
from ldm import tasks
from ldm.draw import encode_image
from ldm.images import depth_of_latents
from ldm.tasks.interpolate import slerp
from samplers.step import Step
from support.networks import REFERENCE_SD_X4
from support.numbers import relative_l2
from support.pictures import PROMPTS, generators, pictures, scheduler
from support.tiny import BETAS, make_text, make_unet, make_vae, tiny_refiner, tiny_sd, tiny_sd2, tiny_sdxl, tokenizer

LIMIT = 1e-4  # see test_image_to_image.py


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """name -> (parts of diffusers' pipeline, our model), made when first asked for."""
    builders = {
        "sd15": tiny_sd,
        "edit": lambda f: tiny_sd(f, unet=dict(in_channels=8)),
        "depth": lambda f: tiny_sd2(f, unet=dict(in_channels=5)),
        "sdxl": tiny_sdxl,
        "refiner": tiny_refiner,
    }
    made = {}

    def get(name: str):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            made[name] = builders[name](folder).components, weights.load(folder)
        return made[name]

    return get


@pytest.mark.parametrize("image_guidance", [1.5, 0.5])
def test_edit_equals_diffusers(models, image_guidance):
    """Three rows in one batch; below 1 the guidance by the picture is off, and so is all of it."""
    parts, model = models("edit")
    pipeline = diffusers.StableDiffusionInstructPix2PixPipeline(**parts, requires_safety_checker=False)
    pipeline.scheduler = scheduler("euler", parts["scheduler"].config)
    pipeline.set_progress_bar_config(disable=True)
    image = pictures(2)
    noise = torch.randn(2, 4, 8, 12, generator=torch.Generator().manual_seed(3))
    ours = tasks.edit(
        model, image, PROMPTS, guidance=6.0, image_guidance=image_guidance, negative="blurry", steps=8, noise=noise,
        sampler="euler", schedule="leading", decode=False,
    )  # fmt: skip
    expected = pipeline(
        PROMPTS,
        image=(image + 1) / 2,
        negative_prompt=["blurry"] * 2,
        guidance_scale=6.0,
        image_guidance_scale=image_guidance,
        num_inference_steps=8,
        latents=noise,
        output_type="latent",
    ).images
    assert relative_l2(ours, expected) < LIMIT


def test_depth_equals_diffusers(models):
    """Of any range and size; diffusers needs no estimator where a map is given."""
    parts, model = models("depth")
    parts = {k: v for k, v in parts.items() if k in ("vae", "text_encoder", "tokenizer", "unet", "scheduler")}
    pipeline = diffusers.StableDiffusionDepth2ImgPipeline(**parts, depth_estimator=None, feature_extractor=None)
    pipeline.scheduler = scheduler("ddim", parts["scheduler"].config)
    pipeline.set_progress_bar_config(disable=True)
    image = pictures(2)
    depth = torch.rand(2, 40, 60, generator=torch.Generator().manual_seed(1)) * 50 - 7
    ours = tasks.depth_to_image(
        model, image, depth, PROMPTS, strength=0.7, seeds=[4, 9], negative="blurry", steps=10, guidance=5.0,
        sampler="ddim", schedule="leading", decode=False,
    )  # fmt: skip
    expected = pipeline(
        PROMPTS,
        image=(image + 1) / 2,
        depth_map=depth,
        negative_prompt=["blurry"] * 2,
        strength=0.7,
        num_inference_steps=10,
        guidance_scale=5.0,
        generator=generators(4, 9),
        output_type="latent",
    ).images
    assert relative_l2(ours, expected) < LIMIT


def test_upscale_equals_diffusers(tmp_path):
    """The noise of the small picture from each generator first, then the start; the level told to both halves."""
    scheduling = diffusers.DDIMScheduler(
        **BETAS, clip_sample=False, set_alpha_to_one=False, prediction_type="v_prediction"
    )
    pipeline = diffusers.StableDiffusionUpscalePipeline(
        vae=make_vae(dict(block_out_channels=(16, 32, 48), down_block_types=["DownEncoderBlock2D"] * 3,
                          up_block_types=["UpDecoderBlock2D"] * 3, scaling_factor=0.08333)),
        text_encoder=make_text("h", {}),
        tokenizer=tokenizer("h"),
        unet=make_unet(REFERENCE_SD_X4 | {"cross_attention_dim": 48}),
        low_res_scheduler=diffusers.DDPMScheduler(**BETAS),
        scheduler=scheduling,
    )  # fmt: skip
    pipeline.save_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    model = weights.load(tmp_path)
    small = pictures(2, 16, 24)
    ours = tasks.upscale(
        model, small, PROMPTS, noise_level=20, seeds=[4, 9], negative="blurry", steps=8, guidance=5.0, sampler="ddim",
        schedule="leading", decode=False,
    )  # fmt: skip
    expected = pipeline(
        PROMPTS,
        image=(small + 1) / 2,
        noise_level=20,
        negative_prompt=["blurry"] * 2,
        num_inference_steps=8,
        guidance_scale=5.0,
        generator=generators(4, 9),
        output_type="latent",
    ).images
    assert ours.shape == (2, 4, 16, 24) and relative_l2(ours, expected) < LIMIT
    drawn = tasks.upscale(model, small[:1], "", steps=1)
    assert drawn.shape == (1, 3, 64, 96)
    for level, error in ((351, ValueError), (-1, ValueError), ("20", TypeError)):
        with pytest.raises(error, match="noise_level"):
            tasks.upscale(model, small, "", noise_level=level)


def test_depth_in_any_form_is_the_depth(models):
    """Files of greys and numpy files; a scene that is equally far everywhere is zeros, not NaN."""
    _, model = models("depth")
    near = np.linspace(0, 255, 64 * 96, dtype=np.float32).reshape(64, 96).round()
    options = dict(strength=0.5, steps=4, seeds=[1], decode=False)
    drawn = [
        tasks.depth_to_image(model, pictures(1), depth, "", **options)
        for depth in (
            near,
            torch.from_numpy(near)[None],
            Image.fromarray(near.astype(np.uint8)),
            near.astype(np.uint16),
        )
    ]
    for other in drawn[1:]:
        assert relative_l2(drawn[0], other) < 1e-5
    flat = depth_of_latents(torch.full((1, 1, 64, 96), 3.0), (8, 12), 2)
    assert flat.shape == (2, 1, 8, 12) and (flat == 0).all()
    for wrong, words in (
        (np.full((4, 4), np.nan), "NaN or infinity"),
        (torch.zeros(3, 8, 8), "3 depth maps for 1 pictures"),
        (torch.zeros(2, 3, 4, 5, 6), "of shape"),
    ):
        with pytest.raises(ValueError, match=words):
            tasks.depth_to_image(model, pictures(1), wrong, "", **options)
    with pytest.raises(TypeError, match="depth None"):
        tasks.depth_to_image(model, pictures(1), None, "", **options)


@pytest.mark.parametrize("sampler, by", [("euler", "time"), ("dpmpp_2m", "time")])
def test_refine_equals_diffusers(models, sampler, by):
    """denoising_end of the base and denoising_start of the refiner, with the first noise given."""
    parts, base = models("sdxl")
    refiner_parts, refiner = models("refiner")
    first = diffusers.StableDiffusionXLPipeline(**parts, add_watermarker=False)
    last = diffusers.StableDiffusionXLImg2ImgPipeline(
        **refiner_parts, requires_aesthetics_score=True, add_watermarker=False, force_zeros_for_empty_prompt=False
    )
    for pipeline in (first, last):
        pipeline.scheduler = scheduler(sampler, parts["scheduler"].config)
        pipeline.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(3))
    options = dict(prompt=PROMPTS[:1], negative_prompt=["blurry"], num_inference_steps=10, guidance_scale=5.0)
    latents = first(**options, height=64, width=96, latents=noise, denoising_end=0.7, output_type="latent").images
    expected = last(**options, image=latents, denoising_start=0.7, output_type="latent").images
    ours = tasks.refine(
        base, refiner, PROMPTS[0], at=0.7, by=by, negative="blurry", height=64, width=96, steps=10, guidance=5.0,
        noise=noise, sampler=sampler, schedule="leading", decode=False,
    )  # fmt: skip
    assert relative_l2(ours, expected) < LIMIT


@pytest.mark.parametrize("sampler", ["heun", "dpm_2", "euler_ancestral"])
def test_hand_over_loses_nothing(models, sampler):
    """The same model on both sides draws the bits of the run in one, after whole steps, wherever it is divided;
    diffusers stops Heun between its two evaluations."""
    _, model = models("sdxl")
    options = dict(height=64, width=96, steps=8, sampler=sampler, seeds=[5], decode=False)
    whole = tasks.text_to_image(model, PROMPTS[0], **options)
    for at in (0.25, 0.5, 0.9):
        assert torch.equal(tasks.refine(model, model, PROMPTS[0], at=at, by="step", **options), whole)


def test_what_cannot_be_handed_over_is_one_line(models):
    _, base = models("sdxl")
    _, refiner = models("refiner")
    for change, words in (
        (dict(base=refiner, refiner=base), "base: this is a refiner"),
        (dict(at=1.0), "at 1.0: choose a share between 0 and 1"),
        (dict(at=0.999), "leaves none for the refiner"),
        (dict(by="time step"), "by 'time step': choose time or step"),
        (dict(base=models("sd15")[1]), "cannot share a run"),
    ):
        given = dict(base=base, refiner=refiner, prompts="", height=64, width=64, steps=4) | change
        with pytest.raises(ValueError, match=words):
            tasks.refine(**given)


@pytest.mark.parametrize("enlarge", ["pixels", "latents"])
def test_two_passes(models, enlarge):
    """The second is picture to picture from the enlarged first, with the seeds' streams from their beginning."""
    _, model = models("sd15")
    options = dict(steps=4, sampler="euler", seeds=[7], guidance=3.0)
    first = tasks.text_to_image(model, PROMPTS[0], height=64, width=48, **options, decode=enlarge == "pixels")
    seen: list[Step] = []
    drawn = tasks.two_pass(
        model, PROMPTS[0], scale=1.5, strength=0.5, height=64, width=48, enlarge=enlarge, filter="bilinear",
        watch=seen.append, decode=False, **options,
    )  # fmt: skip
    assert drawn.shape == (1, 4, 12, 9) and len(seen) == 8
    if enlarge == "pixels":
        image = torch.nn.functional.interpolate(first, (96, 72), mode="bilinear").clamp(-1, 1)
        again = tasks.image_to_image(model, image, PROMPTS[0], strength=0.5, rule="exact", decode=False, **options)
        assert relative_l2(drawn, again) < 1e-5


def test_interpolation_ends_at_the_pictures_of_both_ends(models):
    _, model = models("sdxl")
    options = dict(height=64, width=96, steps=4, sampler="euler_ancestral", decode=False)
    film = tasks.interpolate(model, PROMPTS, seeds=[5, 8], frames=3, **options)
    assert relative_l2(film[:1], tasks.text_to_image(model, PROMPTS[0], seeds=[5], **options)) < 1e-5
    assert film.shape[0] == 3 and relative_l2(film[1:2], film[:1]) > 0.01 and relative_l2(film[1:2], film[2:]) > 0.01
    start, end = torch.randn(2, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    middle = slerp(start, end, 0.5)
    assert abs(middle.std() - 1) < 0.02 and torch.equal(slerp(start, start, 0.3), start)  # a straight line: 0.71
    with pytest.raises(ValueError, match="frames 1"):
        tasks.interpolate(model, PROMPTS, frames=1)
    with pytest.raises(ValueError, match="two ends"):
        tasks.interpolate(model, ["a", "b", "c"])


def test_inversion_is_exact():
    """What text_to_image draws from the noise that was found is the picture, up to the loss of the autoencoder."""
    model = weights.load(weights.MINIATURE)
    image = tasks.text_to_image(model, "a red apple", seeds=[3], steps=8)
    options = dict(steps=12, sampler="euler", guidance=1.0)
    noise = tasks.invert(model, image, "a red apple", **options)
    latents = tasks.text_to_image(model, "a red apple", noise=noise, decode=False, **options)
    assert relative_l2(latents, encode_image(model, image)) < 1e-3  # 12 steps, each to 2e-5 of the largest value
    assert 0.7 < noise.std() < 1.3
    other = tasks.text_to_image(model, "a green apple", noise=noise, **options)
    assert (other - image).abs().mean() > 0.02
    with pytest.raises(ValueError, match="sampler 'ddim' cannot be run backwards: choose one of euler, heun"):
        tasks.invert(model, image, sampler="ddim")


def test_a_task_that_a_model_cannot_do_is_refused(models):
    _, plain = models("sd15")
    _, five = models("depth")
    image = pictures(1)
    mask = torch.ones(1, 1, 64, 96)
    for run, words in (
        (lambda: tasks.edit(plain, image, ""), "editing"),
        (lambda: tasks.depth_to_image(plain, image, torch.rand(8, 8), ""), "depth"),
        (lambda: tasks.upscale(plain, image, ""), "does not enlarge pictures"),
        (lambda: tasks.inpaint(five, image, mask, ""), "inpainting"),
        (lambda: tasks.image_to_image(five, image, ""), "1 more input channels"),
    ):
        with pytest.raises(ValueError, match=words) as error:
            run()
        assert "\n" not in str(error.value)
