"""Adapters on a model: merged into its weights, or attached to its layers. LoRA, arXiv 2106.09685; ldm.adapters.deltas
has the other kinds.

    merged = merge(model, [(adapter, 0.8)])  # until merged.undo()
    with merged(model, [(adapter, 0.8)]): ...
    with attached(model, [(adapter, 0.8)]): ...
"""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import partial
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..hooks import refuse_compiled
from ..model import Model
from .deltas import Delta, LoRA, PeftDoRA, fits


@dataclass(frozen=True)
class Adapter:
    """deltas: name of a parameter, such as "unet.mid_block.attentions.0.proj_in.weight", -> its change. unmatched:
    keys of the file that have no place in the model, if that was allowed. words: new words that lie in the file beside
    the changes, for weights.add_embedding."""

    deltas: dict[str, Delta]
    source: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    unmatched: tuple[str, ...] = ()
    words: tuple[str, ...] = ()


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


def layers(model: Model) -> dict[str, nn.Linear | nn.Conv2d]:
    """The linear and the convolutional ones, by path."""
    found: dict[str, nn.Linear | nn.Conv2d] = {}
    for part, network in networks(model).items():
        for path, module in network.named_modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                found[f"{part}.{path}"] = module
    return found


def new(model: Model, pattern: str, rank: int, alpha: float | None = None, seed: int = 0) -> Adapter:
    """A LoRA that changes nothing yet, for the layers whose path fits the pattern ("unet.*.attn?.to_[qkv]"): `down` is
    random, `up` zero. Its scale is alpha / rank, 1 by default. ValueError if nothing fits."""
    generator = torch.Generator().manual_seed(seed)
    deltas: dict[str, Delta] = {}
    for path, layer in layers(model).items():
        if fnmatchcase(path, pattern):
            outputs, *inputs = layer.weight.shape
            bound = prod(inputs) ** -0.5  # as PyTorch starts a linear layer
            down = torch.empty(rank, *inputs).uniform_(-bound, bound, generator=generator).to(layer.weight.device)
            scale = 1.0 if alpha is None else alpha / rank
            deltas[f"{path}.weight"] = LoRA(down.new_zeros(outputs, rank), down, scale=scale)
    if not deltas:
        raise ValueError(f"no linear or convolutional layer has a path like {pattern!r}")
    return Adapter(deltas)


@dataclass(frozen=True)
class Replaced:
    """One weight of a model: the parameter of the base, and the merged one that took its place."""

    base: nn.Parameter
    merged: nn.Parameter
    version: int  # of `merged`, which PyTorch counts up whenever it is changed in place


class Merged:
    """What `merge` did to one model. This handle alone holds the base; without it the merge is final."""

    def __init__(self, model: Model, replaced: dict[str, Replaced]):
        self.model = model
        self.replaced = replaced

    def __repr__(self) -> str:
        return f"Merged({len(self.replaced)} weights of {self.model.source or 'a model'})"

    @property
    def base(self) -> dict[str, nn.Parameter]:
        """The parameters that `undo` puts back, by name; none after it."""
        return {name: weight.base for name, weight in self.replaced.items()}

    @torch.inference_mode(False)
    @torch.no_grad()
    def undo(self) -> None:
        """Put the base back, bit for bit; nothing is subtracted. Afterwards this does nothing.

        Each parameter of the base returns itself, in the memory where it lay. If the model was moved to another device
        or dtype meanwhile, it follows. Copies of the model stay merged: the handle is of `model` only.

        RuntimeError, and no change, if a merged weight was replaced since, by a later merge or otherwise, or was
        changed in place, as optimizers and load_state_dict do. Changes of its `.data` are not noticed and are lost:
        they look like a move.
        """
        targets = parameters(self.model)
        for name, weight in self.replaced.items():
            if targets.get(name) is not weight.merged:
                raise RuntimeError(
                    f"{name} was replaced after this merge: undo later merges first; `base` has what was there before"
                )
            if weight.merged._version != weight.version:
                raise RuntimeError(
                    f"{name} was changed in place after this merge, which undoing would lose: merge again instead; "
                    "`base` has what was there before"
                )
        for name, weight in self.replaced.items():
            weight.base.data = weight.base.data.to(weight.merged)
            weight.base.requires_grad_(weight.merged.requires_grad)
            put_parameter(self.model, name, weight.base)
        self.replaced = {}


