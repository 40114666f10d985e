"""What decides a picture: its settings, from flags and from the record of an earlier picture, and their checks.

Programs that draw share these. What is wrong ends the program in one line.
"""

import argparse
import secrets
from collections.abc import Mapping
from math import inf, isfinite
from pathlib import Path
from typing import Any

from common import DTYPES, fail, first_line, warn
from ldm import tasks
from ldm.model import Model
from ldm.tasks.text_to_image import MAX_SEED
from samplers import SAMPLERS, find, plain
from samplers import options as sampler_options
from samplers.options import show
from samplers.schedules import find as find_schedule
from samplers.schedules.names import EITHER_AYS
from samplers.schedules.names import plain as plain_schedule
from weights.errors import shown

# A1111's "Automatic", where it is not the model's own: its samplers' favourite schedules
AUTOMATIC = dict.fromkeys(
    ("dpmpp_2m", "dpmpp_sde", "dpmpp_2s_ancestral", "dpm_2", "dpm_2_ancestral", "restart"), "karras"
)
AUTOMATIC |= dict.fromkeys(("dpmpp_2m_sde", "dpmpp_2m_sde_heun", "dpmpp_3m_sde"), "exponential")
SHORT_SCHEDULES = {"k": "karras", "ka": "karras"}  # at the end of a sampler's name: InvokeAI's, A1111's

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
    "prompt_rule": str,
    "prompt_2": str,
    "clip_skip": int,
}


def check_record(path: Path, record: dict[str, Any]):
    """Refuse a record with values that no flag could have given."""
    for key, kind in FIELDS.items():
        value = record.get(key)
        if value is not None and not is_of_kind(value, kind):
            fail(f"{path}: its record is damaged: {key} is {shown(value)}")
    if record.get("dtype") not in (None, *DTYPES):
        fail(f"{path}: its record is damaged: dtype is {shown(record['dtype'])}")


def is_of_kind(value: Any, kind: type) -> bool:
    """A whole number serves as a float; true and false are no numbers. Lists hold texts."""
    if kind is float:
        return type(value) is float or (type(value) is int and abs(value) < 10**300)  # more is no float
    if kind is list:
        return type(value) is list and all(isinstance(text, str) for text in value)
    return type(value) is kind


def choose_settings(
    args: argparse.Namespace, record: Mapping[str, Any], row: Mapping[str, Any] = {}, where: str = ""
) -> dict[str, Any]:
    """Every field that decides a picture: from its row of --prompts, else from its flag, else, with --again, from the
    picture's record. `where` stands before a message about the row."""
    given = {}
    for key in FIELDS:
        value = row.get(key, getattr(args, key, None))
        if value is not None:
            given[key] = value
    chosen = {key: record.get(key) for key in FIELDS} | given
    chosen["options"] = choose_options(args, record) | row.get("options", {})
    if chosen["dtype"] is None:
        chosen["dtype"] = "float32" if args.device.startswith("cpu") else "float16"
    if chosen["seed"] is None:
        chosen["seed"] = 0
    try:
        check_seed(chosen["seed"])
        chosen |= choose_sampler_and_schedule(given)
    except ValueError as error:
        fail(f"{where}{first_line(error)}")
    return chosen


def choose_sampler_and_schedule(given: Mapping[str, Any]) -> dict[str, str | None]:
    """Both, as far as they are given, in our spelling; A1111's older names say both in one. "Align Your Steps" stays as
    it is, since its list depends on the model. Raises ValueError for an unknown name, and for two schedules."""
    chosen = {}
    schedule = given.get("schedule")
    if "sampler" in given:
        chosen["sampler"], within = split_sampler(given["sampler"])
        if within and schedule and find_schedule(schedule, sdxl=True) != within:
            both = f"sampler {show(given['sampler'])} names the schedule {within}"
            raise ValueError(f"{both}: leave out --schedule {show(schedule)}")
        schedule = within or schedule
    if schedule:
        chosen["schedule"] = check_schedule(schedule, chosen.get("sampler"))
    return chosen


