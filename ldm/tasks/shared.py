"""The first move of every task that begins from a picture: its arguments, checked, and its conditioning."""

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from samplers.basics import Streams
from samplers.options import show

from ..conditioning import Conditioning, Sizes, as_sizes, encode
from ..guidance import UNetLike
from ..images import as_images
from ..model import Model
from .text_to_image import Prompts, Seeds, Texts, as_texts, one_each, pair, picture_size, what_it_needs


class Asked(NamedTuple):
    """What a task was asked for. image: the pictures (b 3 h w) in [-1, 1], on the model's device. cond, uncond: of the
    prompts and of the negative ones. streams: of noise, one for each picture, of the shape of its latents."""

    image: Tensor
    cond: Conditioning
    uncond: Conditioning
    streams: Streams


def ask(
    model: Model, image: object, prompts: Prompts, *, negative: Prompts | None, seeds: Seeds, height: int | None,
    width: int | None, sizes: Sizes | None, negative_sizes: Sizes | None, resize: str = "stretch",
) -> Asked:  # fmt: skip
    """Check the arguments that tasks with a picture share, and encode the prompts. One picture serves all prompts, or
    there is one each; several pictures take one prompt. Raises ValueError or TypeError, which name the argument."""
    if (height is None) != (width is None):
        raise ValueError("height and width: give both, or none for the picture's own size")
    size = None if height is None else picture_size(model, height, width)
    pictures = as_images("image", image, size, model.vae.factor, resize)
    # One prompt for several pictures is meant for each of them
    texts = as_texts("prompts", prompts)
    if len(texts) == 1 and len(pictures) > 1:
        texts = one_each("prompts", texts, len(pictures))
    texts, seed_list = pair(texts, seeds)
    if len(pictures) not in (1, len(seed_list)):
        raise ValueError(f"{len(pictures)} pictures for {len(seed_list)} prompts or seeds: give one, or one each")
    negatives = one_each("negative", [None] if negative is None else negative, len(seed_list))
    height, width = pictures.shape[2:]
    told = choose_sizes(height, width, sizes, negative_sizes)
    cond, uncond = encode_both(model, texts, negatives, told)
    device = cond.context.device
    shape = model.facts.vae.latent_channels, height // model.vae.factor, width // model.vae.factor
    pictures = pictures.to(device).expand(len(seed_list), -1, -1, -1)
    return Asked(pictures, cond, uncond, Streams(seed_list, shape, device))


def choose_sizes(height: int, width: int, sizes: Sizes | None, negative_sizes: Sizes | None) -> tuple[Sizes, Sizes]:
    """What SDXL is told of sizes with the prompt and with the negative one, as in text_to_image."""
    sizes = Sizes((height, width), (height, width)) if sizes is None else as_sizes("sizes", sizes)
    worse = replace(sizes, aesthetic=2.5) if negative_sizes is None else as_sizes("negative_sizes", negative_sizes)
    return sizes, worse


def encode_both(
    model: Model, texts: Texts, negatives: Texts, told: tuple[Sizes, Sizes]
) -> tuple[Conditioning, Conditioning]:
    """The conditioning of the prompts and that of the negative ones."""
    return encode(model, texts, told[0]), encode(model, negatives, told[1])


def check_channels(model: Model, channels: tuple[int, ...], task: str) -> None:
    """Raises ValueError for a UNet that takes another number of input channels, TypeError for what is no model."""
    if not isinstance(model, Model):
        raise TypeError(f"model {show(model)}: a Model is expected, such as weights.load(source) gives")
    unet = model.facts.unet
    other = unet.class_count or unet.class_dim or unet.guidance_dim
    if unet.in_channels not in channels or other:
        raise ValueError(f"this model needs {what_it_needs(model.facts)}, which {task} has not: choose another model")


def with_channels(network: UNetLike, extra: Tensor) -> UNetLike:
    """The UNet with more input channels (b c h w) behind the latents, the same for every half of guidance."""

    def run(x: Tensor, t: float, context: Tensor, vector: Tensor | None = None) -> Tensor:
        repeated = extra.to(x.dtype).repeat(len(x) // len(extra), 1, 1, 1)
        return network(torch.cat([x, repeated], dim=1), t, context, vector)

    return run
