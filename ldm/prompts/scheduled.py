"""Prompts that change with the step, and several joined by AND, as guidance: what a task takes for `guidance=`."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from samplers.basics import Guided, Network
from samplers.options import show, takes

from ..conditioning import Conditioning
from ..guidance import ClassifierFree, Guidance, Make, Scale, UNetLike, as_scale, checked_scale, condition, one_per_step
from ..model import Model
from ..plan import Plan
from .editing import split_at_and, texts_by_step
from .encoding import Texts, as_list, encode_texts, match

# A1111's names of samplers of two calls a step. Others that call as often, which it has not, count their steps.
TWICE = ("Heun", "DPM2", "DPM2 a", "DPM++ SDE", "DPM++ 2S a", "Restart")

Encoded = dict[str | None, Conditioning]
Part = tuple[Conditioning, Tensor]  # of one prompt for each picture; and its weights (b 1 1 1)


def scheduled(
    model: Model, texts: Texts, run: Plan, *, guidance: Guidance | None = None, negative: Texts | None = None,
    rule: str = "a1111", clip_skip: int = 0,
) -> Make:  # fmt: skip
    """What a task takes as guidance, to draw prompts that change with the step or hold AND.

    texts: one for all pictures, or one each; they stand in place of the task's own prompts, whose sizes are kept. run:
    the plan of that task, see ldm.plan. guidance: the strength, as tasks take it; None is the model's. negative: if
    given, it stands in place of the task's own and may change too. rule, clip_skip: see encode.

    A step is a call of the denoiser, as in A1111: samplers of two calls a step have twice as many. It is found from the
    noise level, so a call at the level of the next step counts to that. Raises as encode does.
    """
    scale = choose_scale(guidance, run)
    calls = 2 if run.sampler.label in TWICE else 1
    steps = calls * (len(run.sigmas) - 1)
    prompts = [timetable(text, steps) for text in as_list("texts", texts)]
    negatives = None
    if negative is not None:
        negatives = [timetable(text, steps, joins=False) for text in as_list("negative", negative)]
    both = [*prompts, *(negatives or [])]
    encoded = encode_once(model, both, rule, clip_skip)

    def make(network: UNetLike, cond: Conditioning, uncond: Conditioning) -> Guided:
        pooled = pooled_width(model)
        made: dict[Any, Guided] = {}
        by_step = []
        for step in range(steps):
            key = tuple(texts[step] for table in both for texts, _ in table)
            if key not in made:
                parts = parts_at(step, one_each(prompts, len(cond)), encoded, cond, pooled)
                less = uncond
                if negatives is not None:
                    less, _ = parts_at(step, one_each(negatives, len(cond)), encoded, uncond, pooled)[0]
                made[key] = guide_parts(network, parts, less, scale)
            by_step.append(made[key])
        return Scheduled(by_step, lambda sigma: step_of(sigma, run.sigmas, calls))

    return make


Timetable = list[tuple[list[str | None], float]]  # of each prompt that AND joins: its text at each step, and its weight


def timetable(text: str | None, steps: int, joins: bool = True) -> Timetable:
    """joins: whether AND joins prompts in it."""
    if text is None:
        return [([None] * steps, 1.0)]
    parts = split_at_and(text) if joins else [(text, 1.0)]
    return [([*texts_by_step(part, steps)], weight) for part, weight in parts]


def encode_once(model: Model, tables: Sequence[Timetable], rule: str, clip_skip: int) -> Encoded:
    """Every text that occurs, encoded alone: no prompt changes what another one is."""
    texts = dict.fromkeys(text for table in tables for by_step, _ in table for text in by_step)
    return {text: encode_texts(model, [[text]], rule, clip_skip, None) for text in texts}


def one_each(tables: Sequence[Timetable], pictures: int) -> list[Timetable]:
    """Raises ValueError for another number of prompts than 1 or that of the pictures."""
    if len(tables) not in (1, pictures):
        raise ValueError(f"{len(tables)} prompts for {pictures} pictures: give one, or one each")
    return list(tables) * pictures if len(tables) == 1 else list(tables)


def parts_at(step: int, tables: Sequence[Timetable], encoded: Encoded, told: Conditioning, pooled: int) -> list[Part]:
    """The conditioning of every picture at a step, part by part: a picture with fewer parts than another has its first
    once more, with the weight 0. told: a conditioning whose sizes are taken over."""
    parts = []
    for number in range(max(len(table) for table in tables)):
        chosen = []
        weights = []
        for table in tables:
            texts, weight = table[number] if number < len(table) else (table[0][0], 0.0)
            chosen.append(encoded[texts[step]])
            weights.append(weight)
        cond = Conditioning.cat(*match(*chosen))
        if cond.vector is not None and told.vector is not None:
            cond = Conditioning(cond.context, torch.cat([cond.vector[:, :pooled], told.vector[:, pooled:]], dim=1))
        parts.append((cond, torch.tensor(weights, device=cond.context.device)[:, None, None, None]))
    return parts


def pooled_width(model: Model) -> int:
    """How much of a vector is pooled text; sizes follow."""
    config = list(model.texts.values())[-1].config
    return config.projection or config.width


def choose_scale(guidance: Any, run: Plan) -> Scale:
    """The strength as a function of sigma. Raises TypeError or ValueError for what is none."""
    if guidance is None:
        guidance = run.guidance
    is_maker = callable(guidance) and not takes(guidance, 1)
    if isinstance(guidance, str | bytes) or is_maker:
        raise TypeError(f"guidance {show(guidance)}: give a number, one number per step, or a function of sigma")
    several = isinstance(guidance, Sequence)
    scale = one_per_step(guidance, run.sigmas) if several else as_scale(guidance)
    return checked_scale(guidance, scale, run.sampler.guidance.off)


def step_of(sigma: float, sigmas: Sequence[float], calls: int) -> int:
    """The number, from 0, of the call at a noise level: the first of the step that begins there, or the second where
    the level lies within a step of two calls. A level that churn has raised counts to the step before."""
    # The second call of an ancestral step is at the next level, but for rounding
    sigma = sigma * (1 - 1e-9)
    begun = sum(1 for start in sigmas[:-1] if start >= sigma)
    step = max(begun, 1) - 1
    within = calls == 2 and sigma < sigmas[step] * (1 - 1e-8)
    return calls * step + (1 if within else 0)


def guide_parts(network: UNetLike, parts: list[Part], uncond: Conditioning, scale: Scale) -> Guided:
    """Classifier-free guidance by one prompt, or by several with weights."""
    cond, weights = parts[0]
    if len(parts) == 1 and bool((weights == 1).all()):
        return ClassifierFree(network, *match(cond, uncond), scale)
    return Composed(network, parts, uncond, scale)


class Scheduled:
    """A Guided for each step; step: sigma -> its number, from 0."""

    def __init__(self, by_step: Sequence[Guided], step: Callable[[float], int]):
        self.by_step = by_step
        self.step = step

    def at(self, sigma: float) -> Network:
        return self.by_step[self.step(sigma)].at(sigma)

    def pair_at(self, sigma: float) -> Network:
        return self.by_step[self.step(sigma)].pair_at(sigma)


class Composed:
    """Guidance by several prompts (arXiv 2206.01714): uncond + scale * sum of weight * (cond - uncond), all in one
    batch."""

    def __init__(self, network: UNetLike, parts: Sequence[Part], uncond: Conditioning, scale: Scale):
        self.all = condition(network, Conditioning.cat(*match(uncond, *(cond for cond, _ in parts))))
        self.weights = [weights for _, weights in parts]
        self.scale = scale

    def at(self, sigma: float) -> Network:
        return lambda x, t: self.guided_and_unguided(x, t, self.scale(sigma))[0]

    def pair_at(self, sigma: float) -> Network:
        return lambda x, t: torch.stack(self.guided_and_unguided(x, t, self.scale(sigma)))

    def guided_and_unguided(self, x: Tensor, t: float, scale: float) -> tuple[Tensor, Tensor]:
        uncond, *conds = self.all(torch.cat([x] * (1 + len(self.weights))), t).chunk(1 + len(self.weights))
        change = sum(weights * (cond - uncond) for weights, cond in zip(self.weights, conds))
        return uncond + scale * change, uncond
