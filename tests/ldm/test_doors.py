"""Where text_to_image takes one's own: sampler, options, schedule, guidance, network, conditioning, what watches, and
numbers of any kind. On the small model that ships; every door is judged by the picture behind it."""

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

import weights
from ldm import tasks
from ldm.conditioning import Conditioning, Sizes, encode
from ldm.guidance import ClassifierFree, classifier_free, condition
from ldm.model import Model
from ldm.plan import plan
from samplers import SAMPLERS, Sampler, Step, cfg_pp, multistep, ode, published, sde
from samplers.options import options_of
from samplers.schedules import noise_table
from support.numbers import network, relative_l2

PROMPT = "a red apple"
SIGMAS = [14.0, 3.0, 0.6, 0.0]
SIZES = Sizes((32, 32), (32, 32))


@pytest.fixture(scope="module")
def model() -> Model:
    return weights.load(weights.MINIATURE)


def draw(model: Model, prompts=PROMPT, **options) -> Tensor:
    """Latents of three steps, 4 x 4 in size."""
    usual = {"steps": 3, "sampler": "euler", "seeds": 3, "height": 32, "width": 32, "decode": False}
    return tasks.text_to_image(model, prompts, **usual | options)


def refused(drawing: Callable[..., Tensor], kind: type[Exception], words: str, **options) -> None:
    """The error is of that kind, has one line and says those words."""
    with pytest.raises(kind) as error:
        drawing(**options)
    assert type(error.value) is kind
    assert words in str(error.value)
    assert len(str(error.value).splitlines()) == 1


@torch.no_grad()
def stand_in(x: Tensor, t: float, context: Tensor, vector: Tensor | None) -> Tensor:
    """In place of the UNet where only the sampler matters: quick, and it can tell prompts apart."""
    told = torch.tanh(context[:, 1:5, 0].sum(1))
    return network(x, t) + 0.3 * told[:, None, None, None]


@pytest.fixture(scope="module")
def quick(model) -> Callable[..., Tensor]:
    """`draw` with that network and what it needs of the prompts."""
    cond = encode(model, [PROMPT], SIZES)
    uncond = encode(model, [None], SIZES)
    return partial(draw, model, prompts=cond, negative=uncond, network=stand_in)


class Counted:
    """A network that keeps the size of every batch and the times that it was told."""

    def __init__(self, network: Callable[..., Tensor]):
        self.network = network
        self.batches: list[int] = []
        self.times: list[float] = []

    def __call__(self, x: Tensor, t: float, context: Tensor, vector: Tensor | None) -> Tensor:
        self.batches.append(len(x))
        self.times.append(float(t))
        return self.network(x, t, context, vector)


# sampler=


class OwnEuler:
    """A sampler that is an object."""

    def __call__(self, denoise, x, sigmas, noise):
        return own_euler(denoise, x, sigmas, noise)


def own_euler(denoise, x, sigmas, noise=None, *, overshoot=0.0):
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        slope = (x - x0) / sigma
        x = x + (1 + overshoot) * (sigma_next - sigma) * slope
        yield Step(i, sigma, x, x0)


def with_positional_option(denoise, x, sigmas, noise, overshoot=0.0):
    return own_euler(denoise, x, sigmas, noise, overshoot=overshoot)


def with_any_options(denoise, x, sigmas, noise, **options):
    return own_euler(denoise, x, sigmas, noise, **options)


@pytest.mark.parametrize(
    "sampler",
    [
        ode.euler,
        own_euler,
        OwnEuler(),
        partial(own_euler, overshoot=0.0),
        partial(ode.euler),
        lambda denoise, x, sigmas, noise: own_euler(denoise, x, sigmas),
        lambda *arguments: own_euler(*arguments),
        lambda denoise, x, sigmas, noise: list(own_euler(denoise, x, sigmas)),
        with_positional_option,
        with_any_options,
        SAMPLERS["euler"],
        Sampler(own_euler),
        "Euler",
        "EulerDiscreteScheduler",
        np.str_("euler"),
    ],
)
def test_a_sampler_may_be_any_function_of_the_convention(quick, sampler):
    assert torch.equal(quick(sampler=sampler), quick())


@pytest.mark.parametrize("name", SAMPLERS)
def test_functions_of_this_package_are_the_samplers_of_their_names(quick, name):
    """With the levels, the kind of noise and the meaning of guidance that the name has."""
    for schedule in ("trailing", "karras"):
        named = quick(sampler=name, schedule=schedule)
        assert torch.equal(quick(sampler=SAMPLERS[name].run, schedule=schedule), named)
        assert torch.equal(quick(sampler=SAMPLERS[name], schedule=schedule), named)


def test_partials_of_this_package_keep_the_habits_too(quick):
    half = quick(sampler="ddim", options={"eta": 0.5})
    assert torch.equal(quick(sampler=partial(sde.ddim, eta=0.5)), half)
    pp = quick(sampler="euler_cfg_pp", guidance=0.7)
    assert torch.equal(quick(sampler=cfg_pp.euler_cfg_pp, guidance=0.7), pp)


def test_published_faults_are_samplers(quick):
    """Without `short`, which keeps a run of fewer than 15 steps from the third order in its last steps."""
    right = quick(sampler="dpmpp_3m", schedule="karras", steps=6, options={"short": 0})
    convention = SAMPLERS["dpmpp_3m"].convention
    faulty = Sampler(published.dpmpp_3m, convention=convention)
    wrong = quick(sampler=faulty, schedule="karras", steps=6, options={"short": 0})
    assert relative_l2(wrong, right) > 1e-4
    options = {"second": published.halved_third(), "short": 0}
    assert torch.equal(wrong, quick(sampler="dpmpp_3m", schedule="karras", steps=6, options=options))
    targets = [*SIGMAS[1:-1], 0.0]
    strided = quick(sampler=published.ddim_strided, schedule=SIGMAS, options={"targets": targets})
    assert relative_l2(strided, quick(sampler=Sampler(sde.ddim), schedule=SIGMAS)) < 1e-5


