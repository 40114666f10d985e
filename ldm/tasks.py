"""What people do with a model, each task one flat function. `None` means the model's own default."""

from collections.abc import Callable, Sequence
from math import isfinite

import torch
from samplers.schedule import EDM, NoiseTable, choose, noise_table, start_scale
from torch import Tensor

from samplers import SAMPLERS, Sampler, find
from samplers.denoiser import denoiser
from samplers.noise import BrownianTree, Streams
from samplers.step import Step

from . import conditioning
from . import guidance as guide
from .conditioning import Sizes
from .config import ModelConfig, NoiseConfig
from .model import Model

MAX_SEED = 2**64 - 1
MAX_SIZE = 2**15  # pixels; beyond it a slip of the keyboard is likelier than a wish


@torch.no_grad()
def text_to_image(
    model: Model,
    prompts: str | Sequence[str],
    *,
    negative: str | Sequence[str | None] | None = None,
    height: int | None = None,
    width: int | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    sampler: str | None = None,
    schedule: str | None = None,
    seeds: Sequence[int] = (0,),
    noise: Tensor | None = None,
    sizes: Sizes | None = None,
    negative_sizes: Sizes | None = None,
    watch: Callable[[Step], None] | None = None,
    decode: bool = True,
) -> Tensor:
    """Draw one picture per prompt: (b 3 height width) in [-1, 1]; without `decode` its latents (b 4 h w).

    negative: what to move away from; one text for all pictures or one each. guidance: 1 or less means off,
    but for samplers of CFG++, whose scale is an interpolation, 0 to 1.
    sampler: a name in samplers.SAMPLERS, or another program's for it; schedule: one in samplers.schedule.SCHEDULES.
    seeds: one per picture, or one to count up from; a single prompt is drawn once per seed. Picture k takes all of
    its noise from seeds[k] alone. noise: unit Gaussian (b 4 h w) to start from instead.
    sizes, negative_sizes: SDXL's micro-conditioning, the picture's own size if not given, and that of the negative
    prompt, the same if not given. watch is called after each step.

    Raises ValueError for arguments that do not fit, FloatingPointError if a stage produces NaN or infinity.
    """
    facts = model.facts
    check_text_suffices(facts)
    height, width = (facts.size if size is None else size for size in (height, width))
    check_size(height, width, facts.vae.factor)
    prompts, seeds = pair(prompts, seeds)
    negatives = one_each(negative, len(prompts))
    usual = defaults(facts, sampler)
    guidance = usual["guidance"] if guidance is None else guidance
    if not isfinite(guidance):
        raise ValueError(f"guidance {guidance}: must be a number; 1 or less means off")

    chosen, name = SAMPLERS[usual["sampler"]], schedule or usual["schedule"]
    levels = noise_levels(facts.noise)
    sigmas, times = choose(
        levels,
        name,
        usual["steps"] if steps is None else steps,
        facts.offset,
        chosen.drops_last,
        chosen.whole_times,
        chosen.ends_at_zero,
    )
    options = dict(table=trained_table(levels, usual["sampler"])) if chosen.takes_table else {}

    sizes = sizes or Sizes(original=(height, width), target=(height, width))
    cond = conditioning.encode(model.texts, model.tokenizer, facts, prompts, sizes)
    check_finite(cond.context, "the text encoder")
    if guidance > 1 or chosen.takes_pairs:
        uncond = conditioning.encode(model.texts, model.tokenizer, facts, negatives, negative_sizes or sizes)
        guided = guide.guided_and_free if chosen.takes_pairs else guide.classifier_free
        network = guided(model.unet, cond, uncond, guidance)
    else:
        network = guide.condition(model.unet, cond)

    streams = Streams(
        seeds, (facts.vae.latent_channels, height // facts.vae.factor, width // facts.vae.factor), model.device
    )
    start = streams.draw()  # also where noise is given: what a sampler draws later must not be the same
    if noise is not None:
        start = given_noise(noise, start)
    x = start * start_scale(sigmas[0], name, chosen.unit_variance)

    denoise = denoiser(network, levels, facts.prediction, times)
    source = [noise_source(chosen, sigmas, seeds, streams)] if chosen.stochastic else []
    for step in chosen.run(denoise, x, sigmas, *source, **options):
        x = step.x
        if watch:
            watch(step)
    check_finite(x, "the UNet")
    latents = x / (1 + sigmas[-1] ** 2) ** 0.5  # to unit variance where the sampler ends above 0
    if not decode:
        return latents
    image = model.to_image(latents)
    check_finite(image, "the VAE decoder")
    return image.clamp(-1, 1)


def noise_levels(noise: NoiseConfig) -> NoiseTable | EDM:
    if noise.edm:
        return EDM(noise.sigma_min, noise.sigma_max, noise.sigma_data)
    return noise_table(noise.beta_start, noise.beta_end, noise.beta_law, noise.trained, noise.zero_snr)


def defaults(facts: ModelConfig, sampler: str | None = None) -> dict:
    """What text_to_image takes for each argument that is None, where this sampler is asked for.

    A sampler may be made for a schedule. A scale for CFG++ is a usual one divided by 12.5, as A1111 has it.
    Raises ValueError for an unknown sampler.
    """
    name = find(sampler or facts.sampler)
    chosen = SAMPLERS[name]
    return dict(
        sampler=name,
        schedule=chosen.schedule or facts.schedule,
        steps=facts.steps,
        guidance=facts.guidance / 12.5 if chosen.takes_pairs else facts.guidance,
        height=facts.size,
        width=facts.size,
    )


def trained_table(levels: NoiseTable | EDM, sampler: str) -> NoiseTable:
    if isinstance(levels, EDM):
        raise ValueError(f"sampler {sampler!r} needs trained time steps and this model has none: choose another")
    return levels


def noise_source(chosen: Sampler, sigmas: Sequence[float], seeds: Sequence[int], streams: Streams):
    """What the sampler draws from, as its publishers do: the streams of the pictures, or their Brownian paths."""
    if chosen.noise != "brownian":
        return streams
    return BrownianTree(seeds, streams.shape, min(s for s in sigmas if s > 0), max(sigmas), streams.device)


def check_text_suffices(facts: ModelConfig):
    """Refuse a UNet that wants more than text."""
    unet = facts.unet
    if unet.class_count:
        wanted = "a small picture to enlarge"
    elif unet.class_dim:
        wanted = "the embedding of a picture"
    elif unet.guidance_dim:
        wanted = "an embedded guidance scale (LCM)"
    elif unet.in_channels > facts.vae.latent_channels:
        wanted = f"{unet.in_channels - facts.vae.latent_channels} more input channels, such as a mask or a depth map"
    else:
        return
    raise ValueError(f"this model needs {wanted}: text to picture takes one that needs text alone")


def check_size(height: int, width: int, factor: int):
    for name, size in (("height", height), ("width", width)):
        if size % factor or not factor <= size <= MAX_SIZE:
            near = min(max(factor, round(size / factor) * factor), MAX_SIZE)
            raise ValueError(f"{name} {size}: must be a positive multiple of {factor}, for example {near}")


def pair(prompts: str | Sequence[str], seeds: Sequence[int]) -> tuple[list[str], list[int]]:
    """One prompt and one seed per picture."""
    prompts, seeds = [prompts] if isinstance(prompts, str) else list(prompts), list(seeds)
    if not prompts or not seeds:
        raise ValueError("nothing to draw: give at least one prompt and one seed")
    if len(prompts) == 1:
        prompts = prompts * len(seeds)
    if len(seeds) == 1:
        seeds = [seeds[0] + k for k in range(len(prompts))]
    if len(prompts) != len(seeds):
        raise ValueError(f"{len(seeds)} seeds for {len(prompts)} prompts: give one, or one each")
    for seed in seeds:
        if not 0 <= seed <= MAX_SEED:
            raise ValueError(f"seed {seed}: must be between 0 and {MAX_SEED}")
    return prompts, seeds


def one_each(negative: str | Sequence[str | None] | None, count: int) -> list[str | None]:
    if negative is None or isinstance(negative, str):
        return [negative] * count
    if len(negative) != count:
        raise ValueError(f"{len(negative)} negative prompts for {count} pictures: give one, or one each")
    return list(negative)


def given_noise(noise: Tensor, like: Tensor) -> Tensor:
    """The caller's noise on the device of `like`, float64 if it is, else float32: samplers keep their state so."""
    if noise.shape != like.shape:
        raise ValueError(f"noise of shape {tuple(noise.shape)}: these pictures need {tuple(like.shape)}")
    return noise.to(like.device, torch.promote_types(noise.dtype, torch.float32))


def check_finite(x: Tensor, stage: str):
    if not x.isfinite().all():
        raise FloatingPointError(f"{stage} produced NaN or infinity: try dtype float32 or bfloat16, or other weights")
