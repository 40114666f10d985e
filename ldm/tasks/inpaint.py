"""Paint inside a mask: with UNets that were trained for it (9 channels), and with any other."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from samplers.schedules.levels import Choice

from ..blend import Keep, around, differential, mix
from ..conditioning import Sizes
from ..draw import Watch, decode_image, draw, encode_image, given_noise
from ..guidance import Guidance, UNetLike, guide
from ..images import Images, as_images, as_mask, box_around, mask_of_latents, paste_back
from ..model import Model
from ..plan import Options, Plan, SamplerChoice, plan_part
from .shared import Asked, ask, check_channels, with_channels
from .text_to_image import Prompts, Seeds, as_network, picture_size

TRAINED = 9  # channels of a UNet for inpainting: latents, the mask, and latents of the picture without what it covers
FILLS = ("original", "grey", "noise")
GREYS = ("blend", "differential")


@torch.no_grad()
def inpaint(
    model: Model, image: Images, mask: Images, prompts: Prompts, *, strength: float = 1.0, keep: bool | None = None,
    fill: str = "original", greys: str = "blend", cells: str = "any", feather: int | None = None,
    rule: str = "diffusers", resize: str = "stretch", negative: Prompts | None = None, height: int | None = None,
    width: int | None = None, steps: int | None = None, guidance: Guidance | None = None,
    sampler: SamplerChoice | None = None, schedule: Choice | None = None, options: Options | None = None,
    seeds: Seeds = (0,), noise: Tensor | None = None, sizes: Sizes | None = None, negative_sizes: Sizes | None = None,
    network: UNetLike | None = None, watch: Watch | None = None, decode: bool = True,
) -> Tensor:  # fmt: skip
    """Draw what the mask covers: (b 3 h w) in [-1, 1].

    mask: 1, or white, is to be painted; see ldm.images. strength: 1 begins from noise alone, less from the picture with
    noise. keep: hold the latents outside the mask (blend.Keep); None does so where the UNet was not trained to inpaint.
    fill: what lies under the mask before the noise, "original", "grey" or "noise". greys: what they mean in a mask,
    "blend" or "differential". cells: which latents a mask covers, see images.mask_of_latents. feather: paste the result
    back, with an edge of so many pixels, beyond which the picture keeps its bits. rule, resize: as in image_to_image.
    help(ldm.tasks) describes the others. Raises as text_to_image does.
    """
    trained = check_inpainting(model, keep, fill, greys)
    asked = ask(
        model, image, prompts, negative=negative, seeds=seeds, height=height, width=width, sizes=sizes,
        negative_sizes=negative_sizes, resize=resize,
    )  # fmt: skip
    painted = as_mask(mask, asked.image, image)
    run = plan_part(model, steps, sampler, schedule, options, strength, rule)
    begun = begin(model, asked, painted, run, strength=strength, fill=fill, cells=cells, noise=noise)
    network = model.unet if network is None else as_network(network)
    if trained:
        network = with_channels(network, torch.cat([begun.mask.round(), begun.masked], dim=1))
    scale = run.guidance if guidance is None else guidance
    guided = guide(network, asked.cond, asked.uncond, scale, run.sigmas, run.sampler.guidance.off)
    if keep is False or (keep is None and trained):
        latents = draw(model, guided, begun.x, run, asked.streams, watch, decode=False)
    else:
        latents = draw_kept(model, guided, begun, run, asked, strength=strength, greys=greys, watch=watch)
    if not decode:
        return latents
    drawn = decode_image(model, latents)
    return drawn if feather is None else paste_back(asked.image, drawn, painted, feather)


class Begun(NamedTuple):
    """Where a run begins. x: the noisy latents; z: the picture's; noise: a unit Gaussian, all (b 4 h w). masked: the
    latents of the picture without what the mask covers. mask: at the size of latents, (b 1 h w)."""

    x: Tensor
    z: Tensor
    noise: Tensor
    masked: Tensor
    mask: Tensor


def begin(
    model: Model, asked: Asked, painted: Tensor, run: Plan, *, strength: float, fill: str, cells: str,
    noise: Tensor | None,
) -> Begun:  # fmt: skip
    """The latents that a run begins with. Draws are made in the order of diffusers: the posterior of the picture, but
    for a trained UNet at strength 1; the noise; the posterior of the masked picture, whoever needs it."""
    streams = asked.streams
    mask = mask_of_latents(painted, model.vae.factor, cells).expand(len(asked.image), -1, -1, -1)
    outside = asked.image * (painted < 0.5)  # what is covered becomes mid-grey
    under = outside if fill == "grey" else asked.image
    z = None
    if strength < 1 or not is_trained(model):
        z = encode_image(model, under, streams.draw())
    drawn = streams.draw()
    masked = encode_image(model, outside, streams.draw())
    if z is None:
        z = encode_image(model, under)  # nothing is drawn for it: at strength 1 only `keep` needs it
    first = z
    if fill == "noise":
        first = mix(streams.draw(), z, mask)
    unit = drawn if noise is None else given_noise(noise, drawn)
    x = run.start_std * unit if strength == 1 else first + run.sigmas[0] * unit
    return Begun(x, z, unit, masked, mask)


def draw_kept(
    model: Model,
    guided: Any,
    begun: Begun,
    run: Plan,
    asked: Asked,
    *,
    strength: float,
    greys: str,
    watch: Watch | None,
) -> Tensor:
    """The final latents, held to the picture's outside the mask in each evaluation of the network and at the end."""
    mask = begun.mask
    free = run.sigmas[0] if strength == 1 else None
    moving = differential(mask, run) if greys == "differential" else mask
    kept = around(run, lambda denoise: Keep(denoise, moving, begun.z, begun.noise, free))
    latents = draw(model, guided, begun.x, kept, asked.streams, watch, decode=False)
    last = (mask > 0).to(mask.dtype) if greys == "differential" else mask
    return mix(latents, begun.z, last)