def test_options_of_own_samplers(quick):
    far = quick(sampler=partial(own_euler, overshoot=0.1))
    assert relative_l2(far, quick()) > 1e-3
    for sampler in (own_euler, with_positional_option, with_any_options, Sampler(own_euler)):
        assert torch.equal(quick(sampler=sampler, options={"overshoot": 0.1}), far)
    assert torch.equal(quick(sampler=own_euler, options={"overshoot": np.float64(0.1)}), far)
    refused(quick, ValueError, "option 'eta': this sampler has no such option: choose one of overshoot",
            sampler=own_euler, options={"eta": 1})  # fmt: skip
    refused(quick, TypeError, "option overshoot='far': a number is expected",
            sampler=own_euler, options={"overshoot": "far"})  # fmt: skip


@pytest.mark.parametrize(
    "sampler, words",
    [
        (5, "sampler 5: give a name, or a function (denoise, x, sigmas, noise, **options)"),
        (["euler"], "sampler ['euler']: give a name"),
        (b"euler", "sampler b'euler': give a name"),
        (lambda denoise, x, sigmas: None, ": give a name, or a function (denoise, x, sigmas, noise"),
        (lambda denoise, x, sigmas, noise: None, "returned None: a generator of Steps is expected"),
        (lambda denoise, x, sigmas, noise: x, ": a generator of Steps is expected"),
        (lambda denoise, x, sigmas, noise: [x], ": a samplers.Step is expected"),
        (lambda denoise, x, sigmas, noise: [5], "yielded 5: a samplers.Step is expected"),
        (published.ddim_strided, "missing 1 required keyword-only argument: 'targets'"),
    ],
)
def test_what_is_no_sampler_is_refused(quick, sampler, words):
    refused(quick, TypeError, words, sampler=sampler)


def test_names_that_are_no_sampler_are_refused(quick, model):
    refused(quick, ValueError, "unknown sampler 'eular': choose one of euler", sampler="eular")
    refused(quick, ValueError, "unknown sampler '': choose one of", sampler="")
    with pytest.raises(TypeError, match="sampler 5: a name is expected"):
        tasks.defaults(model.facts, 5)


# options=


def every_option() -> list[tuple[str, str]]:
    return [(name, option) for name, sampler in SAMPLERS.items() for option in options_of(sampler.run)]


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_default_of_every_option_changes_nothing(quick, name):
    """One option at a time, and all together."""
    known = options_of(SAMPLERS[name].run)
    usual = quick(sampler=name, schedule="karras")
    for option, default in known.items():
        assert torch.equal(quick(sampler=name, schedule="karras", options={option: default}), usual), option
    assert torch.equal(quick(sampler=name, schedule="karras", options=known), usual)


CHANGES = [
    ("euler", {"s_churn": 1.0}),
    ("heun", {"s_churn": 1.0}),
    ("dpm_2", {"s_churn": 1}),
    ("heunpp2", {"s_churn": np.float32(1)}),
    ("euler", {"s_churn": float("inf")}),
    ("edm_stochastic", {"s_noise": 0.5}),
    ("edm_stochastic", {"s_tmin": 1.0}),
    ("edm_stochastic", {"s_tmax": 1.0}),
    ("edm_stochastic", {"s_churn": 0.0}),
    ("ddim", {"eta": 0.5}),
    ("euler_ancestral", {"eta": 0.5}),
    ("euler_ancestral", {"s_noise": 0.5}),
    ("dpm_2_ancestral", {"eta": 0}),
    ("dpmpp_2m_sde", {"eta": 0.5}),
    ("tcd", {"eta": 0.8}),
    ("dpm_fast", {"eta": 0.5}),
    ("dpm_adaptive", {"order": 2}),
    ("dpm_adaptive", {"rtol": 0.5}),
    ("lms", {"order": 1}),
    ("ipndm", {"order": np.int64(2)}),
    ("dpm_solver", {"order": 1}),
    ("er_sde", {"order": 1}),
    ("er_sde", {"scale": lambda sigma: sigma}),
    ("dpmpp_sde", {"r": 0.4}),
    ("seeds_2", {"r": 1}),
    ("seeds_3", {"r1": 0.25}),
    ("dpmpp_3m", {"short": 0.0}),
    ("dpmpp_3m_sde", {"short": float("inf")}),
    ("dpmpp_2m_sde", {"second": "exact"}),
    ("dpm_solver", {"second": lambda moments, h: moments}),
    ("uni_pc", {"variant": "bh1"}),
    ("uni_pc", {"end": 0.1}),
    ("sa_solver", {"tau": 0.0}),
    ("sa_solver", {"tau": np.float32(0.5)}),
    ("sa_solver", {"tau": lambda sigma: 0.5}),
    ("sa_solver_pece", {"pece": False}),
    ("gradient_estimation", {"gamma": 1.5}),
    ("gradient_estimation", {"gamma": -1}),
    ("restart", {"steps": 2, "times": 1}),
    ("plms", {"middles": [6.0]}),
]


@pytest.mark.parametrize("name, options", CHANGES)
def test_an_option_changes_the_picture(quick, name, options):
    usual = quick(sampler=name, schedule="karras", steps=4)
    assert relative_l2(quick(sampler=name, schedule="karras", steps=4, options=options), usual) > 1e-4


