"""Every `sample_*` function of k-diffusion in float64, with the same noise."""

import importlib.util
import sys
from functools import partial
from types import ModuleType

import pytest
import torch

from samplers import SAMPLERS, adams, multistep, ode, published, sde, singlestep
from support.numbers import denoise

SHAPE = (2, 4, 3, 3)
STEPS = (1, 2, 3, 7, 12, 20)


def k_sampling() -> ModuleType:
    """k_diffusion.sampling without the __init__ of its package, which would import a training stack."""
    package = ModuleType("k_diffusion")
    package.__path__ = importlib.util.find_spec("k_diffusion").submodule_search_locations
    sys.modules["k_diffusion"] = package
    try:
        return importlib.import_module("k_diffusion.sampling")
    finally:
        del sys.modules["k_diffusion"]


K = k_sampling()


@pytest.fixture(autouse=True)
def in_float64():
    """k-diffusion makes tensors of its numbers in the default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def model(x: torch.Tensor, sigmas: torch.Tensor, **_) -> torch.Tensor:
    return denoise(x, sigmas.flatten()[0].item())


def noise_from(seed: int):
    generator = torch.Generator().manual_seed(seed)
    return lambda sigma, lower: torch.randn(SHAPE, generator=generator)


def check(
    name: str,
    ours,
    steps: int,
    theirs_options: dict = {},
    takes_noise: bool = False,
    ends: bool = False,
    end: float = 0.0,
):
    """Compare final x; ends: of the functions that are given both ends instead of a schedule."""
    sigmas = torch.cat([K.get_sigmas_karras(steps, 0.03, 14.6)[:-1], torch.tensor([end])])
    x = 14.6 * torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    options = dict(disable=True) | theirs_options | (dict(noise_sampler=noise_from(2)) if takes_noise else {})
    function = getattr(K, f"sample_{name}")
    theirs = function(model, x, 0.03, 14.6, **options) if ends else function(model, x, sigmas, **options)
    for step in ours(denoise, x, sigmas.tolist(), *([noise_from(2)] if takes_noise else [])):
        y = step.x
    assert (y - theirs).abs().max() < 1e-10 * theirs.abs().max()


DETERMINISTIC = {
    "euler": ode.euler,
    "heun": ode.heun,
    "dpm_2": ode.dpm_2,
    "lms": adams.lms,
    "dpmpp_2m": partial(multistep.dpmpp_2m, short=0),
}
STOCHASTIC = {
    "euler_ancestral": sde.euler_ancestral,
    "dpm_2_ancestral": sde.dpm_2_ancestral,
    "dpmpp_2s_ancestral": sde.dpmpp_2s_ancestral,
    "dpmpp_sde": sde.dpmpp_sde,
    "dpmpp_2m_sde": multistep.dpmpp_2m_sde,
    "dpmpp_3m_sde": published.dpmpp_3m_sde,
}
CRASHES = ("dpmpp_2m_sde", "dpmpp_3m_sde")  # k-diffusion, on a schedule of one step


@pytest.mark.parametrize("end", [0.0, 0.02])
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_ode_sampler_equals_k_diffusion(name, steps, end):
    check(name, DETERMINISTIC[name], steps, end=end)


@pytest.mark.parametrize("eta, s_noise", [(0.0, 1.0), (0.5, 1.1), (1.0, 1.0)])
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("name", STOCHASTIC)
def test_sde_sampler_equals_k_diffusion(name, steps, eta, s_noise):
    options = dict(eta=eta, s_noise=s_noise)
    ours = partial(STOCHASTIC[name], **options)
    if name in CRASHES and steps == 1:
        with pytest.raises(UnboundLocalError):
            check(name, ours, steps, options, takes_noise=True)
        *_, last = ours(denoise, 14.6 * torch.ones(SHAPE), [14.6, 0.0], noise_from(2))
        assert last.x.isfinite().all()
    else:
        check(name, ours, steps, options, takes_noise=True)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_lms_of_every_order_equals_k_diffusion(order):
    check("lms", partial(adams.lms, order=order), 12, dict(order=order))


def test_heun_variant_and_other_middles_equal_k_diffusion():
    check("dpmpp_2m_sde", SAMPLERS["dpmpp_2m_sde_heun"].run, 12, dict(solver_type="heun"), takes_noise=True)
    check("dpmpp_sde", partial(sde.dpmpp_sde, r=0.3), 12, dict(r=0.3), takes_noise=True)


@pytest.mark.parametrize("name", ["euler", "heun", "dpm_2"])
def test_churn_equals_k_diffusion(name):
    """It draws from the global generator, in every step; so the range ends early and the draws before it agree."""
    churn = dict(s_churn=5.0, s_tmin=0.5, s_noise=1.003)
    drawn = lambda *_: torch.randn(SHAPE)
    sigmas = K.get_sigmas_karras(12, 0.03, 14.6)
    x = 14.6 * torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(3)
    theirs = getattr(K, f"sample_{name}")(model, x, sigmas, disable=True, **churn)
    torch.manual_seed(3)
    *_, last = getattr(ode, name)(denoise, x, sigmas.tolist(), drawn, **churn)
    assert (last.x - theirs).abs().max() < 1e-10 * theirs.abs().max()


@pytest.mark.parametrize("eta", [0.0, 0.7])
@pytest.mark.parametrize("evaluations", [3, 4, 5, 6, 7, 8, 20, 21])
def test_dpm_fast_equals_k_diffusion(evaluations, eta):
    options = dict(eta=eta, s_noise=1.1)
    check(
        "dpm_fast",
        partial(singlestep.dpm_fast, **options),
        evaluations,
        dict(n=evaluations) | options,
        takes_noise=eta > 0,
        ends=True,
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        dict(order=2),
        dict(eta=0.7, s_noise=1.1),
        dict(rtol=0.01, atol=0.001, h_init=1.0),
        dict(pcoeff=0.1, icoeff=0.8, dcoeff=0.05),
    ],
)
def test_dpm_adaptive_equals_k_diffusion(options):
    check(
        "dpm_adaptive", partial(singlestep.dpm_adaptive, **options), 5, options, takes_noise="eta" in options, ends=True
    )


def test_every_function_of_k_diffusion_is_compared():
    compared = {*DETERMINISTIC, *STOCHASTIC, "dpm_fast", "dpm_adaptive"}
    assert compared == {name.removeprefix("sample_") for name in dir(K) if name.startswith("sample_")}
