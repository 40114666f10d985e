"""Functions from denoisers to denoisers: what a run is to keep of a picture.

A mask says which part of the latents may change, 1 is free; it is a tensor (b 1 h w), or a function of sigma that gives
one. No sampler knows of it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from samplers.basics import Denoise, Levels
from samplers.cfg_pp import both_estimates

from .plan import Plan

Mask = Tensor | Callable[[float], Tensor]


@dataclass(frozen=True)
class Keep:
    """A denoiser that holds latents where the mask is 0.

    What it is given is replaced there by the latents z (b 4 h w) with the run's noise at that level, so that the
    network sees the picture; what it estimates is replaced by z. free: a level at which x is left as it is, since a run
    of strength 1 begins from noise everywhere.
    """

    denoise: Any  # a Denoiser, or any function (x, sigma) -> x0
    mask: Mask
    z: Tensor
    noise: Tensor
    free: float | None = None

    @property
    def levels(self) -> Levels | None:
        """Those of the denoiser, which some samplers ask for."""
        return getattr(self.denoise, "levels", None)

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        mask = mask_at(self.mask, sigma)
        return mix(self.denoise(self.held(x, sigma, mask), sigma), self.z, mask)

    def pair(self, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        """Both estimates of CFG++, each held."""
        mask = mask_at(self.mask, sigma)
        guided, unguided = both_estimates(self.denoise, self.held(x, sigma, mask), sigma)
        return mix(guided, self.z, mask), mix(unguided, self.z, mask)

    def held(self, x: Tensor, sigma: float, mask: Tensor) -> Tensor:
        return x if sigma == self.free else mix(x, self.z + sigma * self.noise, mask)


def mask_at(mask: Mask, sigma: float) -> Tensor:
    return mask if isinstance(mask, Tensor) else mask(sigma)


def mix(free: Tensor, kept: Tensor, mask: Tensor) -> Tensor:
    """free where the mask is 1, kept where it is 0."""
    return mask * free + (1 - mask) * kept


def differential(mask: Tensor, run: Plan) -> Callable[[float], Tensor]:
    """Differential diffusion (arXiv 2306.00950): a mask in [0, 1] as the share of the run in which a place may change.
    At each level the places are free whose share is as large as what is left of the run, in trained time."""
    first = run.times[run.sigmas[0]]
    last = run.levels.t(run.sigmas[-1]) if run.sigmas[-1] > 0 else run.levels.t(run.levels.sigma_min)

    def at(sigma: float) -> Tensor:
        t = run.times.get(sigma, run.levels.t(sigma))
        return (mask >= (t - last) / (first - last)).to(mask.dtype)

    return at


def around(run: Plan, wrap: Callable[[Denoise], Denoise]) -> Plan:
    """The same plan, whose sampler is given wrap(denoise) in place of the denoiser."""
    sampler = run.sampler

    def wrapped(denoise: Denoise, x: Tensor, sigmas: list[float], noise: Any = None, **options: Any) -> Any:
        return sampler.run(wrap(denoise), x, sigmas, noise, **options)

    return replace(run, sampler=replace(sampler, run=wrapped))
