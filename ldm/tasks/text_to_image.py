"""Text to picture."""

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import replace
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
    texts, seed_list = pair(prompts, seeds)
    negatives = one_each("negative", [None] if negative is None else negative, len(seed_list))
    sizes = Sizes((height, width), (height, width)) if sizes is None else as_sizes("sizes", sizes)
    worse = replace(sizes, aesthetic=2.5) if negative_sizes is None else as_sizes("negative_sizes", negative_sizes)

    cond = encode(model, texts, sizes)
    uncond = encode(model, negatives, worse)
    run = plan(model, steps, sampler, schedule, options)
    shape = model.facts.vae.latent_channels, height // model.vae.factor, width // model.vae.factor
    streams = Streams(seed_list, shape, cond.context.device)
    x = start(run, streams, noise)
    guidance = run.guidance if guidance is None else guidance
    network = model.unet if network is None else as_network(network)
    guided = guide(network, cond, uncond, guidance, run.sigmas, run.sampler.guidance.off)
    return draw(model, guided, x, run, streams, watch, decode)


def check_text_suffices(model: Model) -> None:
    """Raises ValueError for a UNet that wants more than text, TypeError for what is no model."""
    if not isinstance(model, Model):
        raise TypeError(f"model {show(model)}: a Model is expected, such as weights.load(source) gives")
    unet = model.facts.unet
    if unet.in_channels > model.facts.vae.latent_channels or unet.class_count or unet.class_dim or unet.guidance_dim:
        raise ValueError(f"this model needs {what_it_needs(model.facts)}: text to picture takes what needs text alone")


def what_it_needs(facts: ModelConfig) -> str:
    """What the UNet is given besides text, in words for a message."""
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
    """Raises ValueError, which offers the nearest multiple of factor."""
    nearest = min(max(factor, round(size / factor) * factor), MAX_SIZE)
    raise ValueError(f"{name} {size}: must be a positive multiple of {factor}, for example {nearest}")


def pair(prompts: Prompts, seeds: Seeds) -> tuple[Texts, list[int]]:
    """One prompt and one seed per picture. Raises ValueError or TypeError for what cannot be paired."""
    texts = as_texts("prompts", prompts)
    seed_list = as_seeds(seeds)
    if len(seed_list) == 1:
        seed_list = [seed_list[0] + k for k in range(len(texts))]
    if not seed_list or len(texts) not in (1, len(seed_list)) or not all(0 <= seed <= MAX_SEED for seed in seed_list):
        refuse_pair(texts, seed_list)
    return one_each("prompts", texts, len(seed_list)), seed_list


def refuse_pair(texts: Texts, seed_list: list[int]) -> NoReturn:
    """Raises ValueError, which says why these texts and seeds do not go together."""
    if len(texts) == 0 or not seed_list:
        raise ValueError("nothing to draw: give at least one prompt and one seed")
    if len(texts) not in (1, len(seed_list)):
        raise ValueError(f"{len(seed_list)} seeds for {len(texts)} prompts: give one, or one each")
    wrong = next(seed for seed in seed_list if not 0 <= seed <= MAX_SEED)
    raise ValueError(f"seed {wrong}: must be between 0 and {MAX_SEED}")


def one_each(name: str, prompts: Prompts, pictures: int) -> Texts:
    """One text per picture; a single one serves all. Raises ValueError for another number of texts."""
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
    single = isinstance(prompts, str | Set | Mapping) or not isinstance(prompts, Iterable)  # a set has no order
    texts = [prompts] if single else list(prompts)
    if prompts is None or not all(isinstance(text, str | None) for text in texts):
        raise TypeError(f"{name} {show(prompts)}: give a text, several, or a Conditioning")
    return texts


def as_seeds(seeds: Any) -> list[int]:
    """The seeds in a list. Raises TypeError for anything but one whole number of any kind, or several in order."""
    axes = getattr(seeds, "ndim", 1)  # a tensor or an array without axes is one number, and yet an Iterable
    several = isinstance(seeds, Iterable) and not isinstance(seeds, str | bytes | Set | Mapping) and axes > 0
    return [as_int("seeds", seed) for seed in (seeds if several else [seeds])]
