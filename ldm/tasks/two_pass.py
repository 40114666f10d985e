"""Larger than a model was trained for: a picture of its own size first, enlarged and drawn again ("hires fix")."""

from math import isfinite
from numbers import Real

import torch
import torch.nn.functional as F
from torch import Tensor

from samplers.basics import Streams
from samplers.options import show
from samplers.schedules.levels import Choice

from ..conditioning import Sizes
from ..draw import Watch, decode_image, draw, encode_image, start_from
from ..guidance import Guidance, UNetLike, guide
from ..model import Model
from ..plan import Options, SamplerChoice, plan_part
from .shared import choose_sizes, encode_both
from .text_to_image import Prompts, Seeds, as_network, one_each, pair, picture_size, text_to_image

FILTERS = ("bicubic", "bilinear", "nearest", "nearest-exact")
ENLARGES = ("pixels", "latents")


@torch.no_grad()
def two_pass(
    model: Model, prompts: Prompts, *, scale: float = 2.0, strength: float = 0.7, enlarge: str = "pixels",
    filter: str = "bicubic", second_steps: int | None = None, negative: Prompts | None = None,
    height: int | None = None, width: int | None = None, steps: int | None = None, guidance: Guidance | None = None,
    sampler: SamplerChoice | None = None, schedule: Choice | None = None, options: Options | None = None,
    seeds: Seeds = (0,), noise: Tensor | None = None, sizes: Sizes | None = None, negative_sizes: Sizes | None = None,
    network: UNetLike | None = None, watch: Watch | None = None, decode: bool = True,
) -> Tensor:  # fmt: skip
    """Draw one picture per prompt, then again `scale` times as large: (b 3 scale*height scale*width) in [-1, 1].

    height, width: of the first pass. strength: of the second, which takes exactly second_steps, or as many steps as the
    first. enlarge: "pixels" decodes the first picture, enlarges and encodes it; "latents" enlarges its latents, which
    stay blurred with a strength below 0.5. filter: one of FILTERS. noise: of the first pass. Both passes take their
    noise from the beginning of the streams of the seeds, as AUTOMATIC1111's do. help(ldm.tasks) describes the others.
    Raises as text_to_image does.
    """
    check_choices(enlarge, filter)
    height, width = picture_size(model, height, width)
    larger = second_size(height, width, scale, model.vae.factor)
    run = plan_part(
        model, steps if second_steps is None else second_steps, sampler, schedule, options, strength, "exact"
    )
    latents = text_to_image(
        model, prompts, negative=negative, height=height, width=width, steps=steps, guidance=guidance, sampler=sampler,
        schedule=schedule, options=options, seeds=seeds, noise=noise, sizes=sizes, negative_sizes=negative_sizes,
        network=network, watch=watch, decode=False,
    )  # fmt: skip

    texts, seed_list = pair(prompts, seeds)
    negatives = one_each("negative", [None] if negative is None else negative, len(seed_list))
    cond, uncond = encode_both(model, texts, negatives, choose_sizes(*larger, sizes, negative_sizes))
    shape = model.facts.vae.latent_channels, larger[0] // model.vae.factor, larger[1] // model.vae.factor
    streams = Streams(seed_list, shape, cond.context.device)
    if enlarge == "latents":
        latents = resize(latents, (shape[1], shape[2]), filter)
    else:
        image = resize(decode_image(model, latents), larger, filter).clamp(-1, 1)
        latents = encode_image(model, image, streams.draw())
    x, _ = start_from(run, latents, streams)
    scale_of = run.guidance if guidance is None else guidance
    network = model.unet if network is None else as_network(network)
    guided = guide(network, cond, uncond, scale_of, run.sigmas, run.sampler.guidance.off)
    return draw(model, guided, x, run, streams, watch, decode)


def check_choices(enlarge: str, filter: str) -> None:
    if enlarge not in ENLARGES:
        raise ValueError(f"enlarge {enlarge!r}: choose one of {', '.join(ENLARGES)}")
    if filter not in FILTERS:
        raise ValueError(f"filter {filter!r}: choose one of {', '.join(FILTERS)}")


def second_size(height: int, width: int, scale: float, factor: int) -> tuple[int, int]:
    """(height, width) of the second pass, rounded to whole latents. Raises TypeError or ValueError for another scale
    than a number above 1, ValueError for a size beyond what can be drawn."""
    if isinstance(scale, bool) or not isinstance(scale, Real):
        raise TypeError(f"scale {show(scale)}: a number above 1 is expected, such as 2")
    if not isfinite(scale) or not 1 < scale <= 16:
        raise ValueError(f"scale {scale}: choose above 1, to 16")
    return round(height * scale / factor) * factor, round(width * scale / factor) * factor


def resize(pixels: Tensor, size: tuple[int, int], filter: str) -> Tensor:
    """Pictures or latents (b c h w) at another (h, w)."""
    return F.interpolate(pixels, size, mode=filter)
