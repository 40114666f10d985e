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

from samplers import SAMPLERS, adams, find, multistep, ode, predictor_corrector, published, singlestep
from samplers.denoiser import denoiser
from samplers.noise import Streams
from samplers.schedules import EDM, Convention, choose, karras, noise_table, start_std
from support.numbers import TwoEstimates, denoise, network, relative_error, trajectory, unit_noise
from support.paths import ROOT

SHAPE = (2, 4, 4, 4)
SEEDS = (11, 12)
BETAS = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
SD = noise_table()
EDM_MULTI = diffusers.EDMDPMSolverMultistepScheduler
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


def run(name: str, denoise, x: torch.Tensor, sigmas: list[float], seeds=SEEDS) -> list:
    """All steps of a sampler as its table has it; those of CFG++ are given two estimates."""
    sampler = SAMPLERS[name]
    noise = sampler.noise(Streams(seeds, x.shape[1:]), sigmas)
    return list(sampler.run(TwoEstimates(denoise, 0.9), x, sigmas, noise))


def ours(name: str, schedule: str, steps: int) -> torch.Tensor:
    """Final latents as a UNet sees them."""
    sampler = SAMPLERS[name]
    sigmas, times = choose(SD, schedule, steps, sampler.convention)
    x = unit_noise() * start_std(sigmas[0], schedule, sampler.convention)
    return run(name, denoiser(network, SD, "eps", times), x, sigmas)[-1].x / sqrt(1 + sigmas[-1] ** 2)


def theirs(name: str, schedule: str, steps: int) -> torch.Tensor:
    cls, extra = CLASSES[name]
    spacing = (
        dict(use_karras_sigmas=True)
        if schedule == "karras"
        else dict(timestep_spacing=schedule)
        if schedule != "lcm"
        else {}
    )
    scheduler = cls(**BETAS, **extra, **spacing, steps_offset=1)
    scheduler.set_timesteps(steps)
    stochastic = SAMPLERS[name].stochastic and name != "ddim"
    options = dict(generator=[torch.Generator().manual_seed(seed) for seed in SEEDS]) if stochastic else {}
    return trajectory(scheduler, unit_noise() * scheduler.init_noise_sigma, **options)[-1]


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
    tolerance = {"lms": 2e-5, "sa_solver": 2e-5, "deis": 2e-5}.get(name, 5e-6)  # see test_samplers_diffusers.py
    for steps in (4, 20):
        assert relative_error(ours(name, schedule, steps), theirs(name, schedule, steps)) < tolerance


EDM_PAIRS = {  # Playground v2.5's own scheduler and the Euler one: ours, theirs, options, schedule, where it differs
    "dpmpp_2m": (multistep.dpmpp_2m, EDM_MULTI, {}, "karras", {}),
    "dpmpp_2m heun": (partial(multistep.dpmpp, second="exact"), EDM_MULTI, dict(solver_type="heun"), "karras", {}),
    "dpmpp_3m": (published.dpmpp_3m, EDM_MULTI, dict(solver_order=3), "karras", {}),
    "dpmpp_2m_sde": (
        partial(multistep.dpmpp_2m_sde, short=15),
        EDM_MULTI,
        dict(algorithm_type="sde-dpmsolver++"),
        "karras",
        {},
    ),
    "dpmpp_2m to sigma_min": (multistep.dpmpp_2m, EDM_MULTI, dict(final_sigmas_type="sigma_min"), "karras", None),
    "dpmpp_2m, exponential": (multistep.dpmpp_2m, EDM_MULTI, dict(sigma_schedule="exponential"), "exponential", {}),
    "euler": (SAMPLERS["euler"].run, diffusers.EDMEulerScheduler, {}, "karras", {}),
    "euler, exponential": (
        SAMPLERS["euler"].run,
        diffusers.EDMEulerScheduler,
        dict(sigma_schedule="exponential"),
        "exponential",
        {},
    ),
}


