"""Picture to picture that keeps the depth of the scene: Stable Diffusion 2's depth model, 5 channels."""

from typing import Any

import torch
from torch import Tensor

from samplers.schedules.levels import Choice

from ..draw import Watch, draw, encode_image, start_from
from ..guidance import Guidance, UNetLike, guide
from ..images import Images, as_depth, depth_of_latents
from ..model import Model
from ..plan import Options, SamplerChoice, plan_part
from .shared import ask, check_channels, with_channels
from .text_to_image import Prompts, Seeds, as_network

CHANNELS = 5  # noisy latents, and depth


@torch.no_grad()
def depth_to_image(
    model: Model, image: Images, depth: Any, prompts: Prompts, *, strength: float = 0.8, rule: str = "diffusers",
    resize: str = "stretch", negative: Prompts | None = None, height: int | None = None, width: int | None = None,
    steps: int | None = None, guidance: Guidance | None = None, sampler: SamplerChoice | None = None,
    schedule: Choice | None = None, options: Options | None = None, seeds: Seeds = (0,), noise: Tensor | None = None,
    network: UNetLike | None = None, watch: Watch | None = None, decode: bool = True,
) -> Tensor:  # fmt: skip
    """Draw the picture anew, its things where they are: (b 3 h w) in [-1, 1].

    depth: inverse depth, near is large, in any range: a tensor or array (b h w) or (h w), or PIL pictures of greys.
    The other arguments are those of image_to_image. Picture k draws its posterior and its noise from its own stream, in
    this order. Raises as text_to_image does.
    """
    check_channels(model, (CHANNELS,), "depth to picture")
    asked = ask(
        model, image, prompts, negative=negative, seeds=seeds, height=height, width=width, sizes=None,
        negative_sizes=None, resize=resize,
    )  # fmt: skip
    near = depth_of_latents(as_depth(depth), asked.streams.shape[1:], len(asked.image)).to(asked.image.device)
    run = plan_part(model, steps, sampler, schedule, options, strength, rule)
    latents = encode_image(model, asked.image, asked.streams.draw())
    x, _ = start_from(run, latents, asked.streams, noise)
    network = with_channels(model.unet if network is None else as_network(network), near)
    scale = run.guidance if guidance is None else guidance
    guided = guide(network, asked.cond, asked.uncond, scale, run.sigmas, run.sampler.guidance.off)
    return draw(model, guided, x, run, asked.streams, watch, decode)
