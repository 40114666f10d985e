"""The samplers and schedules against diffusers' schedulers, and against mathematics."""

from math import exp, log, sqrt

import diffusers
import numpy as np
import pytest
import torch

from samplers import SAMPLERS, ode
from samplers.denoiser import denoiser
from samplers.noise import Streams
from samplers.schedule import EDM, SCHEDULES, NoiseTable, choose, karras, noise_table, start_scale

SHAPE = (2, 4, 8, 8)
BETAS = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
SD = noise_table()
PREDICTIONS = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}
CLASSES = {
    "euler": (diffusers.EulerDiscreteScheduler, {}),
    "heun": (diffusers.HeunDiscreteScheduler, {}),
    "euler_ancestral": (diffusers.EulerAncestralDiscreteScheduler, {}),
    "ddim": (diffusers.DDIMScheduler, dict(clip_sample=False, set_alpha_to_one=False)),
    "plms": (diffusers.PNDMScheduler, dict(skip_prk_steps=True, set_alpha_to_one=False)),
    "dpmpp_2m": (diffusers.DPMSolverMultistepScheduler, {}),
}


def network(x: torch.Tensor, t: float) -> torch.Tensor:
    """A smooth, bounded stand-in for a UNet that looks at every argument."""
    return torch.tanh(0.9 * x.roll(1, dims=-1) - 0.3 * x + 0.7 * torch.cos(torch.tensor(float(t)) / 150))


def unit_noise() -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(5))


def ours(name: str, schedule: str, steps: int, prediction: str, **options) -> torch.Tensor:
    """Final latents as a UNet sees them."""
    sampler = SAMPLERS[name]
    sigmas, times = choose(SD, schedule, steps, 1, sampler.drops_last, sampler.whole_times, sampler.ends_at_zero)
    x = unit_noise() * start_scale(sigmas[0], schedule, sampler.unit_variance)
    denoise = denoiser(network, SD, prediction, times)
    noise = (Streams([11, 12], SHAPE[1:]),) if sampler.stochastic else ()
    for step in sampler.run(denoise, x, sigmas, *noise, **options):
        x = step.x
    return x / sqrt(1 + sigmas[-1] ** 2)


def theirs(name: str, schedule: str, steps: int, prediction: str, **options) -> torch.Tensor:
    cls, extra = CLASSES[name]
    spacing = dict(use_karras_sigmas=True) if schedule == "karras" else dict(timestep_spacing=schedule)
    scheduler = cls(**BETAS, **extra, **spacing, steps_offset=1, prediction_type=PREDICTIONS[prediction])
    scheduler.set_timesteps(steps)
    if name in ("euler_ancestral", "ddim"):
        options["generator"] = [torch.Generator().manual_seed(seed) for seed in (11, 12)]
    x = unit_noise() * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        x = scheduler.step(network(scheduler.scale_model_input(x, t), t), t, x, **options).prev_sample
    return x


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()


PREDICTED = [(name, prediction) for name in CLASSES for prediction in PREDICTIONS
             if (name, prediction) != ("euler_ancestral", "x0")    # diffusers lacks it
             and (name, prediction) not in (("plms", "v"), ("plms", "x0"))]   # it lacks one, and extrapolates v itself


