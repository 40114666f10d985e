"""Painting inside a mask, against diffusers' pipelines and, where they are wrong, against what should come out."""

import diffusers
import pytest
import torch
from PIL import Image

import weights
from ldm import tasks
from ldm.draw import encode_image
from ldm.images import as_images, box_around, extend, feathered, mask_of_latents, paste_back
from support.numbers import relative_l2
from support.pictures import PROMPTS, generators, pictures, scheduler
from support.tiny import tiny_sd, tiny_sdxl

LIMIT = 1e-4  # see test_image_to_image.py
PLAYGROUND_VAE = dict(
    scaling_factor=0.5, latents_mean=[-1.6574, 1.886, -1.383, 2.5155], latents_std=[8.4927, 5.9022, 6.5498, 5.2299]
)
MODELS = {  # name -> (folder's builder, diffusers' class)
    "sd15": (tiny_sd, diffusers.StableDiffusionInpaintPipeline),
    "sd15_inpaint": (lambda f: tiny_sd(f, unet=dict(in_channels=9)), diffusers.StableDiffusionInpaintPipeline),
    "sdxl": (tiny_sdxl, diffusers.StableDiffusionXLInpaintPipeline),
    "sdxl_inpaint": (lambda f: tiny_sdxl(f, unet=dict(in_channels=9)), diffusers.StableDiffusionXLInpaintPipeline),
    "v25": (
        lambda f: tiny_sdxl(f, diffusers.EDMDPMSolverMultistepScheduler(sigma_max=80.0), vae=PLAYGROUND_VAE),
        diffusers.StableDiffusionXLInpaintPipeline,
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
            extra = dict(add_watermarker=False) if "XL" in kind.__name__ else dict(requires_safety_checker=False)
            pipeline = kind(**build(folder).components, **extra)
            pipeline.set_progress_bar_config(disable=True)
            made[name] = pipeline, weights.load(folder)
        return made[name]

    return get


def block_mask() -> torch.Tensor:
    """Whole latents, so that every rule of cells says the same."""
    mask = torch.zeros(1, 1, 64, 96)
    mask[:, :, 16:48, 24:72] = 1
    return mask


CASES = [
    ("sd15", "euler", 1.0),
    ("sd15", "heun", 0.6),
    ("sd15", "ddim", 0.5),
    ("sd15_inpaint", "euler", 1.0),
    ("sd15_inpaint", "dpmpp_2m", 0.6),
    ("sdxl", "dpmpp_2m", 0.7),
    ("sdxl_inpaint", "euler", 1.0),
]


@pytest.mark.parametrize("name, sampler, strength", CASES)
def test_equals_diffusers(pair, name, sampler, strength):
    """Two pictures and prompts, each with its generator, in diffusers' order of draws, of which it never uses some."""
    pipeline, model = pair(name)
    pipeline.scheduler = scheduler(sampler, pipeline.scheduler.config)
    image, mask = pictures(2), block_mask()
    ours = tasks.inpaint(
        model, image, mask, PROMPTS, strength=strength, seeds=[4, 9], negative="blurry", steps=10, guidance=5.0,
        sampler=sampler, schedule="leading", decode=False,
    )  # fmt: skip
    expected = pipeline(
        prompt=PROMPTS,
        image=(image + 1) / 2,
        mask_image=mask.repeat(2, 1, 1, 1),
        height=64,
        width=96,
        negative_prompt=["blurry"] * 2,
        strength=strength,
        num_inference_steps=10,
        guidance_scale=5.0,
        generator=generators(4, 9),
        output_type="latent",
    ).images
    assert relative_l2(ours, expected) < LIMIT
    if model.facts.unet.in_channels == 4:
        latents = mask_of_latents(mask, model.vae.factor)
        assert relative_l2(ours[:1] * latents, ours[1:] * latents) > 0.1


def test_v25_keeps_its_latents_outside_the_mask(pair):
    """With the mean and the deviation of its VAE, which diffusers' pipeline leaves out."""
    _, model = pair("v25")
    image, mask = pictures(1), block_mask()
    kept = []
    latents = tasks.inpaint(
        model, image, mask, "", strength=1.0, steps=4, decode=False, watch=lambda s: kept.append(s.x)
    )
    z = encode_image(model, image, torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(0)))
    outside = 1 - mask_of_latents(mask, model.vae.factor)
    assert torch.equal(latents * outside, z * outside)


def test_a_trained_unet_keeps_what_it_is_told_to(pair):
    """keep=True holds the latents for 9 channels too; without it they pass through the network."""
    _, model = pair("sd15_inpaint")
    image, mask = pictures(1), block_mask()
    outside = 1 - mask_of_latents(mask, model.vae.factor)
    options = dict(strength=0.7, steps=4, sampler="euler", decode=False, seeds=[3])
    free = tasks.inpaint(model, image, mask, "", **options)
    kept = tasks.inpaint(model, image, mask, "", keep=True, **options)
    z = encode_image(model, image, torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(3)))
    assert torch.equal(kept * outside, z * outside)
    assert (free * outside - z * outside).abs().max() > 0.05