@pytest.mark.parametrize("name", EDM_PAIRS)
def test_edm_trajectory_equals_diffusers(name):
    ours, scheduler, options, schedule, chosen = EDM_PAIRS[name]
    stochastic = name == "dpmpp_2m_sde"
    for prediction, theirs in (("eps", "epsilon"), ("v", "v_prediction")):
        for steps in (1, 2, 5, 14, 15, 20):
            if chosen is None:  # to sigma_min, which diffusers reaches one step early
                sigmas, times = published.choose_range(EDM(), schedule, steps, Convention(ends_at_zero=False))
            else:
                sigmas, times = choose(EDM(), schedule, steps)
            if (steps, schedule) == (1, "exponential"):
                continue  # theirs begins at the smallest level
            other = scheduler(**options, prediction_type=theirs, sigma_max=80.0)
            other.set_timesteps(steps)
            generators = dict(generator=[torch.Generator().manual_seed(seed) for seed in SEEDS]) if stochastic else {}
            xs = trajectory(other, unit_noise() * other.init_noise_sigma, network, **generators)
            y = unit_noise() * start_std(sigmas[0], schedule)
            noise = Streams(SEEDS, SHAPE[1:])
            for step, x in zip(ours(denoiser(network, EDM(), prediction, times), y, sigmas, noise), xs, strict=True):
                # one or two steps of their Euler leave the rounding of x at 80 in a picture of size 1
                assert relative_error(step.x, x) < (1e-4 if name.startswith("euler") and steps < 3 else 5e-6)


@pytest.mark.parametrize(
    "name, scheduler",
    [("dpmpp_2m", diffusers.DPMSolverMultistepScheduler), ("uni_pc", diffusers.UniPCMultistepScheduler)],
)
def test_trajectory_from_zero_signal_equals_diffusers(name, scheduler):
    """From sigma 4096, as a model trained with a signal-to-noise ratio of zero begins (arXiv 2305.08891)."""
    levels, sampler = noise_table(zero_snr=True), SAMPLERS[name]
    for steps in (1, 2, 5, 20):
        other = scheduler(
            **BETAS, rescale_betas_zero_snr=True, timestep_spacing="trailing", prediction_type="v_prediction"
        )
        other.set_timesteps(steps)
        xs = trajectory(other, unit_noise() * other.init_noise_sigma)
        sigmas, times = choose(levels, "trailing", steps, sampler.convention)
        assert sigmas[0] == 4096
        y = unit_noise() * start_std(sigmas[0], "trailing", sampler.convention)
        all_steps = sampler.run(denoiser(network, levels, "v", times), y, sigmas)
        for step, lower, x in zip(all_steps, sigmas[1:], xs, strict=True):
            assert relative_error(step.x / sqrt(1 + lower**2), x) < 5e-6


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
    assert step.i == 0 and step.sigma <= 14.6 * sqrt(2)  # churn begins higher
    assert relative_error(step.x, step.x0) < 1e-6 + 2 * end  # one rounding, and what noise is left by design
    assert step.x0.abs().max() > 0.1


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_run_that_ends_above_zero_keeps_its_noise(name):
    """All but the distilled ones, which know where they end. On the exact estimate of Gaussian data the deviation at
    the end is sqrt(deviation^2 + sigma^2), here within what the steps and 40,000 draws leave."""
    gaussian = lambda x, sigma: x * 0.25 / (0.25 + sigma**2)
    sigmas = [20 * (0.5 / 20) ** (i / 60) for i in range(61)]
    x = torch.randn(1, 1, 200, 200, generator=torch.Generator().manual_seed(0)) * 20
    sampler = SAMPLERS[name]
    *_, last = sampler.run(gaussian, x, sigmas, Streams([3], (1, 200, 200)))
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
    sigmas = choose(SD, "leading", 24)[0]
    list(sampler.run(denoiser(network, SD, "eps"), 8 * unit_noise(), sigmas, streams))
    assert torch.equal(before, torch.get_rng_state())
    untouched = all(torch.equal(a, g.get_state()) for a, g in zip(states, streams.generators))
    assert untouched == (not sampler.stochastic or name in ("ddim", "exp_heun_2_x0"))