@pytest.mark.parametrize(
    "name, options, kind, words",
    [
        ("ddim", {"eta": -0.5}, ValueError, "option eta=-0.5: must be from 0 to"),
        ("ddim", {"eta": float("nan")}, ValueError, "option eta=nan: must be a finite number"),
        ("ddim", {"eta": float("inf")}, ValueError, "option eta=inf: must be a finite number"),
        ("ddim", {"eta": "0.5"}, TypeError, "option eta='0.5': a number is expected"),
        ("ddim", {"eta": None}, TypeError, "option eta=None: a number is expected"),
        ("ddim", {"eta": True}, TypeError, "option eta=True: a number is expected"),
        ("ddim", {"eta": [0.5]}, TypeError, "option eta=[0.5]: a number is expected"),
        ("ddim", {"eta": abs}, TypeError, "option eta=<built-in function abs>: a number is expected"),
        ("ddim", {"eta": np.zeros((9, 9))}, TypeError, "option eta=array([[0., 0., 0."),
        ("ddim", {"etta": 1}, ValueError, "option 'etta': this sampler has no such option: choose one of eta, s_noise"),
        ("ddim", {5: 1}, ValueError, "option 5: this sampler has no such option"),
        ("ddim", {"noise": None}, ValueError, "option 'noise': this sampler has no such option"),
        ("euler", {"eta": 1}, ValueError, "option 'eta': this sampler has no such option: choose one of s_churn,"),
        ("edm_stochastic", {"s_churn": "x"}, TypeError, "option s_churn='x': a number is expected"),
        ("res_multistep", {"eta": 1}, ValueError, "option 'eta': this sampler has no such option: it has none"),
        ("lms", {"order": 2.5}, TypeError, "option order=2.5: a whole number is expected"),
        ("lms", {"order": 0}, ValueError, "option order=0: must be from 1 to"),
        ("lms", {"order": 5}, ValueError, "order 5: choose 1 to 4"),
        ("lms", {"euler_at_zero": 1}, TypeError, "option euler_at_zero=1: True or False is expected"),
        ("dpmpp_sde", {"r": 0}, ValueError, "option r=0: must be from 1e-06 to 1"),
        ("dpmpp_sde", {"r": 1.5}, ValueError, "option r=1.5: must be from 1e-06 to 1"),
        ("uni_pc", {"variant": None}, TypeError, "option variant=None: a name or a function is expected"),
        ("uni_pc", {"variant": "bh3"}, ValueError, "unknown second moment 'bh3': choose one of exact"),
        ("sa_solver", {"tau": "x"}, TypeError, "option tau='x': a number or a function is expected"),
        ("sa_solver", {"tau": -1}, ValueError, "option tau=-1: must be from 0 to"),
        ("er_sde", {"scale": 5}, TypeError, "option scale=5: a function or None is expected"),
        ("restart", {"steps": "x"}, TypeError, "option steps='x': a whole number or None is expected"),
        ("plms", {"middles": 5}, TypeError, "option middles=5: a list is expected"),
        ("lcm", {"table": 5}, TypeError, "option table=5: NoiseTable or None is expected"),
        ("gradient_estimation", {"gamma": float("inf")}, ValueError, "option gamma=inf: must be a finite number"),
        ("ddim", "eta=0.5", TypeError, "options 'eta=0.5': names with values are expected, such as {'eta': 0.5}"),
        ("ddim", [("eta", 0.5)], TypeError, "options [('eta', 0.5)]: names with values are expected"),
        ("ddim", [], TypeError, "options []: names with values are expected"),
        ("ddim", 0, TypeError, "options 0: names with values are expected"),
    ],
)
def test_wrong_options_are_refused(quick, name, options, kind, words):
    refused(quick, kind, words, sampler=name, options=options)


# schedule=


def test_a_schedule_may_be_a_list_or_a_function(model):
    """What `steps` says has no part in a list. Of the same levels every form is the same run."""
    seen = []
    usual = draw(model, schedule=SIGMAS, watch=seen.append)
    assert [step.sigma for step in seen] == SIGMAS[:-1]
    forms = [
        tuple(SIGMAS),
        np.array(SIGMAS),
        torch.tensor(SIGMAS, dtype=torch.float64),
        [np.float64(s) for s in SIGMAS],
    ]
    forms += [[torch.tensor(s, dtype=torch.float64) for s in SIGMAS], (s for s in SIGMAS), lambda levels, steps: SIGMAS]
    forms += [lambda levels, steps: (s for s in SIGMAS), lambda *arguments: np.array(SIGMAS)]
    for form in forms:
        assert torch.equal(draw(model, schedule=form, steps=7), usual)
    assert torch.equal(draw(model, schedule=[14, 3, 0]), draw(model, schedule=[14.0, 3.0, 0.0]))


def test_a_function_is_told_the_levels_and_the_steps(model):
    """A schedule by name, repeated by hand: the same levels, but for the start, which is that of the name."""
    told = []

    def evenly(levels, steps):
        told.append(steps)
        return [levels.sigma_max * (1 - i / steps) for i in range(steps)] + [0.0]

    seen = []
    draw(model, schedule=evenly, steps=4, watch=seen.append)
    assert told == [4]
    assert [step.sigma for step in seen] == [noise_table().sigma_max * (1 - i / 4) for i in range(4)]


def test_a_list_may_end_above_zero(model):
    """The latents are those at unit variance."""
    seen = []
    found = draw(model, schedule=[14.0, 3.0, 0.5], watch=seen.append)
    assert torch.equal(found, seen[-1].x / (1 + 0.5**2) ** 0.5)


