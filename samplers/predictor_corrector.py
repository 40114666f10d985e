"""Samplers that take every step twice, the second time knowing the estimate at its end; one evaluation per step.

A step from sigma to sigma_next is predicted from the estimates so far; the network's estimate at that end is then used
both to correct the step and to predict the next one. The estimates are integrated as in multistep.py; the corrector has
one node more, u = 1.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import inf
from typing import NamedTuple

from torch import Tensor

from .basics import EDM, Denoise
from .coefficients import Rule, check_order, exponential, noise_std, past_nodes, remembered, usable_order
from .schedules.levels import levels_behind
from .step import Noise, Sigmas, Step, Steps, draw, weighted

Tau = float | Callable[[float], float]  # how much noise: a number, or a function of sigma


def uni_pc(
    denoise: Denoise,
    x: Tensor,
    sigmas: Sigmas,
    noise: Noise = None,
    *,
    order: int = 2,
    variant: str | Rule = "bh2",
    end: float = 0.0,
    short: float = inf,
) -> Steps:
    """UniPC (arXiv 2302.04867) of x0, order 1 to 3: sa_solver without noise that corrects with one estimate more.

    variant: B(h) of the paper, "bh1" is h and "bh2" 1 - exp(-h). Steps with two estimates take B / 2 for their second
    moment; no others depend on it. end: the level to stop at in place of a last 0; ComfyUI and A1111 have 0.001. short:
    as in sa_solver. Raises ValueError for another order.
    """
    check_order(order, 3)
    sigmas = [*sigmas[:-1], sigmas[-1] or end]
    return sa_solver(
        denoise, x, sigmas, noise, predictor=order, corrector=order + 1, tau=0.0, second=variant, short=short
    )


class Predicted(NamedTuple):
    """A step as it was predicted: where it started, the noise that it added (None for none), the eta of its
    SDE, and where it ended."""

    start: Tensor
    noise: Tensor | None
    eta: float
    end: Tensor


def sa_solver(
    denoise: Denoise,
    x: Tensor,
    sigmas: Sigmas,
    noise: Noise = None,
    *,
    predictor: int = 2,
    corrector: int = 2,
    tau: Tau = 1.0,
    second: str | Rule = "bh1",
    pece: bool = False,
    s_noise: float = 1.0,
    short: float = inf,
    habits: str = "diffusers",
) -> Steps:
    """SA-Solver (arXiv 2309.05019): stochastic Adams methods of `predictor` and of `corrector` estimates.

    tau: how much noise, a number or a function of sigma; 0 solves the ODE and draws nothing, 1 is the trained process.
    second: a rule of coefficients; diffusers has "bh1", ComfyUI "exact".
    pece: estimate again after each correction, which doubles the evaluations. s_noise: scales the noise.
    short: a run of fewer steps comes down to the first order in its last steps. As published, every run does; 0: none.
    habits: "diffusers" takes tau at the start of each step and draws in all of them. "comfyui" takes it at the end and
    draws where it is above 0; its orders come down one step sooner. Raises ValueError for other habits.
    """
    comfyui = is_comfyui(habits)
    short = 0 if comfyui and sigmas[-1] > 0 else short  # ComfyUI comes down in order only on the way to level 0
    x0s = []  # newest first
    last = Predicted(x, None, 0.0, x)
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        count = corrector_estimates(sigmas, i, corrector, short, comfyui)
        if count > 0:
            change = x - last.end  # the caller may have written into Step.x; else 0
            x = correct(last, sigmas, i, [x0, *x0s], count, second).add_(change)
            if pece:
                x0 = denoise(x, sigma)
        x0s = [x0, *x0s[: max(predictor, corrector - 1) - 1]]
        eta = tau_at(tau, sigma_next if comfyui else sigma) ** 2
        # In diffusers a function of sigma draws also where it says 0.
        draws = eta > 0 and sigma_next > 0 if comfyui else bool(tau)
        drawn = s_noise * noise_std(sigma, sigma_next, eta) * draw(noise, sigma, sigma_next) if draws else None
        nodes = past_nodes(sigmas, i, predictor_estimates(sigmas, i, predictor, short, comfyui))
        last = predict(x, x0s, exponential(sigma, sigma_next, nodes, eta, second), drawn, eta)
        x = last.end.clone()
        yield Step(i, sigma, x, x0)


def is_comfyui(habits: str) -> bool:
    if habits not in ("diffusers", "comfyui"):
        raise ValueError(f"unknown habits {habits!r}: choose diffusers or comfyui")
    return habits == "comfyui"


def tau_at(tau: Tau, sigma: float) -> float:
    return tau(sigma) if isinstance(tau, Callable) else tau


def predictor_estimates(sigmas: Sigmas, i: int, predictor: int, short: float, comfyui: bool) -> int:
    """How many estimates predict step i."""
    count = usable_order(sigmas, i, predictor, short)
    steps = len(sigmas) - 1
    sooner = comfyui and steps < short
    return min(count, max(steps - i - 1, 1)) if sooner else count


def corrector_estimates(sigmas: Sigmas, i: int, corrector: int, short: float, comfyui: bool) -> int:
    """How many estimates correct the step that led to level i; 0 if no step led there, or one of no length."""
    if i == 0 or not sigmas[i] < sigmas[i - 1]:
        return 0
    steps = len(sigmas) - 1
    count = min(corrector, remembered(sigmas, i))
    if steps >= short:
        return count
    return min(count, steps - i if comfyui else steps - i + 2)


def predict(x: Tensor, x0s: Sequence[Tensor], weights: Sequence[float], drawn: Tensor | None, eta: float) -> Predicted:
    """A step from x by the weights of x and of the estimates, newest first, with the noise that was drawn for it."""
    end = weighted(weights, [x, *x0s])
    if drawn is not None:
        end = end.add_(drawn)
    return Predicted(x, drawn, eta, end)


def correct(last: Predicted, sigmas: Sigmas, i: int, x0s: Sequence[Tensor], count: int, second: str | Rule) -> Tensor:
    """The step that led to level i once more, now that the estimate at its end, x0s[0], is known."""
    nodes = [1.0, *past_nodes(sigmas, i - 1, count - 1)]
    x = weighted(exponential(sigmas[i - 1], sigmas[i], nodes, last.eta, second), [last.start, *x0s])
    return x if last.noise is None else x.add_(last.noise)


def authors_tau(sigma: float) -> float:
    """tau of SA-Solver's authors: all of the noise at times 200 to 800 of Stable Diffusion's table, none beyond."""
    lowest = 0.5704758763313293  # the level at time 199.5
    highest = 5.122731685638428  # at time 800.5
    return 1.0 if lowest < sigma < highest else 0.0


def sa_solver_comfyui(
    denoise: Denoise,
    x: Tensor,
    sigmas: Sigmas,
    noise: Noise = None,
    *,
    predictor: int = 3,
    corrector: int = 4,
    tau: Tau | None = None,
    pece: bool = False,
    s_noise: float = 1.0,
) -> Steps:
    """sa_solver as ComfyUI has it: exact weights, and its own habits. tau: None is ComfyUI's, all of the noise in the
    steps that end in the middle of the trained levels."""
    tau = middle_tau(denoise) if tau is None else tau
    return sa_solver(
        denoise, x, sigmas, noise,
        predictor=predictor, corrector=corrector, tau=tau, second="exact", pece=pece, s_noise=s_noise, habits="comfyui",
    )  # fmt: skip


def middle_tau(denoise: Denoise) -> Callable[[float], float]:
    """ComfyUI's tau for the network behind a Denoiser, for Stable Diffusion's levels with any other function: 1 from
    0.8 of the way up the trained levels down to 0.2, times 799.2 to 199.8 of a thousand."""
    levels = levels_behind(denoise)
    if isinstance(levels, EDM):
        low, high = (levels.sigma_min ** (1 - part) * levels.sigma_max**part for part in (0.2, 0.8))
    else:
        low, high = (levels.log_linear_sigma(part * (len(levels.sigmas) - 1)) for part in (0.2, 0.8))
    return lambda sigma: 1.0 if low < sigma <= high else 0.0