# Both sides round differently in float32 and the last steps divide by small sigmas: independent implementations
# agree to a few 1e-6.
@pytest.mark.parametrize("steps", [2, 5, 14, 15, 20, 50])
@pytest.mark.parametrize("schedule", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("name, prediction", PREDICTED)
def test_trajectory_equals_diffusers(name, prediction, schedule, steps):
    if name in ("ddim", "plms") and (schedule == "linspace" or schedule == "trailing" and 1000 % steps):
        pytest.skip("diffusers' DDIM and PNDM step to t - 1000 // N, which is not the next time of their own list here")
    # In two steps Heun goes from 14.6 to 0.03, and divides the rounding of x at 14.6 by 0.03.
    tolerance = 1e-3 if name == "heun" and steps == 2 else 5e-6
    assert relative(ours(name, schedule, steps, prediction), theirs(name, schedule, steps, prediction)) < tolerance


@pytest.mark.parametrize("steps", [2, 5, 14, 15, 20, 50])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_karras_trajectory_equals_diffusers(prediction, steps):
    args = "dpmpp_2m", "karras", steps, prediction
    assert relative(ours(*args), theirs(*args)) < 5e-6


@pytest.mark.parametrize("steps", [5, 20])
def test_ddim_with_noise_equals_diffusers(steps):
    a, b = ours("ddim", "leading", steps, "eps", eta=1.0), theirs("ddim", "leading", steps, "eps", eta=1.0)
    assert relative(a, b) < 5e-6
    assert relative(ours("ddim", "leading", steps, "eps"), b) > 0.1   # eta does something


def test_edm_trajectories_equal_diffusers():
    """Playground v2.5's own scheduler, and the Euler one; both ramps are float32 or float64 on their side."""
    levels = EDM()
    for name, scheduler in (("dpmpp_2m", diffusers.EDMDPMSolverMultistepScheduler(sigma_max=80.0)),
                            ("euler", diffusers.EDMEulerScheduler())):
        scheduler.set_timesteps(20)
        x = unit_noise() * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            x = scheduler.step(network(scheduler.scale_model_input(x, t), t), t, x).prev_sample
        sigmas, times = choose(levels, "karras", 20)
        y = unit_noise() * start_scale(sigmas[0], "karras", True)
        for step in SAMPLERS[name].run(denoiser(network, levels, "eps", times), y, sigmas):
            y = step.x
        assert relative(y, x) < 5e-6


def test_table_has_diffusers_bits():
    for law in ("linear", "scaled_linear"):
        reference = diffusers.EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule=law)
        alphas = reference.alphas_cumprod
        assert noise_table(law=law).sigmas == tuple((((1 - alphas) / alphas) ** 0.5).tolist())
    cosine = diffusers.EulerDiscreteScheduler(beta_schedule="squaredcos_cap_v2").alphas_cumprod
    assert np.allclose(noise_table(law="squaredcos_cap_v2").sigmas, ((1 - cosine) / cosine) ** 0.5, rtol=1e-5)


def test_published_values_of_schedules():
    """Ten steps on Stable Diffusion's table, four decimals."""
    def rounded(schedule, **options):
        return [round(s, 4) for s in choose(SD, schedule, 10, **options)[0][:-1]]

    assert rounded("karras") == [14.6146, 9.1029, 5.4784, 3.1686, 1.7494, 0.9141, 0.4469, 0.2014, 0.0819, 0.0292]
    assert rounded("linspace") == [14.6146, 7.8399, 4.6092, 2.9183, 1.9502, 1.3449, 0.9324, 0.6250, 0.3687, 0.0292]
    assert rounded("trailing") == [14.6146, 8.3028, 5.0878, 3.3211, 2.2765, 1.6129, 1.1606, 0.8299, 0.5693, 0.3417]
    assert rounded("leading") == [8.3907, 5.1344, 3.3478, 2.2929, 1.6237, 1.1682, 0.8357, 0.5741, 0.3462, 0.0413]
    assert rounded("linspace", drops_last=True, whole_times=True) == [
        14.6146, 8.3028, 5.0878, 3.3211, 2.2765, 1.6183, 1.1644, 0.8328, 0.5717, 0.3439]


@pytest.mark.parametrize("steps", [1, 2, 61, 103, 121, 201, 999, 1000])
@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_have_the_steps_asked_for(schedule, name, steps):
    """diffusers' trailing has one step too many for 61, 103, 121, ... and its one-step linspace begins at t = 0."""
    s = SAMPLERS[name]
    sigmas, times = choose(SD, schedule, steps, 1, s.drops_last, s.whole_times, s.ends_at_zero)
    assert len(sigmas) == steps + 1
    assert all(a > b for a, b in zip(sigmas[:-1], sigmas[1:-1])) and sigmas[-2] >= sigmas[-1]
    assert all(0 <= t <= 999 for t in times.values())


def test_one_step_reaches_the_estimate():
    for name in SAMPLERS:
        sigmas = [SD.sigmas[-1], 0.0]
        run, noise = SAMPLERS[name].run, (Streams([0, 1], SHAPE[1:]),) if SAMPLERS[name].stochastic else ()
        denoise = denoiser(network, SD, "eps")
        x = unit_noise() * sigmas[0]
        (step,) = run(denoise, x, sigmas, *noise)
        assert relative(step.x, denoise(x, sigmas[0])) < 1e-6   # one rounding


def test_time_and_sigma_are_inverse():
    for t in (0, 1, 500, 998, 999):
        assert SD.t(SD.sigma(t)) == pytest.approx(t, abs=1e-9)
    assert SD.t(1e-9) == 0 and SD.t(1e9) == 999
    middle = sqrt(SD.sigmas[100] * SD.sigmas[101])
    assert SD.t(middle) == pytest.approx(100.5, abs=1e-9)