@pytest.mark.parametrize(
    "schedule, kind, words",
    [
        ("caras", ValueError, "unknown schedule 'caras': choose one of leading"),
        ("karras:caras", ValueError, "unknown schedule 'karras:caras'"),
        (5, TypeError, "schedule 5: give a name, a list of sigmas or a function (levels, steps)"),
        (torch.tensor(5.0), TypeError, "schedule tensor(5.): give a name"),
        (b"\x05\x01\x00", TypeError, r"schedule b'\x05\x01\x00': give a name"),
        (["14", "1", "0"], TypeError, "schedule ['14', '1', '0']: give a name"),
        ([14, None, 0], TypeError, "schedule [14, None, 0]: give a name"),
        ([True, False], TypeError, "schedule [True, False]: give a name"),
        ({14: 1, 0: 1}, TypeError, "schedule {14: 1, 0: 1}: give a name"),
        ({14, 0}, TypeError, "schedule {"),
        (np.zeros((30, 3)), TypeError, "schedule array([[0., 0., 0.]"),
        (torch.zeros(30, 3), TypeError, "schedule tensor([[0., 0., 0.]"),
        ([1, 14, 0], ValueError, "schedule [1.0, 14.0, 0.0]: noise levels must decrease"),
        ([14, 14, 0], ValueError, "schedule [14.0, 14.0, 0.0]: noise levels must decrease"),
        ([14, 1, -1], ValueError, "schedule [14.0, 1.0, -1.0]: noise levels must decrease in every step"),
        ([14, float("nan"), 0], ValueError, "schedule [14.0, nan, 0.0]: noise levels must decrease"),
        ([float("inf"), 1, 0], ValueError, "schedule [inf, 1.0, 0.0]: noise levels must decrease"),
        ([14], ValueError, "schedule [14.0]: noise levels must decrease"),
        ([], ValueError, "schedule []: noise levels must decrease"),
        (np.zeros(0), ValueError, "schedule []: noise levels must decrease"),
        (np.arange(1000.0), ValueError, "schedule [0.0, 1.0, 2.0,"),
        (lambda levels: SIGMAS, TypeError, ": a function of (levels, steps) is expected"),
        (lambda levels, steps: None, TypeError, " made None: give a name"),
        (lambda levels, steps: "karras", TypeError, " made 'karras': give a name"),
        (lambda levels, steps: [0, 1], ValueError, "schedule [0.0, 1.0]: noise levels must decrease"),
    ],
)
def test_wrong_schedules_are_refused(quick, schedule, kind, words):
    refused(quick, kind, words, schedule=schedule)


def test_errors_of_ones_own_functions_are_ones_own(model):
    """They are not taken for an argument of another kind."""

    def broken(*arguments):
        raise TypeError("mine")

    for options in ({"schedule": broken}, {"sampler": broken}, {"guidance": broken}, {"network": broken},
                    {"watch": broken}):  # fmt: skip
        with pytest.raises(TypeError, match="^mine$"):
            draw(model, **options)


@pytest.mark.parametrize("schedule", [None, "karras", "trailing", "karras:leading", "ays_sd15", "list", "function"])
def test_strength_leaves_the_last_steps(model, schedule):
    whole = plan(model, 20, "euler", "karras").sigmas
    own = {"list": whole, "function": lambda levels, steps: whole}.get(schedule, schedule)
    full = plan(model, 20, "euler", own)
    for strength, left in ((0.5, 10), (0.05, 1), (0.99, 19), (1.0, 20), (1, 20), (np.float32(0.5), 10)):
        run = plan(model, 20, "euler", own, strength=strength)
        assert run.sigmas == full.sigmas[20 - left :]
    for strength, words in (
        (0.04, "strength 0.04 of 20 steps: leaves none; choose at least 0.05"),
        (0, "strength 0: choose more than 0, to 1"),
        (-0.5, "strength -0.5: choose more than 0, to 1"),
        (1.5, "strength 1.5: choose more than 0, to 1"),
        (float("nan"), "strength nan: choose more than 0, to 1"),
        ("0.5", "strength '0.5': a number is expected"),
        (None, "strength None: a number is expected"),
        (False, "strength False: a number is expected"),
    ):
        with pytest.raises((ValueError, TypeError)) as error:
            plan(model, 20, "euler", own, strength=strength)
        assert str(error.value).startswith(words)


# guidance=


class OwnScale:
    def __call__(self, sigma: float) -> float:
        return 5.0


class OwnGuide:
    def __call__(self, network, cond, uncond):
        return classifier_free(network, cond, uncond, 5.0)


def with_defaults(sigma: float, low: float = 5.0, high: float = 5.0) -> float:
    return low if sigma < 3 else high


def own_guide(network, cond, uncond, scale=5.0):
    return classifier_free(network, cond, uncond, scale)


FIVES = [
    5,
    5.0,
    np.float32(5),
    np.int64(5),
    np.array(5.0),
    torch.tensor(5.0),
    torch.tensor(5),
    [5, 5, 5],
    (5.0, 5.0, 5.0),
    np.full(3, 5.0),
    torch.full((3,), 5.0),
    [torch.tensor(5.0)] * 3,
    (5 for _ in range(3)),
    lambda sigma: 5,
    lambda sigma: np.float32(5),
    lambda sigma: torch.tensor(5.0),
    lambda *arguments: 5.0,
    with_defaults,
    partial(with_defaults, high=5.0),
    OwnScale(),
    OwnScale().__call__,
    own_guide,
    partial(own_guide, scale=5.0),
    OwnGuide(),
    partial(ClassifierFree, scale=lambda sigma: 5.0),
    lambda network, cond, uncond: classifier_free(network, cond, uncond, np.float32(5)),
]


@pytest.mark.parametrize("guidance", FIVES)
def test_one_strength_in_every_form_is_one_picture(quick, guidance):
    assert torch.equal(quick(guidance=guidance), quick(guidance=5.0))


def test_guidance_is_its_formula(model):
    """One step, from two runs of the network: x0 = without + scale (given - without)."""
    given = draw(model, steps=1, guidance=1)
    without = draw(model, [None], steps=1, guidance=1)
    assert relative_l2(given, without) > 0.1
    assert relative_l2(draw(model, steps=1, guidance=3), without + 3 * (given - without)) < 1e-5


OFF = [1, 0, -2.5, 0.5, np.float32(1), torch.tensor(0.5), [1, 1, 1], [0, 1, 0.5], lambda sigma: 1, lambda sigma: 0]


@pytest.mark.parametrize("guidance", OFF)
def test_guidance_of_one_or_less_is_off(quick, guidance):
    """In every form; the half without a prompt is not run then."""
    counted = Counted(stand_in)
    assert torch.equal(quick(guidance=guidance, network=counted), quick(guidance=1.0))
    assert counted.batches == [1, 1, 1]


