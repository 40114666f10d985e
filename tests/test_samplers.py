"""What every sampler promises, and the levels of `choose` with diffusers' schedulers. Step by step parity is in
test_samplers_diffusers.py and test_samplers_k_diffusion.py, formulas in test_samplers_formulas.py."""

import ast
import importlib
import inspect
import re
from functools import partial
from math import sqrt

import diffusers
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from conftest import ROOT
from samplers import SAMPLERS, find, multistep, predictor_corrector
from samplers.coefficients import adjusted
from samplers.denoiser import denoiser
from samplers.noise import BrownianTree, Streams
from samplers.schedule import EDM, choose, noise_table, start_scale

SHAPE = (2, 4, 8, 8)
SEEDS = (11, 12)
BETAS = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
SD = noise_table()
CLASSES = {
    "euler": (diffusers.EulerDiscreteScheduler, {}),
    "heun": (diffusers.HeunDiscreteScheduler, {}),
    "lms": (diffusers.LMSDiscreteScheduler, {}),
    "euler_ancestral": (diffusers.EulerAncestralDiscreteScheduler, {}),
    "ddim": (diffusers.DDIMScheduler, dict(clip_sample=False, set_alpha_to_one=False)),
    "ddpm": (diffusers.DDPMScheduler, dict(clip_sample=False)),
    "plms": (diffusers.PNDMScheduler, dict(skip_prk_steps=True, set_alpha_to_one=False)),
    "dpmpp_2m": (diffusers.DPMSolverMultistepScheduler, {}),
    "deis": (diffusers.DEISMultistepScheduler, {}),
    "uni_pc": (diffusers.UniPCMultistepScheduler, {}),
    "sa_solver": (diffusers.SASolverScheduler, {}),
    "lcm": (diffusers.LCMScheduler, {}),
    "tcd": (diffusers.TCDScheduler, dict(set_alpha_to_one=False)),
}


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


def unit_noise(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(5)).to(dtype)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()


def run(name: str, denoise, x: torch.Tensor, sigmas: list[float], seeds=SEEDS) -> list:
    """All steps of a sampler as its table has it; those of CFG++ are given two estimates."""
    sampler = SAMPLERS[name]
    both = (lambda x, sigma: (denoise(x, sigma), 0.9 * denoise(x, sigma))) if sampler.takes_pairs else denoise
    noise = Streams(seeds, x.shape[1:])
    if sampler.noise == "brownian":
        noise = BrownianTree(seeds, x.shape[1:], min(s for s in sigmas if s > 0), sigmas[0])
    return list(sampler.run(both, x, sigmas, *([noise] if sampler.stochastic else [])))


def ours(name: str, schedule: str, steps: int) -> torch.Tensor:
    """Final latents as a UNet sees them."""
    sampler = SAMPLERS[name]
    sigmas, times = choose(SD, schedule, steps, 1, sampler.drops_last, sampler.whole_times, sampler.ends_at_zero)
    x = unit_noise() * start_scale(sigmas[0], schedule, sampler.unit_variance)
    return run(name, denoiser(network, SD, "eps", times), x, sigmas)[-1].x / sqrt(1 + sigmas[-1] ** 2)


def theirs(name: str, schedule: str, steps: int) -> torch.Tensor:
    cls, extra = CLASSES[name]
    spacing = (dict(use_karras_sigmas=True) if schedule == "karras" else
               dict(timestep_spacing=schedule) if schedule != "lcm" else {})
    scheduler = cls(**BETAS, **extra, **spacing, steps_offset=1)
    scheduler.set_timesteps(steps)
    stochastic = SAMPLERS[name].stochastic and name != "ddim"
    options = dict(generator=[torch.Generator().manual_seed(seed) for seed in SEEDS]) if stochastic else {}
    x = unit_noise() * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        x = scheduler.step(network(scheduler.scale_model_input(x, t), t), t, x, **options).prev_sample
    return x


