"""Choices of noise levels, as pure functions that return decreasing lists of Python floats.

Two kinds: trained times, of which there are `trained`, numbered from 0; and noise levels sigma over a range. A list
has as many entries as there are steps; the level where sampling ends is not part of it. `leading` and `karras`, which
most people use, are in basics.py.
"""

from math import atan, exp, expm1, log, log1p, sqrt, tan

from ..basics import leading
from .beta_quantile import quantile

# Times


def linspace(steps: int, trained: int = 1000) -> list[float]:
    """Evenly spaced times from the last to 0, fractions included. The "normal" schedule of ComfyUI."""
    if steps == 1:
        return [trained - 1.0]
    stride = (trained - 1) / (steps - 1)
    return [trained - 1.0, *(i * stride for i in reversed(range(steps - 1)))]


def trailing(steps: int, trained: int = 1000) -> list[float]:
    """Times at the end of equal intervals: 999, 979, ..., 19 for 50 steps (arXiv 2305.08891)."""
    stride = trained - (trained - trained / steps)  # numpy.arange's rounding, which decides where a time ends in .5
    return [float(round(trained - i * stride) - 1) for i in range(steps)]


def sgm_uniform(steps: int, trained: int = 1000) -> list[float]:
    """Evenly spaced times from the last towards 0, which is left out, fractions included: the schedule of this name in
    ComfyUI and A1111. `sgm` is the one of the program that it is named after."""
    return linspace(steps + 1, trained)[:-1]


def sgm(steps: int, trained: int = 1000) -> list[float]:
    """The times of sgm_uniform cut down to whole ones; as many steps as trained times take them all. Stability's sgm
    (LegacyDDPMDiscretization), which SDXL was published with."""
    if steps == trained:
        return [float(t) for t in reversed(range(trained))]
    stride = -(trained - 1) / steps  # numpy.linspace's rounding, which decides where a time is nearly whole
    return [float(int(i * stride + (trained - 1))) for i in range(steps)]


def simple(steps: int, trained: int = 1000) -> list[float]:
    """Every n-th trained time from the last down, rounded down, as ComfyUI and A1111 count them."""
    return [float(trained - 1 - i * trained // steps) for i in range(steps)]


def ddim_uniform(steps: int, trained: int = 1000) -> list[float]:
    """Times 1, 1 + stride, ... from above: `leading` under the name of ComfyUI."""
    return leading(steps, trained, offset=1)


def beta_times(steps: int, trained: int = 1000, a: float = 0.6, b: float = 0.6) -> list[float]:
    """Whole times at quantiles of a Beta distribution (arXiv 2407.12173), in ComfyUI's way; dense at both ends."""
    return whole([quantile(1 - i / steps, a, b) * (trained - 1) for i in range(steps)])


def lcm(steps: int, trained: int = 1000, grid: int = 50) -> list[float]:
    """Some of the `grid` trailing times that latent consistency models learned (arXiv 2310.04378): 999, 759, 499, 259.

    More steps than the grid has times get a finer one.
    """
    grid = max(grid, steps)
    learned = [float((i + 1) * (trained // grid) - 1) for i in reversed(range(grid))]
    return [learned[i * grid // steps] for i in range(steps)]


def whole(times: list[float]) -> list[float]:
    """Times rounded to trained ones, or as they are where two would become one: a step must go somewhere."""
    rounded = [float(round(t)) for t in times]
    return rounded if len(set(rounded)) == len(rounded) else times


# Noise levels


def ramp(steps: int) -> list[float]:
    """`steps` evenly spaced numbers from 0 to 1; just 0 for one step."""
    return [i / max(steps - 1, 1) for i in range(steps)]


def exponential(sigma_min: float, sigma_max: float, steps: int) -> list[float]:
    """Evenly spaced in log sigma."""
    return polyexponential(sigma_min, sigma_max, steps, rho=1.0)


def polyexponential(sigma_min: float, sigma_max: float, steps: int, rho: float = 1.0) -> list[float]:
    """log sigma is a power of an even ramp (k-diffusion); with rho above 1 denser where sigma is small."""
    return [sigma_min * (sigma_max / sigma_min) ** ((1 - r) ** rho) for r in ramp(steps)]


def beta(sigma_min: float, sigma_max: float, steps: int, a: float = 0.6, b: float = 0.6) -> list[float]:
    """Quantiles of a Beta distribution over sigma, in the way of diffusers and A1111; few small levels."""
    return [sigma_min + quantile(1 - r, a, b) * (sigma_max - sigma_min) for r in ramp(steps)]


def kl_optimal(sigma_min: float, sigma_max: float, steps: int) -> list[float]:
    """Evenly spaced in the arc tangent of sigma: optimal for Gaussian data of unit variance (arXiv 2404.14507)."""
    return [tan(r * atan(sigma_min) + (1 - r) * atan(sigma_max)) for r in ramp(steps)]


def laplace(sigma_min: float, sigma_max: float, steps: int, mu: float = 0.0, scale: float = 0.5) -> list[float]:
    """Quantiles of a Laplace distribution of log sigma within the range (arXiv 2407.03297)."""

    def share_above(sigma: float) -> float:
        distance = (log(sigma) - mu) / scale
        return exp(-distance) / 2 if distance > 0 else 1 - exp(distance) / 2

    def quantile_from_above(share: float) -> float:
        if share < 0.5:
            return exp(mu - scale * log(2 * share))
        return exp(mu + scale * log(2 - 2 * share))

    top = share_above(sigma_max)
    bottom = share_above(sigma_min)
    return [quantile_from_above(top + r * (bottom - top)) for r in ramp(steps)]


def vp(sigma_min: float, sigma_max: float, steps: int, last: float = 1e-3) -> list[float]:
    """Even steps in the time of a variance-preserving process with linear beta (arXiv 2011.13456).

    Time t runs from 1 to `last`: 1 + sigma^2 = exp(beta_d t^2 / 2 + beta_min t), with the two constants that give the
    range (arXiv 2206.00364, table 1).
    """
    top = log1p(sigma_max**2)
    bottom = log1p(sigma_min**2) / last
    beta_d = 2 * (top - bottom) / (1 - last)
    beta_min = top - beta_d / 2
    times = [1 - r * (1 - last) for r in ramp(steps)]
    return [sqrt(expm1(beta_d * t**2 / 2 + beta_min * t)) for t in times]


def linear_quadratic(sigma_min: float, sigma_max: float, steps: int, threshold: float = 0.025) -> list[float]:
    """Half of the steps go down evenly by `threshold` of sigma_max, the rest in a parabola to 0 (Mochi, ComfyUI).

    Made for flow models: few levels are small. sigma_min is not used; every schedule over a range takes it.
    """
    even = steps // 2
    rest = steps - even
    slope = threshold / max(even, 1)  # per step, where the parabola begins
    bend = (1 - threshold - slope * rest) / rest**2
    fall = [slope * i for i in range(even)]
    fall += [slope * even + slope * j + bend * j**2 for j in range(rest)]
    return [sigma_max * (1 - f) for f in fall]