@pytest.mark.parametrize("name", [name for name, sampler in SAMPLERS.items() if sampler.stochastic])
def test_a_picture_has_the_same_bits_alone_and_in_a_batch(name):
    denoise = denoiser(lambda x, t: torch.tanh(x), SD, "eps")  # elementwise, so that only the noise could mix pictures
    x, sigmas = 8 * torch.cat([unit_noise(), unit_noise()]), choose(SD, "leading", 24)[0]
    together = run(name, denoise, x, sigmas, seeds=(1, 2, 3, 4))[-1].x
    alone = run(name, denoise, x[2:3], sigmas, seeds=(3,))[-1].x
    assert torch.equal(together[2:3], alone)
    if name not in ("ddim", "exp_heun_2_x0"):  # these draw nothing
        assert not torch.equal(together[:1], together[2:3])  # equal starts, other seeds


@pytest.mark.parametrize("name", SAMPLERS)
def test_no_sampler_waits_for_the_device(name):
    """Tensors without data raise where a number, a truth or a size would have to be brought back from the device.
    dpm_adaptive alone does: its next step depends on an error."""
    gaussian = lambda x, sigma: x * (0.25 / (0.25 + sigma**2))
    sampler, x = SAMPLERS[name], torch.zeros(SHAPE, device="meta")
    steps = sampler.run(gaussian, x, choose(SD, "leading", 24)[0], lambda *_: torch.zeros_like(x))
    if name == "dpm_adaptive":
        with pytest.raises(RuntimeError, match="item"):
            next(steps)
    else:
        assert all(step.x.device == step.x0.device == x.device for step in steps)


SCALED = {name: sampler.run for name, sampler in SAMPLERS.items() if sampler.stochastic and name not in ("lcm", "tcd")}
SCALED |= {
    name: partial(SAMPLERS[name].run, eta=1.0)
    for name in ("ddim", "dpmpp_singlestep", "dpm_fast", "dpm_adaptive", "exp_heun_2_x0", "euler_cfg_pp")
}
SCALED |= {
    f"{name} with churn": partial(SAMPLERS[name].run, s_churn=20.0) for name in ("euler", "heun", "heunpp2", "dpm_2")
}


@pytest.mark.parametrize("name", SCALED)
def test_s_noise_scales_every_draw(name):
    """Exactly, as half a draw has the same digits; and with s_noise 0 none matters."""

    def end(s_noise: float, share: float) -> torch.Tensor:
        streams = Streams(SEEDS, SHAPE[1:])
        *_, last = SCALED[name](
            denoise,
            14.6 * unit_noise(),
            choose(SD, "leading", 24)[0],
            lambda *_: streams.draw() * share,
            s_noise=s_noise,
        )
        return last.x

    assert torch.equal(end(0.0, 1.0), end(1.0, 0.0))
    assert torch.equal(end(0.5, 1.0), end(1.0, 0.5))
    assert not torch.equal(end(0.5, 1.0), end(1.0, 1.0))