@pytest.mark.parametrize("schedule", ["leading", "linspace", "trailing", "karras", "lcm"])
@pytest.mark.parametrize("name", CLASSES)
def test_trajectory_on_our_own_levels_equals_diffusers(name, schedule):
    """The habits that the table records give diffusers' levels, its start and its draws from the seeds."""
    if (SAMPLERS[name].schedule or "leading") != schedule and SAMPLERS[name].schedule:
        pytest.skip("made for one schedule")
    if schedule == "lcm" and not SAMPLERS[name].schedule:
        pytest.skip("diffusers has this schedule for distilled models only")
    if schedule == "karras" and name not in ("dpmpp_2m", "uni_pc"):
        pytest.skip("the others know no Karras, or one within a spacing, or one that stands still: test_schedules.py")
    if name in ("ddim", "plms") and schedule in ("linspace", "trailing"):
        pytest.skip("diffusers' DDIM and PNDM step to t - 1000 // N, which is not the next time of their own list here")
    tolerance = {"lms": 2e-5, "sa_solver": 2e-5, "deis": 2e-5}.get(name, 5e-6)   # see test_samplers_diffusers.py
    for steps in (4, 20):
        assert relative(ours(name, schedule, steps), theirs(name, schedule, steps)) < tolerance


def test_edm_trajectories_equal_diffusers():
    """Playground v2.5's own scheduler, and the Euler one; both ramps are float32 or float64 on their side."""
    levels = EDM()
    third = partial(multistep.dpmpp_3m, third="published")
    multi = diffusers.EDMDPMSolverMultistepScheduler
    for sampler, scheduler, prediction in (
            (multistep.dpmpp_2m, multi(sigma_max=80.0), "eps"),
            (multistep.dpmpp_2m, multi(sigma_max=80.0, prediction_type="v_prediction"), "v"),
            (third, multi(sigma_max=80.0, solver_order=3), "eps"),
            (SAMPLERS["euler"].run, diffusers.EDMEulerScheduler(), "eps")):
        for steps in (5, 20):
            scheduler.set_timesteps(steps)
            x = unit_noise() * scheduler.init_noise_sigma
            for t in scheduler.timesteps:
                x = scheduler.step(network(scheduler.scale_model_input(x, t), t), t, x).prev_sample
            sigmas, times = choose(levels, "karras", steps)
            y = unit_noise() * start_scale(sigmas[0], "karras", True)
            *_, last = sampler(denoiser(network, levels, prediction, times), y, sigmas)
            assert relative(last.x, x) < 5e-6
            scheduler = type(scheduler).from_config(scheduler.config)


@pytest.mark.parametrize("name", SAMPLERS)
def test_one_step_reaches_the_estimate(name):
    """k-diffusion's SDEs raise UnboundLocalError on a schedule of one step. dpm_fast and dpm_adaptive end above 0, so
    one level leaves them nothing to do."""
    denoise, x = denoiser(network, SD, "eps"), 14.6 * unit_noise()
    if name in ("dpm_fast", "dpm_adaptive"):
        assert all(torch.equal(step.x, x) for step in run(name, denoise, x, [14.6, 0.0]))
        return
    (step,) = run(name, denoise, x, [14.6, 0.0])
    end = 0.001 if name == "uni_pc_bh2" else SD.sigmas[0] if name == "tcd" else 0.0
    assert step.i == 0 and step.sigma <= 14.6 * sqrt(2)   # churn begins higher
    assert relative(step.x, step.x0) < 1e-6 + 2 * end     # one rounding, and what noise is left by design
    assert step.x0.abs().max() > 0.1


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_run_that_ends_above_zero_keeps_its_noise(name):
    """All but the distilled ones, which know where they end. On the exact estimate of Gaussian data the deviation at
    the end is sqrt(deviation^2 + sigma^2), here within what the steps and 40,000 draws leave."""
    gaussian = lambda x, sigma: x * 0.25 / (0.25 + sigma**2)
    sigmas = [20 * (0.5 / 20) ** (i / 60) for i in range(61)]
    x = torch.randn(1, 1, 200, 200, generator=torch.Generator().manual_seed(0)) * 20
    sampler = SAMPLERS[name]
    both = (lambda x, sigma: (gaussian(x, sigma),) * 2) if sampler.takes_pairs else gaussian
    more = [Streams([3], (1, 200, 200))] if sampler.stochastic else []
    *_, last = sampler.run(both, x, sigmas, *more)
    expected = 0.25 + 0.25
    if name in ("lcm", "tcd"):
        pytest.skip("made for networks that estimate the picture in one step")
    assert last.x.std().item() == pytest.approx(sqrt(expected), rel=0.05), name


