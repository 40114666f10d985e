"""Every sampler that diffusers has too, step by step against its scheduler, on the levels that the scheduler chose."""

from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import product
from math import prod, sqrt

import diffusers as D
import pytest
import torch
from scipy.integrate import quad

from samplers import SAMPLERS, adams, distilled, multistep, ode, predictor_corrector, published, sde, singlestep
from samplers.coefficients import UNIFORM, quadrature
from samplers.denoiser import denoiser
from samplers.noise import Streams
from samplers.schedules import choose, noise_table
from support.numbers import network, relative_l2, trajectory, unit_noise

SEEDS = (11, 12)
STEPS = (1, 2, 5, 14, 15, 20, 50)
SD = noise_table()
BETAS = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
PREDICTIONS = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}
SPACINGS = {name: dict(timestep_spacing=name) for name in ("leading", "linspace", "trailing")}
WARPS = {name: {f"use_{name}_sigmas": True} for name in ("karras", "exponential", "beta")}


@dataclass(eq=False)  # so that it can be a key
class Pair:
    """Our sampler and the scheduler that should do the same."""

    ours: object
    scheduler: type
    options: dict = field(default_factory=dict)
    step: dict = field(default_factory=dict)  # options of its step()
    predictions: tuple = ("eps", "v", "x0")
    schedules: tuple = (*SPACINGS, *WARPS)
    tolerance: float = 5e-6  # of two float32 implementations that round differently
    rough: dict = field(default_factory=dict)  # the tolerance by the number of steps, where it is another
    stochastic: bool = False
    unit: bool = True  # their x has unit variance
    float64: bool = False  # they can run in it, which tells their rounding from differences


MULTI, SINGLE = D.DPMSolverMultistepScheduler, D.DPMSolverSinglestepScheduler
UNIPC, SA, DEIS = D.UniPCMultistepScheduler, D.SASolverScheduler, D.DEISMultistepScheduler
VP = dict(clip_sample=False, set_alpha_to_one=False)
LOW = dict(final_sigmas_type="sigma_min")
NOISY = dict(algorithm_type="sde-dpmsolver++")
TABLE = dict(schedules=tuple(SPACINGS))  # there are no others, or no others that end at sigma_min
FEW = dict(schedules=("leading", "trailing", "karras"))  # of a further order or weight: the levels were tried before
OWN = dict(schedules=("its own", *WARPS))  # Singlestep knows no spacing but one
NO_X0 = dict(predictions=("eps", "v"))  # diffusers lacks it there


def sa_solver_pair(p: int, c: int, tau: float, **more) -> Pair:
    return Pair(
        partial(predictor_corrector.sa_solver, predictor=p, corrector=c, tau=tau),
        SA,
        dict(predictor_order=p, corrector_order=c, tau_func=lambda t: tau),
        stochastic=tau > 0,
        float64=tau == 0,
        **FEW,
        **more,
    )


