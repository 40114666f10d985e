"""Samplers of networks that were distilled to reach the clean picture in a few steps; they know the trained times."""

from itertools import pairwise
from math import floor, sqrt

from torch import Tensor

from .basics import EDM, Denoise, NoiseTable
from .schedules.levels import levels_behind
from .step import Noise, Sigmas, Step, Steps, renoise


def lcm(
    denoise: Denoise,
    x: Tensor,
    sigmas: Sigmas,
    noise: Noise = None,
    *,
    boundary: bool = True,
    table: NoiseTable | None = None,
) -> Steps:
    """Latent consistency (arXiv 2310.04378): to the clean picture at once, then noise up to the next level.

    boundary: near time 0 the estimate is x itself, as the paper has it, diffusers and A1111; ComfyUI's sampler takes
    the network's estimate everywhere. table: see trained_table.
    """
    table = table or trained_table(denoise) if boundary else None
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        if table is not None:
            t = 10 * table.t(sigma)  # the scale of time that the networks were trained with, beside a deviation of 1/2
            share = 1 / 4 / (t**2 + 1 / 4)
            x0 = x0 * sqrt(1 - share) + x * (share / sqrt(1 + sigma**2))
        x = renoise(x0.clone(), sigma_next, noise, sigma, sigma_next)  # the caller may change x or x0
        yield Step(i, sigma, x, x0)


def tcd(
    denoise: Denoise,
    x: Tensor,
    sigmas: Sigmas,
    noise: Noise = None,
    *,
    eta: float = 0.3,
    table: NoiseTable | None = None,
) -> Steps:
    """Trajectory consistency (arXiv 2402.19159): along the ODE to a share 1 - eta of the next time, then noise.

    Like the published one it ends without noise at the smallest trained level; diffusers' pipelines have eta 0.
    table: see trained_table.
    """
    table = table or trained_table(denoise)
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        sigma_down = table.sigma(floor((1 - eta) * round(table.t(sigma_next), 6)))
        x = x0.lerp(x, sigma_down / sigma)
        if i < len(sigmas) - 2:
            x = renoise(x, sqrt(max(sigma_next**2 - sigma_down**2, 0)), noise, sigma, sigma_next)
        yield Step(i, sigma, x, x0)


def trained_table(denoise: Denoise) -> NoiseTable:
    """The levels that the network behind a denoiser was trained with; Stable Diffusion's for any other function.

    Raises ValueError if the network has no trained times.
    """
    levels = levels_behind(denoise)
    if isinstance(levels, EDM):
        raise ValueError("this sampler needs trained time steps and this model has none: choose another sampler")
    return levels