def test_strokes_thinner_than_a_latent_stay(pair):
    """A line of two pixels covers the latents that it passes through; diffusers looks at one pixel in 64."""
    mask = torch.zeros(1, 1, 64, 96)
    mask[:, :, 20:22, 10:80] = 1
    assert mask_of_latents(mask, 8).sum() == 9 and mask_of_latents(mask, 8, "nearest").sum() == 0
    _, model = pair("sd15")
    image = pictures(1)
    options = dict(steps=3, sampler="euler", decode=False)
    z = encode_image(model, image, torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(0)))
    assert not torch.allclose(tasks.inpaint(model, image, mask, "", **options), z, atol=1e-3)


def test_greys_of_a_mask(pair):
    """Blended, a grey of a half is half of either; differential, it is free in the second half of the run."""
    _, model = pair("sd15")
    image = pictures(1)
    mask = torch.full((1, 1, 64, 96), 0.5)
    mask[:, :, :, :48] = 1
    options = dict(steps=10, sampler="euler", decode=False, seeds=[2], strength=0.9)
    told = []

    def network(x, t, context, vector=None):
        told.append((float(t), x[:1].clone()))
        return model.unet(x, t, context, vector)

    z = encode_image(model, image, torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(2)))
    tasks.inpaint(model, image, mask, "", greys="differential", network=network, **options)
    run = tasks.plan_part(model, 10, "euler", None, None, 0.9)
    noise = generators(2)[0]
    torch.randn(4, 8, 12, generator=noise)
    drawn = torch.randn(4, 8, 12, generator=noise)
    held = []
    for sigma, (_, x) in zip(run.sigmas, told):
        picture = (z + sigma * drawn) / (1 + sigma**2) ** 0.5
        held.append(torch.allclose(x[:, :, :, 6:], picture[:, :, :, 6:], atol=1e-5))
    assert held == [True] * held.count(True) + [False] * held.count(False) and 3 <= held.count(True) <= 6
    soft = tasks.inpaint(model, image, mask, "", **options)
    assert not torch.allclose(soft[:, :, :, 6:], z[:, :, :, 6:], atol=1e-2)


@pytest.mark.parametrize("fill", ["grey", "noise"])
def test_fill_changes_what_lies_under_the_mask(pair, fill):
    _, model = pair("sd15")
    options = dict(strength=0.5, steps=4, sampler="euler", seeds=[1], decode=False)
    inside = mask_of_latents(block_mask(), 8)
    drawn = [tasks.inpaint(model, pictures(1), block_mask(), "", fill=f, **options) for f in ("original", fill)]
    assert relative_l2(drawn[0] * inside, drawn[1] * inside) > 0.05


def test_pixels_beyond_the_feather_keep_their_bits(pair):
    _, model = pair("sd15")
    image, mask = pictures(1), block_mask()
    drawn = tasks.inpaint(model, image, mask, "", steps=2, sampler="euler", feather=6)
    far = torch.ones(1, 1, 64, 96)
    far[:, :, 10:54, 18:78] = 0
    assert torch.equal(drawn * far, image * far)
    inside = block_mask()
    assert (drawn - image).abs().mul(inside).max() > 0.1
    soft = feathered(mask, 6)
    assert soft[mask > 0].min() == 1 and 0 < soft[0, 0, 32, 20] < 1 and soft[0, 0, 32, 17] == 0