PAIRS = {
    "euler": Pair(ode.euler, D.EulerDiscreteScheduler, unit=False),
    # one step from 14.6 to 0.03 has Heun divide the rounding of x at 14.6 by 0.03
    "heun": Pair(ode.heun, D.HeunDiscreteScheduler, unit=False, rough={2: 1e-3}, float64=True),
    "dpm_2": Pair(ode.dpm_2, D.KDPM2DiscreteScheduler, unit=False, **NO_X0),
    # diffusers integrates numerically, in float32
    "lms": Pair(adams.lms, D.LMSDiscreteScheduler, unit=False, tolerance=1e-5, rough={50: 3e-5}, float64=True),
    "euler_ancestral": Pair(
        sde.euler_ancestral, D.EulerAncestralDiscreteScheduler, stochastic=True, unit=False, **TABLE, **NO_X0
    ),
    # The middle of its steps is the level below. On karras diffusers rounds the time of a level that begins a step and
    # not that of a middle, which cannot be told here. It takes sqrt(b^2 - up^2) in float32: 0.06^2 from 14.6 to 0.03.
    "dpm_2_ancestral": Pair(
        sde.dpm_2_ancestral,
        D.KDPM2AncestralDiscreteScheduler,
        stochastic=True,
        unit=False,
        rough={2: 1e-4},
        schedules=(*SPACINGS, "exponential", "beta"),
        **NO_X0,
    ),
    # beta crowds fifty levels at both ends, where float32 loses digits of 1 - q^2; also in the other SDEs
    "dpmpp_sde": Pair(sde.dpmpp_sde, D.DPMSolverSDEScheduler, unit=False, stochastic=True, rough={50: 2e-5}, **NO_X0),
    "dpmpp_2m": Pair(multistep.dpmpp_2m, MULTI),
    "dpmpp_2m heun": Pair(partial(multistep.dpmpp, second="exact"), MULTI, dict(solver_type="heun"), **FEW),
    "dpmpp_2m to sigma_min": Pair(multistep.dpmpp_2m, MULTI, LOW),
    "dpmpp of order 1": Pair(ode.euler, MULTI, dict(solver_order=1), **FEW),
    "dpmpp_3m": Pair(published.dpmpp_3m, MULTI, dict(solver_order=3)),
    # the weights of order 3 lose digits in float32 where steps are short
    "dpmpp_3m to sigma_min": Pair(
        partial(multistep.dpmpp_3m, second=published.halved_third("exact")),
        MULTI,
        dict(solver_order=3, solver_type="heun") | LOW,
        tolerance=1e-5,
        **TABLE,
    ),
    "dpmpp_2m_sde": Pair(partial(multistep.dpmpp_2m_sde, short=15), MULTI, NOISY, stochastic=True, rough={50: 1e-5}),
    "dpmpp_2m_sde_heun": Pair(
        partial(multistep.dpmpp_2m_sde, short=15, second="exact"),
        MULTI,
        dict(solver_type="heun") | NOISY,
        stochastic=True,
        **FEW,
    ),
    # the wrong sign makes x grow to hundreds, and differences with it; also in the singlestep one
    "dpmpp_3m_sde": Pair(
        partial(multistep.dpmpp_3m_sde, short=15, second=published.third_of_sde()),
        MULTI,
        dict(solver_order=3) | NOISY,
        stochastic=True,
        tolerance=2e-4,
        rough={50: 1e-3},
    ),
    # one step from 14.6 to 0.03, and order 3 as above
    **{
        f"dpm_solver of order {order}, {kind}": Pair(
            partial(multistep.dpm_solver, order=order, second=published.halved_third(second)),
            MULTI,
            dict(algorithm_type="dpmsolver", solver_order=order, solver_type=kind) | LOW,
            tolerance=1e-5 if order == 3 else 5e-6,
            rough={1: 1e-5},
            **TABLE,
        )
        for order, second, kind in (
            (1, "midpoint", "midpoint"),
            (2, "midpoint", "midpoint"),
            (2, "exact", "heun"),
            (3, "midpoint", "midpoint"),
        )
    },
    "dpm_solver with noise": Pair(
        partial(multistep.dpm_solver, eta=1.0),
        MULTI,
        dict(algorithm_type="sde-dpmsolver") | LOW,
        stochastic=True,
        **FEW,
    ),
    **{
        f"singlestep of order {order}, {kind}": Pair(
            partial(singlestep.singlestep, order=order, second=second),
            SINGLE,
            dict(solver_order=order, solver_type=kind),
            float64=True,
            **OWN,
        )
        for order, second, kind in (
            (1, "midpoint", "midpoint"),
            (2, "midpoint", "midpoint"),
            (2, "exact", "heun"),
            (3, "midpoint", "midpoint"),
            (3, "exact", "heun"),
        )
    },
    "singlestep to sigma_min": Pair(
        partial(singlestep.singlestep, order=3), SINGLE, dict(solver_order=3) | LOW, float64=True, **OWN
    ),
    "singlestep with noise": Pair(
        partial(singlestep.singlestep, order=3, second="exact", third=published.third_of_singlestep_sde(), eta=1.0),
        SINGLE,
        dict(solver_order=3, solver_type="heun") | NOISY,
        stochastic=True,
        tolerance=1e-4,
        rough={50: 5e-4},
        **OWN,
    ),
    "uni_pc": Pair(predictor_corrector.uni_pc, UNIPC, float64=True),
    **{
        f"uni_pc of order {order}, {variant}": Pair(
            partial(predictor_corrector.uni_pc, order=order, variant=variant),
            UNIPC,
            dict(solver_order=order, solver_type=variant) | LOW,
            float64=True,
            **TABLE,
        )
        for order in (1, 2, 3)
        for variant in ("bh1", "bh2")
    },
    # the closed forms of DEIS and SA-Solver lose digits in float32, more so of higher order and in short steps: on
    # beta those of order 3 lose all, and are compared in float64
    "deis of order 1": Pair(
        partial(multistep.deis, order=1), DEIS, dict(solver_order=1), rough={1: 1e-5, 2: 1e-5}, float64=True
    ),
    "deis of order 2": Pair(multistep.deis, DEIS, tolerance=1e-5, rough={50: 1e-4}, float64=True),
    "deis of order 3": Pair(
        partial(multistep.deis, order=3),
        DEIS,
        dict(solver_order=3),
        tolerance=1e-3,
        float64=True,
        schedules=(*SPACINGS, "karras", "exponential"),
    ),
    "sa_solver": Pair(SAMPLERS["sa_solver"].run, SA, stochastic=True),
    **{
        f"sa_solver {p}/{c}, tau {tau}": sa_solver_pair(p, c, tau, tolerance=tolerance, rough={50: fifty})
        for p, c, tau, tolerance, fifty in (
            (1, 1, 0.0, 5e-6, 5e-6),
            (2, 3, 0.0, 2e-5, 1e-4),
            (3, 4, 0.0, 1e-4, 5e-3),
            (3, 4, 0.5, 1e-4, 5e-3),
            (2, 2, 1.0, 5e-6, 5e-6),
            (3, 3, 1.0, 5e-5, 2e-4),
        )
    },
    "ddim": Pair(sde.ddim, D.DDIMScheduler, VP, stochastic=True, **TABLE),
    # the variance is a difference of float32 alphas
    "ddim with noise": Pair(
        partial(sde.ddim, eta=1.0), D.DDIMScheduler, VP, dict(eta=1.0), stochastic=True, tolerance=2e-5, **TABLE
    ),
    "ddpm": Pair(
        SAMPLERS["ddpm"].run,
        D.DDPMScheduler,
        dict(variance_type="fixed_small", clip_sample=False),
        stochastic=True,
        **TABLE,
    ),
    "plms": Pair(
        adams.plms, D.PNDMScheduler, dict(skip_prk_steps=True, set_alpha_to_one=False), predictions=("eps",), **TABLE
    ),
    "lcm": Pair(distilled.lcm, D.LCMScheduler, stochastic=True, schedules=("leading",)),
    **{
        f"tcd, eta {eta}": Pair(
            partial(distilled.tcd, eta=eta),
            D.TCDScheduler,
            dict(set_alpha_to_one=False),
            dict(eta=eta),
            stochastic=True,
            schedules=("leading",),
        )
        for eta in (0.0, 0.3, 0.6, 1.0)
    },
}


