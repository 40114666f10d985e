"""Samplers that add new noise in their steps; noise(sigma, sigma_next) gives a unit Gaussian like x.

Each step goes down to a level below `sigma_next`, then noise brings it up again: `ancestral` says how far. eta 0 adds
none and draws none, eta 1 as much as the trained process; s_noise scales all of it.
"""

from itertools import pairwise
from math import sqrt

from torch import Tensor

from .basics import Denoise, karras
from .coefficients import ancestral
from .ode import dpm_2_step, heun_step
from .step import Noise, Sigmas, Step, Steps, renoise


def ddim(
    denoise: Denoise, x: Tensor, sigmas: Sigmas, noise: Noise = None, *, eta: float = 0.0, s_noise: float = 1.0
) -> Steps:
    """DDIM (arXiv 2010.02502); with eta 0 the same map as Euler, with eta 1 ancestral sampling and DDPM."""
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        sigma_down, sigma_up = ancestral(sigma, sigma_next, eta)
        x = renoise(x0.lerp(x, sigma_down / sigma), s_noise * sigma_up, noise, sigma, sigma_next)
        yield Step(i, sigma, x, x0)


def euler_ancestral(
    denoise: Denoise, x: Tensor, sigmas: Sigmas, noise: Noise = None, *, eta: float = 1.0, s_noise: float = 1.0
) -> Steps:
    """Ancestral sampling under the name that users know; the same map as ddim, with eta 1."""
    return ddim(denoise, x, sigmas, noise, eta=eta, s_noise=s_noise)


def dpm_2_ancestral(
    denoise: Denoise, x: Tensor, sigmas: Sigmas, noise: Noise = None, *, eta: float = 1.0, s_noise: float = 1.0
) -> Steps:
    """dpm_2 to the level below, then noise."""
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        sigma_down, sigma_up = ancestral(sigma, sigma_next, eta)
        x, x0 = dpm_2_step(denoise, x, sigma, sigma_down)
        x = renoise(x, s_noise * sigma_up, noise, sigma, sigma_next)
        yield Step(i, sigma, x, x0)


def dpmpp_2s_ancestral(
    denoise: Denoise, x: Tensor, sigmas: Sigmas, noise: Noise = None, *, eta: float = 1.0, s_noise: float = 1.0
) -> Steps:
    """DPM-Solver++(2S) (arXiv 2211.01095, algorithm 1): the clean estimate of the middle serves the whole step."""
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        target = x0
        sigma_down, sigma_up = ancestral(sigma, sigma_next, eta)
        if sigma_down > 0:
            middle = sqrt(sigma * sigma_down)
            target = denoise(x0.lerp(x, middle / sigma), middle)
        x = renoise(target.lerp(x, sigma_down / sigma), s_noise * sigma_up, noise, sigma, sigma_next)
        yield Step(i, sigma, x, x0)


def dpmpp_sde(
    denoise: Denoise,
    x: Tensor,
    sigmas: Sigmas,
    noise: Noise = None,
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
    r: float = 1 / 2,
) -> Steps:
    """DPM-Solver++ (SDE) of k-diffusion: 2S whose middle, a share r down the step, is noisy too.

    Its two draws of a step belong to overlapping intervals, so noise should be a Brownian path; eta 0 is 2S.
    """
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        target = x0
        if sigma_next > 0:
            middle = sigma ** (1 - r) * sigma_next**r
            sigma_down, sigma_up = ancestral(sigma, middle, eta)
            y = renoise(x0.lerp(x, sigma_down / sigma), s_noise * sigma_up, noise, sigma, middle)
            target = x0.lerp(denoise(y, middle), 1 / (2 * r))
        sigma_down, sigma_up = ancestral(sigma, sigma_next, eta)
        x = renoise(target.lerp(x, sigma_down / sigma), s_noise * sigma_up, noise, sigma, sigma_next)
        yield Step(i, sigma, x, x0)


def restart(
    denoise: Denoise,
    x: Tensor,
    sigmas: Sigmas,
    noise: Noise = None,
    *,
    low: float = 0.1,
    high: float = 2.0,
    steps: int | None = None,
    times: int | None = None,
    s_noise: float = 1.0,
) -> Steps:
    """Restart (arXiv 2306.14878): Heun, and from level `low` `times` times back up to `high` by noise alone.

    Each way down again takes `steps` steps. Unless both are given they and the way down from the top share the steps
    of `sigmas` as AUTOMATIC1111 does: all levels are Karras', and fewer than 20 steps never restart.
    """
    reached = sigmas[0]
    for i, (sigma, sigma_next) in enumerate(restart_legs(sigmas, low, high, steps, times)):
        x = renoise(x, s_noise * sqrt(max(sigma**2 - reached**2, 0)), noise, sigma, reached)
        x, x0 = heun_step(denoise, x, sigma, sigma_next)
        reached = sigma_next
        yield Step(i, sigma, x, x0)


def restart_legs(
    sigmas: Sigmas, low: float, high: float, steps: int | None = None, times: int | None = None
) -> list[tuple[float, float]]:
    """Every step of `restart` as (sigma, sigma_next)."""
    if steps is None or times is None:
        count = len(sigmas) - 1
        steps, times = shares_of_restarts(count)
        if times:
            sigmas = [*karras(sigmas[-2], sigmas[0], count - steps * times), sigmas[-1]]
    bottom, top = (min(sigmas, key=lambda sigma: abs(sigma - level)) for level in (low, high))
    legs = list(pairwise(sigmas))
    if top > bottom:
        reached = [sigma_next for _, sigma_next in legs].index(bottom) + 1
        legs[reached:reached] = list(pairwise(karras(bottom, top, steps + 1))) * times
    return legs


def shares_of_restarts(count: int) -> tuple[int, int]:
    """Steps of a restart and how many there are, of `count` steps in all: AUTOMATIC1111's rule."""
    if count >= 36:
        return count // 4, 2
    if count >= 20:
        return 9, 1
    return 0, 0
