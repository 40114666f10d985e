"""Why the tensors of an adapter's file have no place in a model, in words."""

from collections.abc import Collection
from pathlib import Path
from typing import NoReturn

from ldm.adapters.deltas import Delta, DoRA, fits
from ldm.model import Model

from ..errors import CheckpointError, listed, shown
from ..layouts.landmarks import TITLES, find_networks, other_kind
from ..misfits import text_width
from .names import whose


def without_config(path: Path) -> NoReturn:
    """Of a file of peft's."""
    raise CheckpointError(
        f"{path}: adapter_config.json is missing beside it, where peft keeps the strength of its adapters: put it there"
    )


def check_family(path: Path, shape: tuple[int, ...], model: Model) -> None:
    """A change of another family's UNet deserves a better word than its shapes."""
    expected = model.unet.config.context_dim
    if len(shape) == 2 and shape[1] != expected:
        raise CheckpointError(
            f"{path} is an adapter for another family: it reads text of width {text_width(shape[1])}, and the model's "
            f"is {text_width(expected)}"
        )


def check_place(path: Path, key: str, name: str, delta: Delta, shapes: dict, deltas: dict) -> None:
    if name in deltas:
        raise CheckpointError(f"{path}: {shown(key)} changes {name}, which another key of the file changes too")
    if name not in shapes:
        raise CheckpointError(f"{path}: {shown(key)} changes {name}, which the model does not have")
    if not fits(delta, shapes[name]):
        found = str(delta.shape)
        if isinstance(delta, DoRA):
            found += f" with magnitudes {tuple(delta.magnitude.shape)}"
        raise CheckpointError(
            f"{path}: {shown(key)} makes a change of the shape {found}, and {name} of the model is {shapes[name]}"
        )


def check_matched(path: Path, deltas: dict, unmatched: list[str], partial: bool) -> None:
    other = whose(unmatched)
    if not deltas:
        what = f"it is an adapter for {other}" if other else no_adapter(unmatched)
        raise CheckpointError(
            f"{path} holds nothing for this model: none of its {len(unmatched)} tensors has a place "
            f"there, {listed(unmatched) or 'for it has none'}" + (f"; {what}" if what else "")
        )
    if other:  # what fits, such as a text tower's part, was trained for another model
        raise CheckpointError(
            f"{path} is an adapter for {other}: {len(unmatched)} tensors have no place in the model, "
            f"{listed(unmatched)}"
        )
    if unmatched and not partial:
        error = CheckpointError(
            f"{path}: {len(unmatched)} tensors have no place in the model, {listed(unmatched)}: "
            "partial=True (txt2img: --partial-lora) leaves them out"
        )
        error.add_note("\n".join(unmatched))
        raise error


def no_adapter(keys: Collection[str]) -> str:
    """What a file is in place of an adapter; "" where nobody knows."""
    networks = find_networks(keys)
    if networks:
        return f"it holds {' and '.join(TITLES[kind] for kind in networks)} and no adapter"
    what = other_kind(keys)
    return f"it {what}" if what and "adapter such as" not in what else ""
