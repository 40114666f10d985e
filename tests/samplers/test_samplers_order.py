"""How fast the samplers converge: on a mixture of Gaussians, whose clean estimate has a closed form."""

from functools import cache, partial
from math import exp, log, sqrt

import pytest
import torch
from scipy.integrate import solve_ivp

from samplers import SAMPLERS, adams, cfg_pp, multistep, ode, predictor_corrector, published, sde, singlestep

SHARES, MEANS, DEVIATIONS = (torch.tensor(row, dtype=torch.float64) for row in ((0.3, 0.7), (-1.2, 0.8), (0.6, 0.9)))
POINTS = torch.tensor([-2.0, -0.9, -0.3, 0.2, 0.8, 1.7], dtype=torch.float64)


def denoise(x: torch.Tensor, sigma: float) -> torch.Tensor:
    """E[x0 | x] of the mixture, elementwise."""
    x, variance = x[..., None], DEVIATIONS**2 + sigma**2
    chance = SHARES * torch.exp(-((x - MEANS) ** 2) / (2 * variance)) / variance.sqrt()
    return (chance * (MEANS * sigma**2 + x * DEVIATIONS**2) / variance).sum(-1) / chance.sum(-1)


@cache
def exact(high: float, low: float) -> torch.Tensor:
    """The ODE solved by an independent program, from POINTS * high: x / sigma over lambda = -log sigma."""
    slope = lambda at, y: denoise(torch.from_numpy(y) * exp(-at), exp(-at)).numpy() * exp(at)
    solution = solve_ivp(slope, (-log(high), -log(low)), POINTS.numpy(), method="DOP853", rtol=1e-12, atol=1e-13)
    return torch.tensor(solution.y[:, -1]) * low


def geometric(high: float, low: float, steps: int) -> list[float]:
    return [high * (low / high) ** (i / steps) for i in range(steps + 1)]


def equal(high: float, low: float, steps: int) -> list[float]:
    return [high + (low - high) * i / steps for i in range(steps + 1)]


def runge_kutta_start(denoise, x, sigmas):
    return adams.plms(denoise, x, sigmas, middles=[(a + b) / 2 for a, b in zip(sigmas[:3], sigmas[1:4])])