@cache
def built(pair: Pair, schedule: str):
    """Their scheduler, which takes some of them longer than to run; copied, since it remembers all that it did."""
    spaced = {} if schedule == "its own" else (SPACINGS | WARPS)[schedule]
    offset = {} if pair.scheduler == SINGLE else dict(steps_offset=1)
    return pair.scheduler(**BETAS | pair.options | spaced | offset)


def prepared(pair: Pair, schedule: str, steps: int, dtype: torch.dtype = torch.float32):
    """Their scheduler with its levels chosen."""
    scheduler = deepcopy(built(pair, schedule))
    scheduler.set_timesteps(steps)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)  # it looks for its step by the time, and stumbles over two steps of equal time
    if dtype == torch.float64:
        scheduler.sigmas = scheduler.sigmas.double()
    if isinstance(scheduler, D.LMSDiscreteScheduler):
        scheduler.get_lms_coefficient = cache(scheduler.get_lms_coefficient)  # 4 ms each, for every prediction alike
    return scheduler


def compare(pair: Pair, scheduler, prediction: str, dtype: torch.dtype = torch.float32) -> float:
    """The largest relative deviation of our x from theirs, after any step of a prepared scheduler."""
    scheduler = deepcopy(scheduler)
    scheduler.register_to_config(prediction_type=PREDICTIONS[prediction])
    options = dict(pair.step)
    if hasattr(scheduler, "noise_sampler"):
        scheduler.noise_sampler = Streams(SEEDS, (4, 4, 4))
    elif pair.stochastic:
        options["generator"] = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    start = unit_noise().to(dtype) * scheduler.init_noise_sigma
    theirs = torch.stack(trajectory(scheduler, start, network, **options))

    sigmas, times, told = levels(scheduler)
    scale = [sqrt(1 + sigma**2) if pair.unit else 1.0 for sigma in sigmas]
    ours = partial(told.pop("sampler"), **getattr(pair.ours, "keywords", {})) if "sampler" in told else pair.ours
    noise = Streams(SEEDS, (4, 4, 4))
    steps = ours(denoiser(network, SD, prediction, times), start * scale[0], sigmas, noise, **told)
    ours = torch.stack([step.x / s for step, s in zip(steps, scale[1:])])
    largest = lambda x: x.abs().flatten(1).amax(1)
    return (largest(ours - theirs) / largest(theirs)).max().item()  # NaN, if there is one