def test_a_part_is_drawn_larger_and_pasted_back(pair):
    """Also into a picture whose size no VAE could have."""
    _, model = pair("sd15")
    image = pictures(1, 75, 131)
    mask = torch.zeros(1, 1, 75, 131)
    mask[:, :, 30:40, 60:80] = 1
    assert box_around(mask, 4, 1.0) == (56, 21, 84, 49)
    assert box_around(mask, 1000, 1.0) == (0, 0, 131, 75)
    drawn = tasks.inpaint_part(
        model, image, mask, "", padding=8, feather=3, height=64, width=64, steps=2, sampler="euler", seeds=[1]
    )
    far = torch.ones_like(mask)
    far[:, :, 27:43, 57:83] = 0
    assert drawn.shape == image.shape and torch.equal(drawn * far, image * far)
    assert ((drawn - image).abs() * mask).max() > 0.05


def test_a_larger_picture_around_this_one():
    """The mask covers what is new, and nothing of the picture."""
    image = pictures(2)
    wider, mask = extend(image, right=16, top=8)
    assert wider.shape == (2, 3, 72, 112) and torch.equal(wider[:, :, 8:, :96], image)
    assert mask.shape == (1, 1, 72, 112) and mask[:, :, 8:, :96].sum() == 0 and mask.sum() == 72 * 112 - 64 * 96
    for sides in ((0, 0, 0, 0), (-8, 0, 8, 0)):
        with pytest.raises(ValueError, match="sides"):
            extend(image, *sides)


def test_paste_back_of_bits():
    """Also where original and result are far apart: nothing is computed outside."""
    original = torch.full((1, 3, 32, 32), 0.1)
    result = torch.full((1, 3, 32, 32), float("inf"))
    mask = torch.zeros(1, 1, 32, 32)
    mask[:, :, 10:12, 10:12] = 1
    pasted = paste_back(original, result, mask, feather=0)
    assert torch.equal(pasted[:, :, :10], original[:, :, :10]) and pasted[0, 0, 10, 10] == float("inf")


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(mask=torch.zeros(1, 1, 64, 96)), "mask is empty: mark with white"),
        (dict(mask=torch.ones(1, 1, 64, 64)), "mask of 64 x 64 pixels for pictures of 96 x 64"),
        (dict(mask=torch.ones(3, 1, 64, 96)), "3 masks for 1 pictures"),
        (dict(mask=torch.full((1, 1, 64, 96), 2.0)), "mask with values from 2 to 2"),
        (dict(mask=Image.new("L", (10, 10), 255)), "mask of 10 x 10 pixels for pictures"),
        (dict(keep=False), "keep=False: this UNet was not trained to inpaint"),
        (dict(fill="gray"), "fill 'gray': choose one of original, grey, noise"),
        (dict(greys="soft"), "greys 'soft': choose one of blend, differential"),
        (dict(cells="all"), "mask rule 'all': choose any or nearest"),
        (dict(strength=0.05), "strength 0.05 of 4 steps: leaves none; choose at least 0.25"),
        (dict(image=torch.zeros(1, 4, 64, 96)), "image of torch.float32, shape"),
        (dict(image=torch.full((1, 3, 64, 96), 9.0)), "image: values from 9 to 9"),
        (dict(image=Image.new("I;16", (96, 64))), "image: has 16 bits or more"),
    ],
)
def test_what_cannot_be_done_is_one_line(pair, change, message):
    _, model = pair("sd15")
    given = dict(image=pictures(1), mask=block_mask(), prompts="", steps=4) | change
    with pytest.raises(ValueError) as error:
        tasks.inpaint(model, **given)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_masks_of_pil_go_with_their_picture(pair):
    """A mask of the picture's own size is resized with it."""
    _, model = pair("sd15")
    picture = Image.new("RGB", (99, 67), (200, 30, 90))
    mask = Image.new("L", (99, 67))
    mask.paste(255, (20, 20, 60, 50))
    drawn = tasks.inpaint(model, picture, mask, "", steps=2, sampler="euler", feather=2)
    original = as_images("image", picture, None, 8)
    assert drawn.shape == (1, 3, 64, 96) and torch.equal(drawn[..., :10, :], original[..., :10, :])