def test_only_guided_steps_run_both_halves(model):
    """One number per step, and the same as a function of sigma."""
    counted = Counted(model.unet)
    listed = draw(model, guidance=[1, 5, 0], schedule=SIGMAS, network=counted)
    assert counted.batches == [1, 2, 1]
    called = []

    def interval(sigma: float) -> float:
        called.append(sigma)
        return 5.0 if 1 < sigma < 10 else 1.0

    assert torch.equal(draw(model, guidance=interval, schedule=SIGMAS), listed)
    assert called == SIGMAS[:-1]
    assert relative_l2(listed, draw(model, guidance=5.0, schedule=SIGMAS)) > 1e-3


def test_second_evaluations_have_the_strength_of_their_level(quick):
    """Heun evaluates the network again at the end of a step, which is where the next one begins. Churn lifts a level
    into the step before."""
    counted = Counted(stand_in)
    quick(sampler="heun", schedule=SIGMAS, guidance=[5, 1, 5], network=counted)
    assert counted.batches == [2, 1, 1, 2, 2]  # 14, 3; 3, 0.6; 0.6
    counted = Counted(stand_in)
    churned = quick(sampler="heun", schedule=SIGMAS, guidance=[5, 1, 5], network=counted, options={"s_churn": 1})
    assert counted.batches == [2, 1, 2, 2, 1]  # 18.7, 3; 4, 0.6; 0.8
    assert churned.isfinite().all()
    called = []
    quick(sampler="heun", schedule=SIGMAS, guidance=lambda sigma: called.append(sigma) or 5.0)
    assert called == [14.0, 3.0, 3.0, 0.6, 0.6]


def test_a_function_makes_any_network(model):
    """Of the network, or of the wrapper in its place, and of both halves of the conditioning."""
    made = []

    def perp(network, cond, uncond):
        made.append((network, len(cond), len(uncond)))
        return condition(network, cond)

    counted = Counted(model.unet)
    found = draw(model, seeds=[1, 2], guidance=perp, network=counted)
    assert made == [(counted, 2, 2)]
    assert torch.equal(found, draw(model, seeds=[1, 2], guidance=1.0))
    assert torch.equal(draw(model, guidance=lambda network, cond, uncond: condition(network, uncond)),
                       draw(model, [None], guidance=1.0))  # fmt: skip


@pytest.mark.parametrize("name", [name for name, sampler in SAMPLERS.items() if "cfg_pp" in name])
def test_scales_of_cfg_pp_are_interpolations(quick, model, name):
    """0 to 1 and beyond; none of them is off."""
    at = {scale: quick(sampler=name, guidance=scale) for scale in (-0.2, 0.0, 0.7, 1.0)}
    values = list(at.values())
    assert all(relative_l2(a, b) > 1e-3 for k, a in enumerate(values) for b in values[:k])
    assert torch.equal(quick(sampler=name, guidance=[0.7, 0.7, 0.7]), at[0.7])
    assert torch.equal(quick(sampler=name, guidance=lambda sigma: -0.2), at[-0.2])
    assert torch.equal(quick(sampler=name), quick(sampler=name, guidance=model.facts.guidance / 12.5))
    counted = Counted(stand_in)
    quick(sampler=name, guidance=1.0, network=counted)
    looks_ahead = name == "dpmpp_2s_ancestral_cfg_pp"  # in the middle of a step, where one estimate is enough
    assert counted.batches == ([2, 1, 2, 1, 2] if looks_ahead else [2, 2, 2])


@pytest.mark.parametrize(
    "guidance, kind, words",
    [
        (float("nan"), ValueError, "guidance nan: must be a number that is finite"),
        (float("inf"), ValueError, "guidance inf: must be a number that is finite"),
        (torch.tensor(float("nan")), ValueError, "guidance nan: must be a number"),
        (True, TypeError, "guidance True: give a number, one number per step, a function of sigma"),
        (False, TypeError, "guidance False: give a number"),
        (torch.tensor(True), TypeError, "guidance True: give a number"),
        (1j, TypeError, "guidance 1j: give a number"),
        ("5", TypeError, "guidance '5': give a number"),
        ("555", TypeError, "guidance '555': give a number"),
        (b"abc", TypeError, "guidance b'abc': give a number"),
        (["5", "5", "5"], TypeError, "guidance ['5', '5', '5']: give a number"),
        ({5, 6, 7}, TypeError, "guidance {5, 6, 7}: give a number"),
        ({5: 1, 6: 1, 7: 1}, TypeError, "guidance {5: 1, 6: 1, 7: 1}: give a number"),
        ([5, None, 5], TypeError, "guidance [5, None, 5]: give a number"),
        ([5, "x", 5], TypeError, "guidance [5, 'x', 5]: give a number"),
        ([5, [5], 5], TypeError, "guidance [5, [5], 5]: give a number"),
        (np.zeros((3, 2)), TypeError, "guidance array([[0., 0.], [0., 0.], [0., 0.]]): give a number"),
        ([5, 5], ValueError, "guidance [5, 5]: 3 steps take as many numbers; give a number"),
        ([5], ValueError, "guidance [5]: 3 steps take as many numbers"),
        ([], ValueError, "guidance []: 3 steps take as many numbers"),
        ([5] * 4, ValueError, "guidance [5, 5, 5, 5]: 3 steps take as many numbers"),
        ([5, float("nan"), 5], ValueError, "guidance [5, nan, 5]: every number must be finite"),
        (lambda: 5, TypeError, ": give a number, one number per step, a function of sigma, or one of (network, cond"),
        (lambda a, b: 5, TypeError, ": give a number, one number per step"),
        (lambda a, b, c, d: 5, TypeError, ": give a number, one number per step"),
        (lambda sigma: None, TypeError, " gave None at sigma "),
        (lambda sigma: "5", TypeError, " gave '5' at sigma "),
        (lambda sigma: True, TypeError, " gave True at sigma "),
        (lambda sigma: float("nan"), ValueError, " gave nan at sigma "),
        (lambda *arguments: own_guide, TypeError, "a function that makes a network names its three arguments"),
        (lambda network, cond, uncond: None, TypeError, " made None: a network (x, t) -> output is expected"),
        (lambda network, cond, uncond: 5, TypeError, " made 5: a network (x, t) -> output is expected"),
    ],
)
def test_wrong_guidance_is_refused(quick, guidance, kind, words):
    refused(quick, kind, words, guidance=guidance)