def levels(scheduler) -> tuple[list[float], dict[float, float], dict]:
    """The levels between which a scheduler goes, the times it gives the network, and, where it misses the levels, the
    faithful sampler with its options."""
    times = scheduler.timesteps.tolist()
    if hasattr(scheduler, "sigmas"):
        sigmas = scheduler.sigmas.tolist()
        if scheduler.order == 2:  # two evaluations per step
            sigmas, times = [sigmas[0], *sigmas[1 : len(times) + 1 : 2]], times[::2]
        return sigmas, dict(zip(sigmas, times)), {}
    end = 0.0 if isinstance(scheduler, D.DDPMScheduler | D.LCMScheduler) else SD.sigmas[0]
    told = {}
    if isinstance(scheduler, D.DDIMScheduler):
        told = dict(sampler=published.ddim_strided, targets=published.strided_targets(SD, times, end))
    if isinstance(scheduler, D.PNDMScheduler):
        times = times[:1] + times[2:]
        told = dict(sampler=published.plms_strided, legs=published.strided_legs(SD, times, end))
    sigmas = [SD.sigmas[t] for t in times]
    return [*sigmas, end], dict(zip(sigmas, times)), told


def does_nothing(scheduler) -> bool:
    """One step that begins at the bottom or does not move: see test_one_step_of_diffusers_does_nothing."""
    (start, end, *_), _, _ = levels(scheduler)
    return len(scheduler.timesteps) == 1 and (start < 0.05 or start == end)


@pytest.mark.parametrize(
    "scheduler",
    [
        D.EulerDiscreteScheduler,
        D.HeunDiscreteScheduler,
        D.LMSDiscreteScheduler,
        D.KDPM2DiscreteScheduler,
        D.DPMSolverSDEScheduler,
        DEIS,
        SA,
    ],
)
def test_one_step_of_diffusers_does_nothing(scheduler):
    """It begins at the smallest level, or ends at the largest; ours goes all the way."""
    for schedule in WARPS:
        one = prepared(Pair(None, scheduler), schedule, 1)
        nowhere = [SD.sigma_max] * 2 if scheduler in (DEIS, SA) else [SD.sigma_min, 0.0]
        assert levels(one)[0] == pytest.approx(nowhere, rel=1e-6) and does_nothing(one)
        assert choose(SD, schedule, 1)[0] == pytest.approx([SD.sigma_max, 0.0], rel=1e-6)


