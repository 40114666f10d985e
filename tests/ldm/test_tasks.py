"""Text to picture, whole: against diffusers' pipelines from the same folder and the same initial noise."""

from dataclasses import replace
from importlib import import_module

import diffusers
import pytest
import torch
from diffusers.models.embeddings import get_timestep_embedding

import weights
from ldm import tasks
from ldm.conditioning import Sizes, encode
from samplers.noise import Streams
from support.numbers import relative_l2
from support.tiny import BETAS, tiny_refiner, tiny_sd, tiny_sd2, tiny_sdxl

PROMPTS = ["a red fox in the snow", "two boats, oil painting"]
NEGATIVE = "blurry, ugly"
STEPS, GUIDANCE = 20, 5.0
PLAYGROUND_VAE = dict(
    scaling_factor=0.5, latents_mean=[-1.6574, 1.886, -1.383, 2.5155], latents_std=[8.4927, 5.9022, 6.5498, 5.2299]
)
SCHEDULERS = {  # our sampler and schedule -> theirs
    ("euler", "leading"): lambda c: diffusers.EulerDiscreteScheduler.from_config(
        c, timestep_spacing="leading", use_karras_sigmas=False
    ),
    ("ddim", "leading"): lambda c: diffusers.DDIMScheduler.from_config(
        c, timestep_spacing="leading", clip_sample=False, set_alpha_to_one=False
    ),
    ("dpmpp_2m", "karras"): lambda c: diffusers.DPMSolverMultistepScheduler.from_config(c, use_karras_sigmas=True),
}

text_to_image = import_module("ldm.tasks.text_to_image")  # the function hides the module


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory):
    """name -> (diffusers' pipeline, our model), made when first asked for."""
    builders = {
        "sd15": lambda f: tiny_sd(f, diffusers.PNDMScheduler(**BETAS, skip_prk_steps=True)),
        "sd2": lambda f: tiny_sd2(f, diffusers.DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=False)),
        "sd2_v": tiny_sd2,
        "sdxl": tiny_sdxl,
        "refiner": tiny_refiner,
        "playground_v25": lambda f: tiny_sdxl(
            f, diffusers.EDMDPMSolverMultistepScheduler(sigma_max=80.0), vae=PLAYGROUND_VAE
        ),
    }
    made = {}

    def get(name: str):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            made[name] = builders[name](folder), weights.load(folder)
        return made[name]

    return get


def unit_noise(b: int = 2, h: int = 8, w: int = 12) -> torch.Tensor:
    return torch.randn(b, 4, h, w, generator=torch.Generator().manual_seed(3))


def theirs(pipeline, noise: torch.Tensor, prompts, negative, **options) -> tuple[torch.Tensor, torch.Tensor]:
    """Final latents and pictures in [-1, 1] of diffusers."""
    options = (
        dict(
            prompt=prompts,
            negative_prompt=negative,
            latents=noise,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            height=noise.shape[2] * 8,
            width=noise.shape[3] * 8,
        )
        | options
    )
    latents = pipeline(**options, output_type="latent").images
    images = pipeline(**options, output_type="pt").images
    return latents, images * 2 - 1


@pytest.mark.parametrize("sampler, schedule", SCHEDULERS)
@pytest.mark.parametrize("name", ["sd15", "sd2", "sd2_v", "sdxl"])
def test_pipeline_equals_diffusers(pipelines, name, sampler, schedule):
    """Two prompts, a negative one, not square. SDXL's batch is compared with diffusers one picture at a time."""
    pipeline, model = pipelines(name)
    pipeline.scheduler = SCHEDULERS[sampler, schedule](pipeline.scheduler.config)
    noise = unit_noise()
    options = dict(
        negative=NEGATIVE,
        height=64,
        width=96,
        steps=STEPS,
        guidance=GUIDANCE,
        sampler=sampler,
        schedule=schedule,
        noise=noise,
    )
    latents = tasks.text_to_image(model, PROMPTS, decode=False, **options)
    images = tasks.text_to_image(model, PROMPTS, **options)
    if name == "sdxl":
        parts = [theirs(pipeline, noise[k : k + 1], [PROMPTS[k]], [NEGATIVE]) for k in range(2)]
        expected, pictures = (torch.cat(p) for p in zip(*parts))
    else:
        expected, pictures = theirs(pipeline, noise, PROMPTS, [NEGATIVE] * 2)
    assert relative_l2(latents, expected) < 1e-4  # twenty steps of float32, each magnified by guidance
    assert (images - pictures).abs().max() * 127.5 <= 1
    assert images.std() > 0.05 and relative_l2(latents[:1], latents[1:]) > 0.1  # the networks are not degenerate


