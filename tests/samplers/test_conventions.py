"""The convention of all samplers: sampler(denoise, x, sigmas, noise, **options) yields Steps and leaves what it was
given as it was."""

from inspect import Parameter, signature

import pytest
import torch
from torch import Tensor

from samplers import SAMPLERS, Step, published
from samplers.noise import Streams
from samplers.options import options_of
from samplers.published import diffusers
from samplers.schedules import noise_table
from support.numbers import TwoEstimates, denoise, relative_error, unit_noise

SIGMAS = (14.0, 6.0, 2.5, 1.0, 0.3, 0.05, 0.0)
LEGS = [(14.0, 6.0), *zip(SIGMAS, SIGMAS[1:])]
FAULTS = {  # samplers of samplers.published, and the options that they must be given
    "res_multistep_ancestral": {},
    "dpmpp_2m_cfg_pp": {},
    "dpmpp_3m": {},
    "dpmpp_3m_sde": {},
    "ddim_strided": {"targets": SIGMAS[1:]},
    "plms_strided": {"legs": LEGS},
}
NEVER_DRAW = (  # whatever their options are
    "lms ipndm ipndm_v plms gradient_estimation deis dpmpp_2m res_multistep uni_pc uni_pc_bh2 dpmpp_2m_cfg_pp".split()
)
OWN_LEVELS = ("restart", "dpm_fast", "dpm_adaptive")  # their steps are not those between the sigmas
SLOPES = "lms ipndm ipndm_v plms gradient_estimation dpm_solver deis heunpp2 dpm_fast dpm_adaptive restart".split()


def every_sampler() -> dict[str, tuple]:
    """name -> (function, the options that it needs)."""
    found = {name: (sampler.run, {}) for name, sampler in SAMPLERS.items()}
    return found | {f"published.{name}": (getattr(published, name), needed) for name, needed in FAULTS.items()}


EVERY = every_sampler()


def noise_of(name: str, x: Tensor) -> Streams | object:
    """A source of noise as the sampler's entry has it."""
    streams = Streams(range(len(x)), x.shape[1:])
    return SAMPLERS[name].noise(streams, list(SIGMAS)) if name in SAMPLERS else streams


def run(name: str, x: Tensor, sigmas=SIGMAS, denoise=denoise, **options) -> list[Step]:
    sampler, needed = EVERY[name]
    return list(sampler(denoise, x, sigmas, noise_of(name, x), **needed | options))


def test_all_samplers_of_the_faults_are_known_here():
    """A function of samplers.published is a sampler if its first argument is a denoiser."""
    first = {name: next(iter(signature(getattr(published, name)).parameters)) for name in published.__all__}
    assert {name for name, argument in first.items() if argument == "denoise"} == FAULTS.keys()


@pytest.mark.parametrize("name", EVERY)
def test_signature(name):
    """Four arguments, of which the noise may be left out; all options by name, with a type and a default."""
    sampler, needed = EVERY[name]
    first, *rest = signature(sampler).parameters.values()
    assert [first.name, *(p.name for p in rest[:3])] == ["denoise", "x", "sigmas", "noise"]
    assert rest[2].default is None
    for parameter in rest[3:]:
        assert parameter.kind in (Parameter.KEYWORD_ONLY, Parameter.VAR_KEYWORD)
        assert parameter.annotation is not Parameter.empty
    without_default = [option for option, default in options_of(sampler).items() if default is Parameter.empty]
    assert without_default == list(needed)


@pytest.mark.parametrize("name", EVERY)
def test_steps_are_counted_and_of_one_kind(name):
    """i counts from 0, sigma is the level that a step left, x and x0 are pictures like the start; no two of the tensors
    share memory, so that a caller may keep them all and change any."""
    x = unit_noise() * SIGMAS[0]
    steps = run(name, x)
    assert all(isinstance(step, Step) for step in steps)
    assert [step.i for step in steps] == list(range(len(steps)))
    if name not in OWN_LEVELS:
        assert len(steps) == len(SIGMAS) - 1
        if name != "edm_stochastic":  # which raises the level of each step
            assert [step.sigma for step in steps] == list(SIGMAS[:-1])
    tensors = [x, *(step.x for step in steps), *(step.x0 for step in steps)]
    assert all(tensor.shape == x.shape and tensor.dtype == x.dtype for tensor in tensors)
    assert all(tensor.isfinite().all() for tensor in tensors)
    assert len({tensor.data_ptr() for tensor in tensors}) == len(tensors)


@pytest.mark.parametrize("name", EVERY)
def test_what_is_given_stays(name):
    """The start, and the list of levels; a list and a tuple of the same levels are the same run."""
    x = unit_noise() * SIGMAS[0]
    kept = x.clone()
    levels = list(SIGMAS)
    from_list = run(name, x, levels)
    assert torch.equal(x, kept)
    assert levels == list(SIGMAS)
    assert torch.equal(from_list[-1].x, run(name, x)[-1].x)