@pytest.mark.parametrize(
    "name, schedule", [(name, schedule) for name, pair in PAIRS.items() for schedule in pair.schedules]
)
def test_trajectory_equals_diffusers(name, schedule):
    pair = PAIRS[name]
    errors = {}
    for steps in STEPS:
        scheduler = prepared(pair, schedule, steps)
        if not does_nothing(scheduler):
            errors |= {(prediction, steps): compare(pair, scheduler, prediction) for prediction in pair.predictions}
    assert all(error < pair.rough.get(steps, pair.tolerance) for (_, steps), error in errors.items()), errors


@pytest.mark.parametrize("name", [name for name, pair in PAIRS.items() if pair.float64])
def test_float64_trajectory_equals_diffusers(name):
    """Their deviations above are rounding: both sides in float64, on the levels that are float32 in diffusers."""
    pair = PAIRS[name]
    errors = {}
    for schedule, steps in product(pair.schedules, (2, 15)):
        scheduler = prepared(pair, schedule, steps, torch.float64)
        errors |= {
            (schedule, prediction, steps): compare(pair, scheduler, prediction, torch.float64)
            for prediction in ("eps", "v")
        }
    assert all(error < 1e-11 for error in errors.values()), errors  # nearly equal numbers in their weights of order 3


ON_BETA = {
    "deis of order 3": PAIRS["deis of order 3"],
    **{f"sa_solver {p}/{c}": sa_solver_pair(p, c, 0.0) for p in (1, 2, 3) for c in (1, 2, 3, 4)},
}


@pytest.mark.parametrize("name", ON_BETA)
def test_float64_trajectory_on_beta_equals_diffusers(name):
    """The shortest steps of all: the weights of four estimates lose six of float64's digits, those of three four."""
    for steps in (15, 50):
        scheduler = prepared(ON_BETA[name], "beta", steps, torch.float64)
        assert compare(ON_BETA[name], scheduler, "eps", torch.float64) < (1e-8 if "/4" in name else 1e-10)


