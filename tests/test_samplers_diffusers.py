"""Every sampler that diffusers has too, step by step against its scheduler, on the levels that the scheduler chose."""

from dataclasses import dataclass, field
from functools import partial
from math import inf, sqrt

import diffusers as D
import pytest
import torch

from samplers import SAMPLERS, adams, distilled, multistep, ode, predictor_corrector, sde, singlestep
from samplers.denoiser import denoiser
from samplers.noise import Streams
from samplers.schedule import noise_table

SHAPE = (2, 4, 4, 4)
SEEDS = (11, 12)
STEPS = {"eps": (1, 2, 5, 14, 15, 20, 50), "v": (1, 2, 15), "x0": (1, 2, 15)}
SD = noise_table()
BETAS = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
PREDICTIONS = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}
SPACINGS = {name: dict(timestep_spacing=name) for name in ("leading", "linspace", "trailing")}
WARPS = {name: {f"use_{name}_sigmas": True} for name in ("karras", "exponential", "beta")}


@pytest.fixture(autouse=True)
def one_thread():
    """A second thread would only wait for tensors of this size."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def network(x: torch.Tensor, t: float) -> torch.Tensor:
    """A smooth, bounded stand-in for a UNet that looks at every argument."""
    return torch.tanh(0.9 * x.roll(1, dims=-1) - 0.3 * x + 0.7 * torch.cos(torch.as_tensor(t) / 150))


def unit_noise() -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(5))


@dataclass
class Pair:
    """Our sampler and the scheduler that should do the same."""

    ours: object
    scheduler: type
    options: dict = field(default_factory=dict)
    step: dict = field(default_factory=dict)   # options of its step()
    predictions: tuple = ("eps", "v", "x0")
    schedules: tuple = (*SPACINGS, *WARPS)
    tolerance: float = 5e-6   # of two float32 implementations that round differently
    stochastic: bool = False
    unit: bool = True         # their x has unit variance
    float64: bool = False     # they can run in it, which tells their rounding from differences


MULTI, SINGLE = D.DPMSolverMultistepScheduler, D.DPMSolverSinglestepScheduler
UNIPC, SA, DEIS = D.UniPCMultistepScheduler, D.SASolverScheduler, D.DEISMultistepScheduler
VP = dict(clip_sample=False, set_alpha_to_one=False)
LOW = dict(final_sigmas_type="sigma_min")
NOISY = dict(algorithm_type="sde-dpmsolver++")
TABLE = dict(schedules=tuple(SPACINGS))                  # there are no others, or no others that end at sigma_min
FEW = dict(schedules=("leading", "trailing", "karras"))  # of a further order or weight: the levels were tried before
OWN = dict(schedules=("its own", *WARPS))                # Singlestep knows no spacing but one
NO_X0 = dict(predictions=("eps", "v"))                   # diffusers lacks it there
PAIRS = {
    "euler": Pair(ode.euler, D.EulerDiscreteScheduler, unit=False),
    # a step from 14.6 to 0.03 has Heun divide the rounding of x at 14.6 by 0.03
    "heun": Pair(ode.heun, D.HeunDiscreteScheduler, unit=False, tolerance=1e-3, float64=True),
    "dpm_2": Pair(ode.dpm_2, D.KDPM2DiscreteScheduler, unit=False, schedules=("linspace", "karras"), **NO_X0),
    # diffusers integrates numerically, in float32
    "lms": Pair(adams.lms, D.LMSDiscreteScheduler, unit=False, tolerance=2e-5, float64=True),
    "euler_ancestral": Pair(sde.euler_ancestral, D.EulerAncestralDiscreteScheduler, stochastic=True, unit=False,
                            **TABLE, **NO_X0),
    # The middle of its steps is the level below. On karras diffusers rounds the time of a level that begins a step and
    # not that of a middle, which cannot be told here. It takes sqrt(b^2 - up^2) in float32.
    "dpm_2_ancestral": Pair(sde.dpm_2_ancestral, D.KDPM2AncestralDiscreteScheduler, stochastic=True, unit=False,
                            tolerance=5e-5, schedules=("linspace", "exponential"), **NO_X0),
    # beta crowds fifty levels at both ends, where float32 loses digits of 1 - q^2; also in dpmpp_3m_sde
    "dpmpp_sde": Pair(sde.dpmpp_sde, D.DPMSolverSDEScheduler, unit=False, stochastic=True, tolerance=2e-5, **NO_X0),
    "dpmpp_2m": Pair(multistep.dpmpp_2m, MULTI),
    "dpmpp_2m heun": Pair(partial(multistep.dpmpp_2m, second="exact"), MULTI, dict(solver_type="heun"), **FEW),
    "dpmpp_2m to sigma_min": Pair(multistep.dpmpp_2m, MULTI, LOW),
    "dpmpp of order 1": Pair(ode.euler, MULTI, dict(solver_order=1), **FEW),
    "dpmpp_3m": Pair(partial(multistep.dpmpp_3m, third="published"), MULTI, dict(solver_order=3)),
    # the weights of order 3 lose digits in float32 where steps are short
    "dpmpp_3m to sigma_min": Pair(partial(multistep.dpmpp_3m, third="published", second="exact"), MULTI,
                                  dict(solver_order=3, solver_type="heun") | LOW, tolerance=2e-5, **TABLE),
    "dpmpp_2m_sde": Pair(partial(multistep.dpmpp_2m_sde, short=15), MULTI, NOISY, stochastic=True),
    "dpmpp_2m_sde_heun": Pair(partial(multistep.dpmpp_2m_sde, short=15, second="exact"), MULTI,
                              dict(solver_type="heun") | NOISY, stochastic=True, **FEW),
    # the wrong sign makes x grow to hundreds, and differences with it; also in the singlestep one
    "dpmpp_3m_sde": Pair(partial(multistep.dpmpp_3m_sde, short=15, second="midpoint", third="diffusers_sde"), MULTI,
                         dict(solver_order=3) | NOISY, stochastic=True, tolerance=1e-3),
    **{f"dpm_solver of order {order}, {kind}": Pair(
        partial(multistep.dpm_solver, order=order, second=second, third="published"), MULTI,
        dict(algorithm_type="dpmsolver", solver_order=order, solver_type=kind) | LOW, tolerance=2e-5, **TABLE)
       for order, second, kind in ((1, "midpoint", "midpoint"), (2, "midpoint", "midpoint"), (2, "exact", "heun"),
                                   (3, "midpoint", "midpoint"))},
    "dpm_solver with noise": Pair(partial(multistep.dpm_solver, eta=1.0), MULTI,
                                  dict(algorithm_type="sde-dpmsolver") | LOW, stochastic=True, **FEW),
    **{f"singlestep of order {order}, {kind}": Pair(
        partial(singlestep.singlestep, order=order, second=second), SINGLE, dict(solver_order=order, solver_type=kind),
        float64=True, **OWN)
       for order, second, kind in ((1, "midpoint", "midpoint"), (2, "midpoint", "midpoint"), (2, "exact", "heun"),
                                   (3, "midpoint", "midpoint"), (3, "exact", "heun"))},
    "singlestep to sigma_min": Pair(partial(singlestep.singlestep, order=3), SINGLE, dict(solver_order=3) | LOW,
                                    float64=True, **OWN),
    "singlestep with noise": Pair(
        partial(singlestep.singlestep, order=3, second="exact", third="diffusers_sde_singlestep", eta=1.0), SINGLE,
        dict(solver_order=3, solver_type="heun") | NOISY, stochastic=True, tolerance=1e-3, **OWN),
    "uni_pc": Pair(predictor_corrector.uni_pc, UNIPC, float64=True),
    **{f"uni_pc of order {order}, {variant}": Pair(
        partial(predictor_corrector.uni_pc, order=order, variant=variant), UNIPC,
        dict(solver_order=order, solver_type=variant) | LOW, tolerance=1e-5, float64=True, **TABLE)
       for order in (1, 2, 3) for variant in ("bh1", "bh2")},
    # the closed forms of DEIS and SA-Solver lose digits in float32, more so of higher order and in short steps
    **{f"deis of order {order}": Pair(partial(multistep.deis, order=order), DEIS, dict(solver_order=order),
                                      tolerance=tolerance, float64=True)
       for order, tolerance in ((1, 1e-5), (2, 5e-5), (3, 2e-2))},
    "sa_solver": Pair(SAMPLERS["sa_solver"].run, SA, stochastic=True, tolerance=2e-5),
    **{f"sa_solver {p}/{c}, tau {tau}": Pair(
        partial(predictor_corrector.sa_solver, predictor=p, corrector=c, tau=tau), SA,
        dict(predictor_order=p, corrector_order=c, tau_func=lambda t, tau=tau: tau), stochastic=tau > 0,
        tolerance=tolerance, float64=tau == 0, **FEW)
       for p, c, tau, tolerance in ((1, 1, 0.0, 2e-5), (2, 3, 0.0, 1e-4), (3, 4, 0.0, 5e-3), (3, 4, 0.5, 5e-3),
                                    (2, 2, 1.0, 2e-5), (3, 3, 1.0, 1e-4))},
    "ddim": Pair(sde.ddim, D.DDIMScheduler, VP, stochastic=True, **TABLE),
    # the variance is a difference of float32 alphas
    "ddim with noise": Pair(partial(sde.ddim, eta=1.0), D.DDIMScheduler, VP, dict(eta=1.0), stochastic=True,
                            tolerance=2e-5, **TABLE),
    "ddpm": Pair(SAMPLERS["ddpm"].run, D.DDPMScheduler, dict(variance_type="fixed_small", clip_sample=False),
                 stochastic=True, **TABLE),
    "plms": Pair(adams.plms, D.PNDMScheduler, dict(skip_prk_steps=True, set_alpha_to_one=False), predictions=("eps",),
                 **TABLE),
    "lcm": Pair(distilled.lcm, D.LCMScheduler, stochastic=True, schedules=("leading",)),
    **{f"tcd, eta {eta}": Pair(partial(distilled.tcd, eta=eta), D.TCDScheduler, dict(set_alpha_to_one=False),
                               dict(eta=eta), stochastic=True, schedules=("leading",)) for eta in (0.0, 0.3, 0.6, 1.0)},
}


def compare(pair: Pair, schedule: str, prediction: str, steps: int, dtype: torch.dtype = torch.float32) -> float:
    """The relative deviation of our result from theirs."""
    spaced = {} if schedule == "its own" else (SPACINGS | WARPS)[schedule]
    offset = {} if pair.scheduler == SINGLE else dict(steps_offset=1)
    scheduler = pair.scheduler(**BETAS | pair.options | spaced | offset, prediction_type=PREDICTIONS[prediction])
    scheduler.set_timesteps(steps)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)   # it looks for its step by the time, and stumbles over two steps of equal time
    if dtype == torch.float64:
        scheduler.sigmas = scheduler.sigmas.double()
    options = dict(pair.step)
    if hasattr(scheduler, "noise_sampler"):
        scheduler.noise_sampler = Streams(SEEDS, SHAPE[1:])
    elif pair.stochastic:
        options["generator"] = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    x = start = unit_noise().to(dtype) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        x = scheduler.step(network(scheduler.scale_model_input(x, t), t), t, x, **options).prev_sample

    sigmas, times, told = levels(scheduler, steps)
    y = start * sqrt(1 + sigmas[0] ** 2) if pair.unit else start
    noise = [Streams(SEEDS, SHAPE[1:])] if pair.stochastic else []
    for step in pair.ours(denoiser(network, SD, prediction, times), y, sigmas, *noise, **told):
        y = step.x
    y = y / sqrt(1 + sigmas[-1] ** 2) if pair.unit else y
    return ((x - y).abs().max() / x.abs().max()).item()


def levels(scheduler, steps: int) -> tuple[list[float], dict[float, float], dict]:
    """The levels between which a scheduler goes, the times it gives the network, and where it misses the levels."""
    times = scheduler.timesteps.tolist()
    if hasattr(scheduler, "sigmas"):
        sigmas = scheduler.sigmas.tolist()
        if scheduler.order == 2:   # two evaluations per step
            sigmas, times = [sigmas[0], *sigmas[1:2 * steps:2]], times[::2]
        return sigmas, dict(zip(sigmas, times)), {}
    end = 0.0 if isinstance(scheduler, D.DDPMScheduler | D.LCMScheduler) else SD.sigmas[0]
    told = dict(targets=sde.strided(SD, times, end)) if isinstance(scheduler, D.DDIMScheduler) else {}
    if isinstance(scheduler, D.PNDMScheduler):
        times = times[:1] + times[2:]
        told = dict(legs=adams.strided_legs(SD, times, end))
    sigmas = [SD.sigmas[t] for t in times]
    return [*sigmas, end], dict(zip(sigmas, times)), told


def worst(errors: dict) -> float:
    return max(inf if error != error else error for error in errors.values())   # NaN is the worst


@pytest.mark.parametrize("name, schedule", [(name, schedule) for name, pair in PAIRS.items()
                                            for schedule in pair.schedules])
def test_trajectory_equals_diffusers(name, schedule):
    pair = PAIRS[name]
    errors = {(prediction, steps): compare(pair, schedule, prediction, steps)
              for prediction in pair.predictions for steps in STEPS[prediction]}
    assert worst(errors) < pair.tolerance, errors


@pytest.mark.parametrize("name", [name for name, pair in PAIRS.items() if pair.float64])
def test_float64_trajectory_equals_diffusers(name):
    """Their deviations above are rounding: both sides in float64, on the levels that are float32 in diffusers."""
    pair = PAIRS[name]
    errors = {(schedule, prediction, steps): compare(pair, schedule, prediction, steps, torch.float64)
              for schedule in pair.schedules for prediction in ("eps", "v") for steps in (2, 15)}
    assert worst(errors) < 1e-11, errors   # they subtract nearly equal numbers in the weights of order 3


@pytest.mark.parametrize("steps", [4, 10, 20])   # even strides: diffusers halves them in whole numbers
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
    x = unit_noise() * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        x = scheduler.step(network(scheduler.scale_model_input(x, t), t), t, x, **options).prev_sample
    return x


def test_uni_pc_bh1_goes_to_zero_where_diffusers_gives_nan():
    scheduler = UNIPC(**BETAS, solver_type="bh1")
    assert run(scheduler, 10).isnan().all()
    sigmas, times, _ = levels(scheduler, 10)
    *_, last = predictor_corrector.uni_pc(denoiser(network, SD, "eps", times), 14.6 * unit_noise(), sigmas,
                                          variant="bh1")
    assert last.x.isfinite().all() and torch.equal(last.x, last.x0)


@pytest.mark.parametrize("options", [dict(solver_type="heun"), dict(solver_order=3)])
def test_a_repeated_level_is_a_step_of_no_length_where_diffusers_gives_nan(options):
    """Karras' schedule to sigma_min, which diffusers appends although the schedule ends there."""
    scheduler = MULTI(**BETAS, **options, **LOW, use_karras_sigmas=True)
    assert run(scheduler, 20).isnan().all()
    sigmas, times, _ = levels(scheduler, 20)
    assert sigmas[-2] == sigmas[-1]
    order = options.get("solver_order", 2)
    *_, before, last = multistep.dpmpp(denoiser(network, SD, "eps", times), 14.6 * unit_noise(), sigmas, order=order,
                                       second="exact")
    assert torch.equal(last.x, before.x)