@pytest.mark.parametrize("name", EVERY)
def test_float64_stays(name):
    """And its numbers are those of float32 to rounding. Noise is drawn in float32, and is the same for both."""
    x = unit_noise() * SIGMAS[0]
    exact = run(name, x.double())
    assert {step.x.dtype for step in exact} == {step.x0.dtype for step in exact} == {torch.float64}
    if name != "dpm_adaptive":  # whose steps may depend on rounding
        assert relative_error(run(name, x)[-1].x.double(), exact[-1].x) < 1e-4


@pytest.mark.parametrize("name", EVERY)
def test_noise_may_be_left_out_where_none_is_drawn(name):
    """Else its absence is said in one line."""
    sampler, needed = EVERY[name]
    x = unit_noise() * SIGMAS[0]
    drawn = []

    def noise(sigma: float, sigma_next: float) -> Tensor:
        drawn.append(sigma)
        return torch.zeros_like(x)

    list(sampler(denoise, x, SIGMAS, noise, **needed))
    if not drawn:
        assert list(sampler(denoise, x, SIGMAS, **needed))
        return
    assert name.startswith("published.") or SAMPLERS[name].stochastic
    with pytest.raises(ValueError, match="^noise is asked for and none was given: .*$") as error:
        list(sampler(denoise, x, SIGMAS, **needed))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", NEVER_DRAW)
def test_samplers_that_never_draw_have_no_option_to(name):
    assert not {"eta", "tau", "s_noise", "s_churn"} & options_of(EVERY[name][0]).keys()


@pytest.mark.parametrize("name", [name for name in EVERY if name != "lcm"])  # it keeps x0 alone, and adds new noise
def test_a_sampler_goes_on_from_what_the_caller_writes(name):
    """With a clean estimate that depends on nothing the rest of the run is known: from y at level sigma the ODE leads
    to x0 + sigma_end / sigma (y - x0). Samplers of slopes remember those of the path before y, and samplers of noise
    renew a part of y, so of them it is asked only that y matters. Levels end above 0, where all would become x0."""
    sigmas = SIGMAS[:-1]
    sampler, needed = EVERY[name]
    needed = dict(needed)
    if "targets" in needed or "legs" in needed:
        needed = {"targets": sigmas[1:]} if "targets" in needed else {"legs": LEGS[:-1]}
    x = unit_noise(torch.float64) * sigmas[0]
    clean = torch.full_like(x, 0.3)
    source = Streams(range(len(x)), x.shape[1:])

    def constant(x: Tensor, sigma: float) -> Tensor:
        return clean.clone()

    def end(replaced: int | None, y: Tensor | None = None) -> Tensor:
        noise = Streams(source.seeds, source.shape)
        for step in sampler(constant, x, sigmas, noise, **needed):
            if step.i == replaced and y is not None:
                step.x.copy_(y)
        return step.x

    count = len(list(sampler(constant, x, sigmas, source, **needed)))
    untouched = end(None)
    for i in range(count - 1):
        y = torch.linspace(-3, 3, x.numel(), dtype=x.dtype).view_as(x)
        replaced = end(i, y)
        assert relative_error(replaced, untouched) > 1e-6, i
        draws = name in SAMPLERS and SAMPLERS[name].stochastic or name.endswith(("ancestral", "_sde", "_strided"))
        if name not in SLOPES and not draws and not name.endswith("cfg_pp"):
            expected = clean + sigmas[-1] / sigmas[i + 1] * (y - clean)
            assert relative_error(replaced, expected) < 1e-12, i


@pytest.mark.parametrize("name", [name for name in EVERY if name.endswith("cfg_pp")])
def test_two_estimates_make_a_difference(name):
    x = unit_noise() * SIGMAS[0]
    both = run(name, x, denoise=TwoEstimates(denoise, 0.5))[-1].x
    assert relative_error(both, run(name, x)[-1].x) > 1e-2


def test_strided_targets_and_legs_are_what_samplers_take():
    """The lists that published.diffusers makes fit the samplers of this file."""
    table = noise_table()
    times = [801.0, 401.0, 1.0]
    sigmas = [*(table.sigma(t) for t in times), 0.0]
    x = unit_noise() * sigmas[0]
    ddim = published.ddim_strided(denoise, x, sigmas, targets=diffusers.strided_targets(table, times, 0.0))
    plms = published.plms_strided(denoise, x, sigmas, legs=diffusers.strided_legs(table, times, 0.0))
    assert [step.i for step in ddim] == [step.i for step in plms] == [0, 1, 2]
