"""What decides a picture: its settings, from flags and from the record of an earlier picture, and their checks.

Programs that draw share these. What is wrong ends the program in one line.
"""

import argparse
from math import inf, isfinite
from pathlib import Path
from typing import Any

from common import DTYPES, fail, first_line, warn
from samplers import SAMPLERS, find
from samplers import options as sampler_options

FIELDS = {  # all that decides a picture and stands in its record, by kind; most are flags of the same name
    "prompt": str,
    "negative": str,
    "sampler": str,
    "schedule": str,
    "dtype": str,
    "model": str,
    "variant": str,
    "revision": str,
    "unet": str,
    "vae": str,
    "prediction": str,
    "steps": int,
    "height": int,
    "width": int,
    "seed": int,
    "guidance": float,
    "ema": bool,
    "zero_snr": bool,
    "partial_lora": bool,
    "text": list,
    "lora": list,
    "embedding": list,
    "options": dict,
}


def check_record(path: Path, record: dict[str, Any]):
    """Refuse a record with values that no flag could have given."""
    for key, kind in FIELDS.items():
        value = record.get(key)
        if value is not None and not is_of_kind(value, kind):
            fail(f"{path}: its record is damaged: {key} is {value!r}")
    if record.get("dtype") not in (None, *DTYPES):
        fail(f"{path}: its record is damaged: dtype is {record['dtype']!r}")


def is_of_kind(value: Any, kind: type) -> bool:
    """A whole number serves as a float; true and false are no numbers. Lists hold texts."""
    if kind is float:
        return type(value) in (int, float)
    if kind is list:
        return type(value) is list and all(isinstance(text, str) for text in value)
    return type(value) is kind


def choose_settings(args: argparse.Namespace, record: dict[str, Any]) -> dict[str, Any]:
    """Every field that decides a picture: from its flag or, with --again, from the picture's record."""
    chosen = {}
    for key in FIELDS:
        given = getattr(args, key, None)
        chosen[key] = record.get(key) if given is None else given
    chosen["options"] = choose_options(args, record)
    if chosen["dtype"] is None:
        chosen["dtype"] = "float32" if args.device == "cpu" else "float16"
    if chosen["seed"] is None:
        chosen["seed"] = 0
    return chosen


def choose_options(args: argparse.Namespace, record: dict[str, Any]) -> dict[str, Any]:
    """Those of --option; without it those of the record, unless another sampler is asked for."""
    if args.option is not None:
        return parse_options(args.option)
    earlier = record.get("options") or {}
    if earlier and args.sampler is not None and find(args.sampler) != record.get("sampler"):
        left_out = ", ".join(f"{name}={value}" for name, value in earlier.items())
        warn(f"options of {record.get('sampler')}, which {args.again} was made with, are left out: {left_out}")
        return {}
    return earlier


def parse_options(texts: list[str]) -> dict[str, Any]:
    chosen = {}
    for text in texts:
        name, value = parse_option(text)
        if name in chosen:
            fail(f"--option {text}: {name} is given twice")
        chosen[name] = value
    return chosen


def parse_option(text: str) -> tuple[str, bool | int | float | str]:
    """NAME=VALUE, where the value is true, false, a number or a word."""
    name, equals, value = text.partition("=")
    if not name.isidentifier() or not equals or not value:
        fail(f"--option {text}: give NAME=VALUE, for example eta=0.5")
    if value in ("true", "false"):
        return name, value == "true"
    for kind in (int, float):
        try:
            return name, kind(value)
        except ValueError:
            continue
    return name, value


def check_options(chosen: dict[str, Any]):
    """Refuse options that the chosen sampler does not have, or whose values are of another kind."""
    try:
        sampler_options.check_options(SAMPLERS[chosen["sampler"]].run, chosen["options"])
    except (TypeError, ValueError) as error:
        fail(f"sampler {chosen['sampler']}: {first_line(error)}")


def split_at_colon(text: str) -> tuple[str, str | None]:
    """FILE:WORD -> the file and the word; FILE -> the file and None. The name of a file may hold a colon itself."""
    source, colon, word = text.rpartition(":")
    if not colon or word.startswith("//") or Path(text).exists():  # of an address it is https://
        return text, None
    if not source:
        fail(f"{text}: names no file before the colon")
    return source, word


def parse_strength(source: str, text: str | None) -> float:
    """1 if there is none."""
    try:
        strength = 1.0 if not text else float(text)
    except ValueError:
        strength = inf
    if not isfinite(strength):
        fail(f"--lora {source}: the strength {text!r} is no number")
    return strength