def gaussian_denoise(x, sigma, spread=0.7):
    """The exact clean estimate when pictures are Gaussian with deviation `spread`."""
    return x * spread**2 / (spread**2 + sigma**2)


@pytest.mark.parametrize("name, order", [("euler", 1), ("heun", 2), ("dpmpp_2m", 2), ("plms", 4)])
def test_order_of_convergence(name, order):
    """Halving the steps must multiply the error by 2**order; solved exactly, x scales with sqrt(s^2 + sigma^2)."""
    high, low, x = 10.0, 0.1, torch.ones(1, dtype=torch.float64)
    exact = sqrt((0.7**2 + low**2) / (0.7**2 + high**2))
    errors = []
    for steps in (80, 160) if name != "plms" else (320, 640):
        sigmas = [high * (low / high) ** (i / steps) for i in range(steps + 1)]
        if name == "plms":   # its weights are those of equal steps
            sigmas = [high + i / steps * (low - high) for i in range(steps + 1)]
        *_, last = SAMPLERS[name].run(gaussian_denoise, x, sigmas)
        errors.append(abs(last.x.item() - exact))
    assert log(errors[0] / errors[1], 2) == pytest.approx(order, abs=0.2)


def test_ancestral_noise_has_the_right_variance():
    """Sampling a Gaussian with fresh noise must give back its variance."""
    sigmas = [20 * exp(-i / 20) for i in range(160)] + [0.0]
    x = 20 * torch.randn(1, 1, 200, 200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    *_, last = SAMPLERS["euler_ancestral"].run(gaussian_denoise, x, sigmas, Streams([3], (1, 200, 200)))
    assert last.x.std().item() == pytest.approx(0.7, rel=0.04)   # 3 % is the step error, 0.4 % that of 40,000 draws


def test_streams_belong_to_pictures():
    batch, alone = Streams([7, 8, 9], (4, 6, 5)), Streams([8], (4, 6, 5))
    for _ in range(3):
        assert torch.equal(batch.draw()[1:2], alone.draw())


def test_stochastic_samplers_give_a_picture_its_own_noise():
    denoise = denoiser(lambda x, t: x, SD, "eps")   # elementwise, so that only the noise could mix pictures
    sigmas, _ = choose(SD, "leading", 10)
    x = unit_noise() * 10
    *_, both = SAMPLERS["euler_ancestral"].run(denoise, x, sigmas, Streams([1, 2], SHAPE[1:]))
    *_, second = SAMPLERS["euler_ancestral"].run(denoise, x[1:], sigmas, Streams([2], SHAPE[1:]))
    assert torch.equal(both.x[1:], second.x)


def test_deterministic_samplers_draw_nothing():
    sigmas, _ = choose(SD, "leading", 5)
    before, streams = torch.get_rng_state(), Streams([1, 2], SHAPE[1:])
    states = [g.get_state() for g in streams.generators]
    for name in ("euler", "heun", "plms", "dpmpp_2m"):
        list(SAMPLERS[name].run(denoiser(network, SD, "eps"), unit_noise(), sigmas))
    list(SAMPLERS["ddim"].run(denoiser(network, SD, "eps"), unit_noise(), sigmas, streams))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, g.get_state()) for a, g in zip(states, streams.generators))


def test_state_stays_in_float32_around_a_bfloat16_network():
    half = denoiser(lambda x, t: network(x.bfloat16(), t), SD, "eps")
    for step in ode.euler(half, unit_noise(), [10.0, 5.0, 0.0]):
        assert step.x.dtype == step.x0.dtype == torch.float32


def test_bad_names_and_numbers_are_refused():
    with pytest.raises(ValueError, match="unknown schedule 'caras': choose one of leading"):
        choose(SD, "caras", 10)
    with pytest.raises(ValueError, match="0 steps: choose 1 to 1000"):
        choose(SD, "karras", 0)
    with pytest.raises(ValueError, match="1001 steps"):
        choose(SD, "leading", 1001)
    with pytest.raises(ValueError, match="this model has none: choose karras"):
        choose(EDM(), "leading", 10)
    with pytest.raises(ValueError, match="unknown prediction 'noise'"):
        denoiser(network, SD, "noise")
    with pytest.raises(ValueError, match="unknown beta law"):
        noise_table(law="quadratic")


def test_karras_of_one_step_begins_at_the_top():
    assert karras(0.03, 14.6, 1) == [14.6]
    assert isinstance(SD, NoiseTable) and len(SD.sigmas) == 1000
