"""From a picture back to the noise it would come from, and noise added to pictures.

Deterministic samplers follow an ODE, so they also run upwards: on `sigmas[::-1]`, from sigma_min (at 0 the slope is
not defined) to sigma_max. That returns to the picture only up to the error of both passes; `invert` does exactly.
"""

from collections.abc import Callable, Mapping
from itertools import pairwise
from math import sqrt

from torch import Tensor

from .basics import Denoise
from .step import Step, Steps


def shifted_times(times: Mapping[float, float], sigmas: list[float]) -> dict[float, float]:
    """Times for `denoiser` with which euler on ascending sigmas is DDIM inversion as published (arXiv 2010.02502).

    That evaluates the network at the time of the level that a step goes to, since the step back will start there.
    times: sigma -> time, for all `sigmas` but the first.
    """
    return {sigma: times[higher] for sigma, higher in pairwise(sigmas)}


def invert(
    sampler: Callable[..., Steps],
    denoise: Denoise,
    x: Tensor,
    sigmas: list[float],
    tolerance: float = 2e-6,
    rounds: int = 200,
) -> Steps:
    """Run a one-step deterministic sampler (euler, heun, dpm_2) backwards, exactly: it leads back to x.

    A step down is x = F(y). Its start y is a fixed point of y + x - F(y), found by iteration (AIDI, arXiv 2309.04907),
    one evaluation of the step per round; it converges faster for smaller steps. sigmas: ascending, the first above 0.
    tolerance: every picture's step leads back to within tolerance * max|x|; float64 allows 1e-14. Yields a Step as
    samplers do. Raises ArithmeticError if a step does not converge in `rounds`.
    """
    for i, (sigma, higher) in enumerate(pairwise(sigmas)):
        y = x
        for _ in range(rounds):
            (step,) = sampler(denoise, y, [higher, sigma])
            missing = x - step.x
            if (missing.abs().flatten(1).amax(1) <= tolerance * x.abs().flatten(1).amax(1)).all():
                break
            y = y + missing
        else:
            raise ArithmeticError(f"the step from sigma {sigma:.4g} to {higher:.4g} does not converge: take more steps")
        x = y
        yield Step(i, sigma, x, step.x0)


def add_noise(x0: Tensor, noise: Tensor, sigma: float) -> Tensor:
    """The noisy picture as samplers keep it, x0 + sigma * noise; the same for tables of levels and for EDM models."""
    return x0 + sigma * noise


def add_noise_vp(x0: Tensor, noise: Tensor, sigma: float) -> Tensor:
    """The noisy picture at unit variance, alpha x0 + sqrt(1 - alpha^2) noise: what a network with a table is given."""
    return add_noise(x0, noise, sigma) / sqrt(1 + sigma**2)
