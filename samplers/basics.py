"""Sampling on one page: the noise levels that a network was trained with, its denoiser, a few schedules, noise, and the
two samplers to read first. The other files of this package hold the rest of each kind.

    x      the noisy picture x0 + sigma * noise, (b c h w), in float32 or float64
    sigma  its noise level, a Python float
    t      the time that a network is told for a noise level
"""

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import exp, log, sqrt
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from .step import Noise, Sigmas, Step, Steps, churn

# Noise levels


@dataclass(frozen=True)
class NoiseTable:
    """The sigmas of the trained times 0, 1, ..., increasing; schedules.noise_table makes the published ones."""

    sigmas: tuple[float, ...]

    @property
    def sigma_min(self) -> float:
        return self.sigmas[0]

    @property
    def sigma_max(self) -> float:
        return self.sigmas[-1]

    def sigma(self, t: float) -> float:
        """Noise level at time t; between two trained times linear in sigma, as diffusers has it."""
        k = min(int(t), len(self.sigmas) - 2)
        return self.sigmas[k] + (t - k) * (self.sigmas[k + 1] - self.sigmas[k])

    def log_linear_sigma(self, t: float) -> float:
        """Noise level at time t, linear in log sigma, as k-diffusion has it: the inverse of t()."""
        k = min(int(t), len(self.sigmas) - 2)
        return exp((1 - (t - k)) * log(self.sigmas[k]) + (t - k) * log(self.sigmas[k + 1]))

    def t(self, sigma: float) -> float:
        """Time at noise level sigma, linear in log sigma; 0 or the last time beyond the table."""
        if sigma <= self.sigmas[0]:
            return 0.0
        if sigma >= self.sigmas[-1]:
            return float(len(self.sigmas) - 1)
        k = bisect_right(self.sigmas, sigma) - 1
        return k + log(sigma / self.sigmas[k]) / log(self.sigmas[k + 1] / self.sigmas[k])

    # fmt: off
    def scaling(self, sigma: float, prediction: str) -> tuple[float, float, float]:
        """c_skip, c_out, c_in: x0 = c_skip x + c_out network(c_in x, t). Raises ValueError for another prediction."""
        c_in = 1 / sqrt(1 + sigma**2)  # this is alpha: the network was trained on alpha x0 + sqrt(1 - alpha^2) noise
        match prediction:
            case "eps": return 1.0, -sigma, c_in
            case "v":   return c_in**2, -sigma * c_in, c_in  # arXiv 2202.00512
            case "x0":  return 0.0, 1.0, c_in
        raise ValueError(f"unknown prediction {prediction!r}: choose one of eps, v, x0")
    # fmt: on