def test_classifier_free_takes_numbers_of_any_kind(model):
    cond = encode(model, [PROMPT], SIZES)
    assert classifier_free(model.unet, cond, cond, np.float32(3)).scale(1.0) == 3.0
    assert classifier_free(model.unet, cond, cond, lambda sigma: 2 * sigma).scale(1.0) == 2.0
    for scale in ("3", None, True):
        with pytest.raises(TypeError, match="a number is expected"):
            classifier_free(model.unet, cond, cond, scale)


# network=


def test_a_network_runs_in_place_of_the_unet(model):
    counted = Counted(model.unet)
    assert torch.equal(draw(model, network=counted), draw(model))
    assert counted.batches == [2, 2, 2]
    assert len(set(counted.times)) == 3
    half = draw(model, network=lambda x, t, context, vector: 0.5 * model.unet(x, t, context, vector))
    assert relative_l2(half, draw(model)) > 1e-2


@pytest.mark.parametrize("network", [5, "unet", [], {}])
def test_what_is_no_network_is_refused(quick, network):
    refused(quick, TypeError, f"network {network!r}: a function (x, t, context, vector) -> output is expected",
            network=network)  # fmt: skip


# Conditioning


def test_conditioning_takes_the_place_of_prompts(model):
    """Of one picture for several or one each, for either half, mixed with texts."""
    texts = [PROMPT, "a pizza", "a blue bird"]
    seeds = [1, 2, 3]
    cond = encode(model, texts, SIZES)
    one = encode(model, [PROMPT], SIZES)
    blue = encode(model, ["blue"], SIZES)
    blues = encode(model, ["blue", "green", "red"], SIZES)
    assert torch.equal(draw(model, cond, seeds=seeds), draw(model, texts, seeds=seeds))
    assert torch.equal(draw(model, cond, seeds=1), draw(model, texts, seeds=1))
    assert relative_l2(draw(model, one, seeds=seeds), draw(model, PROMPT, seeds=seeds)) < 1e-5
    with_blue = draw(model, texts, seeds=seeds, negative="blue")
    assert torch.equal(draw(model, texts, seeds=seeds, negative=blue), with_blue)
    assert torch.equal(draw(model, cond, seeds=seeds, negative="blue"), with_blue)
    assert torch.equal(draw(model, cond, seeds=seeds, negative=blue), with_blue)
    each = draw(model, texts, seeds=seeds, negative=["blue", "green", "red"])
    assert torch.equal(draw(model, texts, seeds=seeds, negative=blues), each)
    assert relative_l2(each, with_blue) > 1e-3
    mean = Conditioning((one.context + blue.context) / 2)
    assert relative_l2(draw(model, mean), draw(model)) > 1e-2


def test_conditioning_that_does_not_fit_is_refused(quick, model):
    three = encode(model, ["a", "b", "c"], SIZES)
    refused(quick, ValueError, "2 seeds for 3 prompts: give one, or one each", prompts=three, seeds=[1, 2])
    refused(quick, ValueError, "3 negative prompts for 2 pictures: give one, or one each", negative=three, seeds=[1, 2])
    refused(quick, ValueError, "nothing to draw", prompts=Conditioning(three.context[:0]))
    refused(quick, TypeError, "prompts [Conditioning(context=tensor(", prompts=[three, three])
    refused(quick, ValueError, "Conditioning with context (77, 64): (b m d) and (b e) of the same b are expected",
            prompts=Conditioning(torch.zeros(77, 64)))  # fmt: skip
    refused(quick, ValueError, "Conditioning with context (3, 77, 64) and vector (2, 8): (b m d) and (b e)",
            prompts=Conditioning(torch.zeros(3, 77, 64), torch.zeros(2, 8)))  # fmt: skip


# watch=


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_watched_run_is_the_same_run(quick, model, name):
    """Whatever `watch` returns, if it is the picture that was there. Steps that are kept stay as they were, and the
    caller's noise too."""
    noise = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    kept_noise = noise.clone()
    kept: list[Step] = []
    copies: list[tuple[Tensor, Tensor]] = []

    def keep(step: Step) -> None:
        kept.append(step)
        copies.append((step.x.clone(), step.x0.clone()))

    usual = quick(sampler=name, noise=noise, watch=keep)
    assert torch.equal(usual, quick(sampler=name, noise=noise))
    assert all(torch.equal(step.x, x) and torch.equal(step.x0, x0) for step, (x, x0) in zip(kept, copies, strict=True))
    assert torch.equal(kept[-1].x / (1 + end_of(model, name) ** 2) ** 0.5, usual)
    for watch in (lambda step: step.x, lambda step: step.x.clone(), lambda step: step.x.double(), lambda step: True):
        assert torch.equal(quick(sampler=name, noise=noise, watch=watch), usual)
    assert torch.equal(noise, kept_noise)