@pytest.mark.parametrize("steps", [4, 10, 20])  # even strides: diffusers halves them in whole numbers
def test_runge_kutta_start_of_plms_equals_diffusers(steps):
    scheduler = D.PNDMScheduler(**BETAS, skip_prk_steps=False, set_alpha_to_one=False, steps_offset=1)
    scheduler.set_timesteps(steps)
    x = unit_noise()
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t), t, x).prev_sample
    times = [1 + i * (1000 // steps) for i in reversed(range(steps))]
    sigmas = [SD.sigmas[t] for t in times]
    middles = [SD.sigmas[t - 500 // steps] for t in times[:3]]
    denoise = denoiser(network, SD, "eps", dict(zip(sigmas + middles, times + [t - 500 // steps for t in times[:3]])))
    y = unit_noise() * sqrt(1 + sigmas[0] ** 2)
    for step in adams.plms(denoise, y, [*sigmas, SD.sigmas[0]], middles=middles):
        y = step.x / sqrt(1 + SD.sigmas[0] ** 2)
    assert ((x - y).abs().max() / x.abs().max()).item() < 5e-6


def run(scheduler, steps: int, network=network, **options) -> torch.Tensor:
    scheduler.set_timesteps(steps)
    return trajectory(scheduler, unit_noise() * scheduler.init_noise_sigma, network, **options)[-1]


def test_uni_pc_bh1_goes_to_zero_where_diffusers_gives_nan():
    scheduler = UNIPC(**BETAS, solver_type="bh1")
    assert run(scheduler, 10).isnan().all()
    sigmas, times, _ = levels(scheduler)
    *_, last = predictor_corrector.uni_pc(
        denoiser(network, SD, "eps", times), 14.6 * unit_noise(), sigmas, variant="bh1"
    )
    assert last.x.isfinite().all() and torch.equal(last.x, last.x0)


@pytest.mark.parametrize("options", [dict(solver_type="heun"), dict(solver_order=3)])
def test_a_repeated_level_is_a_step_of_no_length_where_diffusers_gives_nan(options):
    """Karras' schedule to sigma_min, which diffusers appends although the schedule ends there."""
    scheduler = MULTI(**BETAS, **options, **LOW, use_karras_sigmas=True)
    assert run(scheduler, 20).isnan().all()
    sigmas, times, _ = levels(scheduler)
    assert sigmas[-2] == sigmas[-1]
    order = options.get("solver_order", 2)
    *_, before, last = multistep.dpmpp(
        denoiser(network, SD, "eps", times), 14.6 * unit_noise(), sigmas, order=order, second="exact"
    )
    assert torch.equal(last.x, before.x)


def test_equal_times_do_not_matter_where_diffusers_loses_its_place():
    """Fifty steps of beta round to equal whole times; diffusers looks for the second of them and runs off its list."""
    scheduler = MULTI(**BETAS, use_beta_sigmas=True)
    with pytest.raises(IndexError):
        run(scheduler, 50)
    sigmas, times, _ = levels(scheduler)
    assert len(set(times.values())) < 50
    *_, last = multistep.dpmpp_2m(denoiser(network, SD, "eps", times), 14.6 * unit_noise(), sigmas)
    assert last.i == 49 and last.x.isfinite().all()


def gaussian_noise(x: torch.Tensor, t: float) -> torch.Tensor:
    """What a perfect network predicts for pictures that are Gaussian with deviation 1/2, of x at unit variance."""
    sigma = SD.sigma(float(t))
    return x * sqrt(1 + sigma**2) * sigma / (1 / 4 + sigma**2)


def gaussian_velocity(x: torch.Tensor, t: float) -> torch.Tensor:
    sigma, noise = SD.sigma(float(t)), gaussian_noise(x, t)
    return noise * sqrt(1 + sigma**2) - x * sigma  # alpha noise - sqrt(1 - alpha^2) x0


@pytest.mark.parametrize("spacing", ["linspace", "trailing"])
def test_ddim_goes_to_the_next_time_where_diffusers_misses_it(spacing):
    """The ODE of Gaussian data is x ~ sqrt(1/4 + sigma^2). Of 300 steps each is 3.3 times long, diffusers takes 3."""
    scheduler = D.DDIMScheduler(**BETAS, **VP, timestep_spacing=spacing, steps_offset=1)
    theirs = run(scheduler, 300, gaussian_noise)
    sigmas, times, told = levels(scheduler)
    denoise, start = denoiser(gaussian_noise, SD, "eps", times), sqrt(1 + sigmas[0] ** 2) * unit_noise()
    exact = start * sqrt((1 / 4 + sigmas[-1] ** 2) / (1 / 4 + sigmas[0] ** 2))
    (*_, ours) = sde.ddim(denoise, start, sigmas)
    (*_, faithful) = published.ddim_strided(denoise, start, sigmas, targets=told["targets"])
    error = lambda x: ((x - exact).norm() / exact.norm()).item()
    assert error(faithful.x) == pytest.approx(error(theirs * sqrt(1 + sigmas[-1] ** 2)), rel=1e-3)
    assert error(ours.x) < 0.01 < 0.06 < error(faithful.x)


def test_plms_of_a_velocity_is_of_first_order_in_diffusers():
    """It averages what the network says, which is no slope unless that is noise."""
    theirs, ours = {}, {}
    for steps in (20, 40, 100):
        scheduler = D.PNDMScheduler(
            **BETAS, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1, prediction_type="v_prediction"
        )
        end = run(scheduler, steps, gaussian_velocity)
        sigmas, times, _ = levels(scheduler)
        start = sqrt(1 + sigmas[0] ** 2) * unit_noise()
        *_, last = adams.plms(denoiser(gaussian_velocity, SD, "v", times), start, sigmas)
        exact = start * sqrt((1 / 4 + sigmas[-1] ** 2) / (1 / 4 + sigmas[0] ** 2))
        theirs[steps] = relative_l2(end * sqrt(1 + sigmas[-1] ** 2), exact)
        ours[steps] = relative_l2(last.x, exact)
    assert theirs[20] / theirs[40] == pytest.approx(2, abs=0.1) and theirs[100] > 0.01
    assert ours[20] / ours[40] > 3 and ours[100] < 2e-4


def test_third_order_of_sa_solver_keeps_its_digits_where_diffusers_loses_all():
    """Fifty steps of beta in float32; in float64 it agrees with us, see above."""
    pair = ON_BETA["sa_solver 3/4"]
    scheduler = prepared(pair, "beta", 50)
    assert compare(pair, scheduler, "eps") > 1
    sigmas, times, _ = levels(scheduler)
    start = sqrt(1 + sigmas[0] ** 2) * unit_noise()
    (*_, single), (*_, double) = (
        pair.ours(denoiser(network, SD, "eps", times), x, sigmas) for x in (start, start.double())
    )
    assert relative_l2(single.x.double(), double.x) < 2e-6


def test_ancestral_sampling_of_cosine_betas_is_finite_where_diffusers_gives_nan():
    """Four steps from sigma 20,000: sqrt(b^2 - up^2) of float32 numbers is that of a negative one."""
    scheduler = D.EulerAncestralDiscreteScheduler(beta_schedule="squaredcos_cap_v2")
    assert run(scheduler, 4, generator=torch.Generator().manual_seed(0)).isnan().all()
    sigmas, times, _ = levels(scheduler)
    denoise = denoiser(network, noise_table(law="squaredcos_cap_v2"), "eps", times)
    *_, last = sde.euler_ancestral(denoise, unit_noise() * sigmas[0], sigmas, Streams(SEEDS, (4, 4, 4)))
    assert last.x.isfinite().all()


def test_third_order_of_dpm_solver_with_noise_runs_where_diffusers_raises():
    scheduler = MULTI(**BETAS, **LOW, algorithm_type="sde-dpmsolver", solver_order=3)
    with pytest.raises(UnboundLocalError):
        run(scheduler, 20)
    sigmas, times, _ = levels(scheduler)
    *_, last = multistep.dpm_solver(
        denoiser(network, SD, "eps", times), 14.6 * unit_noise(), sigmas, Streams(SEEDS, (4, 4, 4)), order=3, eta=1.0
    )
    assert last.i == 19 and last.x.isfinite().all()


def test_weights_of_lms_are_exact_where_diffusers_has_half_the_digits():
    """The same integrals, by quadrature in float64; diffusers' integrand is float32 and loses digits in differences."""
    scheduler = D.LMSDiscreteScheduler(**BETAS)
    scheduler.set_timesteps(20)
    sigmas, ours, theirs = scheduler.sigmas.tolist(), [], []
    for i in range(3, 20):
        nodes, sigma, lower = sigmas[i - 3 : i + 1][::-1], sigmas[i], sigmas[i + 1]
        weights = quadrature([(node - sigma) / (lower - sigma) for node in nodes], UNIFORM)
        for j, node in enumerate(nodes):
            lagrange = lambda s: prod((s - k) / (node - k) for k in nodes if k != node)  # noqa: B023
            exact = quad(lagrange, sigma, lower, epsabs=0, epsrel=1e-13)[0] / (lower - sigma)
            ours.append(abs(weights[j] - exact))
            theirs.append(abs(scheduler.get_lms_coefficient(4, i, j) / (lower - sigma) - exact))
    assert max(ours) < 1e-12 < 1e-7 < max(theirs)
