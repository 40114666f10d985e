"""Inversion: diffusers' two inverse schedulers, the exact way back, and noise added to pictures."""

from math import sqrt

import diffusers
import numpy as np
import pytest
import torch

from samplers import multistep, ode
from samplers.denoiser import denoiser
from samplers.invert import add_noise, add_noise_vp, invert, shifted_times
from samplers.schedules import EDM, Convention, choose, karras, noise_table
from support.numbers import network, relative_error

SD = noise_table()
SHAPE = (2, 4, 8, 8)
BETAS = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
SCALARS = 1e-5  # all in float64, but diffusers' scalars are float32, and the first ones are divided by sigma = 0.029
PREDICTIONS = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}


def picture(dtype=torch.float32) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(5), dtype=dtype)


def final(steps) -> torch.Tensor:
    *_, last = steps
    return last.x


def theirs(scheduler, steps: int) -> torch.Tensor:
    """Latents at unit variance, as diffusers keeps them."""
    scheduler.set_timesteps(steps)
    x = picture(torch.float64)
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t), t, x).prev_sample
    return x


def unit(x: torch.Tensor, sigma: float) -> torch.Tensor:
    return x / sqrt(1 + sigma**2)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("schedule", ["leading", "trailing"])
@pytest.mark.parametrize("steps", [2, 5, 20])
def test_ddim_inversion_equals_diffusers(schedule, steps, prediction):
    """Started at the smallest trained level; the network is told the time of the level that the step goes to."""
    inverse = diffusers.DDIMInverseScheduler(
        **BETAS,
        timestep_spacing=schedule,
        set_alpha_to_one=False,
        steps_offset=1,
        clip_sample=False,
        prediction_type=PREDICTIONS[prediction],
    )
    down, times = choose(SD, schedule, steps, Convention(whole_times=True, ends_at_zero=False))
    sigmas = down[::-1]
    denoise = denoiser(network, SD, prediction, shifted_times(times, sigmas))
    ours = final(ode.euler(denoise, picture(torch.float64) * sqrt(1 + sigmas[0] ** 2), sigmas))
    assert relative_error(unit(ours, sigmas[-1]), theirs(inverse, steps)) < SCALARS


@pytest.mark.parametrize("steps", [2, 5, 14, 20])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_dpmpp_inversion_equals_diffusers(steps, prediction):
    """The same sampler on the ascending list."""
    inverse = diffusers.DPMSolverMultistepInverseScheduler(**BETAS, prediction_type=PREDICTIONS[prediction])
    down, times = choose(SD, "linspace", steps, Convention(drops_last=True, whole_times=True, ends_at_zero=False))
    sigmas = down[::-1]
    x = picture(torch.float64) * sqrt(1 + sigmas[0] ** 2)
    ours = final(multistep.dpmpp_2m(denoiser(network, SD, prediction, times), x, sigmas))
    assert relative_error(unit(ours, sigmas[-1]), theirs(inverse, steps)) < SCALARS


def test_diffusers_dpmpp_inversion_stands_still_in_its_last_karras_step():
    """Its list ends with the same level twice, so fewer steps are made than evaluations."""
    inverse = diffusers.DPMSolverMultistepInverseScheduler(**BETAS, use_karras_sigmas=True)
    inverse.set_timesteps(10)
    assert inverse.sigmas[-1] == inverse.sigmas[-2] and len(inverse.timesteps) == 10
    ours = choose(SD, "karras", 10, Convention(ends_at_zero=False))[0][::-1]
    assert ours[-1] == SD.sigma_max and ours[-2] < 0.7 * ours[-1] and len(ours) == 11


@pytest.mark.parametrize("run", [ode.euler, ode.heun])
@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_exact_inversion_leads_back_to_the_picture(run, prediction):
    levels = EDM() if prediction == "v" else SD
    denoise = denoiser(network, levels, prediction)
    down = karras(0.03, levels.sigma_max, 20)
    x = picture(torch.float64)
    noise = final(invert(run, denoise, x, down[::-1], tolerance=1e-14))
    back = final(run(denoise, noise, down))
    assert relative_error(back, x) < 2e-12  # 20 steps of 1e-14, of which each may grow on the way down
    plain = final(run(denoise, final(run(denoise, x, down[::-1])), down))
    assert relative_error(plain, x) > 1e-3  # the explicit way up misses: what `invert` is for
    assert relative_error(noise, final(run(denoise, x, down[::-1]))) < 0.5


def test_exact_inversion_in_float32():
    denoise = denoiser(network, SD, "eps")
    down = karras(0.03, SD.sigma_max, 20)
    steps = list(invert(ode.euler, denoise, picture(), down[::-1]))
    assert [step.sigma for step in steps] == down[:0:-1] and steps[0].x.dtype == torch.float32
    assert relative_error(final(ode.euler(denoise, steps[-1].x, down)), picture()) < 1e-4


def test_a_step_that_does_not_converge_is_named():
    steep = lambda x, sigma: x + 3 * sigma * torch.sin(40 * x / sigma)
    with pytest.raises(ArithmeticError, match="^the step from sigma 1 to 10 does not converge: take more steps$"):
        list(invert(ode.euler, steep, picture(torch.float64), [1.0, 10.0]))


def test_noise_is_added_as_diffusers_adds_it():
    x0, noise = picture(), picture().flip(0)
    t = torch.tensor([500, 500])
    vp = diffusers.DDIMScheduler(**BETAS).add_noise(x0, noise, t)
    euler = diffusers.EulerDiscreteScheduler(**BETAS)
    euler.set_timesteps(1000)
    edm = diffusers.EDMEulerScheduler()
    edm.set_timesteps(10)
    ve = euler.add_noise(x0, noise, euler.timesteps[[499, 499]])
    sigma = SD.sigmas[500]
    assert euler.timesteps[499] == 500
    assert relative_error(add_noise_vp(x0, noise, sigma), vp) < 1e-6  # roundings of float32
    assert relative_error(add_noise(x0, noise, sigma), ve) < 1e-6
    edm_sigma = edm.sigmas[3].item()
    assert relative_error(add_noise(x0, noise, edm_sigma), edm.add_noise(x0, noise, edm.timesteps[[3, 3]])) < 1e-6
    assert np.isclose(add_noise(x0, noise, sigma).std().item(), sqrt(1 + sigma**2), rtol=0.1)
