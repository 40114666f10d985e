"""From a picture back to the noise that would become it, exactly: to draw it again, or with another prompt."""

import torch
from torch import Tensor

from samplers import invert as backwards
from samplers.basics import Denoiser
from samplers.schedules.levels import Choice

from ..draw import encode_image
from ..guidance import UNetLike, guide
from ..images import Images
from ..model import Model
from ..plan import plan
from .shared import ask
from .text_to_image import Prompts, as_network, check_text_suffices

SAMPLERS = ("euler", "heun", "dpm_2")  # of one step and without noise, which can be undone


@torch.no_grad()
def invert(
    model: Model, image: Images, prompts: Prompts = "", *, negative: Prompts | None = None, resize: str = "stretch",
    height: int | None = None, width: int | None = None, steps: int | None = None, guidance: float = 1.0,
    sampler: str = "euler", schedule: Choice | None = None, network: UNetLike | None = None, tolerance: float = 2e-5,
) -> Tensor:  # fmt: skip
    """The unit Gaussian (b 4 h w) that text_to_image, given it as `noise` with the same sampler, schedule, steps,
    guidance and prompts, draws this picture from; with another prompt it draws a picture that is like this one.

    image: see ldm.images; its latents are the mode of the posterior. sampler: one of SAMPLERS. tolerance: every step
    leads back to within it, relative. Each step is the inverse of the sampler's, found by iteration (AIDI, arXiv
    2309.04907), which converges with little guidance and enough steps. Raises as text_to_image does, and
    ArithmeticError for a step that does not converge.
    """
    check_text_suffices(model)
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler {sampler!r} cannot be run backwards: choose one of {', '.join(SAMPLERS)}")
    asked = ask(
        model, image, prompts, negative=negative, seeds=0, height=height, width=width, sizes=None, negative_sizes=None,
        resize=resize,
    )  # fmt: skip
    run = plan(model, steps, sampler, schedule)
    network = model.unet if network is None else as_network(network)
    guided = guide(network, asked.cond, asked.uncond, guidance, run.sigmas, run.sampler.guidance.off)
    denoise = Denoiser(guided, run.levels, model.facts.prediction, run.times)
    x = encode_image(model, asked.image)
    for step in backwards.invert(run.sampler.run, denoise, x, run.sigmas[::-1], tolerance):
        x = step.x
    return x / run.start_std
