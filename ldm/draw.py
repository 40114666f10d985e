"""The one loop: from start latents and a network to final latents, and to a picture."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from samplers.basics import Denoiser, Guided, Network, Streams
from samplers.options import show
from samplers.step import Step

from .model import Model
from .ops import check_finite
from .plan import Plan
from .taesd import TinyVAE
from .vae import Posterior, decode_latents

Watch = Callable[[Step], Any]  # called after each step; a tensor that it returns takes the place of step.x


def start(run: Plan, streams: Streams, noise: Tensor | None = None) -> Tensor:
    """The noisy latents (b 4 h w) that a run begins with. noise: a unit Gaussian in place of the streams' first."""
    drawn = streams.draw()  # also where noise is given: what a sampler draws later must not be the same
    return run.start_std * (drawn if noise is None else given_noise(noise, drawn))


def encode_image(model: Model, image: Tensor, noise: Tensor | None = None, scaled: bool = True) -> Tensor:
    """Latents (b 4 h w) as the UNet sees them, in float32, of pictures (b 3 f*h f*w) in [-1, 1]: a sample of the VAE's
    posterior if given noise, else its mode. scaled: False leaves them as the VAE has them. Raises FloatingPointError if
    the encoder produces NaN or infinity."""
    if isinstance(model.vae, TinyVAE):
        raise ValueError("the tiny autoencoder cannot encode pictures for a task: load the model with a full VAE")
    weight = next(model.vae.parameters())
    found = model.vae.encode(image.to(weight.device, weight.dtype))
    found = Posterior(found.mean.float(), found.logvar.float())
    latents = model.to_latents(found, noise) if scaled else found.mode()
    check_finite(latents, "the VAE encoder")
    return latents


def start_from(run: Plan, latents: Tensor, streams: Streams, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The noisy latents that a run begins with from a picture's latents (b 4 h w), and the noise in them. noise: a unit
    Gaussian in place of the streams' next."""
    drawn = streams.draw()  # also where noise is given, as in `start`
    drawn = drawn if noise is None else given_noise(noise, drawn)
    return latents + run.sigmas[0] * drawn, drawn


def given_noise(noise: Tensor, like: Tensor) -> Tensor:
    """The caller's noise on the device of `like`, in float64 if it is that, else in float32: samplers keep x so. Raises
    TypeError for what is no tensor of floats, ValueError for another shape than that of `like`."""
    if not isinstance(noise, Tensor) or not noise.is_floating_point():
        raise TypeError(f"noise of {kind_of(noise)}: a tensor of floats {tuple(like.shape)} is expected")
    if noise.shape != like.shape:
        raise ValueError(f"noise of {kind_of(noise)}: these pictures need {tuple(like.shape)}")
    return noise.to(like.device, torch.promote_types(noise.dtype, torch.float32))


@torch.no_grad()
def draw(model: Model, network: Network | Guided, x: Tensor, run: Plan, streams: Streams,
         watch: Watch | None = None, decode: bool = True) -> Tensor:  # fmt: skip
    """Run the sampler from x: the picture (b 3 f*h f*w) in [-1, 1], or without `decode` the final latents (b 4 h w).
    Raises FloatingPointError if the UNet or the decoder produces NaN or infinity."""
    denoise = Denoiser(network, run.levels, model.facts.prediction, run.times)
    noise = run.sampler.path(streams, run.sigmas) if run.sampler.path else streams
    for step in run.sampler.run(denoise, x, run.sigmas, noise, **run.options):
        x = step.x
        if watch is not None:
            let_watch(watch, step)
    check_finite(x, "the UNet")
    latents = x / (1 + run.sigmas[-1] ** 2) ** 0.5  # to unit variance where the sampler ends above 0
    return decode_image(model, latents) if decode else latents


def decode_image(model: Model, latents: Tensor) -> Tensor:
    """The picture (b 3 f*h f*w) in [-1, 1] of latents. Raises FloatingPointError for NaN or infinity."""
    image = decode_latents(model.vae, model.facts.latent, latents)
    check_finite(image, "the VAE decoder")
    return image.clamp(-1, 1)


def let_watch(watch: Watch, step: Step) -> None:
    """Call `watch` and write the tensor that it returns into step.x, from which the sampler goes on. None, True and
    False change nothing, since progress bars return them. Raises TypeError for anything else."""
    if not callable(watch):
        raise TypeError(f"watch {show(watch)}: a function of a Step is expected")
    new = watch(step)
    if new is None or isinstance(new, bool):
        return
    if not isinstance(new, Tensor) or new.shape != step.x.shape or not new.is_floating_point():
        expected = f"None or a tensor of floats {tuple(step.x.shape)} is expected"
        raise TypeError(f"watch returned a value of {kind_of(new)}: {expected}")
    step.x.copy_(new.clone())  # it may be another view of the same memory


def kind_of(value: Any) -> str:
    """A value in words for a message: dtype and shape of a tensor, the type of anything else."""
    return f"{value.dtype}, shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"type {type(value).__name__}"