def end_of(model: Model, name: str) -> float:
    return plan(model, 3, name).sigmas[-1]


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_goes_on_from_a_picture_that_is_put_in_place(quick, model, name):
    """In every step but the last it changes the end; in the last it is the end. What the caller kept of earlier steps
    stays, and so does x0 of this one."""
    count = []
    usual = quick(sampler=name, watch=lambda step: count.append(step.i))
    for i in range(len(count)):
        kept: list[tuple[Tensor, Tensor]] = []

        def replace(step: Step, i: int = i, kept: list = kept) -> Tensor | None:
            kept.append((step.x, step.x.clone()))
            kept.append((step.x0, step.x0.clone()))
            if step.i == i:
                kept.pop(-2)
                return torch.full_like(step.x, 0.25)
            return None

        ended = quick(sampler=name, watch=replace)
        assert relative_l2(ended, usual) > 1e-4
        assert all(torch.equal(tensor, copy) for tensor, copy in kept)
    assert torch.equal(ended, torch.full_like(ended, 0.25) / (1 + end_of(model, name) ** 2) ** 0.5)


def test_the_rest_of_a_run_is_a_run_from_there(model):
    """euler has no memory: from zeros at the second level it is the run that starts there."""
    zeros = draw(model, schedule=SIGMAS, watch=lambda step: torch.zeros_like(step.x) if step.i == 0 else None)
    rest = draw(model, schedule=SIGMAS[1:], noise=torch.zeros(1, 4, 4, 4))
    assert torch.equal(zeros, rest)


def test_views_of_the_picture_may_be_put_in_place(model):
    """Of the same memory in another order."""
    flipped = draw(model, schedule=SIGMAS, watch=lambda step: step.x.transpose(2, 3) if step.i == 0 else None)
    copied = draw(model, schedule=SIGMAS, watch=lambda step: step.x.transpose(2, 3).clone() if step.i == 0 else None)
    assert torch.equal(flipped, copied)
    assert relative_l2(flipped, draw(model, schedule=SIGMAS)) > 1e-3


@pytest.mark.parametrize(
    "watch, words",
    [
        (5, "watch 5: a function of a Step is expected"),
        (0, "watch 0: a function of a Step is expected"),
        ("x", "watch 'x': a function of a Step is expected"),
        (lambda step: 5, "watch returned a value of type int: None or a tensor of floats (1, 4, 4, 4) is expected"),
        (lambda step: [step.x], "watch returned a value of type list: None or a tensor of floats"),
        (lambda step: step.x.numpy(), "watch returned a value of type ndarray: None or a tensor of floats"),
        (lambda step: step.x[0], "watch returned a value of torch.float32, shape (4, 4, 4): None or a tensor"),
        (lambda step: step.x[:, :1], "watch returned a value of torch.float32, shape (1, 1, 4, 4): None or a tensor"),
        (lambda step: step.x.int(), "watch returned a value of torch.int32, shape (1, 4, 4, 4): None or a tensor"),
        (lambda step: step.x.to(torch.complex64), "watch returned a value of torch.complex64, shape (1, 4, 4, 4)"),
    ],
)
def test_what_cannot_be_put_in_place_is_refused(quick, watch, words):
    refused(quick, TypeError, words, watch=watch)


# Numbers


THREES = [3, np.int64(3), np.uint8(3), np.array(3), np.array([3]), torch.tensor(3), torch.tensor([3]), [3], (3,)]
THREES += [range(3, 4), iter([3]), (3 for _ in range(1)), [torch.tensor(3)], [np.int32(3)]]


@pytest.mark.parametrize("seeds", THREES)
def test_seeds_may_be_whole_numbers_of_any_kind(quick, seeds):
    assert torch.equal(quick(seeds=seeds), quick(seeds=[3]))


@pytest.mark.parametrize("seeds", [np.array([3, 5, 4]), torch.tensor([3, 5, 4]), (3, 5, 4), iter([3, 5, 4])])
def test_several_seeds_draw_several_pictures(quick, seeds):
    several = quick(seeds=seeds)
    for k, seed in enumerate((3, 5, 4)):
        assert relative_l2(several[k : k + 1], quick(seeds=seed)) < 1e-5


def test_the_largest_seed_is_a_seed(model):
    assert draw(model, seeds=2**64 - 1).isfinite().all()
    assert not torch.equal(draw(model, seeds=2**64 - 1), draw(model, seeds=2**64 - 2))


@pytest.mark.parametrize(
    "seeds, kind, words",
    [
        (None, TypeError, "seeds None: a whole number is expected"),
        (1.0, TypeError, "seeds 1.0: a whole number is expected"),
        ("12", TypeError, "seeds '12': a whole number is expected"),
        (b"ab", TypeError, "seeds b'ab': a whole number is expected"),
        ({1, 2}, TypeError, "seeds {1, 2}: a whole number is expected"),
        ({1: 2}, TypeError, "seeds {1: 2}: a whole number is expected"),
        ([1, None], TypeError, "seeds None: a whole number is expected"),
        ([[1]], TypeError, "seeds [1]: a whole number is expected"),
        (torch.tensor(1.5), TypeError, "seeds tensor(1.5000): a whole number is expected"),
        (np.array([1.0]), TypeError, "seeds np.float64(1.0): a whole number is expected"),
        (np.zeros((2, 2, 2), int), TypeError, "seeds array([[0, 0], [0, 0]]): a whole number is expected"),
        (-1, ValueError, "seed -1: must be between 0 and 18446744073709551615"),
        (2**64, ValueError, "seed 18446744073709551616: must be between 0 and"),
        ([], ValueError, "nothing to draw: give at least one prompt and one seed"),
    ],
)
def test_wrong_seeds_are_refused(quick, seeds, kind, words):
    refused(quick, kind, words, seeds=seeds)


def test_seeds_that_count_beyond_the_largest_are_refused(quick):
    refused(quick, ValueError, "seed 18446744073709551616: must be between", prompts=[PROMPT, PROMPT], seeds=2**64 - 1)


@pytest.mark.parametrize("make", [int, np.int64, np.uint16, torch.tensor, np.array])
def test_sizes_and_steps_may_be_whole_numbers_of_any_kind(quick, make):
    found = quick(height=make(32), width=make(48), steps=make(2))
    assert found.shape == (1, 4, 4, 6)
    assert torch.equal(found, quick(height=32, width=48, steps=2))