def test_published_sampler_of_sd15_equals_diffusers(pipelines):
    """PLMS, chosen by the folder."""
    pipeline, model = pipelines("sd15")
    pipeline.scheduler = diffusers.PNDMScheduler.from_config(
        pipeline.scheduler.config, skip_prk_steps=True, set_alpha_to_one=False
    )
    noise = unit_noise()
    latents = tasks.text_to_image(
        model, PROMPTS, height=64, width=96, steps=STEPS, guidance=GUIDANCE, noise=noise, decode=False
    )
    assert model.facts.sampler == "plms"
    assert relative_l2(latents, theirs(pipeline, noise, PROMPTS, None)[0]) < 1e-4


def test_sdxl_without_negative_prompt_takes_zeros(pipelines):
    pipeline, model = pipelines("sdxl")
    pipeline.scheduler = SCHEDULERS["euler", "leading"](pipeline.scheduler.config)
    noise = unit_noise(1)
    options = dict(height=64, width=96, steps=STEPS, guidance=GUIDANCE, noise=noise, decode=False)
    zeros = tasks.text_to_image(model, PROMPTS[:1], **options)
    empty = tasks.text_to_image(model, PROMPTS[:1], negative="", **options)
    assert relative_l2(zeros, theirs(pipeline, noise, PROMPTS[:1], None)[0]) < 1e-4
    assert relative_l2(empty, theirs(pipeline, noise, PROMPTS[:1], [""])[0]) < 1e-4
    assert relative_l2(zeros, empty) > 1e-3


def test_playground_v25_equals_diffusers(pipelines):
    """EDM preconditioning, its own noise levels, and latents with a mean and a deviation; all told by the folder."""
    pipeline, model = pipelines("playground_v25")
    noise = unit_noise(1)
    options = dict(height=64, width=96, steps=STEPS, noise=noise)
    expected, pictures = theirs(pipeline, noise, PROMPTS[:1], None, guidance_scale=3.0)
    assert relative_l2(tasks.text_to_image(model, PROMPTS[:1], decode=False, **options), expected) < 1e-4
    assert (tasks.text_to_image(model, PROMPTS[:1], **options) - pictures).abs().max() * 127.5 <= 1


def test_sdxl_sizes_equal_diffusers(pipelines):
    """Heights before widths, tops before lefts: three pairs that are easily swapped."""
    pipeline, model = pipelines("sdxl")
    pipeline.scheduler = SCHEDULERS["euler", "leading"](pipeline.scheduler.config)
    noise = unit_noise(1)
    ours = tasks.text_to_image(
        model,
        PROMPTS[:1],
        negative=NEGATIVE,
        height=64,
        width=96,
        steps=STEPS,
        guidance=GUIDANCE,
        noise=noise,
        decode=False,
        sizes=Sizes(original=(512, 300), crop=(10, 40), target=(64, 96)),
        negative_sizes=Sizes(original=(200, 100), crop=(7, 3), target=(96, 64)),
    )
    expected, _ = theirs(
        pipeline,
        noise,
        PROMPTS[:1],
        [NEGATIVE],
        original_size=(512, 300),
        crops_coords_top_left=(10, 40),
        target_size=(64, 96),
        negative_original_size=(200, 100),
        negative_crops_coords_top_left=(7, 3),
        negative_target_size=(96, 64),
    )
    assert relative_l2(ours, expected) < 1e-4


def test_the_refiners_negative_prompt_has_a_low_aesthetic_score(pipelines):
    """6 for the prompt and 2.5 for the negative one, as in sgm, diffusers and ComfyUI; sizes given set the first."""
    pipeline, model = pipelines("refiner")
    told = []

    def network(x, t, context, vector):
        told.append(vector[:, model.facts.texts[-1].projection :])
        return model.unet(x, t, context, vector)

    def numbers(*aesthetic):
        """What diffusers tells its UNet for the negative prompt and for the prompt."""
        size = (64, 96)
        ids = pipeline._get_add_time_ids(
            size, (0, 0), size, *aesthetic, size, (0, 0), size, torch.float32, model.facts.texts[-1].projection
        )
        width = told[0].shape[1] // 5
        embedded = [get_timestep_embedding(row, width, True, 0).flatten() for row in torch.cat(ids[::-1])]
        return torch.stack(embedded)

    for sizes, scores in ((None, (6.0, 2.5)), (Sizes((64, 96), (64, 96), aesthetic=9.0), (9.0, 2.5))):
        told.clear()
        options = dict(height=64, width=96, steps=1, decode=False, sizes=sizes)
        tasks.text_to_image(model, PROMPTS[:1], network=network, **options)
        assert relative_l2(told[0], numbers(*scores)) < 1e-6  # sines and cosines of float32


