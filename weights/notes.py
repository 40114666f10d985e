"""What shapes cannot tell, as a note in the metadata of the single files that we write: the published models need none,
but the miniature has heads of its own, and a Turbo wants other steps than the SDXL whose shapes it has.
"""

import json
from collections.abc import Mapping
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import TypeVar

from ldm.config import ModelConfig

from .disk import parse_json
from .errors import CheckpointError, shown
from .settings import DEEPEST, LARGEST, is_number, is_whole

T = TypeVar("T")
KEY = "ldm.facts"  # of the metadata: a JSON object from paths in ModelConfig to values
NOTED_OF_PART = ("heads", "groups", "quick_gelu")  # where a network stands alone in its file
NOTED = (
    "unet.heads",
    "unet.groups",
    "vae.groups",
    "texts.0.heads",
    "texts.0.quick_gelu",
    "texts.1.heads",
    "texts.1.quick_gelu",
    "latent.scale",
    "latent.mean",
    "latent.std",
    "noise.beta_start",
    "noise.beta_end",
    "noise.beta_law",
    "prediction",
    "sampler",
    "schedule",
    "offset",
    "steps",
    "guidance",
    "size",
    "pad_ids",
    "zero_empty_prompt",
    "careful_vae",
)


def note(facts: T, recognized: T) -> dict[str, str]:
    """The metadata that leads from what would be recognized, of a model or a network, to what it is."""
    differing = {path: get(facts, path) for path in noted(facts) if get(facts, path) != get(recognized, path)}
    return {KEY: json.dumps(differing)} if differing else {}


def with_notes(facts: T, metadata: Mapping[str, str], file: Path) -> tuple[T, list[str]]:
    """What was recognized, corrected by a file's note, and a word on it. CheckpointError for a note on something else,
    or of another kind than its place."""
    if KEY not in metadata:
        return facts, []
    values = parse_json(metadata[KEY].encode(), f"{file}: {KEY} in its metadata")
    for path, value in values.items():
        if path not in noted(facts) or not alike(value, get(facts, path)):
            raise CheckpointError(f"{file}: {KEY} in its metadata says {shown(path)} is {shown(value)}: that cannot be")
        facts = put(facts, path, tuple(value) if isinstance(value, list) else value)
    return facts, [f"{', '.join(values)}: {KEY} in the metadata"]


def noted(facts: object) -> tuple[str, ...]:
    return NOTED if isinstance(facts, ModelConfig) else NOTED_OF_PART


def get(facts: object, path: str) -> object:
    """None where there is no such place."""
    for name in path.split("."):
        if name.isdigit():
            facts = facts[int(name)] if int(name) < len(facts) else None
        else:
            facts = getattr(facts, name, None)
    return facts


def put(facts: object, path: str, value: object) -> object:
    """A copy in which the place holds the value."""
    name, _, rest = path.partition(".")
    if is_dataclass(facts):
        return replace(facts, **{name: put(getattr(facts, name), rest, value) if rest else value})
    return tuple(put(part, rest, value) if i == int(name) else part for i, part in enumerate(facts))


def alike(value: object, present: object) -> bool:
    """Whether a value from a file is of the kind of what is there."""
    match present:
        case bool() | str():
            return type(value) is type(present)
        case int():
            return is_whole(value, 0, LARGEST)
        case float():
            return is_number(value)
        case ():
            return isinstance(value, list) and len(value) <= DEEPEST and all(map(is_number, value))
        case tuple():
            return isinstance(value, list) and len(value) == len(present) and all(map(alike, value, present))
    return False
