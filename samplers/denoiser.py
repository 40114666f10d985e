"""From what a network predicts to the clean picture: denoise(x, sigma) -> x0, the contract of every sampler.

x is the noisy picture x0 + sigma * noise. The network sees c_in * x and the time that belongs to sigma.
"""

from collections.abc import Callable, Mapping
from math import sqrt

from torch import Tensor

from .schedule import EDM, NoiseTable

Denoise = Callable[[Tensor, float], Tensor]


def denoiser(
    network: Callable[[Tensor, float], Tensor],
    levels: NoiseTable | EDM,
    prediction: str,
    times: Mapping[float, float] = {},
) -> Denoise:
    """Wrap network(x, t) -> output; prediction is "eps", "v" (arXiv 2202.00512) or "x0"; an EDM model takes "eps"
    or "v" and follows arXiv 2206.00364, table 1.

    times: the time to use for a sigma where levels.t(sigma) is not wanted (schedule.choose gives it). The network
    runs in its own dtype; x and x0 keep theirs. Raises ValueError for another prediction.
    """
    scale = edm_scale if isinstance(levels, EDM) else scaling
    scale(1.0, prediction, levels)  # refuse a wrong name now

    def denoise(x: Tensor, sigma: float) -> Tensor:
        c_skip, c_out, c_in = scale(sigma, prediction, levels)
        t = times[sigma] if sigma in times else levels.t(sigma)
        out = network(x * c_in, t).to(x.dtype)
        return (x if c_skip == 1 else c_skip * x).add(out, alpha=c_out)

    return denoise


def scaling(sigma: float, prediction: str, levels: NoiseTable) -> tuple[float, float, float]:
    """c_skip, c_out, c_in of a network trained on alpha x0 + sqrt(1 - alpha^2) noise, alpha = 1 / sqrt(1 + sigma^2)."""
    c_in = 1 / sqrt(1 + sigma**2)
    match prediction:
        case "eps":
            return 1.0, -sigma, c_in
        case "v":
            return c_in**2, -sigma * c_in, c_in
        case "x0":
            return 0.0, 1.0, c_in
    raise ValueError(f"unknown prediction {prediction!r}: choose one of eps, v, x0")


def edm_scale(sigma: float, prediction: str, levels: EDM) -> tuple[float, float, float]:
    data = levels.sigma_data
    c_in = 1 / sqrt(sigma**2 + data**2)
    match prediction:
        case "eps":
            return (data * c_in) ** 2, sigma * data * c_in, c_in
        case "v":
            return (data * c_in) ** 2, -sigma * data * c_in, c_in
    raise ValueError(f"unknown prediction {prediction!r} for an EDM model: choose one of eps, v")