@pytest.mark.parametrize(
    "name, meaning",
    [
        ("Euler a", "euler_ancestral"),
        ("DPM++ 2M SDE", "dpmpp_2m_sde"),
        ("dpmpp_2m_sde_gpu", "dpmpp_2m_sde"),
        ("DPM++ 2S a", "dpmpp_2s_ancestral"),
        ("DPM2", "dpm_2"),
        ("k_dpm_2_a", "dpm_2_ancestral"),
        ("k_euler", "euler"),
        ("EulerAncestralDiscreteScheduler", "euler_ancestral"),
        ("DPMSolverMultistepScheduler", "dpmpp_2m"),
        ("KDPM2AncestralDiscreteScheduler", "dpm_2_ancestral"),
        ("PNDMScheduler", "plms"),
        ("UniPC", "uni_pc"),
        ("sample_dpmpp_3m_sde", "dpmpp_3m_sde"),
        ("DDIM CFG++", "euler_cfg_pp"),
        ("res_multistep", "res_multistep"),
        ("DPM++2M ", "dpmpp_2m"),
        ("k_dpm_ad", "dpm_adaptive"),
        ("Euler a CFG++", "euler_ancestral_cfg_pp"),
        ("DPM++ 2S a CFG++", "dpmpp_2s_ancestral_cfg_pp"),
        ("EulerEDMSampler", "euler"),
        ("DPMPP2SAncestralSampler", "dpmpp_2s_ancestral"),
    ],
)
def test_samplers_are_found_by_the_names_of_other_programs(name, meaning):
    assert find(name) == meaning