def test_seeds_draw_the_same_pictures_as_diffusers_generators(pipelines):
    pipeline, model = pipelines("sd2")
    pipeline.scheduler = diffusers.EulerAncestralDiscreteScheduler.from_config(
        pipeline.scheduler.config, timestep_spacing="leading"
    )
    ours = tasks.text_to_image(
        model, PROMPTS, seeds=[4, 9], sampler="euler_ancestral", schedule="leading", steps=8, decode=False
    )
    expected = pipeline(
        PROMPTS,
        num_inference_steps=8,
        guidance_scale=7.5,
        output_type="latent",
        generator=[torch.Generator().manual_seed(s) for s in (4, 9)],
    ).images
    assert relative_l2(ours, expected) < 1e-4


def test_a_picture_of_a_batch_has_the_noise_it_has_alone(pipelines):
    """The same bits, initial and in the loop; the network's rounding may depend on the batch, so its part is compared
    to rounding."""
    _, model = pipelines("sd15")
    drawn = {}

    def recording(seeds):
        class Recorder(Streams):
            def draw(self):
                noise = super().draw()
                for k, seed in enumerate(seeds):
                    drawn.setdefault((len(seeds), seed), []).append(noise[k])
                return noise

        return Recorder

    options = dict(sampler="euler_ancestral", steps=6, decode=False)
    original = text_to_image.Streams
    try:
        text_to_image.Streams = recording([5, 6, 7])
        together = tasks.text_to_image(model, [PROMPTS[0]] * 3, seeds=[5, 6, 7], **options)
        text_to_image.Streams = recording([6])
        alone = tasks.text_to_image(model, PROMPTS[:1], seeds=[6], **options)
    finally:
        text_to_image.Streams = original
    assert len(drawn[1, 6]) == 6  # the initial noise, and one draw for each step but the last
    assert all(torch.equal(a, b) for a, b in zip(drawn[3, 6], drawn[1, 6], strict=True))
    assert relative_l2(together[1:2], alone) < 1e-4


def test_noise_that_is_given_is_not_drawn_again_in_the_loop(pipelines):
    """Seed 0 makes both the caller's noise and the stream of the picture; its steps must go on where that began."""
    _, model = pipelines("sd15")
    options = dict(sampler="euler_ancestral", steps=3, decode=False, seeds=[0])
    noise = Streams([0], (4, 8, 8)).draw()
    assert torch.equal(
        tasks.text_to_image(model, PROMPTS[:1], noise=noise, **options),
        tasks.text_to_image(model, PROMPTS[:1], **options),
    )


def test_dtypes_of_model_and_noise(pipelines, tmp_path):
    """The sampler's state is float32, or float64 if the noise is; bfloat16 costs a few percent, not more."""
    folder = tmp_path / "sd15"
    tiny_sd(folder)
    reference = tasks.text_to_image(
        weights.load(folder, dtype=torch.float64), PROMPTS, steps=4, decode=False, noise=unit_noise(2, 8, 8).double()
    )
    assert reference.dtype == torch.float64
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 0.1)):  # 2e-3 a value, over 4 guided steps
        seen = []
        latents = tasks.text_to_image(
            weights.load(folder, dtype=dtype),
            PROMPTS,
            steps=4,
            decode=False,
            noise=unit_noise(2, 8, 8).to(dtype).float(),
            watch=seen.append,
        )
        assert {step.x.dtype for step in seen} == {torch.float32}
        assert relative_l2(latents.double(), reference) < tolerance
    half = tasks.text_to_image(weights.load(folder), PROMPTS, steps=1, decode=False, noise=unit_noise(2, 8, 8).half())
    assert half.dtype == torch.float32


def test_models_that_need_more_than_text_are_refused(pipelines):
    _, model = pipelines("sd2")
    for change, words in (
        (dict(in_channels=9), "5 more input channels, such as a mask or a depth map"),
        (dict(in_channels=7, class_count=1000), "a small picture to enlarge"),
        (dict(class_dim=2048), "the embedding of a picture"),
        (dict(guidance_dim=256), "an embedded guidance scale"),
    ):
        special = replace(model, facts=replace(model.facts, unet=replace(model.facts.unet, **change)))
        with pytest.raises(ValueError, match=words):
            tasks.text_to_image(special, "a fox", steps=1)