# theory, sampler, steps; then where it is measured. High levels make the low order of the first steps harmless.
WIDE, USUAL, EQUAL = (geometric, 1000.0, 0.1), (geometric, 80.0, 0.1), (equal, 60.0, 2.0)
still = lambda sampler, **options: partial(sampler, noise=None, eta=0.0, **options)
ORDERS = {
    "euler": (1, ode.euler, 80, USUAL),
    "heun": (2, ode.heun, 80, USUAL),
    "heunpp2": (1, ode.heunpp2, 80, USUAL),
    "dpm_2": (2, ode.dpm_2, 80, USUAL),
    **{f"lms {k}": (k, partial(adams.lms, order=k), 160, WIDE) for k in (1, 2, 3, 4)},
    "ipndm_v": (4, SAMPLERS["ipndm_v"].run, 160, WIDE),
    **{f"ipndm {k}": (k, partial(adams.ipndm, order=k), 600, EQUAL) for k in (1, 2, 3, 4)},
    "plms": (4, adams.plms, 600, EQUAL),
    "plms from Runge and Kutta": (4, runge_kutta_start, 600, EQUAL),
    "gradient_estimation": (1, adams.gradient_estimation, 600, EQUAL),
    "gradient_estimation, gamma 3/2": (2, partial(adams.gradient_estimation, gamma=1.5), 600, EQUAL),
    "dpmpp 1": (1, partial(multistep.dpmpp, order=1), 80, USUAL),
    "dpmpp_2m": (2, multistep.dpmpp_2m, 80, USUAL),
    "res_multistep": (2, multistep.res_multistep, 80, USUAL),
    "res_multistep_ancestral": (2, still(multistep.res_multistep_ancestral), 80, USUAL),
    "dpmpp_3m": (3, multistep.dpmpp_3m, 160, WIDE),
    "dpmpp_3m as published": (2, published.dpmpp_3m, 160, WIDE),
    "dpmpp_3m_sde": (3, still(multistep.dpmpp_3m_sde), 160, WIDE),
    "dpm_solver 1": (1, partial(multistep.dpm_solver, order=1), 80, USUAL),
    "dpm_solver 2": (2, partial(multistep.dpm_solver, order=2), 80, USUAL),
    "dpm_solver 3": (3, partial(multistep.dpm_solver, order=3), 160, USUAL),
    "dpm_solver 3 as published": (
        2,
        partial(multistep.dpm_solver, order=3, second=published.halved_third()),
        160,
        USUAL,
    ),
    **{f"deis {k}": (k, partial(multistep.deis, order=k), 160, USUAL) for k in (1, 2, 3)},
    **{
        f"singlestep {k}, {second}": (k, partial(singlestep.singlestep, order=k, second=second), 48 * k, USUAL)
        for k in (1, 2, 3)
        for second in ("midpoint", "exact")
    },
    **{
        f"uni_pc {k}, {b}": (k + 1, partial(predictor_corrector.uni_pc, order=k, variant=b, short=0), 160, WIDE)
        for k in (1, 2, 3)
        for b in ("bh1", "bh2")
    },
    "uni_pc_bh2": (2, SAMPLERS["uni_pc_bh2"].run, 160, USUAL),  # ends like that one
    "uni_pc as published": (2, predictor_corrector.uni_pc, 640, USUAL),  # its last step is of order 1
    **{
        f"sa_solver {p}/{c}": (
            min(p + 1, c),
            partial(predictor_corrector.sa_solver, noise=None, predictor=p, corrector=c, tau=0.0, short=0),
            320,
            WIDE,
        )
        for p, c in ((1, 1), (2, 2), (2, 3), (3, 3), (3, 4))
    },
    "sa_solver_pece": (4, partial(SAMPLERS["sa_solver_pece"].run, noise=None, tau=0.0, short=0), 160, WIDE),
    "er_sde": (3, partial(multistep.er_sde, noise=None, scale=lambda sigma: sigma, s_noise=0.0), 80, USUAL),
    "er_sde as published": (
        2,
        partial(multistep.er_sde, noise=None, scale=lambda sigma: sigma, s_noise=0.0, moments=published.er_moments),
        80,
        USUAL,
    ),
    "dpmpp_2s_ancestral": (2, still(sde.dpmpp_2s_ancestral), 80, USUAL),
    "dpmpp_sde": (2, still(sde.dpmpp_sde), 80, USUAL),
    "seeds_2": (2, still(singlestep.seeds_2), 80, USUAL),
    "exp_heun_2_x0": (2, partial(SAMPLERS["exp_heun_2_x0"].run, noise=None), 80, USUAL),
    "seeds_3": (3, still(singlestep.seeds_3), 80, USUAL),
    "dpm_fast": (3, singlestep.dpm_fast, 242, USUAL),  # 3 n + 2 evaluations: the last block is of order 2
    "dpm_fast, 3 n": (2, singlestep.dpm_fast, 240, USUAL),  # and here of order 1
    "ddim": (1, still(sde.ddim), 80, USUAL),
    "euler_cfg_pp": (1, cfg_pp.euler_cfg_pp, 80, USUAL),
    "dpmpp_2m_cfg_pp": (2, cfg_pp.dpmpp_2m_cfg_pp, 80, USUAL),
}


@pytest.mark.parametrize("name", ORDERS)
def test_order_of_convergence(name):
    """Twice the steps divide the error by 2^order."""
    order, sampler, steps, (grid, high, low) = ORDERS[name]
    errors = {}
    for n in (steps, 2 * steps - 2 * (name == "dpm_fast")):
        *_, last = sampler(denoise, POINTS * high, grid(high, low, n))
        errors[n] = (last.x - exact(high, low)).abs().max().item()
    (few, coarse), (many, fine) = errors.items()
    measured = log(coarse / fine) / log(many / few)
    assert measured == pytest.approx(order, abs=0.2)


@pytest.mark.parametrize("order", [2, 3])
def test_adaptive_steps_follow_the_tolerance(order):
    """A local error of rtol in steps of order k: 100 times less takes 100^(1 / k) times the steps."""
    counts, errors = [], []
    for tolerance in (1e-4, 1e-6):
        evaluations = []
        counted = lambda x, sigma: evaluations.append(sigma) or denoise(x, sigma)  # noqa: B023
        *_, last = singlestep.dpm_adaptive(
            counted, POINTS * 80, [80.0, 0.1, 0.0], order=order, rtol=tolerance, atol=tolerance / 10
        )
        counts.append(len(evaluations))
        errors.append((last.x - exact(80.0, 0.1)).abs().max().item())
    assert errors[0] < 2e-3 and errors[1] < errors[0] / 10
    assert log(counts[1] / counts[0]) == pytest.approx(log(100) / order, abs=0.3)


