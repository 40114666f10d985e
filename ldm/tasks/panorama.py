"""Text to a picture of any size, in windows of the usual one: MultiDiffusion (arXiv 2302.08113)."""

import torch
from torch import Tensor

from samplers.schedules.levels import Choice

from ..conditioning import Sizes
from ..draw import Watch
from ..guidance import Guidance, UNetLike
from ..model import Model
from ..plan import Options, SamplerChoice, as_int
from ..windows import Grid, windowed
from .text_to_image import Prompts, Seeds, as_network, check_text_suffices, text_to_image


@torch.no_grad()
def panorama(
    model: Model, prompts: Prompts, *, window: int | None = None, stride: int | None = None, weights: str = "uniform",
    negative: Prompts | None = None, height: int | None = None, width: int | None = None, steps: int | None = None,
    guidance: Guidance | None = None, sampler: SamplerChoice | None = None, schedule: Choice | None = None,
    options: Options | None = None, seeds: Seeds = (0,), noise: Tensor | None = None, sizes: Sizes | None = None,
    negative_sizes: Sizes | None = None, network: UNetLike | None = None, watch: Watch | None = None,
    decode: bool = True,
) -> Tensor:  # fmt: skip
    """Draw one picture per prompt: (b 3 height width) in [-1, 1]; the width is twice the model's own by default.

    window: its height and width in latents, by default those of the model's own pictures. stride: from one window to
    the next in latents, by default an eighth of it; the larger, the quicker and the more visible. weights: of the
    pixels of a window, one of ldm.windows.WEIGHTS. sizes: SDXL is told by default that a window is a whole picture.
    help(ldm.tasks) describes the others. Raises as text_to_image does.
    """
    check_text_suffices(model)
    factor = model.vae.factor
    window = model.facts.size // factor if window is None else as_int("window", window)
    stride = max(window // 8, 1) if stride is None else as_int("stride", stride)
    network = model.unet if network is None else as_network(network)
    network = windowed(network, Grid(window, stride, weights))
    side = window * factor
    return text_to_image(
        model, prompts, negative=negative, height=height, width=2 * model.facts.size if width is None else width,
        steps=steps, guidance=guidance, sampler=sampler, schedule=schedule, options=options, seeds=seeds, noise=noise,
        sizes=Sizes((side, side), (side, side)) if sizes is None else sizes, negative_sizes=negative_sizes,
        network=network, watch=watch, decode=decode,
    )  # fmt: skip
