"""Text to picture."""

from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any, NoReturn

import torch
from torch import Tensor

from samplers.basics import Streams
from samplers.options import show
from samplers.schedules.levels import Choice

from ..conditioning import Conditioning, Sizes, as_sizes, encode
from ..config import ModelConfig
from ..draw import Watch, draw, start
from ..guidance import Guidance, UNetLike, guide
from ..model import Model
from ..plan import Options, SamplerChoice, as_int, plan

MAX_SEED = 2**64 - 1
MAX_SIZE = 2**15  # pixels; beyond it a slip of the keyboard is likelier than a wish

Seeds = int | Iterable[int]
Prompts = str | Sequence[str | None] | Conditioning
Texts = list[str | None] | Conditioning  # one for each picture


@torch.no_grad()
def text_to_image(
    model: Model, prompts: Prompts, *, negative: Prompts | None = None,
    height: int | None = None, width: int | None = None, steps: int | None = None, guidance: Guidance | None = None,
    sampler: SamplerChoice | None = None, schedule: Choice | None = None, options: Options | None = None,
    seeds: Seeds = (0,), noise: Tensor | None = None, sizes: Sizes | None = None, negative_sizes: Sizes | None = None,
    network: UNetLike | None = None, watch: Watch | None = None, decode: bool = True,
) -> Tensor:  # fmt: skip
    """Draw one picture per prompt: (b 3 height width) in [-1, 1]; without `decode` its final latents (b 4 h w) as the
    UNet sees them. help(ldm.tasks) describes the arguments, which all tasks share. Raises ValueError or TypeError for
    an argument that does not fit, by its name; FloatingPointError if a stage produces NaN or infinity."""
    check_text_suffices(model)
    height, width = picture_size(model, height, width)
    texts, numbers = pair(prompts, seeds)
    negatives = one_each("negative", [None] if negative is None else negative, len(numbers))
    sizes = Sizes((height, width), (height, width)) if sizes is None else as_sizes("sizes", sizes)

    cond = encode(model, texts, sizes)
    uncond = encode(model, negatives, sizes if negative_sizes is None else as_sizes("negative_sizes", negative_sizes))
    run = plan(model, steps, sampler, schedule, options)
    shape = model.facts.vae.latent_channels, height // model.vae.factor, width // model.vae.factor
    streams = Streams(numbers, shape, cond.context.device)
    x = start(run, streams, noise)
    strength = run.guidance if guidance is None else guidance
    network = model.unet if network is None else as_network(network)
    guided = guide(network, cond, uncond, strength, run.sigmas, run.sampler.guidance.off)
    return draw(model, guided, x, run, streams, watch, decode)


def check_text_suffices(model: Model) -> None:
    """Raises ValueError for a UNet that wants more than text, TypeError for what is no model."""
    if not isinstance(model, Model):
        raise TypeError(f"model {show(model)}: a Model is expected, such as weights.load(source) gives")
    unet = model.facts.unet
    if unet.in_channels > model.facts.vae.latent_channels or unet.class_count or unet.class_dim or unet.guidance_dim:
        raise ValueError(f"this model needs {what_it_needs(model.facts)}: text to picture takes what needs text alone")


def what_it_needs(facts: ModelConfig) -> str:
    if facts.unet.class_count:
        return "a small picture to enlarge"
    if facts.unet.class_dim:
        return "the embedding of a picture"
    if facts.unet.guidance_dim:
        return "an embedded guidance scale (LCM)"
    more = facts.unet.in_channels - facts.vae.latent_channels
    return f"{more} more input channels, such as a mask or a depth map"


def as_network(network: Any) -> UNetLike:
    """What runs in place of the UNet. Raises TypeError for what cannot be called."""
    if not callable(network):
        raise TypeError(f"network {show(network)}: a function (x, t, context, vector) -> output is expected")
    return network


def picture_size(model: Model, height: int | None, width: int | None) -> tuple[int, int]:
    """Height and width in pixels, the model's own where they are None."""
    height = model.facts.size if height is None else as_int("height", height)
    width = model.facts.size if width is None else as_int("width", width)
    for name, size in (("height", height), ("width", width)):
        if size % model.vae.factor or not 0 < size <= MAX_SIZE:
            refuse_size(name, size, model.vae.factor)
    return height, width


def refuse_size(name: str, size: int, factor: int) -> NoReturn:
    near = min(max(factor, round(size / factor) * factor), MAX_SIZE)
    raise ValueError(f"{name} {size}: must be a positive multiple of {factor}, for example {near}")


def pair(prompts: Prompts, seeds: Seeds) -> tuple[Texts, list[int]]:
    """One prompt and one seed per picture. Raises ValueError or TypeError for what cannot be paired."""
    texts = as_texts("prompts", prompts)
    numbers = as_seeds(seeds)
    if len(numbers) == 1:
        numbers = [numbers[0] + k for k in range(len(texts))]
    if not numbers or len(texts) not in (1, len(numbers)) or not all(0 <= seed <= MAX_SEED for seed in numbers):
        refuse_pair(texts, numbers)
    return one_each("prompts", texts, len(numbers)), numbers


def refuse_pair(texts: Texts, numbers: list[int]) -> NoReturn:
    if len(texts) == 0 or not numbers:
        raise ValueError("nothing to draw: give at least one prompt and one seed")
    if len(texts) not in (1, len(numbers)):
        raise ValueError(f"{len(numbers)} seeds for {len(texts)} prompts: give one, or one each")
    wrong = next(seed for seed in numbers if not 0 <= seed <= MAX_SEED)
    raise ValueError(f"seed {wrong}: must be between 0 and {MAX_SEED}")


def one_each(name: str, prompts: Prompts, pictures: int) -> Texts:
    """One text per picture; a single one serves all."""
    texts = as_texts(name, prompts)
    if len(texts) == 1:
        return texts.repeat(pictures) if isinstance(texts, Conditioning) else texts * pictures
    if len(texts) != pictures:
        raise ValueError(f"{len(texts)} {name} prompts for {pictures} pictures: give one, or one each")
    return texts


def as_texts(name: str, prompts: Any) -> Texts:
    """A list of texts, or the Conditioning. Raises TypeError, which names the argument, for anything else."""
    if isinstance(prompts, Conditioning):
        return prompts
    one = isinstance(prompts, str | Set | Mapping) or not isinstance(prompts, Iterable)  # a set has no order
    texts = [prompts] if one else list(prompts)
    if prompts is None or not all(isinstance(text, str | None) for text in texts):
        raise TypeError(f"{name} {show(prompts)}: give a text, several, or a Conditioning")
    return texts


def as_seeds(seeds: Any) -> list[int]:
    """One whole number of any kind, or several; a tensor or an array without axes is one."""
    several = isinstance(seeds, Iterable) and not isinstance(seeds, str | bytes | Set | Mapping)
    return [as_int("seeds", seed) for seed in (seeds if several and getattr(seeds, "ndim", 1) > 0 else [seeds])]
