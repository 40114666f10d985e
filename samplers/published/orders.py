"""Samplers of third order as every program has them, which leaves them the second order."""

from collections.abc import Callable, Sequence

from torch import Tensor

from .. import multistep
from ..basics import Denoise
from ..coefficients import Rule, find_rule
from ..step import Noise, Sigmas, Steps


def with_third(second: str, change: Callable[[float], float]) -> Rule:
    """A rule of coefficients that changes the last of three moments. second: the name of the rule for fewer."""
    rule = find_rule(second)

    def changed(moments: list[float], h: float) -> list[float]:
        if len(moments) == 3:
            return [*moments[:2], change(moments[2])]
        return rule(moments, h)

    return changed


def halved_third(second: str = "midpoint") -> Rule:
    """Half of the exact third moment: DPM-Solver(3M) and DPM-Solver++(3M) in all programs."""
    return with_third(second, lambda third: third / 2)


def dpmpp_3m(denoise: Denoise, x: Tensor, sigmas: Sigmas, noise: Noise = None, *, short: float = 15) -> Steps:
    """DPM-Solver++(3M) of diffusers."""
    return multistep.dpmpp_3m(denoise, x, sigmas, noise, second=halved_third(), short=short)


def dpmpp_3m_sde(
    denoise: Denoise, x: Tensor, sigmas: Sigmas, noise: Noise = None, *, eta: float = 1.0, s_noise: float = 1.0
) -> Steps:
    """DPM++ 3M SDE of k-diffusion."""
    return multistep.dpmpp_3m_sde(denoise, x, sigmas, noise, second=halved_third("exact"), eta=eta, s_noise=s_noise)


def er_moments(
    scale: Callable[[float], float], sigma: float, sigma_next: float, nodes: Sequence[float], points: int
) -> list[float]:
    """ER-SDE of its paper's code and of ComfyUI: it takes the slope of x0 at the middle of the last step for that at
    its end. For multistep.er_sde(..., moments=er_moments)."""
    found = multistep.er_moments(scale, sigma, sigma_next, nodes, points)
    if len(found) == 3:
        found[2] += nodes[1] * found[1]
    return found