def test_each_picture_has_its_own_negative_prompt(pipelines):
    """SDXL takes zeros where there is none, and the encoded text where there is one, in one batch."""
    _, model = pipelines("sdxl")
    noise, options = unit_noise(2, 8, 8), dict(steps=3, decode=False)
    both = tasks.text_to_image(model, PROMPTS, negative=[None, NEGATIVE], noise=noise, **options)
    for k, negative in enumerate([None, NEGATIVE]):
        alone = tasks.text_to_image(model, PROMPTS[k], negative=negative, noise=noise[k : k + 1], **options)
        assert relative_l2(both[k : k + 1], alone) < 1e-5


def test_seeds_and_prompts_pair_up(pipelines):
    _, model = pipelines("sd15")
    draw = lambda prompts, seeds: tasks.text_to_image(model, prompts, seeds=seeds, steps=1, decode=False)  # noqa: E731
    counted, named = draw(PROMPTS, [3]), draw(PROMPTS, [3, 4])
    assert torch.equal(counted, named)
    assert draw(PROMPTS[0], [3, 4, 5]).shape[0] == 3


def test_odd_latent_sizes_work(pipelines):
    """72 x 104 pixels are 9 x 13 latents, which the UNet halves with rounding up."""
    pipeline, model = pipelines("sd2_v")
    pipeline.scheduler = SCHEDULERS["ddim", "leading"](pipeline.scheduler.config)
    noise = unit_noise(1, 9, 13)
    ours = tasks.text_to_image(
        model,
        PROMPTS[:1],
        negative=NEGATIVE,
        height=72,
        width=104,
        steps=STEPS,
        guidance=GUIDANCE,
        noise=noise,
        decode=False,
    )
    assert relative_l2(ours, theirs(pipeline, noise, PROMPTS[:1], [NEGATIVE])[0]) < 1e-4


def test_steps_are_watched_and_guidance_can_be_off(pipelines):
    _, model = pipelines("sd15")
    seen = []
    with_one = tasks.text_to_image(
        model, PROMPTS, steps=4, guidance=1.0, sampler="euler", watch=seen.append, decode=False
    )
    assert [step.i for step in seen] == [0, 1, 2, 3] and torch.equal(seen[-1].x, with_one)
    assert torch.equal(
        with_one, tasks.text_to_image(model, PROMPTS, steps=4, guidance=0.0, sampler="euler", decode=False)
    )


def test_empty_prompts_are_zeros_only_where_published(pipelines):
    for name, zeros in (("sd15", False), ("sdxl", True)):
        _, model = pipelines(name)
        facts, sizes = model.facts, Sizes((64, 64), (64, 64))
        none = encode(model, [None], sizes)
        assert (none.context == 0).all().item() == zeros
        empty = encode(replace(model, facts=replace(facts, zero_empty_prompt=False)), [None], sizes)
        assert empty.context.abs().max() > 0


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(sampler="eular"), "unknown sampler 'eular': choose one of euler"),
        (dict(schedule="caras"), "unknown schedule 'caras'"),
        (dict(guidance=float("nan")), "guidance nan: must be a number"),
        (dict(height=60), "height 60: must be a positive multiple of 8, for example 64"),
        (dict(width=-8), "width -8: must be a positive multiple of 8"),
        (dict(steps=0), "0 steps: choose 1 to 1000"),
        (dict(steps=2000), "2000 steps: choose 1 to 1000"),
        (dict(seeds=[-1]), "seed -1: must be between 0 and"),
        (dict(seeds=[2**64]), "must be between 0 and 18446744073709551615"),
        (dict(seeds=[1, 2, 3]), "3 seeds for 2 prompts"),
        (dict(seeds=[]), "nothing to draw"),
        (dict(negative=["a", "b", "c"]), "3 negative prompts for 2 pictures"),
        (dict(noise=torch.zeros(1, 4, 8, 8)), "these pictures need (2, 4, 8, 8)"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(pipelines, change, words):
    with pytest.raises(ValueError) as error:
        tasks.text_to_image(pipelines("sd15")[1], PROMPTS, **dict(steps=1) | change)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_stage_that_produces_nan_is_named(pipelines):
    _, model = pipelines("sd15")
    for module, stage in (
        (model.texts["text_encoder"].text_model.final_layer_norm, "the text encoder"),
        (model.unet.conv_out, "the UNet"),
        (model.vae.decoder.conv_out, "the VAE decoder"),
    ):
        kept = module.weight
        module.weight = torch.nn.Parameter(kept * float("nan"), requires_grad=False)
        with pytest.raises(FloatingPointError, match=stage):
            tasks.text_to_image(model, PROMPTS[:1], steps=1)
        module.weight = kept