@pytest.mark.parametrize("name", SAMPLERS)
def test_state_keeps_its_dtype_around_a_bfloat16_network(name):
    half = denoiser(lambda x, t: network(x.bfloat16(), t), SD, "eps")
    for dtype in (torch.float32, torch.float64):
        for step in run(name, half, 10 * unit_noise(dtype), [10.0, 5.0, 2.0, 1.0, 0.0]):
            assert step.x.dtype == step.x0.dtype == dtype


@pytest.mark.parametrize("name", SAMPLERS)
def test_only_stochastic_samplers_draw_and_only_from_their_source(name):
    """Deterministic ones leave every generator as it was, ddim among them, which could draw and does not."""
    sampler, before = SAMPLERS[name], torch.get_rng_state()
    streams = Streams(SEEDS, SHAPE[1:])
    states = [g.get_state() for g in streams.generators]
    estimate = denoiser(network, SD, "eps")
    denoise = (lambda x, sigma: (estimate(x, sigma),) * 2) if sampler.takes_pairs else estimate
    sigmas = choose(SD, "leading", 24)[0]
    list(sampler.run(denoise, 8 * unit_noise(), sigmas, *([streams] if sampler.stochastic else [])))
    assert torch.equal(before, torch.get_rng_state())
    untouched = all(torch.equal(a, g.get_state()) for a, g in zip(states, streams.generators))
    assert untouched == (not sampler.stochastic or name in ("ddim", "exp_heun_2_x0"))


@pytest.mark.parametrize("name", [name for name, sampler in SAMPLERS.items() if sampler.stochastic])
def test_a_picture_has_the_same_bits_alone_and_in_a_batch(name):
    denoise = denoiser(lambda x, t: torch.tanh(x), SD, "eps")   # elementwise, so that only the noise could mix pictures
    x, sigmas = 8 * torch.cat([unit_noise(), unit_noise()]), choose(SD, "leading", 24)[0]
    together = run(name, denoise, x, sigmas, seeds=(1, 2, 3, 4))[-1].x
    alone = run(name, denoise, x[2:3], sigmas, seeds=(3,))[-1].x
    assert torch.equal(together[2:3], alone)
    if name not in ("ddim", "exp_heun_2_x0"):   # these draw nothing
        assert not torch.equal(together[:1], together[2:3])   # equal starts, other seeds


WAITS = {"aten::_local_scalar_dense", "aten::is_nonzero", "aten::equal", "aten::nonzero"}


