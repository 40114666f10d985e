"""Many pictures with settings of their own: one dict of settings each, and which of them are drawn at once."""

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor
from tqdm import tqdm

from drawing.preview import Preview
from drawing.prompt_rules import SHARED, say
from ldm import tasks
from ldm.draw import Watch
from ldm.model import Model
from ldm.tasks.text_to_image import MAX_SEED
from samplers.step import Step

TASK_FIELDS = ("steps", "guidance", "sampler", "schedule", "options", "height", "width")  # equal for all of a batch

Settings = dict[str, Any]  # every field of settings.FIELDS


def repeat(settings: Settings, count: int) -> list[Settings]:
    """`count` pictures of one prompt: picture k has seed + k. Raises ValueError if that goes beyond the last seed."""
    last = settings["seed"] + count - 1
    if last > MAX_SEED:
        raise ValueError(f"seed {last}, of picture {count}: must be between 0 and {MAX_SEED}")
    return [settings | {"seed": settings["seed"] + k} for k in range(count)]


def batch_key(settings: Mapping[str, Any]) -> str:
    """Equal for pictures that can be drawn together."""
    return json.dumps([settings.get(field) for field in TASK_FIELDS + SHARED], sort_keys=True)


def batches(pictures: Sequence[Mapping[str, Any]], size: int) -> list[list[int]]:
    """The numbers of the pictures to draw at once, at most `size` of equal TASK_FIELDS; each number once. A batch comes
    where the first of its pictures does."""
    groups: dict[str, list[int]] = {}
    for number, settings in enumerate(pictures):
        groups.setdefault(batch_key(settings), []).append(number)
    found = []
    for numbers in groups.values():
        found += [numbers[first : first + size] for first in range(0, len(numbers), size)]
    return sorted(found)


def draw_together(model: Model, pictures: Sequence[Mapping[str, Any]], watch: Watch) -> Tensor:
    """One picture for each of these settings, which share their TASK_FIELDS: (b 3 h w) in [-1, 1]."""
    shared = {field: pictures[0][field] for field in TASK_FIELDS}
    return tasks.text_to_image(
        model, seeds=[settings["seed"] for settings in pictures], watch=watch, **shared | say(model, pictures)
    )


def draw_batches(
    model: Model, pictures: Sequence[Mapping[str, Any]], size: int, look: Preview | None = None
) -> Iterator[tuple[int, Tensor, float]]:
    """Draw all, in batches of at most `size`, with a bar of their steps: number, picture (3 h w) and seconds of each.
    A batch is yielded as soon as it is drawn, so numbers may come out of turn; see in_turn."""
    plan = batches(pictures, size)
    steps = sum(pictures[numbers[0]]["steps"] for numbers in plan)
    with tqdm(total=steps, unit="step", disable=None) as bar:

        def watch(step: Step) -> None:
            bar.update()
            if look is not None:
                look(step)

        for numbers in plan:
            began = time.perf_counter()
            together = [pictures[number] for number in numbers]
            if look is not None:
                look.steps = together[0]["steps"]
            drawn = draw_together(model, together, watch)
            seconds = (time.perf_counter() - began) / len(numbers)
            for number, image in zip(numbers, drawn):
                yield number, image, seconds


def in_turn(drawn: Iterable[tuple[int, Tensor, float]]) -> Iterator[tuple[int, Tensor, float]]:
    """The same, from number 0 on; what comes out of turn waits on the CPU."""
    waiting = {}
    turn = 0
    for number, image, seconds in drawn:
        waiting[number] = (image if number == turn else image.cpu(), seconds)
        while turn in waiting:
            yield turn, *waiting.pop(turn)
            turn += 1
