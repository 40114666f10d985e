"""Samplers that add fresh noise in their steps; noise(sigma, lower) gives a unit Gaussian like x.

Each step goes down to a level below `lower`, then noise brings it up again: `ancestral` says how far. eta 0 adds none
and draws none, eta 1 as much as the trained process; s_noise scales all of it.
"""

from itertools import pairwise
from math import sqrt

from .coefficients import ancestral
from .ode import dpm_2_step, heun_step
from .schedule import karras
from .step import Step, relabelled, stir


def ddim(denoise, x, sigmas, noise, *, eta=0.0, s_noise=1.0, targets=None):
    """DDIM (arXiv 2010.02502); with eta 0 the same map as Euler, with eta 1 ancestral sampling and DDPM.

    targets: where each step goes instead of the next level, see `strided`; the next step takes it for the next level.
    """
    for i, (sigma, lower) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        target = targets[i] if targets else lower
        down, up = ancestral(sigma, target, eta)
        x = stir(x0.lerp(x, down / sigma), s_noise * up, noise, sigma, target)
        x = relabelled(x, target, lower)
        yield Step(i, sigma, x, x0)


def euler_ancestral(denoise, x, sigmas, noise, *, eta=1.0, s_noise=1.0):
    """Ancestral sampling under the name that users know; the same map as ddim, with eta 1."""
    return ddim(denoise, x, sigmas, noise, eta=eta, s_noise=s_noise)


def dpm_2_ancestral(denoise, x, sigmas, noise, *, eta=1.0, s_noise=1.0):
    """dpm_2 to the level below, then noise."""
    for i, (sigma, lower) in enumerate(pairwise(sigmas)):
        down, up = ancestral(sigma, lower, eta)
        x, x0 = dpm_2_step(denoise, x, sigma, down)
        x = stir(x, s_noise * up, noise, sigma, lower)
        yield Step(i, sigma, x, x0)


def dpmpp_2s_ancestral(denoise, x, sigmas, noise, *, eta=1.0, s_noise=1.0):
    """DPM-Solver++(2S) (arXiv 2211.01095, algorithm 1): the clean estimate of the middle serves the whole step."""
    for i, (sigma, lower) in enumerate(pairwise(sigmas)):
        x0 = target = denoise(x, sigma)
        down, up = ancestral(sigma, lower, eta)
        if down > 0:
            middle = sqrt(sigma * down)
            target = denoise(x0.lerp(x, middle / sigma), middle)
        x = stir(target.lerp(x, down / sigma), s_noise * up, noise, sigma, lower)
        yield Step(i, sigma, x, x0)


def dpmpp_sde(denoise, x, sigmas, noise, *, eta=1.0, s_noise=1.0, r=1 / 2):
    """DPM-Solver++ (SDE) of k-diffusion: 2S whose middle, a share r down the step, is noisy too.

    Its two draws of a step belong to overlapping intervals, so noise should be a Brownian path; eta 0 is 2S.
    """
    for i, (sigma, lower) in enumerate(pairwise(sigmas)):
        x0 = target = denoise(x, sigma)
        if lower > 0:
            middle = sigma ** (1 - r) * lower**r
            down, up = ancestral(sigma, middle, eta)
            y = stir(x0.lerp(x, down / sigma), s_noise * up, noise, sigma, middle)
            target = x0.lerp(denoise(y, middle), 1 / (2 * r))
        down, up = ancestral(sigma, lower, eta)
        x = stir(target.lerp(x, down / sigma), s_noise * up, noise, sigma, lower)
        yield Step(i, sigma, x, x0)


def restart(denoise, x, sigmas, noise, *, low=0.1, high=2.0, steps=None, times=None, s_noise=1.0):
    """Restart (arXiv 2306.14878): Heun, and from level `low` `times` times back up to `high` by noise alone.

    Each way down again takes `steps` steps. Unless both are given they and the way down from the top share the steps
    of `sigmas` as AUTOMATIC1111 does: all levels are Karras', and fewer than 20 steps never restart.
    """
    at = sigmas[0]
    for i, (sigma, lower) in enumerate(restart_legs(sigmas, low, high, steps, times)):
        x = stir(x, s_noise * sqrt(max(sigma**2 - at**2, 0)), noise, sigma, at)
        x, x0 = heun_step(denoise, x, sigma, lower)
        at = lower
        yield Step(i, sigma, x, x0)


def restart_legs(sigmas, low, high, steps=None, times=None):
    """Every step of `restart` as (sigma, lower)."""
    count = len(sigmas) - 1
    if steps is None or times is None:
        steps, times = (count // 4, 2) if count >= 36 else (9, 1) if count >= 20 else (0, 0)
        if times:
            sigmas = [*karras(sigmas[-2], sigmas[0], count - steps * times), sigmas[-1]]
    bottom, top = (min(sigmas, key=lambda sigma: abs(sigma - level)) for level in (low, high))
    legs = list(pairwise(sigmas))
    if top > bottom:
        after = [lower for _, lower in legs].index(bottom) + 1
        legs[after:after] = list(pairwise(karras(bottom, top, steps + 1))) * times
    return legs


def strided(table, times, end):
    """The targets of diffusers' DDIM and PNDM: every step goes T // N times down, whatever the next of `times` is,
    and below time 0 to level `end`. Where that is not the next time the network is told a wrong noise level.
    """
    stride = len(table.sigmas) // len(times)
    return [table.sigma(t - stride) if t >= stride else end for t in times]