@pytest.mark.parametrize("name", ["height", "width", "steps"])
@pytest.mark.parametrize("value", [32.0, "32", [32], np.float64(32), torch.tensor(32.0), 32j, (32, 32)])
def test_what_is_no_whole_number_is_refused(quick, name, value):
    refused(quick, TypeError, f"{name} {value!r}: a whole number is expected", **{name: value})


@pytest.mark.parametrize(
    "change, words",
    [
        ({"height": 33}, "height 33: must be a positive multiple of 8, for example 32"),
        ({"width": 0}, "width 0: must be a positive multiple of 8, for example 8"),
        ({"width": 10**9}, "width 1000000000: must be a positive multiple of 8, for example 32768"),
        ({"steps": 0}, "0 steps: choose 1 to 1000"),
        ({"steps": 1001}, "1001 steps: choose 1 to 1000"),
        ({"steps": -1, "schedule": "karras"}, "-1 steps: choose 1 to 1000"),
    ],
)
def test_numbers_out_of_range_are_refused(quick, change, words):
    refused(quick, ValueError, words, **change)


# The rest


def test_prompts_may_come_in_any_order_that_is_one(model):
    texts = [PROMPT, "a pizza"]
    usual = draw(model, texts)
    for prompts in (tuple(texts), iter(texts), (text for text in texts), np.array(texts)):
        assert torch.equal(draw(model, prompts), usual)
    assert torch.equal(draw(model, np.str_(PROMPT)), draw(model))
    assert torch.equal(draw(model, [None]), draw(model, ""))


@pytest.mark.parametrize("name", ["prompts", "negative"])
@pytest.mark.parametrize("value", [5, b"fox", ["a", 5], {"a"}, {"a": 1}, 5.0, [["a"]], object])
def test_what_is_no_text_is_refused(quick, name, value):
    refused(quick, TypeError, f"{name} {value!r}: give a text, several, or a Conditioning", **{name: value})


def test_no_prompt_is_a_choice_and_no_argument_a_slip(quick, model):
    refused(quick, TypeError, "prompts None: give a text, several, or a Conditioning", prompts=None)
    refused(quick, ValueError, "nothing to draw", prompts=[])
    refused(quick, ValueError, "0 negative prompts for 1 pictures", negative=[])
    assert torch.equal(draw(model, negative=None), draw(model, negative=[None]))


@pytest.mark.parametrize(
    "noise, kind, words",
    [
        (np.zeros((1, 4, 4, 4), np.float32), TypeError, "noise of type ndarray: a tensor of floats (1, 4"),
        ([0.0], TypeError, "noise of type list: a tensor of floats (1, 4, 4, 4) is expected"),
        (5, TypeError, "noise of type int: a tensor of floats"),
        (torch.zeros(1, 4, 4, 4, dtype=torch.int64), TypeError, "noise of torch.int64, shape (1, 4, 4, 4): a"),
        (torch.zeros(1, 4, 4, 4, dtype=torch.bool), TypeError, "noise of torch.bool, shape (1, 4, 4, 4): a tensor"),
        (torch.zeros(1, 4, 4, 4, dtype=torch.complex64), TypeError, "noise of torch.complex64, shape (1, 4, 4, 4)"),
        (torch.zeros(4, 4, 4), ValueError, "noise of torch.float32, shape (4, 4, 4): these pictures need (1, 4, 4, 4)"),
        (torch.zeros(2, 4, 4, 4), ValueError, "shape (2, 4, 4, 4): these pictures need (1, 4, 4, 4)"),
        (torch.zeros(1, 4, 8, 8), ValueError, "shape (1, 4, 8, 8): these pictures need (1, 4, 4, 4)"),
    ],
)  # fmt: skip
def test_wrong_noise_is_refused(quick, noise, kind, words):
    refused(quick, kind, words, noise=noise)


@pytest.mark.parametrize("name", ["sizes", "negative_sizes"])
@pytest.mark.parametrize(
    "value", [5, (64, 64), "x", Sizes((64,), (64, 64)), Sizes((64, 64), "ab"), Sizes((64, 64), (6.5, 1))]
)
def test_wrong_sizes_are_refused(quick, name, value):
    """Also where the model has no use for them."""
    refused(quick, TypeError, f"{name} {value!r}: Sizes(original=(height, width), target=(height, width), crop=",
            **{name: value})  # fmt: skip


@pytest.mark.parametrize("wrong", [None, 5, "weights/miniature", weights, weights.MINIATURE])
def test_what_is_no_model_is_refused(wrong):
    refused(
        partial(draw, wrong), TypeError, f"model {wrong!r}: a Model is expected, such as weights.load(source) gives"
    )


def test_the_unet_alone_is_no_model(model):
    refused(partial(draw, model.unet), TypeError, "model UNet( (time_embedding)")


def test_doors_open_together(model):
    """All of one's own at once, against the names that they stand for."""
    seen = []
    found = tasks.text_to_image(
        model,
        encode(model, [PROMPT, "a pizza"], SIZES),
        negative=encode(model, ["blue"], SIZES),
        height=np.int64(32),
        width=torch.tensor(32),
        guidance=lambda sigma: 4.0,
        sampler=multistep.dpmpp_2m,
        schedule=lambda levels, steps: plan(model, steps, "dpmpp_2m", "karras").sigmas,
        options={"short": 0},
        steps=np.int32(4),
        seeds=np.array([8, 9]),
        network=Counted(model.unet),
        watch=seen.append,
        decode=False,
    )
    usual = {"sampler": "dpmpp_2m", "schedule": "karras", "options": {"short": 0}, "guidance": 4.0}
    expected = draw(model, [PROMPT, "a pizza"], negative="blue", steps=4, seeds=[8, 9], **usual)
    assert relative_l2(found, expected) < 1e-5
    assert len(seen) == 4
