"""What lies at a source: a model, networks without one, or an adapter."""

import argparse
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import weights
from weights.checkpoint import PARTS, Checkpoint, Part
from weights.hub.wanted import any_files


@dataclass
class Found:
    """What lies at a path: networks, and what is known of the whole if it is one; or an adapter."""

    parts: dict[str, Part] = field(default_factory=dict)
    whole: Checkpoint | None = None
    adapter: weights.AdapterFile | None = None
    problems: list[str] = field(default_factory=list)


def find(source: str, args: argparse.Namespace, asked: dict[str, Any]) -> Found:
    """A whole model; or else those of its parts that can be described, with the problems of the others; or else an
    adapter. asked: of the model."""
    wanted = partial(any_files, variant=args.variant)
    path, _ = weights.locate(source, wanted, args.revision, args.offline)
    try:
        whole = weights.describe(path, variant=args.variant, offline=args.offline, **asked)
        return Found(whole.parts, whole)
    except weights.CheckpointError as error:
        problem = error
    if any(asked.values()):  # of a model: whatever else this is, it was not meant
        raise problem
    found = find_parts(path, args.variant)
    is_model = (path / "model_index.json").exists() or len(found.parts) > 1
    if is_model and str(problem) not in found.problems:
        found.problems.insert(0, str(problem))
    if found.parts:
        return found
    try:
        return Found(adapter=weights.describe_adapter(path))
    except weights.NotAnAdapter:
        raise problem from None


def find_parts(path: Path, variant: str | None) -> Found:
    """The networks that can be described one by one."""
    found = Found()
    for name in PARTS:
        try:
            part = weights.describe_part(path, name, variant=variant)
        except weights.CheckpointError as error:
            if (path / name).is_dir() and str(error) not in found.problems:
                found.problems.append(str(error))
            continue
        # a file with one text tower has it under both names
        if all((part.path, part.prefix) != (other.path, other.prefix) for other in found.parts.values()):
            found.parts[name] = part
    return found