@torch.inference_mode(False)  # versions are not counted in inference mode
@torch.no_grad()
def merge(model: Model, adapters: Weighted) -> Merged:
    """Put the changed weights in the place of the base, computed in float32 or better and rounded once.

    The base is kept as it lies, so a weight mapped from a file costs no memory. What is merged already counts as base:
    merges stack, and are undone in reverse order. Merged weights are parameters of their own: an optimizer of the
    base does not train them, and another model that shares the base keeps it. ValueError, and no change, if an adapter
    is of another model.

    LoRA, LoHa, LoKr and full differences add up. The other kinds are no sums: adapters act in the order of the list,
    each on what those before it left. Strength 0 leaves a weight as it is, bit for bit; only peft's DoRA still sets the
    magnitudes.
    """
    targets = parameters(model)
    for adapter, _ in adapters:
        check(adapter, targets)
    names = dict.fromkeys(name for adapter, _ in adapters for name in adapter.deltas)
    changed = {name: add_changes(targets[name], name, adapters) for name in names}
    replaced = {}
    for name, weight in changed.items():
        merged = nn.Parameter(weight, requires_grad=targets[name].requires_grad)
        replaced[name] = Replaced(targets[name], merged, merged._version)
        put_parameter(model, name, merged)
    return Merged(model, replaced)


def put_parameter(model: Model, name: str, parameter: nn.Parameter) -> None:
    part, path = name.split(".", 1)
    module, _, attribute = path.rpartition(".")
    setattr(networks(model)[part].get_submodule(module), attribute, parameter)


@contextmanager
def merged(model: Model, adapters: Weighted) -> Generator[Merged]:
    """merge, and undo it at the end of the block, also after an error."""
    handle = merge(model, adapters)
    try:
        yield handle
    finally:
        handle.undo()


def check(adapter: Adapter, targets: dict[str, nn.Parameter]) -> None:
    for name, delta in adapter.deltas.items():
        found = tuple(targets[name].shape) if name in targets else None
        if found is None or not fits(delta, found):
            raise ValueError(
                f"the adapter {adapter.source} is of another model: it changes {name} of the shape "
                f"{delta.shape}, this model has {found or 'none'}"
            )


def add_changes(parameter: nn.Parameter, name: str, adapters: Weighted) -> Tensor:
    """The weight with all of its changes, in its dtype."""
    base = parameter.to(torch.promote_types(parameter.dtype, torch.float32))
    weight = base
    for adapter, strength in adapters:
        delta = adapter.deltas.get(name)
        if isinstance(delta, PeftDoRA):
            weight = delta.apply_beside(weight, base, strength)
        elif delta is not None and strength != 0:
            weight = delta.apply(weight, strength)
    return weight.to(parameter.dtype)


@contextmanager
def attached(model: Model, adapters: Weighted) -> Generator[None]:
    """Add the output of LoRA to that of each layer, inside the block. The weights stay as they are: nothing is rounded
    to their precision, and the factors can be trained. Slower than merged.

    ValueError for other kinds than LoRA on linear and convolutional layers. RuntimeError for a network that is
    compiled, where hooks would be passed over; a compiled function around it passes them over unnoticed.
    """
    places = layers(model)
    targets = parameters(model)
    for adapter, _ in adapters:
        check(adapter, targets)
    for network in networks(model).values():
        refuse_compiled(network)
    additions = []
    for adapter, strength in adapters:
        for name, delta in adapter.deltas.items():
            place = places.get(name.removesuffix(".weight"))
            if place is None or not isinstance(delta, LoRA):
                kind = type(delta).__name__
                raise ValueError(f"the change of {name} is no LoRA of a layer: merge it; {kind} cannot be attached")
            additions.append((place, partial(lora_hook, move_factors(delta, place.weight), strength)))
    handles = []
    try:
        for place, hook in additions:
            handles.append(place.register_forward_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()


def move_factors(delta: LoRA, like: Tensor) -> LoRA:
    """To the device and dtype of the weight, once and for all; factors in training stay where they are."""
    if delta.up.requires_grad or delta.down.requires_grad:
        return delta
    core = None if delta.core is None else delta.core.to(like)
    return replace(delta, up=delta.up.to(like), down=delta.down.to(like), core=core)


def lora_hook(
    delta: LoRA, strength: float, layer: nn.Linear | nn.Conv2d, inputs: tuple[Tensor], output: Tensor
) -> Tensor:
    """A forward hook: the layer's output and the adapter's."""
    (x,) = inputs
    factors = [factor for factor in (delta.down, delta.core, delta.up) if factor is not None]
    kernel = delta.down if delta.core is None else delta.core  # the factor that moves over the picture
    for factor in factors:
        # Tokens (b n i) pass a linear layer, or one of SD1's 1x1 convolutions. Pictures (b i h w) pass a convolution.
        if x.ndim < 4 or not isinstance(layer, nn.Conv2d):
            x = F.linear(x, factor.to(x).flatten(1))
        elif factor is kernel:
            weight = factor.to(x).reshape(len(factor), -1, *layer.kernel_size)
            x = F.conv2d(x, weight, None, layer.stride, layer.padding)
        else:
            x = F.conv2d(x, factor.to(x)[:, :, None, None])
    return output + strength * delta.scale * x
