"""A plan: which noise levels a run visits, with which sampler. It is made before anything is drawn."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import wraps
from math import inf
from operator import index
from typing import Any, TypedDict

from torch import Tensor

from samplers import SAMPLERS, Sampler, find
from samplers.basics import EDM, Denoise, Levels
from samplers.options import check_options, has_room_for, options_of, show
from samplers.schedules.cut import check_strength, start_at_strength
from samplers.schedules.levels import Choice, choose, noise_table, start_std
from samplers.step import Noise, Step

from .config import ModelConfig, NoiseConfig
from .model import Model

SamplerChoice = str | Sampler | Callable[..., Any]  # a name, or (denoise, x, sigmas, noise, **options) -> Steps
Options = Mapping[str, Any]  # of a sampler: name -> value


@dataclass(frozen=True)
class Plan:
    """levels: the noise levels that the network was trained with. sigmas: those that the run visits, decreasing, with
    its end. times: sigma -> the time that the network is told, for each but the end. sampler, options: what goes from
    level to level. start_std: the standard deviation of the noise that the run begins with. guidance: the model's usual
    scale in the units of this sampler."""

    levels: Levels
    sigmas: list[float]
    times: Mapping[float, float]
    sampler: Sampler
    options: Options
    start_std: float
    guidance: float


def plan(
    model: Model, steps: int | None = None, sampler: SamplerChoice | None = None, schedule: Choice | None = None,
    options: Options | None = None, strength: float = 1.0,
) -> Plan:  # fmt: skip
    """The plan of a run; help(ldm.tasks) describes the arguments. strength: below 1 only the last steps of the run.
    Raises ValueError or TypeError, which name the argument, for what does not fit."""
    facts = model.facts
    chosen = find_sampler(facts.sampler if sampler is None else sampler)
    schedule = chosen.schedule or facts.schedule if schedule is None else schedule
    count = facts.steps if steps is None else as_int("steps", steps)
    levels = noise_levels(facts.noise)
    sigmas, times = choose(levels, schedule, count, chosen.convention, facts.offset)
    start = start_std(sigmas[0], schedule, chosen.convention)
    sigmas = sigmas if strength == 1 else start_at_strength(sigmas, strength)
    if options is not None:
        check_options(chosen.run, options)
    return Plan(levels, sigmas, times, chosen, options or {}, start, facts.guidance / chosen.guidance.divisor)


def plan_part(
    model: Model, steps: int | None, sampler: SamplerChoice | None, schedule: Choice | None, options: Options | None,
    strength: float, rule: str = "diffusers",
) -> Plan:  # fmt: skip
    """The plan of a run that begins from a picture: the last steps of a whole one.

    strength: the share of the noise that is added to the picture. rule: how many steps that leaves of `steps` N, one of
    RULES. "diffusers" takes the last int(N strength); "exact" is A1111's option to do N steps, the last of
    int(N / strength), and "comfyui" the like with ComfyUI's count; "a1111" is its usual count, one step more than
    diffusers. Raises ValueError or TypeError, which name the argument, for what does not fit.
    """
    check_strength(strength)
    if rule not in RULES:
        raise ValueError(f"rule {rule!r}: choose one of {', '.join(RULES)}")
    if rule == "diffusers":
        whole = plan(model, steps, sampler, schedule, options)
        return part(whole, start_at_strength(whole.sigmas, strength))
    if schedule is not None and not isinstance(schedule, str):
        raise ValueError(f"rule {rule!r} chooses the steps itself: give the schedule by name, or the rule diffusers")
    count = model.facts.steps if steps is None else as_int("steps", steps)
    total = count
    kept = count
    if rule == "a1111":
        kept = min(int(min(strength, 0.999) * count) + 1, count)
    elif rule == "exact":
        total = max(int(count / min(strength, 0.999)), count)
    else:
        total = count if strength > 0.9999 else int(count / strength)
    whole = plan(model, total, sampler, schedule, options)
    return part(whole, whole.sigmas[-(kept + 1) :])


def part(whole: Plan, sigmas: list[float]) -> Plan:
    """The plan of some steps of a run, which are those that they are in the whole: samplers that end short runs in
    lower orders (their option `short`) do so if the whole is short and these steps are its last."""
    known = options_of(whole.sampler.run)
    if "short" not in known:
        return replace(whole, sigmas=sigmas)
    short = whole.options.get("short", known["short"])
    ends_short_run = sigmas[-1] == whole.sigmas[-1] and len(whole.sigmas) - 1 < short
    return replace(whole, sigmas=sigmas, options={**whole.options, "short": inf if ends_short_run else 0})


RULES = ("diffusers", "a1111", "exact", "comfyui")


def find_sampler(sampler: SamplerChoice) -> Sampler:
    """A sampler by its name, or a function as one."""
    if isinstance(sampler, str):
        return SAMPLERS[sampler if sampler in SAMPLERS else find(sampler)]
    return as_sampler(sampler)


def as_sampler(sampler: Sampler | Callable[..., Any]) -> Sampler:
    """The function as a Sampler. A function of this package, or a partial of one, keeps the habits of its publisher.
    Raises TypeError, which names the argument, for what cannot be called as a sampler."""
    if isinstance(sampler, Sampler):
        return sampler
    if not callable(sampler) or not has_room_for(sampler, 4):
        raise TypeError(f"sampler {show(sampler)}: give a name, or a function (denoise, x, sigmas, noise, **options)")
    # A partial holds the function that it completes in `func`.
    for function in (sampler, getattr(sampler, "func", None)):
        for known in SAMPLERS.values():
            if known.run is function:
                return replace(known, run=sampler)
    return Sampler(with_checked_steps(sampler))


def with_checked_steps(sampler: Callable[..., Any]) -> Callable[..., Iterator[Step]]:
    """The same sampler, checked as it runs: it raises TypeError, which names the sampler, if it yields no Steps."""

    @wraps(sampler)
    def run(denoise: Denoise, x: Tensor, sigmas: list[float], noise: Noise, **options: Any) -> Iterator[Step]:
        steps = sampler(denoise, x, sigmas, noise, **options)
        if not isinstance(steps, Iterable) or isinstance(steps, Tensor):
            raise TypeError(f"sampler {show(sampler)} returned {show(steps)}: a generator of Steps is expected")
        for step in steps:
            if not isinstance(getattr(step, "x", None), Tensor):
                raise TypeError(f"sampler {show(sampler)} yielded {show(step)}: a samplers.Step is expected")
            yield step

    return run


def noise_levels(noise: NoiseConfig) -> Levels:
    """The noise levels of a network's training."""
    if noise.edm:
        return EDM(noise.sigma_min, noise.sigma_max, noise.sigma_data)
    return noise_table(noise.beta_start, noise.beta_end, noise.beta_law, noise.trained, noise.zero_snr, noise.precision)


class Defaults(TypedDict):
    """What a task takes for each argument that is None."""

    sampler: str
    schedule: str
    steps: int
    guidance: float
    height: int
    width: int


def defaults(facts: ModelConfig, sampler: str | None = None) -> Defaults:
    """What text_to_image takes for each argument that is None, if it is called with this sampler. The schedule is the
    sampler's, if it is made for one, else the model's. Raises ValueError for an unknown sampler."""
    name = find(sampler or facts.sampler)
    chosen = SAMPLERS[name]
    return Defaults(
        sampler=name,
        schedule=chosen.schedule or facts.schedule,
        steps=facts.steps,
        guidance=facts.guidance / chosen.guidance.divisor,
        height=facts.size,
        width=facts.size,
    )


def as_int(name: str, value: Any) -> int:
    """A whole number of any kind: Python's, numpy's, a tensor with one element. Raises TypeError for another value."""
    try:
        return index(value)
    except TypeError:
        raise TypeError(f"{name} {show(value)}: a whole number is expected") from None
