"""The sampler turned inside out gives what the sampler gives, and keeps pace with diffusers step by step."""

import diffusers
import pytest
import torch

from samplers import SAMPLERS, ode
from samplers.denoiser import denoiser
from samplers.noise import Streams
from samplers.schedules import choose, noise_table
from samplers.stepper import Stepper
from support.numbers import TwoEstimates, network

SD = noise_table()
SHAPE = (2, 4, 8, 8)


def start(sigma: float) -> torch.Tensor:
    return sigma * torch.randn(SHAPE, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_steps_to_its_own_result_bit_for_bit(name):
    sampler = SAMPLERS[name]
    sigmas, times = choose(SD, "karras", 6, sampler.convention)
    guess, asked = TwoEstimates(denoiser(network, SD, "eps", times), 0.5), []

    def watched(x, sigma):
        asked.append(sigma)
        return guess(x, sigma)

    noise = [sampler.noise(Streams([3, 4], SHAPE[1:]), sigmas) for _ in range(2)]
    direct = list(sampler.run(TwoEstimates(watched, 0.5), start(sigmas[0]), sigmas, noise[0]))
    stepper, levels = Stepper(sampler.run, start(sigmas[0]), sigmas, noise[1]), []
    while not stepper.done:
        levels.append(stepper.sigma)
        stepper.step(
            guess.pair(stepper.x, stepper.sigma) if sampler.guidance.off < 1 else guess(stepper.x, stepper.sigma)
        )
    assert levels == asked
    assert len(stepper.steps) == len(direct) and torch.equal(stepper.x, direct[-1].x)
    assert all(torch.equal(a.x, b.x) and torch.equal(a.x0, b.x0) for a, b in zip(stepper.steps, direct))
    assert stepper.sigma is None
    with pytest.raises(ValueError, match="the sampler is done"):
        stepper.step(stepper.x)


@pytest.mark.parametrize(
    "name, cls", [("euler", diffusers.EulerDiscreteScheduler), ("heun", diffusers.HeunDiscreteScheduler)]
)
def test_every_call_keeps_pace_with_diffusers(name, cls):
    """Fed with their scheduler's trajectory, every state is theirs: an error of one step cannot hide in the others."""
    scheduler = cls(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="linspace")
    scheduler.set_timesteps(12)
    sigmas, times = choose(SD, "linspace", 12)
    x = start(sigmas[0])
    stepper = Stepper(SAMPLERS[name].run, x, sigmas)
    for t in scheduler.timesteps:
        assert times[stepper.sigma] == pytest.approx(t.item(), abs=1e-4)
        assert (stepper.x - x).abs().max() < 2e-6 * x.abs().max()  # a few roundings of float32
        out = network(scheduler.scale_model_input(x, t), t)
        stepper.step(x - stepper.sigma * out)
        x = scheduler.step(out, t, x).prev_sample
    assert stepper.done and (stepper.x - x).abs().max() < 5e-6 * x.abs().max()


def test_finished_steps_can_be_watched_and_the_loop_left():
    sigmas, _ = choose(SD, "karras", 5)
    stepper = Stepper(ode.euler, start(sigmas[0]), sigmas)
    assert (stepper.sigma, stepper.steps, stepper.done) == (sigmas[0], [], False)
    stepper.step(torch.zeros(SHAPE))
    assert [step.i for step in stepper.steps] == [0] and stepper.sigma == sigmas[1]
    assert torch.allclose(stepper.x, start(sigmas[0]) * (sigmas[1] / sigmas[0]))


def test_a_schedule_without_steps_is_done():
    stepper = Stepper(ode.euler, start(1.0), [1.0])
    assert stepper.done and torch.equal(stepper.x, start(1.0))
