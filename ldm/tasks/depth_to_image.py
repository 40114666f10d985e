"""Picture to picture that keeps the depth of the scene: Stable Diffusion 2's depth model, 5 channels."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from samplers.options import show
from samplers.schedules.levels import Choice

from ..draw import Watch, draw, encode_image, start_from
from ..guidance import Guidance, UNetLike, guide
from ..images import Images
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


def as_depth(depth: Any) -> Tensor:
    """Depth as (b 1 h w) float32. Raises TypeError or ValueError for what is none, with NaN, or infinite."""
    if isinstance(depth, Image.Image):
        depth = np.array(depth if depth.mode in ("I", "F", "I;16") else depth.convert("L"))
    elif isinstance(depth, list | tuple) and depth and all(isinstance(one, Image.Image) for one in depth):
        return torch.cat([as_depth(one) for one in depth])
    if isinstance(depth, np.ndarray) and depth.dtype.kind in "uif":
        depth = torch.from_numpy(depth.astype(np.float32))
    if not isinstance(depth, Tensor):
        raise TypeError(f"depth {show(depth)}: a tensor or array (b h w), or PIL pictures, are expected")
    if depth.ndim == 4 and depth.shape[1] == 1:
        depth = depth[:, 0]
    found = depth.float() if depth.ndim == 3 else depth.float()[None]
    if found.ndim != 3 or found.numel() == 0:
        raise ValueError(f"depth of shape {tuple(depth.shape)}: (b h w) is expected")
    if not found.isfinite().all():
        raise ValueError("depth with NaN or infinity: give finite numbers, near is large")
    return found[:, None]


def depth_of_latents(depth: Tensor, size: tuple[int, ...], pictures: int) -> Tensor:
    """Depth (b 1 h w) at the size of latents and from -1 to 1 in each picture, as the network was trained with; zeros
    where all is equally far. Raises ValueError for another number of maps than one or one for each picture."""
    if len(depth) not in (1, pictures):
        raise ValueError(f"{len(depth)} depth maps for {pictures} pictures: give one, or one each")
    small = F.interpolate(depth, (size[0], size[1]), mode="bicubic", align_corners=False)
    low = small.amin(dim=(1, 2, 3), keepdim=True)
    high = small.amax(dim=(1, 2, 3), keepdim=True)
    span = torch.where(high > low, high - low, torch.ones_like(high))
    between = 2 * (small - low) / span - 1
    return torch.where(high > low, between, torch.zeros_like(between)).expand(pictures, -1, -1, -1)