class Synchronizations(TorchDispatchMode):
    """Counts what would wait for a device: a number, a bool or a comparison brought back to Python."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function.name() in WAITS
        return function(*args, **kwargs or {})


@pytest.mark.parametrize("name", SAMPLERS)
def test_no_sampler_waits_for_the_device(name):
    """But dpm_adaptive, whose next step depends on an error: once per attempt."""
    evaluations = []
    gaussian = lambda x, sigma: evaluations.append(sigma) or x * 0.25 / (0.25 + sigma**2)
    with Synchronizations() as counted:
        steps = run(name, gaussian, 8 * unit_noise(), choose(SD, "leading", 24)[0])
    attempts = (len(evaluations) - len(steps)) // 2   # each evaluates at two more places than the start of its step
    assert len(evaluations) >= 8 and counted.count == (attempts if name == "dpm_adaptive" else 0)
    with Synchronizations() as counted:
        bool(torch.ones(()) > 0), torch.ones(()).item()
    assert counted.count == 2   # the counter counts


@pytest.mark.parametrize("name, meaning", [
    ("Euler a", "euler_ancestral"), ("DPM++ 2M SDE", "dpmpp_2m_sde"), ("dpmpp_2m_sde_gpu", "dpmpp_2m_sde"),
    ("DPM++ 2S a", "dpmpp_2s_ancestral"), ("DPM2", "dpm_2"), ("k_dpm_2_a", None), ("k_euler", "euler"),
    ("EulerAncestralDiscreteScheduler", "euler_ancestral"), ("DPMSolverMultistepScheduler", "dpmpp_2m"),
    ("KDPM2AncestralDiscreteScheduler", "dpm_2_ancestral"), ("PNDMScheduler", "plms"), ("UniPC", "uni_pc"),
    ("sample_dpmpp_3m_sde", "dpmpp_3m_sde"), ("DDIM CFG++", "euler_cfg_pp"), ("res_multistep", "res_multistep")])
def test_samplers_are_found_by_the_names_of_other_programs(name, meaning):
    if meaning:
        assert find(name) == meaning
    else:
        with pytest.raises(ValueError, match="choose one of dpm_2"):
            find(name)


def test_every_scheduler_of_a_picture_model_and_every_name_of_comfyui_is_known():
    other = ("FlowMatch", "Cogvideo", "Flax", "Karras", "VQ", "UnCLIP", "RePaint", "ScoreSde", "Wuerstchen", "SCM",
             "Inverse", "AMUSEd", "Amused", "LTX", "Helios", "CMStochastic", "CogView", "Parallel", "BlockRefinement",
             "DiscreteDDIM", "EntropyBound", "FlowMap", "MiniMax", "Piflow", "RFD4")
    classes = [name for name in dir(diffusers) if name.endswith("Scheduler") and name != "DiffusersScheduler"
               and not any(word.casefold() in name.casefold() for word in other)]
    assert len(classes) > 15
    unknown = []
    for name in classes:
        try:
            find(name)
        except ValueError:
            unknown.append(name)
    assert unknown == [], unknown
    comfy = """euler euler_cfg_pp euler_ancestral euler_ancestral_cfg_pp heun heunpp2 exp_heun_2_x0 exp_heun_2_x0_sde
        dpm_2 dpm_2_ancestral lms dpm_fast dpm_adaptive dpmpp_2s_ancestral dpmpp_sde dpmpp_sde_gpu dpmpp_2m
        dpmpp_2m_cfg_pp dpmpp_2m_sde dpmpp_2m_sde_gpu dpmpp_2m_sde_heun dpmpp_2m_sde_heun_gpu dpmpp_3m_sde
        dpmpp_3m_sde_gpu ddpm lcm ipndm ipndm_v deis res_multistep res_multistep_ancestral gradient_estimation er_sde
        seeds_2 seeds_3 sa_solver sa_solver_pece ddim uni_pc uni_pc_bh2"""
    assert [find(name) for name in comfy.split()]


def test_bad_names_are_refused_in_one_line():
    with pytest.raises(ValueError, match="^unknown sampler 'eular': choose one of euler, [a-z_, ]+$"):
        find("eular")
    with pytest.raises(ValueError, match="unknown second moment 'bh3': choose one of exact, midpoint, bh1, bh2"):
        list(predictor_corrector.uni_pc(lambda x, s: x, unit_noise(), [2.0, 1.0, 0.5, 0.0], variant="bh3"))
    with pytest.raises(ValueError, match="unknown third moment 'half': choose one of exact, published"):
        adjusted([1.0, 0.5, 0.3], 1.0, "exact", "half")


def code_lines(function) -> int:
    """Of the body, without documentation, comments and blank lines."""
    source = inspect.getsource(function)
    body = ast.parse(source).body[0].body
    first = body[1] if isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant) else body[0]
    lines = (line.strip() for line in source.splitlines()[first.lineno - 1:])
    return sum(1 for line in lines if line and not line.startswith("#"))


def test_the_table_of_the_docs_page_is_true():
    text = (ROOT / "docs/samplers.md").read_text()
    told = {}
    for row in re.findall(r"^\| (\w.+ \| `\w+\.\w+` \| .+ \| \d+) \|$", text, re.M):
        names, function, papers, _, _, lines = row.split(" | ")
        told |= {name: (function.strip("`"), int(lines), SAMPLERS[name].paper in papers) for name in names.split(", ")}
    true = {}
    for name, sampler in SAMPLERS.items():
        function = sampler.run.func if isinstance(sampler.run, partial) else sampler.run
        true[name] = f"{function.__module__.split('.')[1]}.{function.__name__}", code_lines(function), True
    assert told == true
    for name, lines in re.findall(r"`(\w+\.\w+)`[^()`]*\((\d+)", text):
        module, function = name.split(".")
        assert code_lines(getattr(importlib.import_module(f"samplers.{module}"), function)) == int(lines), name
    assert max(lines for _, lines, _ in true.values()) <= 20
