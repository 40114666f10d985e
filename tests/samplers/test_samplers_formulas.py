"""Samplers against the formulas of their papers, written down a second time and naively, and against each other where
two names are one map. Here are those of which no implementation can be installed."""

from functools import partial
from itertools import pairwise
from math import exp, expm1, inf, log, prod, sqrt

import pytest
import torch
from scipy.integrate import quad

from samplers import SAMPLERS, adams, cfg_pp, distilled, multistep, ode, predictor_corrector, published, sde, singlestep
from samplers.basics import EDM, Denoiser
from samplers.coefficients import UNIFORM, ancestral, moments, quadrature
from samplers.schedules import karras, noise_table
from samplers.step import Step
from support.numbers import denoise

SHAPE = (2, 3, 4, 4)
SIGMAS = [14.6, 9.1, 5.5, 3.9, 1.7, 0.9, 0.5, 0.2, 0.0]
START = 14.6 * torch.randn(SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def unguided(x: torch.Tensor, sigma: float) -> torch.Tensor:
    return torch.tanh(0.7 * x.roll(1, dims=-2) + 0.1)


def white(seed: int = 2):
    generator = torch.Generator().manual_seed(seed)
    return lambda *_: torch.randn(SHAPE, generator=generator, dtype=torch.float64)


def end(sampler, sigmas=SIGMAS, noise=None, estimate=denoise) -> torch.Tensor:
    *_, last = sampler(estimate, START, sigmas, *([noise] if noise else []))
    return last.x


def check(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float = 1e-12):  # float64: two orders of the same sums
    assert (ours - theirs).abs().max() < tolerance * theirs.abs().max()


@pytest.mark.parametrize("h", [1e-6, 1e-3, 0.3, 1.0, 1.001, 3.0, 20.0, -0.5, -3.0])
def test_moments_are_their_integrals(h):
    for k, moment in enumerate(moments(h, 4)):
        integral, _ = quad(lambda u: h * exp(h * (u - 1)) * u**k, 0, 1, epsabs=0, epsrel=1e-13)  # noqa: B023
        assert moment == pytest.approx(integral, rel=1e-13)
    assert moments(inf, 1) == [1.0]
    assert moments(h, 2)[1] == pytest.approx(1 + expm1(-h) / h, rel=1e-9)  # phi_2, which loses digits
    assert quadrature([0, -1, -2, -3], UNIFORM) == pytest.approx([55 / 24, -59 / 24, 37 / 24, -9 / 24])


def test_ancestral_levels_add_up():
    for sigma, lower, eta in ((3.0, 2.0, 0.4), (3.0, 2.0, 1.0), (14.6, 1e-9, 1.0), (3.0, 0.0, 1.0), (3.0, 2.9, 9.0)):
        down, up = ancestral(sigma, lower, eta)
        assert down**2 + up**2 == pytest.approx(lower**2, rel=1e-14) and down >= 0
    assert ancestral(3.0, 2.0, 1.0)[0] == pytest.approx(2.0**2 / 3.0) and ancestral(3.0, 2.0, 0.0) == (2.0, 0.0)


TWINS = {  # names of the same map: sampler, sampler, draws
    "euler is ddim": (ode.euler, partial(sde.ddim, noise=None), False),
    "euler is euler_ancestral, eta 0": (ode.euler, partial(sde.euler_ancestral, noise=None, eta=0.0), False),
    "euler is dpmpp of order 1": (ode.euler, partial(multistep.dpmpp, order=1), False),
    "euler is dpm_solver of order 1": (ode.euler, partial(multistep.dpm_solver, order=1), False),
    "euler is lms of order 1": (ode.euler, partial(adams.lms, order=1), False),
    "euler is ipndm of order 1": (ode.euler, partial(adams.ipndm, order=1), False),
    "euler is singlestep of order 1": (ode.euler, partial(singlestep.singlestep, order=1), False),
    "euler is gradient_estimation, gamma 1": (ode.euler, partial(adams.gradient_estimation, gamma=1.0), False),
    "euler is sa_solver 1/0, tau 0": (
        ode.euler,
        partial(predictor_corrector.sa_solver, predictor=1, corrector=0, tau=0.0),
        False,
    ),
    "ddpm is euler_ancestral": (SAMPLERS["ddpm"].run, sde.euler_ancestral, True),
    "ddpm is dpmpp of order 1, eta 1": (SAMPLERS["ddpm"].run, partial(multistep.dpmpp, order=1, eta=1.0), True),
    "ddpm is er_sde of order 1, sigma^2": (
        SAMPLERS["ddpm"].run,
        partial(multistep.er_sde, order=1, scale=lambda sigma: sigma**2),
        True,
    ),
    "heun is edm_stochastic without churn": (ode.heun, partial(SAMPLERS["edm_stochastic"].run, s_churn=0.0), False),
    "dpm_2 is dpm_2_ancestral, eta 0": (ode.dpm_2, partial(sde.dpm_2_ancestral, noise=None, eta=0.0), False),
    "dpmpp_2s_ancestral is dpmpp_sde, eta 0": (
        partial(sde.dpmpp_2s_ancestral, noise=None, eta=0.0),
        partial(sde.dpmpp_sde, noise=None, eta=0.0),
        False,
    ),
    "dpmpp_2s_ancestral is seeds_2, eta 0": (
        partial(sde.dpmpp_2s_ancestral, noise=None, eta=0.0),
        partial(singlestep.seeds_2, noise=None, eta=0.0),
        False,
    ),
    "res_multistep is dpmpp_2m with exact weights": (
        multistep.res_multistep,
        partial(multistep.dpmpp, second="exact", short=0),
        False,
    ),
    "res_multistep is its ancestral, eta 0": (
        multistep.res_multistep,
        partial(multistep.res_multistep_ancestral, noise=None, eta=0.0),
        False,
    ),
    "dpmpp_2m is its SDE, eta 0": (
        partial(multistep.dpmpp_2m, short=0),
        partial(multistep.dpmpp_2m_sde, noise=None, eta=0.0),
        False,
    ),
    "dpmpp_3m is its SDE, eta 0": (
        partial(multistep.dpmpp_3m, second="exact", short=0),
        partial(multistep.dpmpp_3m_sde, noise=None, eta=0.0),
        False,
    ),
    "deis is dpm_solver with exact weights": (
        partial(multistep.deis, order=3),
        partial(multistep.dpm_solver, order=3, second="exact"),
        False,
    ),
    "uni_pc's predictor is dpmpp": (
        partial(predictor_corrector.sa_solver, predictor=3, corrector=0, tau=0.0, second="bh2"),
        partial(multistep.dpmpp, order=3, short=inf),
        False,
    ),
    "uni_pc bh1 is sa_solver, tau 0": (
        partial(predictor_corrector.uni_pc, order=2, variant="bh1"),
        partial(predictor_corrector.sa_solver, predictor=2, corrector=3, tau=0.0),
        False,
    ),
    "sa_solver's predictor is dpmpp, eta tau^2": (
        partial(predictor_corrector.sa_solver, predictor=3, corrector=0, tau=0.7, second="exact"),
        partial(multistep.dpmpp, order=3, eta=0.49, second="exact", short=inf),
        True,
    ),
    "ipndm_v is lms until its last step": (
        lambda *args: list(adams.lms(*args))[:-1],
        lambda *args: list(SAMPLERS["ipndm_v"].run(*args))[:-1],
        False,
    ),
    "tcd, eta 0, is euler": (partial(distilled.tcd, noise=None, eta=0.0), ode.euler, False),
    "dpm_fast of one evaluation is euler": (
        lambda denoise, x, _: singlestep.dpm_fast(denoise, x, [3.0, 1.0]),
        lambda denoise, x, _: ode.euler(denoise, x, [3.0, 1.0]),
        False,
    ),
}


@pytest.mark.parametrize("name", TWINS)
def test_two_names_are_one_map(name):
    first, second, draws = TWINS[name]
    sigmas = [noise_table().sigma(t) for t in (999, 700, 500, 300, 100, 0)] if name.startswith("tcd") else SIGMAS
    check(end(first, sigmas, white() if draws else None), end(second, sigmas, white() if draws else None), 1e-10)


@pytest.mark.parametrize("short", [0, 15])
@pytest.mark.parametrize("count", [1, 2, 7, 14, 15, 30])
def test_the_two_samplers_to_read_first_are_cases_of_the_general_form(count, short):
    """euler and dpmpp_2m are written out in basics.py; multistep.dpmpp computes the same weights by quadrature."""
    sigmas = [*karras(0.03, 14.6, count), 0.0]
    check(end(ode.euler, sigmas), end(partial(multistep.dpmpp, order=1, short=short), sigmas))
    check(end(partial(multistep.dpmpp_2m, short=short), sigmas), end(partial(multistep.dpmpp, short=short), sigmas))
    if count > 2:  # and where a level is there twice, or the levels rise
        twice = [*sigmas[:2], sigmas[1], *sigmas[2:]]
        for levels in (twice, sigmas[-2::-1]):
            check(
                end(partial(multistep.dpmpp_2m, short=short), levels),
                end(partial(multistep.dpmpp, short=short), levels),
            )


def test_equal_steps_make_lms_and_gradient_estimation_ipndm():
    sigmas = [8.0 - i for i in range(8)]  # down to 1
    for order in (2, 3, 4):
        check(end(partial(adams.lms, order=order), sigmas), end(partial(adams.ipndm, order=order), sigmas))
    check(end(partial(adams.gradient_estimation, gamma=1.5), sigmas), end(partial(adams.ipndm, order=2), sigmas))


def test_lcm_is_ancestral_sampling_with_all_noise_new():
    """But for the boundary of its consistency function, which is felt at times below 20."""
    all_new = partial(sde.euler_ancestral, eta=1e9)
    check(end(distilled.lcm, SIGMAS[:-1], white()), end(all_new, SIGMAS[:-1], white()), 1e-5)
    low = [noise_table().sigma(t) for t in (3, 1)]
    x0 = next(distilled.lcm(denoise, START, [*low, 0.0], white())).x0
    share = 0.25 / (30**2 + 0.25)
    check(x0, sqrt(1 - share) * denoise(START, low[0]) + share * START / sqrt(1 + low[0] ** 2))
    assert next(distilled.lcm(denoise, START, [noise_table().sigmas[0], 0.0], white())).x0.std() > 10  # x itself


@pytest.mark.parametrize(
    "order, weights",
    [(2, (3 / 2, -1 / 2)), (3, (23 / 12, -16 / 12, 5 / 12)), (4, (55 / 24, -59 / 24, 37 / 24, -9 / 24))],
)
def test_ipndm_formula(order, weights):
    table = [(1,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24)]
    assert table[order - 1] == weights
    x, slopes = START, []
    for a, b in pairwise(SIGMAS):
        d = (x - denoise(x, a)) / a
        slopes.insert(0, d)
        used = table[min(order, len(slopes)) - 1] if b > 0 else (1,)
        x = x + (b - a) * sum(w * d for w, d in zip(used, slopes))
    check(end(partial(adams.ipndm, order=order)), x)


def test_gradient_estimation_formula():
    x, old = START, None
    for a, b in pairwise(SIGMAS):
        d = (x - denoise(x, a)) / a
        x = x + (b - a) * (d if old is None or b == 0 else d + (2.0 - 1) * (d - old))
        old = d
    check(end(adams.gradient_estimation), x)


@pytest.mark.parametrize("sigmas", [SIGMAS, SIGMAS[:-1]])
def test_heunpp2_formula(sigmas):
    x, n = START, len(sigmas) - 1
    for i, (a, b) in enumerate(pairwise(sigmas)):
        d = (x - denoise(x, a)) / a
        if i < n - 1:
            y = x + (b - a) * d
            d2 = (y - denoise(y, b)) / b
        if i < n - 2:
            c = sigmas[i + 2]
            z = y + (c - b) * d2
            d3 = (z - denoise(z, c)) / c
            w2, w3 = b / (3 * SIGMAS[0]), c / (3 * SIGMAS[0])
            x = x + (b - a) * ((1 - w2 - w3) * d + w2 * d2 + w3 * d3)
        elif i < n - 1:
            w2 = b / (2 * SIGMAS[0])
            x = x + (b - a) * ((1 - w2) * d + w2 * d2)
        else:
            x = x + (b - a) * d
    check(end(ode.heunpp2, sigmas), x)


@pytest.mark.parametrize("steps", [18, 120])
def test_edm_stochastic_formula(steps):
    """arXiv 2206.00364, algorithm 2, with the numbers of table 5 for ImageNet-64; the churn of few steps is cut off."""
    s_churn, s_tmin, s_tmax, s_noise = 40, 0.05, 50, 1.003
    sigmas = [*karras(0.02, 80.0, steps), 0.0]
    x, z = START, white()
    for a, b in pairwise(sigmas):
        gamma = min(s_churn / steps, sqrt(2) - 1) if s_tmin <= a <= s_tmax else 0
        higher = a + gamma * a
        x = x + sqrt(higher**2 - a**2) * s_noise * (z() if gamma else 0)
        d = (x - denoise(x, higher)) / higher
        y = x + (b - higher) * d
        x = x + (b - higher) * (d / 2 + (y - denoise(y, b)) / (2 * b)) if b else y
    check(end(SAMPLERS["edm_stochastic"].run, sigmas, white()), x, 1e-11)  # 1 / 0.02 of the last rounding


def test_ipndm_v_ends_with_a_step_of_euler_and_lms_does_not():
    (*_, before, last), (*_, free) = SAMPLERS["ipndm_v"].run(denoise, START, SIGMAS), adams.lms(denoise, START, SIGMAS)
    check(last.x, denoise(before.x, SIGMAS[-2]))
    assert (free.x - last.x).abs().max() > 0.01


def test_er_sde_formula():
    """arXiv 2309.06169 in the notation of its code: the published one, its integrals done exactly."""
    f = lambda s: s * (exp(s**0.3) + 10)
    x, z = START, white()
    x0s, slopes = [], []
    for i, (a, b) in enumerate(pairwise(SIGMAS)):
        x0s.append(denoise(x, a))
        if b == 0:
            x = x0s[-1]
            break
        r = f(b) / f(a)
        new = r * x + (1 - r) * x0s[-1]
        if i > 0:
            slopes.append((x0s[-1] - x0s[-2]) / (a - SIGMAS[i - 1]))
            new = new + (b - a + f(b) * quad(lambda s: 1 / f(s), b, a)[0]) * slopes[-1]
        if i > 1:
            bend = (slopes[-1] - slopes[-2]) / ((a - SIGMAS[i - 2]) / 2)
            new = new + ((b - a) ** 2 / 2 + f(b) * quad(lambda s: (s - a) / f(s), b, a)[0]) * bend  # noqa: B023
        x = new + sqrt(b**2 - (r * a) ** 2) * z()
    check(
        end(partial(multistep.er_sde, moments=published.er_moments, points=2000), noise=white()), x, 1e-6
    )  # by midpoints


@pytest.mark.parametrize("eta", [0.6, 1.0])
def test_seeds_2_formula(eta):
    """arXiv 2305.14267: one Ornstein-Uhlenbeck path, seen at the middle and at the end of the step."""
    x, z = START, white()
    for a, b in pairwise(SIGMAS):
        x0 = denoise(x, a)
        if b == 0:
            x = x0
            break
        h, m = log(a / b), sqrt(a * b)
        noise = sqrt(1 - exp(-h * eta)) * z()
        y = m / a * exp(-eta * h / 2) * x + (1 - exp(-(1 + eta) * h / 2)) * x0 + m * noise
        noise = exp(-eta * h / 2) * noise + sqrt(1 - exp(-h * eta)) * z()
        x = b / a * exp(-eta * h) * x + (1 - exp(-(1 + eta) * h)) * denoise(y, m) + b * noise
    check(end(partial(singlestep.seeds_2, eta=eta), noise=white()), x)


@pytest.mark.parametrize("name, eta", [("exp_heun_2_x0", 0.0), ("exp_heun_2_x0_sde", 1.0)])
def test_exp_heun_is_the_exponential_trapezoid_rule(name, eta):
    """arXiv 2305.14267: Euler to the end of the step, then the line through the estimates of both ends, integrated."""
    x, z = START, white()
    for a, b in pairwise(SIGMAS):
        x0 = denoise(x, a)
        if b == 0:
            x = x0
            break
        h = (1 + eta) * log(a / b)
        noise = b * sqrt(1 - (b / a) ** 2) * z() if eta else 0
        y = exp(-h) * x + (1 - exp(-h)) * x0 + noise
        x = y + (1 - (1 - exp(-h)) / h) * (denoise(y, b) - x0)
    check(end(SAMPLERS[name].run, noise=white()), x)


def test_seeds_3_formula():
    x, z = START, white()
    phi1, phi2 = lambda h: 1 - exp(-h), lambda h: 1 - (1 - exp(-h)) / h
    for a, b in pairwise(SIGMAS):
        x0 = denoise(x, a)
        if b == 0:
            x = x0
            break
        h = log(a / b)
        m, n, third = a * exp(-h / 3), a * exp(-2 * h / 3), exp(-h / 3)
        fresh = sqrt(1 - exp(-2 * h / 3))
        path = fresh * z()
        y1 = denoise((m / a) ** 2 * x + phi1(2 * h / 3) * x0 + m * path, m)
        path = third * path + fresh * z()
        w = 2 * phi2(4 * h / 3)
        y2 = denoise((n / a) ** 2 * x + (phi1(4 * h / 3) - w) * x0 + w * y1 + n * path, n)
        path = third * path + fresh * z()
        w = 1.5 * phi2(2 * h)
        x = (b / a) ** 2 * x + (phi1(2 * h) - w) * x0 + w * y2 + b * path
    check(end(singlestep.seeds_3, noise=white()), x)


def test_sa_solver_pece_formula():
    """Predict, estimate, correct, estimate: Euler and the exponential trapezoid, each network call of its own."""
    x, calls = START, []
    x0 = denoise(x, SIGMAS[0])
    for a, b in pairwise(SIGMAS[:-1]):
        h, q = log(a / b), b / a
        new = denoise(x0 + q * (x - x0), b)
        w = 1 - (1 - q) / h
        x = q * x + (1 - q - w) * x0 + w * new
        x0 = denoise(x, b)
    counted = lambda x, sigma: calls.append(sigma) or denoise(x, sigma)
    pece = partial(SAMPLERS["sa_solver_pece"].run, predictor=1, corrector=2, tau=0.0)
    check(end(pece, estimate=counted), x0)  # the last step goes to 0
    assert len(calls) == 2 * (len(SIGMAS) - 1) - 1


@pytest.mark.parametrize("name", ["sa_solver", "sa_solver_pece"])
def test_sa_solver_is_noisy_between_times_200_and_800(name):
    """In the steps that begin there; it draws in all of them, as diffusers does."""
    sigmas = [noise_table().sigma(t) for t in (999, 900, 801, 800, 600, 400, 200, 199, 100, 0)] + [0.0]

    def run(loud: float | None = None) -> tuple[list[torch.Tensor], list[float]]:
        """x after every step, with a draw of ones in the step from one level and of zeros in the others."""
        draws = []
        noise = lambda sigma, lower: draws.append(sigma) or torch.full_like(START, sigma == loud)
        return [step.x for step in SAMPLERS[name].run(denoise, START, sigmas, noise)], draws

    quiet, draws = run()
    moved = [not torch.equal(run(sigma)[0][i], quiet[i]) for i, sigma in enumerate(sigmas[:-1])]
    assert draws == sigmas[:-1] and moved == [False] * 3 + [True] * 4 + [False] * 3


def comfyui_sa_solver(x, sigmas, z, tau_of, pece=False, predictor=3, corrector=4):
    """ComfyUI's sample_sa_solver in the notation of arXiv 2309.05019: integrals of Lagrange polynomials in lambda,
    by numerical quadrature."""
    lam = [-log(s) if s > 0 else inf for s in sigmas]
    steps = len(sigmas) - 1
    lowers = sigmas[-1] == 0
    x0s, tau, added, start, drawn = [], 0.0, 0.0, x, []

    def integral(nodes, j, s, t, tau):
        basis = lambda u: prod((u - nodes[k]) / (nodes[j] - nodes[k]) for k in range(len(nodes)) if k != j)
        weight = lambda u: (1 + tau**2) * exp((1 + tau**2) * (u - t)) * basis(u)
        return quad(weight, s, t, epsabs=0, epsrel=1e-12)[0]

    def step(x, i, nodes, tau):
        """From level i to the next, by the estimates at the nodes."""
        q = sigmas[i + 1] / sigmas[i]
        weights = [integral([lam[k] for k in nodes], j, lam[i], lam[i + 1], tau) for j in range(len(nodes))]
        return q ** (1 + tau**2) * x + sum(w * x0s[k] for w, k in zip(weights, nodes))

    for i in range(steps):
        x0s.append(denoise(x, sigmas[i]))
        used = min(corrector, i + 1, steps - i if lowers else corrector)
        if i > 0 and not (sigmas[i + 1] == 0 and not pece):
            x = step(start, i - 1, range(i - used + 1, i + 1), tau) + added
            if pece:
                x0s[i] = denoise(x, sigmas[i])
        start = x
        if sigmas[i + 1] == 0:
            return x0s[i], drawn
        used = min(predictor, i + 1, steps - 1 - i if lowers else predictor)
        tau, added = tau_of(sigmas[i + 1]), 0.0
        if tau > 0:
            drawn.append(sigmas[i])
            added = sigmas[i + 1] * sqrt(1 - (sigmas[i + 1] / sigmas[i]) ** (2 * tau**2)) * z()
        x = step(start, i, range(i - used + 1, i + 1), tau) + added
    return x, drawn


@pytest.mark.parametrize("end_at_zero", [True, False])
@pytest.mark.parametrize("name, pece", [("sa_solver_comfyui", False), ("sa_solver_pece_comfyui", True)])
def test_sa_solver_comfyui_formula(name, pece, end_at_zero):
    """Noise in the steps that end at times 799.2 to 199.8; orders 3 and 4 that come down one step sooner."""
    sigmas = SIGMAS if end_at_zero else SIGMAS[:-1]
    table = noise_table()
    low, high = table.log_linear_sigma(199.8), table.log_linear_sigma(799.2)
    expected, drawn = comfyui_sa_solver(START, sigmas, white(), lambda s: float(low < s <= high), pece)
    source, draws = white(), []
    noise = lambda sigma, lower: draws.append(sigma) or source()
    *_, last = SAMPLERS[name].run(denoise, START, sigmas, noise)
    check(last.x, expected, 1e-10)  # of the numerical integrals
    assert draws == drawn and 2 <= len(drawn) < len(sigmas) - 2
    authors = partial(predictor_corrector.sa_solver, predictor=3, corrector=4, second="exact", pece=pece)
    difference = end(partial(authors, tau=predictor_corrector.authors_tau), sigmas, white()) - expected
    assert difference.abs().max() > 1e-2 * expected.abs().max()


def test_middle_of_the_levels_is_each_models_own():
    """ComfyUI counts the part of the way in time where there is one, in log sigma for an EDM model."""
    for levels, low, high in [
        (noise_table(), noise_table().log_linear_sigma(199.8), noise_table().log_linear_sigma(799.2)),
        (EDM(), 0.002 * 40000**0.2, 0.002 * 40000**0.8),
    ]:
        tau = predictor_corrector.middle_tau(Denoiser(denoise, levels, "eps"))
        assert [tau(low * 0.999), tau(low * 1.001), tau(high * 0.999), tau(high * 1.001)] == [0.0, 1.0, 1.0, 0.0]


def test_lcm_without_boundary_and_lms_into_zero_are_comfyuis():
    """ComfyUI's lcm is the estimate with new noise; its lms ends with it."""
    x, z = START, white()
    for a, b in pairwise(SIGMAS):
        x = denoise(x, a)
        x = x + b * z() if b > 0 else x
    check(end(partial(distilled.lcm, boundary=False), noise=white()), x)
    low = [*SIGMAS[:-1], 0.03, 0.0]  # near time 0, where the paper keeps x
    assert (end(distilled.lcm, low, white()) - end(partial(distilled.lcm, boundary=False), low, white())).std() > 1e-3
    *_, before, last = adams.lms(denoise, START, SIGMAS, euler_at_zero=True)
    check(last.x, denoise(before.x, SIGMAS[-2]))
    check(last.x, end(SAMPLERS["ipndm_v"].run))


@pytest.mark.parametrize("faithful", [False, True])
def test_res_multistep_ancestral_formula(faithful):
    """arXiv 2308.02157 with noise as ComfyUI adds it; faithful: also with its measure of the last step."""
    x, z, old, old_down = START, white(), None, None
    for i, (a, b) in enumerate(pairwise(SIGMAS)):
        x0 = denoise(x, a)
        down, up = (b * b / a, b * sqrt(1 - (b / a) ** 2))
        if down == 0 or old is None:
            x = x0 + down / a * (x - x0)
        else:
            h, last = log(a / down), log(SIGMAS[i - 1] / (old_down if faithful else a))
            w = (1 - (1 - exp(-h)) / h) * h / last
            x = down / a * x + (1 - exp(-h) + w) * x0 - w * old
        x, old, old_down = x + up * z() if b > 0 else x, x0, down
    sampler = published.res_multistep_ancestral if faithful else multistep.res_multistep_ancestral
    check(end(sampler, noise=white()), x)


@pytest.mark.parametrize(
    "steps, again, times", [(12, 0, 0), (19, 0, 0), (20, 9, 1), (35, 9, 1), (36, 9, 2), (40, 10, 2)]
)
def test_restart_formula(steps, again, times):
    """arXiv 2306.14878, algorithm 2, with AUTOMATIC1111's steps: as many Heun steps as were asked for."""
    given = [*karras(0.03, 14.6, steps), 0.0]
    main = [*karras(0.03, 14.6, steps - again * times), 0.0]
    near = lambda level: min(range(len(main)), key=lambda k: abs(main[k] - level))
    x, z, calls = START, white(), 0

    def heun(x, a, b):
        d = (x - denoise(x, a)) / a
        y = x + (b - a) * d
        return y if b == 0 else x + (b - a) * (d + (y - denoise(y, b)) / b) / 2

    for i, (a, b) in enumerate(pairwise(main)):
        x, calls = heun(x, a, b), calls + 1
        if times and i + 1 == near(0.1):
            for _ in range(times):
                ladder = karras(b, main[near(2.0)], again + 1)
                x = x + sqrt(ladder[0] ** 2 - b**2) * z()
                for c, d in pairwise(ladder):
                    x, calls = heun(x, c, d), calls + 1
    assert calls == steps
    check(end(sde.restart, given, white()), x)


def both(x, sigma):
    return denoise(x, sigma), unguided(x, sigma)


class Both:
    """A denoiser with guidance."""

    pair = staticmethod(both)

    def __call__(self, x, sigma):
        return denoise(x, sigma)


def test_cfg_pp_formulas():
    """arXiv 2406.08070: x' = guided + (b / a) (x - unguided)."""
    x, y, z = START, START, white()
    for a, b in pairwise(SIGMAS):
        x = denoise(x, a) + b / a * (x - unguided(x, a))
        y = denoise(y, a) + b * b / a**2 * (y - unguided(y, a)) + (b * sqrt(1 - (b / a) ** 2) * z() if b else 0)
    check(end(cfg_pp.euler_cfg_pp, estimate=Both()), x)
    check(end(cfg_pp.euler_ancestral_cfg_pp, noise=white(), estimate=Both()), y)


@pytest.mark.parametrize("mixed", [False, True])
def test_dpmpp_2m_cfg_pp_formula(mixed):
    x, old = START, None
    for i, (a, b) in enumerate(pairwise(SIGMAS)):
        guided, free = both(x, a)
        new = guided - b / a * free + b / a * x
        if i > 0 and b > 0:
            r = log(SIGMAS[i - 1] / a) / log(a / b)
            new = new + (1 - b / a) / (2 * r) * ((guided if mixed else free) - old)
        x, old = new, free
    sampler = published.dpmpp_2m_cfg_pp if mixed else cfg_pp.dpmpp_2m_cfg_pp
    check(end(sampler, estimate=Both()), x)


def test_gradient_estimation_cfg_pp_formula():
    """ComfyUI's: x' = guided + b d + (gamma - 1) (b - a) (d - d_before), d the unguided slope."""
    x, before = START, None
    for a, b in pairwise(SIGMAS):
        guided, free = both(x, a)
        d = (x - free) / a
        x = guided + b * d
        if before is not None and b > 0:
            x = x + 1.5 * (b - a) * (d - before)
        before = d
    check(end(partial(cfg_pp.gradient_estimation_cfg_pp, gamma=2.5), estimate=Both()), x)


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_dpmpp_2s_ancestral_cfg_pp_formula(eta):
    """ComfyUI's: both halves of 2S begin at x + guided - unguided."""
    x, z = START, white()
    for a, b in pairwise(SIGMAS):
        guided, free = both(x, a)
        up = min(b, eta * sqrt(b**2 * (a**2 - b**2) / a**2))
        down = sqrt(b**2 - up**2)
        if down == 0:
            x = guided
        else:
            h = log(a / down)
            m = exp(-(-log(a) + h / 2))
            y = m / a * (x + guided - free) - expm1(-h / 2) * guided
            x = down / a * (x + guided - free) - expm1(-h) * denoise(y, m)
        x = x + up * z() if up > 0 else x
    check(end(partial(cfg_pp.dpmpp_2s_ancestral_cfg_pp, eta=eta), noise=white(), estimate=Both()), x)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_res_multistep_cfg_pp_formula(eta):
    """ComfyUI's: RES of the unguided estimates from x + guided - unguided, with its measure of the last step."""
    x, z, old, old_down = START, white(), None, None
    for i, (a, b) in enumerate(pairwise(SIGMAS)):
        guided, free = both(x, a)
        up = eta * b * sqrt(1 - (b / a) ** 2)
        down = sqrt(b**2 - up**2)
        if down == 0 or old is None:
            x = guided + down * (x - free) / a
        else:
            h = log(a / down)
            c2 = log(old_down / SIGMAS[i - 1]) / h
            phi1 = -expm1(-h) / h
            phi2 = (phi1 - 1) / -h
            x = down / a * (x + guided - free) + h * ((phi1 - phi2 / c2) * free + phi2 / c2 * old)
        x = x + up * z() if up > 0 else x
        old, old_down = free, down
    check(end(partial(cfg_pp.res_multistep_ancestral_cfg_pp, eta=eta), noise=white(), estimate=Both()), x)
    if eta == 0:
        check(end(cfg_pp.res_multistep_cfg_pp, estimate=Both()), x)


def test_without_guidance_cfg_pp_is_the_plain_sampler():
    check(end(cfg_pp.gradient_estimation_cfg_pp), end(adams.gradient_estimation))
    check(end(cfg_pp.res_multistep_cfg_pp), end(multistep.res_multistep))
    for form, plain in [
        (cfg_pp.dpmpp_2s_ancestral_cfg_pp, sde.dpmpp_2s_ancestral),
        (cfg_pp.res_multistep_ancestral_cfg_pp, published.res_multistep_ancestral),
    ]:
        check(end(form, noise=white()), end(plain, noise=white()))
    check(end(cfg_pp.euler_cfg_pp), end(ode.euler))
    check(end(cfg_pp.euler_ancestral_cfg_pp, noise=white()), end(sde.euler_ancestral, noise=white()))
    check(end(cfg_pp.dpmpp_2m_cfg_pp), end(partial(multistep.dpmpp_2m, short=0)))


def test_comfyui_ends_uni_pc_at_a_thousandth():
    *_, last = SAMPLERS["uni_pc_bh2"].run(denoise, START, SIGMAS)
    *_, short = predictor_corrector.uni_pc(denoise, START, [*SIGMAS[:-1], 0.001], order=3)
    assert isinstance(last, Step) and torch.equal(last.x, short.x) and not torch.equal(last.x, last.x0)


def test_misplaced_parenthesis_in_ipndm_v():
    """ComfyUI's third-order weights of uneven steps, transcribed, miss the integral of a square; those here have it."""
    levels = [5.0, 4.2, 3.9, 3.0]
    h, h1, h2 = (levels[k] - levels[k - 1] for k in (3, 2, 1))
    share = (1 - h / (3 * (h + h1)) * (h * (h + h1)) / (h1 * (h1 + h2))) / 2
    theirs = [1 + h / h1 / 2 + share, -h / h1 / 2 - (1 + h1 / h2) * share, share * h1 / h2]
    ours = quadrature([(s - levels[2]) / h for s in (3.9, 4.2, 5.0)], UNIFORM)
    square = lambda weights: h * sum(w * s**2 for w, s in zip(weights, (3.9, 4.2, 5.0)))
    exact = (levels[3] ** 3 - levels[2] ** 3) / 3
    assert square(ours) == pytest.approx(exact, rel=1e-13)
    assert abs(square(theirs) - exact) > 0.1 and sum(theirs) == pytest.approx(1)
