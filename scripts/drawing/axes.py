"""The axes of a sweep: one setting each, with the values that it takes.

guidance=1.5..8            five values, evenly; of whole numbers each one, if there are at most eight
guidance=1.5..8:4          four values
steps=10..40/10            every tenth
sampler=euler,ddim         a list; quotes hold what has a comma in it: prompt="a fox, 3d style","an owl"
option.eta=0..1:3          an option of the sampler
lora=0..1                  the strength of each --lora; lora.NAME=0..1 that of one, by the name of its file
prompt~red->blue,green     the prompt as it is, and with other words in place of "red"
"""

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import floor, isfinite
from pathlib import Path
from typing import Any

from drawing.prompt_files import KINDS, read_option, read_value
from samplers.options import show
from settings import choose_sampler_and_schedule, parse_word, split_at_colon

POINTS = 5  # of a range that does not say how many
WHOLE_POINTS = 8  # whole numbers of such a range that are all taken
MOST = 1000  # values of an axis
NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?"
RANGE = re.compile(rf"({NUMBER})\.\.({NUMBER})(?::(\d+)|/({NUMBER}))?", re.IGNORECASE)
FORMS = "give NAME=VALUES, as guidance=1.5..8, steps=10..40/10 or sampler=euler,ddim"
VARIED = [name for name in KINDS if name not in ("count", "options")]


@dataclass(frozen=True)
class Axis:
    """name: as it was given, "guidance", "option.eta", "lora" or "prompt~red". values: of the setting; labels: how a
    grid shows them."""

    name: str
    values: tuple[Any, ...]
    labels: tuple[str, ...]

    def apply(self, settings: dict[str, Any], value: Any) -> dict[str, Any]:
        """The settings of a picture with this value. Raises ValueError for a name that does not exist, or a setting
        that the picture does not have."""
        kind, _, detail = self.name.partition("~" if self.name.startswith("prompt~") else ".")
        if kind == "option":
            return settings | {"options": settings["options"] | {detail: value}}
        if kind == "lora":
            return settings | {"lora": with_strength(settings["lora"] or [], detail, value)}
        if detail:
            return settings | {"prompt": replace_words(settings["prompt"], detail, value)}
        changed = settings | {kind: value}
        if kind in ("sampler", "schedule"):
            changed |= choose_sampler_and_schedule({kind: value})
        return changed


def replace_words(prompt: str, old: str, new: str) -> str:
    if old not in prompt:
        raise ValueError(f"--xy prompt~{old}: the prompt {show(prompt)} does not hold {show(old)}")
    return prompt.replace(old, new)


def with_strength(loras: Sequence[str], name: str, strength: float) -> list[str]:
    """The adapters of --lora with another strength, all or the one whose file has this name."""
    changed = []
    found = False
    for text in loras:
        source, _ = split_at_colon(text)
        is_meant = name in ("", Path(source).stem)
        found |= is_meant
        changed.append(f"{source}:{strength:g}" if is_meant else text)
    if not found:
        raise ValueError(f"--xy lora{'.' if name else ''}{name}: no --lora is called so: give it with --lora too")
    return changed


def parse_axes(texts: Sequence[str]) -> list[Axis]:
    """Raises ValueError, which names the axis, for what is none."""
    if len(texts) > 2:
        raise ValueError(f"--xy {' '.join(texts)[:80]}: give one axis, or two; quotes hold what has spaces")
    axes = [parse_axis(text) for text in texts]
    if len(axes) == 2 and axes[0].name == axes[1].name:
        raise ValueError(f"--xy {axes[0].name}: give two different settings")
    return axes


def parse_axis(text: str) -> Axis:
    shown = text if len(text) <= 80 else text[:80] + "..."
    if text.startswith("prompt~"):
        old, arrow, new = text.removeprefix("prompt~").partition("->")
        if not old or not arrow or not new:
            raise ValueError(f"--xy {shown}: give prompt~OLD->NEW,NEW")
        return make_axis(f"prompt~{old}", [old, *split_list(new)], shown)
    name, equals, values = text.partition("=")
    name = check_name(name.strip(), shown)
    if not equals or not values.strip():
        raise ValueError(f"--xy {shown}: {FORMS}")
    found: list[Any] = []
    for item in split_list(values):
        spread = RANGE.fullmatch(item)
        if spread and name not in ("prompt", "negative", "sampler", "schedule"):
            found += spread_range(spread, KINDS.get(name) is int, 8 if name in ("width", "height") else 1, shown)
        else:
            found.append(read_item(name, item, shown))
    return make_axis(name, found, shown)


def check_name(name: str, shown: str) -> str:
    name = name.removeprefix("--")
    start, dot, detail = name.partition(".")
    start = start.casefold().replace("-", "_")
    if (start in ("option", "options") and detail.isidentifier()) or start == "lora":
        return f"{start.removesuffix('s')}{dot}{detail}"
    if start not in VARIED or dot:
        raise ValueError(
            f"--xy {shown}: {show(name)}: it cannot be varied: choose {', '.join(VARIED)}, option.NAME or lora"
        )
    return start


def split_list(text: str) -> list[str]:
    """The items between commas, without the quotes around those that have some."""
    rows = list(csv.reader([text], skipinitialspace=True))
    return [item.strip() for item in rows[0]]


def read_item(name: str, item: str, shown: str) -> Any:
    place = f"--xy {shown}"
    if name.startswith("option."):
        return read_option(place, name, parse_word(item))
    if name.startswith("lora"):
        return read_value(place, float, name, item)
    return read_value(place, KINDS[name], name, item)


def spread_range(spread: re.Match[str], is_whole: bool, multiple: int, shown: str) -> list[float] | list[int]:
    """The numbers of FROM..TO, FROM..TO:COUNT or FROM..TO/STEP, both ends included where the step allows. Those of
    settings that take whole numbers are rounded, to multiples of `multiple`."""
    first, last = float(spread[1]), float(spread[2])
    if not isfinite(first) or not isfinite(last):
        raise ValueError(f"--xy {shown}: a range has two numbers")
    distance = last - first
    count = int(spread[3][:9]) if spread[3] else POINTS
    if spread[4]:
        step = abs(float(spread[4]))
        if not step or abs(distance) / step > MOST:
            raise ValueError(f"--xy {shown}: choose a step that gives 1 to {MOST} values")
        count = floor(abs(distance) / step * (1 + 1e-9)) + 1
        distance = (count - 1) * step * (1 if distance > 0 else -1)
    elif is_whole and not spread[3] and abs(distance) // multiple < WHOLE_POINTS:
        count = int(abs(distance) // multiple) + 1
    if not 1 <= count <= MOST:
        raise ValueError(f"--xy {shown}: choose 1 to {MOST} values")
    points = [first + distance * k / max(count - 1, 1) for k in range(count)]
    if is_whole:
        return list(dict.fromkeys(round(point / multiple) * multiple for point in points))
    return [float(f"{point:.10g}") for point in points]


def make_axis(name: str, values: list[Any], shown: str) -> Axis:
    if len(values) > MOST:
        raise ValueError(f"--xy {shown}: {len(values)} values: choose at most {MOST}")
    if len(set(map(str, values))) < len(values):
        raise ValueError(f"--xy {shown}: a value is there twice")
    labels = [f"{value:g}" if isinstance(value, float) else str(value) for value in values]
    return Axis(name, tuple(values), tuple(labels))
