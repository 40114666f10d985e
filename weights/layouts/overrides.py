"""What shapes cannot say, in the metadata of the files that we write: the published models need nothing, but the
miniature has heads of its own, and a Turbo wants other steps than the SDXL whose shapes it has.
"""

import json
from collections.abc import Mapping
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from ldm.config import ModelConfig

from ..disk.safetensors import Entry, Held, Stored
from ..disk.settings import DEEPEST, is_integer, is_number, parse_json
from ..errors import CheckpointError, shown

T = TypeVar("T")
ALLOWED = {"prediction": ["eps", "v", "x0"], "noise.beta_law": ["linear", "scaled_linear", "squaredcos_cap_v2"]}
NEW = Path("the new file")  # in errors about what is not written yet
KEY = "ldm.facts"  # of the metadata: a JSON object from paths in ModelConfig to values
OF_NETWORK = ("heads", "groups", "quick_gelu")  # where a network stands alone in its file
OF_MODEL = (
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


def write(facts: T, seen: T) -> dict[str, str]:
    """The metadata that lead from what a reader would see, of a model or a network, to what it is."""
    differing = {}
    for path in paths_of(facts):
        value = get(facts, path)
        if value != get(seen, path):
            differing[path] = value
    return {KEY: json.dumps(differing)} if differing else {}


def read(seen: T, metadata: Mapping[str, str], file: Path) -> tuple[T, list[str]]:
    """What was seen, corrected by the metadata of its file, and the evidence. CheckpointError for an override of
    something else, or of another kind than its place."""
    if KEY not in metadata:
        return seen, []
    values = parse_json(metadata[KEY].encode(), f"{file}: {KEY} in its metadata")
    facts = seen
    for path, value in values.items():
        known = path in paths_of(facts) and is_alike(value, get(facts, path))
        if not known or value not in ALLOWED.get(path, [value]):
            raise CheckpointError(f"{file}: {KEY} in its metadata says {shown(path)} is {shown(value)}: that cannot be")
        facts = put(facts, path, tuple(value) if isinstance(value, list) else value)
    return facts, [f"{', '.join(values)}: {KEY} in the metadata"]


def without_overrides(metadata: Mapping[str, str]) -> dict[str, str]:
    """Metadata that may come from another file, whose overrides are not those of the file to be written."""
    return {key: text for key, text in metadata.items() if key != KEY}


def in_memory(tensors: Mapping[str, Tensor]) -> Stored:
    """Tensors that are not written yet, as if they lay in a file, to see what its reader would."""
    return {key: Held(NEW, key, Entry("F32", tuple(tensor.shape), 0, 0)) for key, tensor in tensors.items()}


def paths_of(facts: object) -> tuple[str, ...]:
    return OF_MODEL if isinstance(facts, ModelConfig) else OF_NETWORK


def get(facts: object, path: str) -> object:
    """None where there is no such place."""
    for name in path.split("."):
        if not name.isdigit():
            facts = getattr(facts, name, None)
        elif isinstance(facts, tuple) and int(name) < len(facts):
            facts = facts[int(name)]
        else:
            return None
    return facts


def put(facts, path: str, value: object):
    """A copy in which the place holds the value."""
    name, _, rest = path.partition(".")
    if is_dataclass(facts):
        if rest:
            value = put(getattr(facts, name), rest, value)
        return replace(facts, **{name: value})
    parts = list(facts)
    parts[int(name)] = put(parts[int(name)], rest, value)
    return tuple(parts)


def is_alike(value: object, present: object) -> bool:
    """Whether a value from a file is of the kind of what is there."""
    match present:
        case bool():
            return type(value) is bool
        case str():
            return isinstance(value, str) and len(value) <= 100
        case int():
            return is_integer(value, 0)
        case float():
            return is_number(value)
        case ():
            return isinstance(value, list) and len(value) <= DEEPEST and all(map(is_number, value))
        case tuple():
            return isinstance(value, list) and len(value) == len(present) and all(map(is_alike, value, present))
    return False