def test_equal_times_do_not_matter_where_diffusers_loses_its_place():
    """Fifty steps of beta round to equal whole times; diffusers looks for the second of them and runs off its list."""
    scheduler = MULTI(**BETAS, use_beta_sigmas=True)
    with pytest.raises(IndexError):
        run(scheduler, 50)
    sigmas, times, _ = levels(scheduler, 50)
    assert len(set(times.values())) < 50
    *_, last = multistep.dpmpp_2m(denoiser(network, SD, "eps", times), 14.6 * unit_noise(), sigmas)
    assert last.i == 49 and last.x.isfinite().all()


def gaussian_noise(x: torch.Tensor, t: float) -> torch.Tensor:
    """What a perfect network predicts for pictures that are Gaussian with deviation 1/2, of x at unit variance."""
    sigma = SD.sigma(float(t))
    return x * sqrt(1 + sigma**2) * sigma / (1 / 4 + sigma**2)


@pytest.mark.parametrize("spacing", ["linspace", "trailing"])
def test_ddim_goes_to_the_next_time_where_diffusers_misses_it(spacing):
    """The ODE of Gaussian data is x ~ sqrt(1/4 + sigma^2). Of 300 steps each is 3.3 times long, diffusers takes 3."""
    scheduler = D.DDIMScheduler(**BETAS, **VP, timestep_spacing=spacing, steps_offset=1)
    theirs = run(scheduler, 300, gaussian_noise)
    sigmas, times, told = levels(scheduler, 300)
    denoise, start = denoiser(gaussian_noise, SD, "eps", times), sqrt(1 + sigmas[0] ** 2) * unit_noise()
    exact = start * sqrt((1 / 4 + sigmas[-1] ** 2) / (1 / 4 + sigmas[0] ** 2))
    (*_, ours), (*_, faithful) = (sde.ddim(denoise, start, sigmas, None, **options) for options in ({}, told))
    error = lambda x: ((x - exact).norm() / exact.norm()).item()
    assert error(faithful.x) == pytest.approx(error(theirs * sqrt(1 + sigmas[-1] ** 2)), rel=1e-3)
    assert error(ours.x) < 0.01 < 0.06 < error(faithful.x)