@dataclass(frozen=True)
class EDM:
    """Continuous noise levels (arXiv 2206.00364), for data of standard deviation sigma_data: t = log(sigma) / 4."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    sigma_data: float = 0.5

    def t(self, sigma: float) -> float:
        return log(sigma) / 4

    # fmt: off
    def scaling(self, sigma: float, prediction: str) -> tuple[float, float, float]:
        """c_skip, c_out, c_in of arXiv 2206.00364, table 1. Raises ValueError for a prediction other than eps and v."""
        data = self.sigma_data
        c_in = 1 / sqrt(sigma**2 + data**2)
        match prediction:
            case "eps": return (data * c_in) ** 2, sigma * data * c_in, c_in
            case "v":   return (data * c_in) ** 2, -sigma * data * c_in, c_in
        raise ValueError(f"unknown prediction {prediction!r} for an EDM model: choose one of eps, v")
    # fmt: on


Levels = NoiseTable | EDM


# From a network to a denoiser

Denoise = Callable[[Tensor, float], Tensor]  # (x, sigma) -> x0, the clean estimate, both (b c h w)
Network = Callable[[Tensor, float], Tensor]  # (x at unit variance, t) -> "eps", "v" or "x0"


@runtime_checkable
class Guided(Protocol):
    """A network with guidance. The strength of the guidance may depend on sigma."""

    def at(self, sigma: float) -> Network:
        """The network at that noise level."""
        ...

    def pair_at(self, sigma: float) -> Network:
        """The network at that noise level with two outputs: with guidance, then without the prompt, (2 b c h w)."""
        ...


@dataclass(frozen=True)
class Denoiser:
    """denoise(x, sigma) = x0 from network(x, t) -> output, which is "eps", "v" or "x0".

    times: sigma -> the time that the network is told, as schedules.choose gives them; levels.t(sigma) for any other
    sigma. x and x0 keep their dtype, whatever that of the output. A Guided network runs as network.at(sigma).
    """

    network: Any  # a Network, or Guided
    levels: Levels
    prediction: str
    times: Mapping[float, float] = field(default_factory=dict)

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        at = getattr(self.network, "at", None)  # an isinstance of Guided takes as long as a small sampler's step
        return self.estimate(at(sigma) if at else self.network, x, sigma)

    def pair(self, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        """(x0 with guidance, x0 without the prompt), as CFG++ needs them. Of a network without guidance both are the
        same tensor."""
        if isinstance(self.network, Guided):
            guided, unguided = self.estimate(self.network.pair_at(sigma), x, sigma)
            return guided, unguided
        x0 = self(x, sigma)
        return x0, x0

    def estimate(self, network: Network, x: Tensor, sigma: float) -> Tensor:
        c_skip, c_out, c_in = self.levels.scaling(sigma, self.prediction)
        t = self.times[sigma] if sigma in self.times else self.levels.t(sigma)
        out = network(x * c_in, t).to(x.dtype)
        return (c_skip * x).add(out, alpha=c_out)


def denoiser(
    network: Network | Guided, levels: Levels, prediction: str, times: Mapping[float, float] | None = None
) -> Denoiser:
    """The Denoiser of a network(x, t) -> output. Raises ValueError for a prediction that the levels do not know."""
    levels.scaling(1.0, prediction)  # refuses a wrong name now
    return Denoiser(network, levels, prediction, times or {})


# A few noise levels out of many


def leading(steps: int, trained: int = 1000, offset: int = 1) -> list[float]:
    """Times at the beginning of equal intervals: 981, 961, ..., 1 for 50 steps."""
    stride = max(trained // steps, 1)
    offset = min(offset, trained - 1 - (steps - 1) * stride)  # 1000 steps have no room for one
    return [float(i * stride + offset) for i in reversed(range(steps))]


def karras(sigma_min: float, sigma_max: float, steps: int, rho: float = 7.0) -> list[float]:
    """Levels evenly spaced in the rho-th root of sigma (arXiv 2206.00364, equation 5)."""
    low = sigma_min ** (1 / rho)
    high = sigma_max ** (1 / rho)
    return [sigma_max, *((high + i / (steps - 1) * (low - high)) ** rho for i in range(1, steps))]


# Noise


class Streams:
    """One CPU generator per picture: picture k gets the same bits alone, in any batch and on any device.

    seeds: one per picture, 0 .. 2**64 - 1. shape: of one picture, (c h w).
    """

    def __init__(self, seeds: Sequence[int], shape: Sequence[int], device: torch.device | str = "cpu"):
        self.seeds = tuple(seeds)
        self.shape = tuple(shape)
        self.device = device
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def draw(self) -> Tensor:
        """The next unit Gaussian of every stream: (b c h w) float32."""
        pictures = [torch.randn(self.shape, generator=g, dtype=torch.float32, device="cpu") for g in self.generators]
        return torch.stack(pictures).to(self.device)

    def __call__(self, sigma: float, sigma_next: float) -> Tensor:
        """The noise of a step, as samplers ask for it: `draw`, since white noise does not depend on the levels."""
        return self.draw()


# The two samplers to read first


def euler(denoise: Denoise, x: Tensor, sigmas: Sigmas, noise: Noise = None, **options: float) -> Steps:
    """Euler's method for the ODE dx/dsigma = (x - x0) / sigma (arXiv 2206.00364, algorithm 1). First order, one
    evaluation per step. The same map as DDIM with eta = 0 and as DPM-Solver++ of order 1. options: step.churn's."""
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        if options:
            x, sigma = churn(x, sigma, len(sigmas) - 1, noise, **options)
        x0 = denoise(x, sigma)
        slope = (x - x0) / sigma
        x = x + (sigma_next - sigma) * slope
        yield Step(i, sigma, x, x0)


def dpmpp_2m(denoise: Denoise, x: Tensor, sigmas: Sigmas, noise: Noise = None, *, short: float = 15) -> Steps:
    """DPM-Solver++(2M) (arXiv 2211.01095, algorithm 2): second order at one evaluation per step. The paper's lambda is
    -log sigma here, and its alpha_t x_t is x.

    short: runs of fewer steps end in a step of first order, as published; k-diffusion has 0.
    """
    steps = len(sigmas) - 1
    x0_before = x
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        target = x0
        # A step into 0 is infinitely long in lambda, and a repeated level is a step of no length.
        knows_two = i > 0 and sigma_next > 0 and sigma not in (sigmas[i - 1], sigma_next)
        ends_short_run = i == steps - 1 and steps < short
        if knows_two and not ends_short_run:
            h = log(sigma / sigma_next)
            h_before = log(sigmas[i - 1] / sigma)
            r = h_before / h
            target = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * x0_before
        x = sigma_next / sigma * x + (1 - sigma_next / sigma) * target  # 1 - exp(-h)
        x0_before = x0
        yield Step(i, sigma, x, x0)
