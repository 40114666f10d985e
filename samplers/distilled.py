"""Samplers of networks that were distilled to reach the clean picture in a few steps; they know the trained times."""

from itertools import pairwise
from math import floor, sqrt

from .schedule import NoiseTable, noise_table
from .step import Step, stir


def lcm(denoise, x, sigmas, noise, *, table: NoiseTable | None = None):
    """Latent consistency (arXiv 2310.04378): to the clean picture at once, then noise up to the next level.

    table: what the network was trained with, by default Stable Diffusion's. Near its time 0 the estimate is x itself.
    """
    table = table or noise_table()
    for i, (sigma, lower) in enumerate(pairwise(sigmas)):
        t = 10 * table.t(sigma)  # the scale of time that the networks were trained with, beside a deviation of 1/2
        share = 1 / 4 / (t**2 + 1 / 4)
        x0 = denoise(x, sigma) * sqrt(1 - share) + x * (share / sqrt(1 + sigma**2))
        x = stir(x0, lower, noise, sigma, lower)
        yield Step(i, sigma, x, x0)


def tcd(denoise, x, sigmas, noise, *, eta=0.3, table: NoiseTable | None = None):
    """Trajectory consistency (arXiv 2402.19159): along the ODE to a share 1 - eta of the next time, then noise.

    Like the published one it ends without noise at the smallest trained level; diffusers' pipelines have eta 0.
    """
    table = table or noise_table()
    for i, (sigma, lower) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        down = table.sigma(floor((1 - eta) * round(table.t(lower), 6)))
        x = x0.lerp(x, down / sigma)
        if i < len(sigmas) - 2:
            x = stir(x, sqrt(max(lower**2 - down**2, 0)), noise, sigma, lower)
        yield Step(i, sigma, x, x0)
