"""Change a picture as told: InstructPix2Pix (arXiv 2211.09800), 8 channels and two guidances."""

import torch
from torch import Tensor

from samplers.basics import Network
from samplers.schedules.levels import Choice

from ..conditioning import Conditioning
from ..draw import Watch, draw, encode_image, start
from ..guidance import UNetLike
from ..images import Images
from ..model import Model
from ..plan import Options, SamplerChoice, plan
from .shared import ask, check_channels
from .text_to_image import Prompts, Seeds, as_network

CHANNELS = 8  # noisy latents, and latents of the picture


@torch.no_grad()
def edit(
    model: Model, image: Images, prompts: Prompts, *, guidance: float = 7.5, image_guidance: float = 1.5,
    resize: str = "stretch", negative: Prompts | None = None, height: int | None = None, width: int | None = None,
    steps: int | None = None, sampler: SamplerChoice | None = None, schedule: Choice | None = None,
    options: Options | None = None, seeds: Seeds = (0,), noise: Tensor | None = None, network: UNetLike | None = None,
    watch: Watch | None = None, decode: bool = True,
) -> Tensor:  # fmt: skip
    """The picture as the prompt, an instruction, changes it: (b 3 h w) in [-1, 1].

    guidance: towards the instruction; image_guidance: towards the picture, 1 or more. Either is off where guidance is 1
    or less, as in diffusers. image, resize, height and width: as in image_to_image; help(ldm.tasks) describes the
    others. Picture k draws its first noise from its own stream. Raises as text_to_image does.
    """
    check_channels(model, (CHANNELS,), "editing")
    asked = ask(
        model, image, prompts, negative=negative, seeds=seeds, height=height, width=width, sizes=None,
        negative_sizes=None, resize=resize,
    )  # fmt: skip
    run = plan(model, steps, sampler, schedule, options)
    x = start(run, asked.streams, noise)
    # The mode of the posterior, unscaled: so the network was trained.
    picture = encode_image(model, asked.image, scaled=False)
    network = model.unet if network is None else as_network(network)
    guided = guide_twice(network, picture, asked.cond, asked.uncond, guidance, image_guidance)
    return draw(model, guided, x, run, asked.streams, watch, decode)


def guide_twice(
    network: UNetLike, picture: Tensor, cond: Conditioning, uncond: Conditioning, scale: float, image_scale: float
) -> Network:
    """Guidance by text and by picture (arXiv 2211.09800, equation 3): away from neither, to the picture, to both. All
    three run in one batch; the conditional one alone if `scale` is 1 or less or `image_scale` below 1."""
    if scale <= 1 or image_scale < 1:
        return lambda x, t: network(torch.cat([x, picture], 1).to(cond.context.dtype), t, cond.context, cond.vector)
    rows = Conditioning.cat(cond, uncond, uncond)
    pictures = torch.cat([picture, picture, torch.zeros_like(picture)])

    def guided(x: Tensor, t: float) -> Tensor:
        given = torch.cat([torch.cat([x, x, x]), pictures], dim=1)
        both, image, neither = network(given.to(cond.context.dtype), t, rows.context, rows.vector).chunk(3)
        return neither + scale * (both - image) + image_scale * (image - neither)

    return guided
