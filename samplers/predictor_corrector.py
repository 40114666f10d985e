"""Samplers that take every step twice, the second time knowing the estimate at its end; one evaluation per step.

A step from sigma to lower is predicted from the estimates so far; the network's estimate at that end is then used both
to correct the step and to predict the next one. The estimates are integrated as in multistep.py; the corrector has one
node more, u = 1.
"""

from itertools import pairwise
from math import inf

from .coefficients import check_order, exponential, fresh, past_nodes, remembered, usable_order
from .step import Step, weighted


def uni_pc(denoise, x, sigmas, *, order=2, variant="bh2", end=0.0, short=inf):
    """UniPC (arXiv 2302.04867) of x0, order 1 to 3: sa_solver without noise that corrects with one estimate more.

    variant: B(h) of the paper, "bh1" is h and "bh2" 1 - exp(-h). Steps with two estimates take B / 2 for their second
    moment; no others depend on it. end: the level to stop at in place of a last 0; ComfyUI and A1111 have 0.001.
    """
    check_order(order, 3)
    sigmas = [*sigmas[:-1], sigmas[-1] or end]
    return sa_solver(
        denoise, x, sigmas, None, predictor=order, corrector=order + 1, tau=0.0, second=variant, short=short
    )


def sa_solver(
    denoise,
    x,
    sigmas,
    noise=None,
    *,
    predictor=2,
    corrector=2,
    tau=1.0,
    second="bh1",
    pece=False,
    s_noise=1.0,
    short=inf,
):
    """SA-Solver (arXiv 2309.05019): stochastic Adams methods of `predictor` and of `corrector` estimates.

    tau: how much noise, a number or a function of sigma; 0 solves the ODE and draws nothing, 1 is the trained process.
    second: see coefficients.adjusted; diffusers has "bh1", ComfyUI "exact".
    pece: estimate again after each correction, which doubles the evaluations.
    short: runs of fewer steps come down to the first order at their end, as published: all of them. 0: none does.
    """
    x0s, steps = [], len(sigmas) - 1  # newest first
    for i, (sigma, lower) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        count = min(corrector, remembered(sigmas, i), steps - i + 2 if steps < short else corrector)
        if i > 0 and count > 0 and sigma < sigmas[i - 1]:
            nodes = [1.0, *past_nodes(sigmas, i - 1, count - 1)]
            x = weighted(exponential(sigmas[i - 1], sigma, nodes, eta, second), [start, x0, *x0s])  # noqa: F821
            x = x if z is None else x.add_(z)  # noqa: F821
            x0 = denoise(x, sigma) if pece else x0
        x0s = [x0, *x0s[: max(predictor, corrector - 1) - 1]]
        start, eta, z = x, (tau(sigma) if callable(tau) else tau) ** 2, None
        nodes = past_nodes(sigmas, i, usable_order(sigmas, i, predictor, short))
        x = weighted(exponential(sigma, lower, nodes, eta, second), [start, *x0s])
        if tau:  # also where a function of sigma says 0, to draw as often as diffusers does
            z = s_noise * fresh(sigma, lower, eta) * noise(sigma, lower)
            x.add_(z)
        yield Step(i, sigma, x, x0)