def test_every_scheduler_of_a_picture_model_and_every_name_of_comfyui_is_known():
    other = (
        "FlowMatch",
        "Cogvideo",
        "Flax",
        "Karras",
        "VQ",
        "UnCLIP",
        "RePaint",
        "ScoreSde",
        "Wuerstchen",
        "SCM",
        "Inverse",
        "AMUSEd",
        "Amused",
        "LTX",
        "Helios",
        "CMStochastic",
        "CogView",
        "BlockRefinement",
        "DiscreteDDIM",
        "EntropyBound",
        "FlowMap",
        "MiniMax",
        "Piflow",
        "RFD4",
    )
    classes = [
        name
        for name in dir(diffusers)
        if name.endswith("Scheduler")
        and name != "DiffusersScheduler"
        and not any(word.casefold() in name.casefold() for word in other)
    ]
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
        seeds_2 seeds_3 sa_solver sa_solver_pece ddim uni_pc uni_pc_bh2 dpmpp_2s_ancestral_cfg_pp res_multistep_cfg_pp
        res_multistep_ancestral_cfg_pp gradient_estimation_cfg_pp"""
    assert [find(name) for name in comfy.split()]


@pytest.mark.parametrize(
    "name",
    [name for name in SAMPLERS if SAMPLERS[name].path is None and name not in ("edm_stochastic", "restart", "tcd")],
)  # whose noise depends on the count of steps
def test_a_step_of_no_length_costs_only_the_memory(name):
    """The levels of a run with one of them twice: nothing is divided by the length of that step, and what was
    remembered before it is not taken for more than it is."""
    levels = [10 * (0.01 ** (i / 60)) for i in range(61)]
    sampler, twice = SAMPLERS[name], [*levels[:30], levels[29], *levels[30:]]
    x = 10 * torch.ones(1, dtype=torch.float64)  # of pictures that are Gaussian

    def gaussian(x, sigma):
        return x * 0.49 / (0.49 + sigma**2)

    def end(sigmas):
        *_, last = sampler.run(gaussian, x, sigmas, lambda sigma, sigma_next: torch.zeros_like(x))
        return last.x.item()

    assert end(twice) == pytest.approx(end(levels), rel=0.04)  # a first-order step among 60


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda x: adams.lms(denoise, x, [2.0, 1.0, 0.0], order=5), "order 5: choose 1 to 4"),
        (lambda x: adams.ipndm(denoise, x, [2.0, 1.0, 0.0], order=0), "order 0: choose 1 to 4"),
        (lambda x: multistep.dpmpp(denoise, x, [2.0, 1.0, 0.0], order=4), "order 4: choose 1 to 3"),
        (lambda x: multistep.dpm_solver(denoise, x, [2.0, 1.0, 0.0], order=0), "order 0: choose 1 to 3"),
        (lambda x: multistep.er_sde(denoise, x, [2.0, 1.0, 0.0], None, order=0), "order 0: choose 1 to 3"),
        (lambda x: singlestep.singlestep(denoise, x, [2.0, 1.0, 0.0], order=4), "order 4: choose 1 to 3"),
        (lambda x: singlestep.dpm_adaptive(denoise, x, [2.0, 1.0, 0.0], order=1), "order 1: choose 2 to 3"),
        (lambda x: predictor_corrector.uni_pc(denoise, x, [2.0, 1.0, 0.0], order=4), "order 4: choose 1 to 3"),
        (lambda x: multistep.dpmpp(denoise, x, [2.0, 1.0, 0.0], second="half"), "unknown second moment 'half'"),
        (
            lambda x: multistep.dpmpp(denoise, x, [2.0, 1.0, 0.0], eta=1.0),
            "none was given: pass samplers.noise.Streams",
        ),
        (lambda x: ode.euler(denoise, x, [2.0, 1.0, 0.0], s_churn=5.0), "none was given: pass samplers.noise.Streams"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(call, message):
    with pytest.raises(ValueError, match=message):
        list(call(unit_noise()))


def test_bad_names_are_refused_in_one_line():
    with pytest.raises(ValueError, match="^unknown sampler 'eular': choose one of euler, [a-z_, ]+$"):
        find("eular")
    with pytest.raises(ValueError, match="choose sampler 'dpmpp_2m' and schedule 'karras'$"):
        find("DPM++ 2M Karras")
    with pytest.raises(ValueError, match="unknown second moment 'bh3': choose one of exact, midpoint, bh1, bh2"):
        list(predictor_corrector.uni_pc(lambda x, s: x, unit_noise(), [2.0, 1.0, 0.5, 0.0], variant="bh3"))
    with pytest.raises(ValueError, match="unknown second moment 'half': choose one of exact, midpoint, bh1, bh2"):
        published.halved_third("half")


def code_lines(function) -> int:
    """Of the body, without documentation, comments and blank lines."""
    source = inspect.getsource(function)
    body = ast.parse(source).body[0].body
    first = body[1] if isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant) else body[0]
    lines = (line.strip() for line in source.splitlines()[first.lineno - 1 :])
    return sum(1 for line in lines if line and not line.startswith("#"))


def evaluations_of(name: str) -> int:
    """Of 12 steps that end in 0."""
    sampler, seen = SAMPLERS[name], []

    def counted(x, sigma):
        seen.append(sigma)
        return denoise(x, sigma)

    list(sampler.run(counted, 10 * unit_noise(), [*karras(0.1, 10, 12), 0.0], lambda *_: unit_noise()))
    return len(seen)


def test_the_table_of_the_docs_page_is_true():
    text = (ROOT / "docs/samplers.md").read_text()
    told = {}
    for row in re.findall(r"^\| (\w.+ \| `\w+\.\w+` \| .+ \| \d+) \|$", text, re.M):
        names, function, papers, _, evaluations, lines = row.split(" | ")
        counts = [
            eval(count.replace("n", "* 12", 1) if count[0].isdigit() else count, {"n": 12})
            for count in evaluations.split("; ")
            if count != "as needed"
        ]
        for k, name in enumerate(names.split(", ")):
            count = counts[min(k, len(counts) - 1)] if counts else evaluations_of("dpm_adaptive")
            told[name] = function.strip("`"), int(lines), SAMPLERS[name].paper in papers, count
    true = {}
    for name, sampler in SAMPLERS.items():
        function = sampler.run.func if isinstance(sampler.run, partial) else sampler.run
        where = f"{function.__module__.split('.')[1]}.{function.__name__}"
        true[name] = where, code_lines(function), True, evaluations_of(name)
    assert told == true
    for name, lines in re.findall(r"`(\w+\.\w+)`[^()`]*\((\d+)", text):
        module, function = name.split(".")
        assert code_lines(getattr(importlib.import_module(f"samplers.{module}"), function)) == int(lines), name
    assert max(lines for _, lines, *_ in true.values()) <= 20