def is_trained(model: Model) -> bool:
    return model.facts.unet.in_channels == TRAINED


def check_inpainting(model: Model, keep: bool | None, fill: str, greys: str) -> bool:
    """Whether the UNet was trained to inpaint. Raises ValueError or TypeError for a model or an argument that cannot
    be."""
    check_channels(model, (4, TRAINED), "inpainting")
    trained = is_trained(model)
    if keep is False and not trained:
        raise ValueError("keep=False: this UNet was not trained to inpaint and would paint everywhere; leave keep out")
    if fill not in FILLS:
        raise ValueError(f"fill {fill!r}: choose one of {', '.join(FILLS)}")
    if greys not in GREYS:
        raise ValueError(f"greys {greys!r}: choose one of {', '.join(GREYS)}")
    return trained


@torch.no_grad()
def inpaint_part(
    model: Model, image: Images, mask: Images, prompts: Prompts, *, padding: int = 32, feather: int = 4,
    height: int | None = None, width: int | None = None, **options: Any,
) -> Tensor:  # fmt: skip
    """Draw only the part of the picture around the mask, larger, and paste it back: (b 3 h w) of the picture's size.

    padding: pixels around what the mask covers that are drawn with it. feather: width of the edge of what is pasted, in
    pixels, beyond which the picture keeps its bits. height, width: at which the part is drawn; None takes the model's.
    The other arguments are inpaint's. Raises as inpaint does.
    """
    height, width = picture_size(model, height, width)
    whole = as_images("image", image, None, 1)
    painted = as_mask(mask, whole, image)
    left, top, right, bottom = box_around(painted.amax(dim=0, keepdim=True), padding, width / height)

    def cut(pixels: Tensor, mode: str) -> Tensor:
        return F.interpolate(pixels[:, :, top:bottom, left:right], (height, width), mode=mode, antialias=True)

    part = cut(whole, "bicubic").clamp(-1, 1)
    drawn = inpaint(model, part, cut(painted, "bilinear").clamp(0, 1), prompts, **options)
    pasted = whole.to(drawn.device).expand(len(drawn), -1, -1, -1).clone()
    size = bottom - top, right - left
    pasted[:, :, top:bottom, left:right] = F.interpolate(drawn, size, mode="bicubic", antialias=True).clamp(-1, 1)
    return paste_back(whole.to(drawn.device), pasted, painted.to(drawn.device), feather)