def split_sampler(name: str) -> tuple[str, str | None]:
    """Sampler and schedule of a name that says both, as "DPM++ 2M Karras" does; else the sampler, and None. Raises
    ValueError for an unknown name."""
    try:
        return find(name), None
    except ValueError as error:
        unknown = error
    if is_schedule(name):
        raise ValueError(f"sampler {show(name)} is a schedule: give it as --schedule")
    letters = plain(name[:100])
    for cut in reversed(range(1, len(letters))):
        try:
            return find(letters[:cut]), SHORT_SCHEDULES.get(letters[cut:]) or find_schedule(letters[cut:])
        except ValueError:
            continue
    raise unknown


def check_schedule(name: str, sampler: str | None) -> str | None:
    """The schedule in our spelling; None for "Automatic", unless A1111 has another for this sampler than the model's.
    Raises ValueError for an unknown name."""
    if name.strip().casefold() in ("automatic", "auto", "default"):
        return AUTOMATIC.get(sampler or "")
    try:
        found = find_schedule(name, sdxl=True)
    except ValueError:
        if is_sampler(name):
            raise ValueError(f"schedule {show(name)} is a sampler: give it as --sampler") from None
        raise
    return name if plain_schedule(name) in EITHER_AYS else found


def is_schedule(name: str) -> bool:
    try:
        find_schedule(name, sdxl=True)
    except ValueError:
        return False
    return True


def is_sampler(name: str) -> bool:
    try:
        split_sampler(name)
    except ValueError:
        return False
    return True


def complete(chosen: dict[str, Any], model: Model, where: str = ""):
    """Fill in what the model was published with, and check what could not be checked without it."""
    if chosen["schedule"] is not None:
        chosen["schedule"] = find_schedule(chosen["schedule"], sdxl=model.facts.family.name.startswith("sdxl"))
    for key, default in tasks.defaults(model.facts, chosen["sampler"]).items():
        if chosen[key] is None or key == "sampler":  # the default of a sampler's name is how we spell it
            chosen[key] = default
    check_options(chosen, where)


def parse_seed(text: str) -> int:
    """A number; -1 and "random" draw one of 32 bits, which people can type again. Raises ValueError."""
    if text.strip().casefold() in ("-1", "random"):
        return secrets.randbits(32)
    try:
        seed = int(text)
    except ValueError:
        raise ValueError(f"give a whole number from 0 to {MAX_SEED}, or -1 or random for any") from None
    check_seed(seed)
    return seed


def check_seed(seed: int):
    """Raises ValueError for a seed that no picture can have."""
    if not 0 <= seed <= MAX_SEED:
        shown = seed if abs(seed) < 10**24 else f"{str(seed)[:20]}..."
        raise ValueError(f"seed {shown}: must be between 0 and {MAX_SEED}; -1 or random draws one")


def choose_options(args: argparse.Namespace, record: Mapping[str, Any]) -> dict[str, Any]:
    """Those of --option; without it those of the record, unless another sampler is asked for."""
    if args.option is not None:
        return parse_options(args.option)
    earlier = record.get("options") or {}
    if earlier and args.sampler is not None and split_sampler(args.sampler)[0] != record.get("sampler"):
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
    return name, parse_word(value)


def parse_word(value: str) -> bool | int | float | str:
    """true, false, a number, or the word as it is."""
    if value in ("true", "false"):
        return value == "true"
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value


def check_options(chosen: dict[str, Any], where: str = ""):
    """Refuse options that the chosen sampler does not have, or whose values are of another kind."""
    try:
        sampler_options.check_options(SAMPLERS[chosen["sampler"]].run, chosen["options"])
    except (TypeError, ValueError) as error:
        fail(f"{where}sampler {chosen['sampler']}: {first_line(error)}")


def split_at_colon(text: str) -> tuple[str, str | None]:
    """FILE:WORD -> the file and the word; FILE -> the file and None. The name of a file may hold a colon itself, and
    the address of a page does."""
    source, colon, word = text.rpartition(":")
    if not colon or word.startswith("//") or Path(text).exists():  # an address has a colon, too
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
