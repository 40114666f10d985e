"""From one picture to another: prompts mixed in a straight line, noise on the sphere that it lies on."""

from collections.abc import Sequence
from math import acos, sin
from typing import Any

import torch
from torch import Tensor

from samplers.basics import Streams

from ..conditioning import Conditioning
from ..model import Model
from ..plan import as_int
from .shared import choose_sizes, encode_both
from .text_to_image import as_seeds, as_texts, picture_size, text_to_image


@torch.no_grad()
def interpolate(
    model: Model, prompts: str | Sequence[str], *, seeds: Sequence[int] = (0, 1), frames: int = 5,
    negative: str | None = None, height: int | None = None, width: int | None = None, **options: Any,
) -> Tensor:  # fmt: skip
    """Pictures on the way from one prompt and seed to another: (frames 3 height width) in [-1, 1].

    prompts: one for all, or the first and the last. seeds: of the first and of the last; the same twice leaves the
    noise. The ends are what text_to_image draws; between them the conditioning is a weighted mean and the first noise
    is slerp's. What a sampler draws besides is that of the first seed in all frames, so that a film does not flicker.
    options: those of text_to_image. Raises as text_to_image does.
    """
    count = as_int("frames", frames)
    if count < 2:
        raise ValueError(f"frames {count}: choose at least 2, the ends")
    texts = as_texts("prompts", prompts)
    ends = as_seeds(seeds)
    if isinstance(texts, Conditioning) or len(texts) not in (1, 2) or len(ends) != 2:
        raise ValueError("interpolate goes between two ends: give one prompt or two, and two seeds")
    height, width = picture_size(model, height, width)
    sizes = choose_sizes(height, width, options.pop("sizes", None), options.pop("negative_sizes", None))
    first, _ = encode_both(model, [texts[0]], [negative], sizes)
    last, uncond = encode_both(model, [texts[-1]], [negative], sizes)
    shape = model.facts.vae.latent_channels, height // model.vae.factor, width // model.vae.factor
    start, end = Streams(ends, shape, first.context.device).draw()

    drawn = []
    for k in range(count):
        share = k / (count - 1)
        cond = mix(first, last, share)
        noise = slerp(start, end, share)[None]
        drawn.append(
            text_to_image(
                model, cond, negative=uncond, seeds=ends[:1], noise=noise, height=height, width=width, **options
            )
        )
    return torch.cat(drawn)


def mix(first: Conditioning, last: Conditioning, share: float) -> Conditioning:
    """A share of the way from one conditioning to another of the same model."""
    context = first.context.lerp(last.context, share)
    if first.vector is None or last.vector is None:
        return Conditioning(context)
    return Conditioning(context, first.vector.lerp(last.vector, share))


def slerp(start: Tensor, end: Tensor, share: float) -> Tensor:
    """The point a share of the way along the great circle from one Gaussian to another; a straight line where they are
    parallel."""
    cosine = (start.flatten() @ end.flatten() / (start.norm() * end.norm())).clamp(-1, 1).item()
    angle = acos(cosine)
    if sin(angle) < 1e-4:
        return start.lerp(end, share)
    return (sin((1 - share) * angle) * start + sin(share * angle) * end) / sin(angle)
