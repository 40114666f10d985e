"""Four times the size: Stable Diffusion's x4 upscaler, which sees the small picture beside its latents."""

import torch
from torch import Tensor

from samplers.basics import NoiseTable
from samplers.options import show
from samplers.schedules.levels import Choice

from ..conditioning import Conditioning
from ..draw import Watch, draw, start
from ..guidance import Guidance, UNetLike, guide
from ..images import Images
from ..model import Model
from ..plan import Options, SamplerChoice, as_int, noise_levels, plan
from .shared import ask, with_channels
from .text_to_image import Prompts, Seeds, as_network

HIGHEST = 350  # the largest noise level of the small picture that the model was trained with


@torch.no_grad()
def upscale(
    model: Model, image: Images, prompts: Prompts, *, noise_level: int = 20, resize: str = "stretch",
    negative: Prompts | None = None, steps: int | None = None, guidance: Guidance | None = None,
    sampler: SamplerChoice | None = None, schedule: Choice | None = None, options: Options | None = None,
    seeds: Seeds = (0,), noise: Tensor | None = None, network: UNetLike | None = None, watch: Watch | None = None,
    decode: bool = True,
) -> Tensor:  # fmt: skip
    """The picture (b 3 h w) four times as large: (b 3 4h 4w) in [-1, 1].

    noise_level: how much noise is added to the small picture, 0 to 350; more lets the model invent more.
    help(ldm.tasks) describes the others. Picture k draws the noise of its small picture and then its first noise from
    its own stream. Raises as text_to_image does.
    """
    level = check_upscaling(model, noise_level)
    asked = ask(
        model, image, prompts, negative=negative, seeds=seeds, height=None, width=None, sizes=None,
        negative_sizes=None, resize=resize,
    )  # fmt: skip
    run = plan(model, steps, sampler, schedule, options)
    # Latents are as large as the small picture, and its noise is of the table that the latents' is.
    streams = asked.streams
    streams.shape = tuple(asked.image.shape[1:])
    sigma = noise_levels_of(model).sigmas[level]
    small = (asked.image + sigma * streams.draw()) / (1 + sigma**2) ** 0.5
    streams.shape = (model.facts.vae.latent_channels, *asked.image.shape[2:])
    x = start(run, streams, noise)
    network = with_channels(model.unet if network is None else as_network(network), small)
    scale = run.guidance if guidance is None else guidance
    cond, uncond = (tell_level(half, level) for half in (asked.cond, asked.uncond))
    guided = guide(network, cond, uncond, scale, run.sigmas, run.sampler.guidance.off)
    return draw(model, guided, x, run, streams, watch, decode)


def tell_level(cond: Conditioning, level: int) -> Conditioning:
    """The conditioning with the noise level of the small picture, which the UNet looks up in a table."""
    return Conditioning(cond.context, torch.full((len(cond),), level, device=cond.context.device))


def noise_levels_of(model: Model) -> NoiseTable:
    levels = noise_levels(model.facts.noise)
    if not isinstance(levels, NoiseTable):
        raise ValueError("this model has no trained times, which the noise of the small picture is chosen by")
    return levels


def check_upscaling(model: Model, noise_level: int) -> int:
    """The noise level as a whole number. Raises ValueError or TypeError for a model or a level that cannot be."""
    if not isinstance(model, Model):
        raise TypeError(f"model {show(model)}: a Model is expected, such as weights.load(source) gives")
    if not model.facts.unet.class_count:
        raise ValueError("this model does not enlarge pictures: choose an x4 upscaler, or tasks.two_pass")
    level = as_int("noise_level", noise_level)
    if not 0 <= level <= HIGHEST:
        raise ValueError(f"noise_level {level}: choose 0 to {HIGHEST}")
    return level
