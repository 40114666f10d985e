"""Adapters on a model: merged into its weights, or attached beside them. LoRA, arXiv 2106.09685; ldm.deltas has the
other kinds.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import partial
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .deltas import Delta, DoRA, LoRA, fits
from .model import Model


@dataclass(frozen=True)
class Adapter:
    """deltas: name of a parameter, such as "unet.mid_block.attentions.0.proj_in.weight", -> its change. unmatched:
    keys of the file that have no place in the model, if that was allowed."""

    deltas: dict[str, Delta]
    source: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    unmatched: tuple[str, ...] = ()


Weighted = Sequence[tuple[Adapter, float]]  # adapters, each with its strength


def networks(model: Model) -> dict[str, nn.Module]:
    """The networks that adapters change, by the names of their folders."""
    return {"unet": model.unet, **model.texts}


def parameters(model: Model) -> dict[str, nn.Parameter]:
    return {
        f"{part}.{name}": parameter
        for part, network in networks(model).items()
        for name, parameter in network.named_parameters()
    }


def layers(model: Model) -> dict[str, nn.Module]:
    """The linear and the convolutional ones, by path."""
    return {
        f"{part}.{path}": module
        for part, network in networks(model).items()
        for path, module in network.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    }


def new(model: Model, pattern: str, rank: int, alpha: float | None = None, seed: int = 0) -> Adapter:
    """A LoRA that changes nothing yet, for the layers whose path fits the pattern ("unet.*.attn?.to_[qkv]"): `down` is
    random, `up` zero. Its scale is alpha / rank, 1 by default. ValueError if nothing fits."""
    generator, deltas = torch.Generator().manual_seed(seed), {}
    for path, layer in layers(model).items():
        if fnmatchcase(path, pattern):
            outputs, *inputs = layer.weight.shape
            bound = prod(inputs) ** -0.5  # as PyTorch starts a linear layer
            down = torch.empty(rank, *inputs).uniform_(-bound, bound, generator=generator).to(layer.weight.device)
            deltas[f"{path}.weight"] = LoRA(down.new_zeros(outputs, rank), down, scale=(alpha or rank) / rank)
    if not deltas:
        raise ValueError(f"no linear or convolutional layer has a path like {pattern!r}")
    return Adapter(deltas)


@torch.no_grad()
def merge(model: Model, adapters: Weighted) -> None:
    """Change the weights in place: base + sum of strength * change, in float32 or better, then rounded once. What was
    merged before is unmerged first. The base is kept as it lies, so a weight mapped from a file costs no memory.
    ValueError, and no change, if an adapter is of another model.

    DoRA is no sum. Adapters act in turn, and one with magnitudes rescales what those before it left, by
    magnitude / norm(base + strength * change), as peft defines it; with strength 0 it still sets the magnitudes.
    """
    targets = parameters(model)
    for adapter, _ in adapters:
        check(adapter, targets)
    unmerge(model)
    changed = {
        name: moved(targets[name], name, adapters)
        for name in dict.fromkeys(name for adapter, _ in adapters for name in adapter.deltas)
    }
    for name, weight in changed.items():
        targets[name].unmerged = targets[name].data
        targets[name].data = weight


def check(adapter: Adapter, targets: dict[str, nn.Parameter]) -> None:
    for name, delta in adapter.deltas.items():
        found = tuple(targets[name].shape) if name in targets else None
        if found is None or not fits(delta, found):
            raise ValueError(
                f"the adapter {adapter.source} is of another model: it changes {name} of the shape "
                f"{delta.shape}, this model has {found or 'none'}"
            )


def moved(parameter: nn.Parameter, name: str, adapters: Weighted) -> Tensor:
    """The weight with all of its changes."""
    base = parameter.to(torch.promote_types(parameter.dtype, torch.float32))
    weight = base
    for adapter, strength in adapters:
        if name in adapter.deltas:
            delta = adapter.deltas[name]
            change = strength * delta.value(base).reshape(base.shape)
            weight = weight + change
            if isinstance(delta, DoRA):
                weight = weight * delta.magnification(base + change)
    return weight.to(parameter.dtype)


def unmerge(model: Model) -> None:
    """Put the base back, bit for bit; nothing is subtracted. A model that is not merged stays as it is."""
    for parameter in parameters(model).values():
        if hasattr(parameter, "unmerged"):
            parameter.data = parameter.unmerged.to(parameter)  # its device or dtype may have changed meanwhile
            del parameter.unmerged


@contextmanager
def merged(model: Model, adapters: Weighted) -> Iterator[None]:
    """merge, and unmerge at the end. RuntimeError if the model is merged already: name all adapters in one call."""
    if any(hasattr(parameter, "unmerged") for parameter in parameters(model).values()):
        raise RuntimeError("the model is merged already: unmerge it first, or give all adapters in one call")
    merge(model, adapters)
    try:
        yield
    finally:
        unmerge(model)


@contextmanager
def attached(model: Model, adapters: Weighted) -> Iterator[None]:
    """Add LoRA beside the weights, which stay as they are: nothing is rounded to their precision, and the factors can
    be trained. Slower than merged. Other kinds than LoRA on linear and convolutional layers are a ValueError; a
    network that was compiled in place, where hooks would be passed over, a RuntimeError."""
    places, targets, handles = layers(model), parameters(model), []
    for adapter, _ in adapters:
        check(adapter, targets)
        for name, delta in adapter.deltas.items():
            if not isinstance(delta, LoRA) or name.removesuffix(".weight") not in places:
                raise ValueError(f"the change of {name} is no LoRA of a layer: merge it")
    if any(part._compiled_call_impl for network in networks(model).values() for part in network.modules()):
        raise RuntimeError("the model is compiled: attach adapters first, or merge them")
    try:
        for adapter, strength in adapters:
            for name, delta in adapter.deltas.items():
                place = places[name.removesuffix(".weight")]
                hook = partial(beside, placed(delta, place.weight), strength)
                handles.append(place.register_forward_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()


def placed(delta: LoRA, like: Tensor) -> LoRA:
    """Device and dtype of the weight, once and for all; factors in training stay where they are."""
    if delta.up.requires_grad or delta.down.requires_grad:
        return delta
    return replace(
        delta, up=delta.up.to(like), down=delta.down.to(like), core=None if delta.core is None else delta.core.to(like)
    )


def beside(delta: LoRA, strength: float, layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    """A forward hook: the layer's output and the adapter's."""
    (x,) = inputs
    kernel = delta.down if delta.core is None else delta.core  # the factor that moves over the picture
    for factor in (delta.down, delta.core, delta.up):
        if factor is None:
            continue
        if x.ndim < 4:  # tokens (b n i), also for SD1's 1x1 convolutions
            x = F.linear(x, factor.to(x).flatten(1))
        elif factor is kernel:
            x = F.conv2d(
                x, factor.to(x).reshape(len(factor), -1, *layer.kernel_size), None, layer.stride, layer.padding
            )
        else:
            x = F.conv2d(x, factor.to(x)[:, :, None, None])
    return output + strength * delta.scale * x