def variance(sampler, sigmas: list[float], brownian: bool = False, deviation: float = 0.7) -> float:
    """Of the end, exactly, for Gaussian data: x is a linear function of the start and of every draw, so it is run with
    the coefficients of all of them, each a place of x."""
    places = torch.eye(4 * len(sigmas), dtype=torch.float64)
    draws, path = iter(places), {}
    white = lambda *_: next(draws)

    def one_path(sigma: float, lower: float) -> torch.Tensor:
        """Scaled increments; of two intervals that begin alike, the shorter is asked for first."""
        start, part = path.get(sigma, (sigma, 0.0))
        whole = part + sqrt(start - lower) * white()
        path[sigma] = lower, whole
        return whole / sqrt(sigma - lower)

    start = sqrt(deviation**2 + sigmas[0] ** 2) * white()
    linear = lambda x, sigma: x * deviation**2 / (deviation**2 + sigma**2)
    *_, last = sampler(linear, start, sigmas, one_path if brownian else white)
    return last.x.square().sum().item()


def restart(denoise, x, sigmas, noise):
    return sde.restart(denoise, x, sigmas, noise, steps=len(sigmas) // 8, times=2)


STOCHASTIC = {  # the weak order: by theory where it says one, else as the deterministic part and its noise allow
    "ddim, eta 1": (1, SAMPLERS["ddpm"].run),
    "euler_ancestral, eta 1/2": (1, partial(sde.euler_ancestral, eta=0.5)),
    "dpm_2_ancestral": (2, sde.dpm_2_ancestral),
    "dpmpp_2s_ancestral": (2, sde.dpmpp_2s_ancestral),
    "dpmpp_sde": (2, sde.dpmpp_sde),
    "dpmpp_2m_sde": (2, multistep.dpmpp_2m_sde),
    "dpmpp_2m_sde_heun": (2, SAMPLERS["dpmpp_2m_sde_heun"].run),
    "dpmpp_3m_sde": (2, multistep.dpmpp_3m_sde),
    "dpmpp_3m_sde, as published": (2, published.dpmpp_3m_sde),
    "dpm_solver, eta 1": (2, partial(multistep.dpm_solver, eta=1.0)),
    "dpm_solver, eta 1/2": (1, partial(multistep.dpm_solver, eta=0.5)),
    "singlestep, eta 1": (1, partial(singlestep.singlestep, eta=1.0)),  # each step draws as if it were the first
    "res_multistep_ancestral": (1, multistep.res_multistep_ancestral),
    "sa_solver": (2, partial(predictor_corrector.sa_solver, short=0)),
    "sa_solver_pece": (2, partial(predictor_corrector.sa_solver, pece=True, short=0)),
    "er_sde": (2, multistep.er_sde),
    "er_sde, as published": (2, partial(multistep.er_sde, moments=published.er_moments)),
    "seeds_2": (2, singlestep.seeds_2),
    "seeds_3": (2, singlestep.seeds_3),
    "exp_heun_2_x0_sde": (2, SAMPLERS["exp_heun_2_x0_sde"].run),
    "restart": (2, restart),
    "heun with churn": (2, partial(ode.heun, s_churn=20.0)),
    "edm_stochastic": (0, SAMPLERS["edm_stochastic"].run),  # its s_noise of 1.003 leaves that much variance
}


@pytest.mark.parametrize("name", STOCHASTIC)
def test_variance_of_gaussian_data_converges(name):
    order, sampler = STOCHASTIC[name]
    few, many = (
        variance(sampler, geometric(80.0, 0.1, n), name == "dpmpp_sde") / (0.7**2 + 0.1**2) - 1 for n in (120, 240)
    )
    assert abs(many) < (0.06 if order == 1 else 0.01)
    if order:
        assert log(abs(few / many), 2) > order - 0.2


def test_wrong_sign_of_the_third_order_sde():
    """With few steps, where its extra difference matters most: diffusers' weight has more than twice the error."""
    right, halved, wrong = (
        abs(variance(partial(multistep.dpmpp_3m_sde, second=rule), geometric(80.0, 0.1, 20)) / (0.7**2 + 0.1**2) - 1)
        for rule in ("exact", published.halved_third("exact"), published.third_of_sde("exact"))
    )
    assert wrong > 2.5 * max(right, halved)
