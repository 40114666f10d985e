"""What --prompt-rule, --clip-skip and --prompt-2 make of the prompts of some pictures, for a task."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from common import fail, first_line
from ldm import prompts
from ldm.conditioning import Sizes
from ldm.model import Model
from ldm.plan import plan
from ldm.prompts.editing import changes, resolve_all
from ldm.prompts.encoding import check_clip_skip
from samplers.options import show

RULES = tuple(name for name in prompts.RULES if name != "a1111_batch")  # a picture is the same in every batch
SHARED = ("prompt_rule", "clip_skip")  # equal for all pictures of a batch

Pictures = Sequence[Mapping[str, Any]]


def say(model: Model, pictures: Pictures) -> dict[str, Any]:
    """The arguments `prompts` and `negative` of a task, and `guidance` where that holds the prompts."""
    texts = [settings["prompt"] for settings in pictures]
    negatives = [settings["negative"] for settings in pictures]
    if not any(is_asked(settings) for settings in pictures):
        return {"prompts": texts, "negative": negatives}
    first = pictures[0]
    chosen: dict[str, Any] = {"rule": first.get("prompt_rule"), "clip_skip": first.get("clip_skip") or 0}
    size = first["height"], first["width"]
    sizes = Sizes(size, size)
    second = None
    if any(settings.get("prompt_2") is not None for settings in pictures):
        second = [s["prompt"] if s.get("prompt_2") is None else s.get("prompt_2") for s in pictures]
    if any(needs_steps(settings) for settings in pictures):
        run = plan(model, first["steps"], first["sampler"], first["schedule"], first["options"])
        guidance = prompts.scheduled(model, texts, run, guidance=first["guidance"], negative=negatives, **chosen)
        return {"prompts": [""] * len(texts), "negative": [""] * len(texts), "guidance": guidance}
    cond = prompts.encode(model, texts, second=second, sizes=sizes, **chosen)
    uncond = prompts.encode(model, negatives, sizes=replace(sizes, aesthetic=2.5), **chosen)
    cond, uncond = prompts.match(cond, uncond)
    return {"prompts": cond, "negative": uncond}


def is_asked(settings: Mapping[str, Any]) -> bool:
    return any(settings.get(field) is not None for field in (*SHARED, "prompt_2"))


def needs_steps(settings: Mapping[str, Any]) -> bool:
    """Whether a prompt changes with the step, or holds AND, by a rule that reads that."""
    rule = settings.get("prompt_rule")
    if rule is None or not prompts.RULES[rule].edits:
        return False
    return changes(settings["prompt"]) or changes(settings["negative"] or "")


def check_words(model: Model, pictures: Pictures):
    """Refuse prompts that a rule cannot read, and what the model has not, before the first picture is drawn."""
    for settings in pictures:
        if not is_asked(settings):
            continue
        try:
            check_clip_skip(model, settings.get("clip_skip") or 0)
            for text in (settings["prompt"], settings["negative"], settings.get("prompt_2")):
                without_syntax(text or "", settings.get("prompt_rule"))
        except ValueError as error:
            fail(first_line(error))
        if settings.get("prompt_2") is not None and len(model.texts) == 1:
            fail(f"--prompt-2 {show(settings['prompt_2'])}: this model has one text tower; leave it out")
        if settings.get("prompt_2") is not None and needs_steps(settings):
            fail("--prompt-2: cannot be with a prompt that changes with the step, or holds AND")


def without_syntax(text: str, rule: str | None) -> str:
    """The words alone, those of all steps. Raises ValueError for a text that the rule cannot read."""
    if rule is None:
        return text
    chosen = prompts.find_rule(rule)
    words = []
    for part in resolve_all(text) if chosen.edits else [text]:
        words += [piece.text for section in chosen.read(part) for piece in section]
    return " ".join(words)
