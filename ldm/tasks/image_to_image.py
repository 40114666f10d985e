"""Picture to picture: SDEdit (arXiv 2108.01073)."""

import torch
from torch import Tensor

from samplers.schedules.levels import Choice

from ..conditioning import Sizes
from ..draw import Watch, draw, encode_image, start_from
from ..guidance import Guidance, UNetLike, guide
from ..images import Images
from ..model import Model
from ..plan import Options, SamplerChoice, plan_part
from .shared import ask
from .text_to_image import Prompts, Seeds, as_network, check_text_suffices


@torch.no_grad()
def image_to_image(
    model: Model, image: Images, prompts: Prompts, *, strength: float = 0.8, rule: str = "diffusers",
    resize: str = "stretch", negative: Prompts | None = None, height: int | None = None, width: int | None = None,
    steps: int | None = None, guidance: Guidance | None = None, sampler: SamplerChoice | None = None,
    schedule: Choice | None = None, options: Options | None = None, seeds: Seeds = (0,), noise: Tensor | None = None,
    sizes: Sizes | None = None, negative_sizes: Sizes | None = None, network: UNetLike | None = None,
    watch: Watch | None = None, decode: bool = True,
) -> Tensor:  # fmt: skip
    """Draw the picture anew, from its latents with the noise of a step on the way down: (b 3 h w) in [-1, 1].

    image: see ldm.images. strength: how much noise, to 1. rule: which steps that means, see ldm.plan.plan_part. resize:
    a rule of ldm.images.RESIZES; height, width: None takes the picture's own. help(ldm.tasks) describes the others.
    Picture k draws its posterior and its noise from its own stream, in this order. Raises as text_to_image does.
    """
    check_text_suffices(model)
    asked = ask(
        model, image, prompts, negative=negative, seeds=seeds, height=height, width=width, sizes=sizes,
        negative_sizes=negative_sizes, resize=resize,
    )  # fmt: skip
    run = plan_part(model, steps, sampler, schedule, options, strength, rule)
    latents = encode_image(model, asked.image, asked.streams.draw())
    x, _ = start_from(run, latents, asked.streams, noise)
    network = model.unet if network is None else as_network(network)
    scale = run.guidance if guidance is None else guidance
    guided = guide(network, asked.cond, asked.uncond, scale, run.sigmas, run.sampler.guidance.off)
    return draw(model, guided, x, run, asked.streams, watch, decode)
