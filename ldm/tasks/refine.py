"""Text to picture by two models: SDXL's base begins, its refiner ends (arXiv 2307.01952, section 2.5)."""

from numbers import Real
from typing import Any

import torch
from torch import Tensor

from samplers.basics import NoiseTable, Streams
from samplers.options import show
from samplers.schedules.cut import split, split_at_time
from samplers.schedules.levels import Choice
from samplers.step import Step

from ..conditioning import Sizes
from ..draw import Watch, draw, start
from ..guidance import Guidance, guide
from ..model import Model
from ..plan import Options, Plan, SamplerChoice, part, plan
from .shared import choose_sizes, encode_both
from .text_to_image import Prompts, Seeds, check_text_suffices, one_each, pair, picture_size


@torch.no_grad()
def refine(
    base: Model, refiner: Model, prompts: Prompts, *, at: float = 0.8, by: str = "time",
    negative: Prompts | None = None, height: int | None = None, width: int | None = None, steps: int | None = None,
    guidance: Guidance | None = None, sampler: SamplerChoice | None = None, schedule: Choice | None = None,
    options: Options | None = None, seeds: Seeds = (0,), noise: Tensor | None = None, sizes: Sizes | None = None,
    negative_sizes: Sizes | None = None, watch: Watch | None = None, decode: bool = True,
) -> Tensor:  # fmt: skip
    """Draw one picture per prompt: the base takes the first steps of a run and the refiner the others, after whole
    steps, so that nothing is lost of samplers that evaluate the network twice: (b 3 height width) in [-1, 1].

    at: the share of the run that is the base's, between 0 and 1. by: "time" gives it the steps that begin in the
    first `at` of the trained times, as diffusers does; "step" counts steps, as ComfyUI does. help(ldm.tasks) describes
    the others, which are read as the base's. Raises as text_to_image does.
    """
    check_text_suffices(base)
    check_text_suffices(refiner)
    check_pair(base, refiner)
    height, width = picture_size(base, height, width)
    texts, seed_list = pair(prompts, seeds)
    negatives = one_each("negative", [None] if negative is None else negative, len(seed_list))
    told = choose_sizes(height, width, sizes, negative_sizes)

    run = plan(base, steps, sampler, schedule, options)
    first, last = hand_over(run, at, by)
    shape = base.facts.vae.latent_channels, height // base.vae.factor, width // base.vae.factor
    streams = Streams(seed_list, shape, base.device)
    scale = run.guidance if guidance is None else guidance
    seen = Last(start(run, streams, noise), watch)
    if len(first.sigmas) > 1:
        guided = guide(
            base.unet, *encode_both(base, texts, negatives, told), scale, first.sigmas, run.sampler.guidance.off
        )
        draw(base, guided, seen.x, first, streams, seen, decode=False)
    guided = guide(
        refiner.unet, *encode_both(refiner, texts, negatives, told), scale, last.sigmas, run.sampler.guidance.off
    )
    return draw(refiner, guided, seen.x, last, streams, watch, decode)


class Last:
    """Watches a run and holds its last x, which the next model goes on from."""

    def __init__(self, x: Tensor, watch: Watch | None):
        self.x = x
        self.watch = watch

    def __call__(self, step: Step) -> Any:
        self.x = step.x
        return None if self.watch is None else self.watch(step)


def hand_over(run: Plan, at: float, by: str) -> tuple[Plan, Plan]:
    """The plan in two, after whole steps. Raises ValueError or TypeError for a share or a rule that cannot be, and if
    nothing is left for the second."""
    if isinstance(at, bool) or not isinstance(at, Real):
        raise TypeError(f"at {show(at)}: a number between 0 and 1 is expected")
    if not 0 < at < 1:
        raise ValueError(f"at {at}: choose a share between 0 and 1, for one model alone text_to_image")
    if by not in ("time", "step"):
        raise ValueError(f"by {by!r}: choose time or step")
    steps = len(run.sigmas) - 1
    if by == "step":
        first, last = split(run.sigmas, round(at * steps))
    elif isinstance(run.levels, NoiseTable):
        trained = len(run.levels.sigmas)
        first, last = split_at_time(run.sigmas, run.times, round(trained - at * trained))
    else:
        raise ValueError("by time: this model has no trained times; choose by='step'")
    if len(last) < 2:
        raise ValueError(f"at {at} of {steps} steps: leaves none for the refiner; choose less, or more steps")
    return part(run, first), part(run, last)


def check_pair(base: Model, refiner: Model) -> None:
    """Raises ValueError for two models that cannot share a run."""
    if base.facts.family.name == "sdxl_refiner":
        raise ValueError("base: this is a refiner, which cannot begin a picture: give the base first, then the refiner")
    if base.facts.noise != refiner.facts.noise or base.facts.latent != refiner.facts.latent:
        raise ValueError("base and refiner were trained with other noise levels or latents: they cannot share a run")
