"""What the modules of a network are given and give: recorded in a run, and carried over to another module or dtype."""

import inspect
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import is_dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

Inputs = Mapping[str, Any] | Sequence[Any]  # of a network: by name, or in order
Run = Callable[
    ..., Any
]  # (network, **inputs) or (network, *inputs) -> what to compare: tensors, nested as in `tensors`
VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class Call(NamedTuple):
    """What a module was given, and the tensors that came out: none if it failed."""

    block: nn.Module
    args: tuple
    kwargs: dict[str, Any]
    outputs: list[Tensor]


def call_network(network: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """The usual Run: what is compared is what the network returns."""
    return network(*args, **kwargs)


def split(inputs: Inputs) -> tuple[tuple, dict[str, Any]]:
    """Inputs as positional and as named arguments."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return tuple(inputs), {}


@contextmanager
def recorded(network: nn.Module) -> Generator[dict[str, Call]]:
    """The calls of all modules during the `with` block, by path, in the order in which they start.

    Of a module that is called several times the last call is kept. Tensors are copied: a network may change in place
    what it passes on.
    """
    calls: dict[str, Call] = {}
    handles = []

    def watch(path: str, module: nn.Module):
        def start(module: nn.Module, args: tuple, kwargs: dict[str, Any]):
            calls[path] = Call(module, copied(args), copied(kwargs), [])

        def end(module: nn.Module, args: tuple, output: Any):
            calls[path].outputs.extend(copied(tensors(output)))

        handles.append(module.register_forward_pre_hook(start, with_kwargs=True))
        handles.append(module.register_forward_hook(end))

    for path, module in network.named_modules():
        watch(path, module)
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def converted(network: nn.Module, dtype: torch.dtype) -> Generator[None]:
    """The network in dtype and in evaluation mode during the `with` block; at its end all is as it was, bit for bit."""
    modes = [(module, module.training) for module in network.modules()]
    # Numbers that dtype cannot hold are kept aside. All others are converted in place and back, for less memory.
    kept = []
    for module in network.modules():
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            if tensor.is_floating_point() and tensor.dtype != dtype:
                exact = torch.promote_types(tensor.dtype, dtype) == dtype
                kept.append((module, name, tensor.dtype, None if exact else tensor.data))
    # Parameters stay the same objects, since an optimizer may hold them; buffers are replaced.
    network.to(dtype).eval()
    try:
        yield
    finally:
        for module, name, own, data in kept:
            tensor = getattr(module, name)
            tensor.data = tensor.data.to(own) if data is None else data
        for module, mode in modes:
            module.training = mode


def attempt(run: Run, *args: Any, **kwargs: Any) -> tuple[list[Tensor], str]:
    """The tensors that come out and "", or none and what was raised: a wrong network may well fail."""
    try:
        return tensors(run(*args, **kwargs)), ""
    except Exception as error:
        lines = str(error).splitlines() or [""]
        return [], f"{type(error).__name__}: {lines[0]}"


def named_arguments(call: Call) -> dict[str, Any]:
    """What a module was given, by the names in its own forward, in their order. Some may be missing."""
    bound = inspect.signature(call.block.forward).bind_partial(*call.args, **call.kwargs)
    given = {}
    for name, value in bound.arguments.items():
        kind = bound.signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_KEYWORD:
            given.update(value)
        elif kind is inspect.Parameter.VAR_POSITIONAL:
            given.update({f"{name}[{i}]": item for i, item in enumerate(value)})
        else:
            given[name] = value
    return given


class Rules:
    """How a block runs on what the reference's block was given.

    Arguments go by name where the names are equal, and all other tensors in order. Subclass this where two networks
    differ in more than that.
    """

    def compares(self, block: nn.Module) -> bool:
        """Whether a block gets a row of its own."""
        return True

    def arguments(self, block: nn.Module, call: Call) -> tuple[tuple, dict[str, Any]]:
        """What block is given, by position and by name, in place of what the reference's block was given in call."""
        parameters = inspect.signature(block.forward).parameters
        if any(parameter.kind in VARIADIC for parameter in parameters.values()):
            return call.args, call.kwargs
        given = named_arguments(call)
        chosen = {name: given.pop(name) for name in parameters if name in given}
        others = [value for value in given.values() if tensors(value)]
        free = [name for name in parameters if name not in chosen]
        return (), chosen | dict(zip(free, others))

    def fits(self, block: nn.Module, call: Call) -> bool:
        """Whether `arguments` gives all that the block needs. One that needs more cannot be compared by itself."""
        args, kwargs = self.arguments(block, call)
        try:
            inspect.signature(block.forward).bind(*args, **kwargs)
        except TypeError:
            return False
        return True

    def run(self, block: nn.Module, call: Call) -> Any:
        """What comes out of block, given what the reference's block was given in call."""
        args, kwargs = self.arguments(block, call)
        return block(*copied(args), **copied(kwargs))

    def input_error(self, name: str, given: Any, wanted: Any) -> float:
        """How far one argument of a block is from the wanted one, that of the reference: the largest relative L2 error
        of its tensors."""
        right = [tensor for tensor in tensors(wanted) if tensor.is_floating_point()]
        found = [tensor for tensor in tensors(given) if tensor.is_floating_point()]
        return relative_error(found, right) if right else 0.0


def tensors(values: Any) -> list[Tensor]:
    """All tensors in nested tuples, lists, mappings and dataclasses, in order."""
    if isinstance(values, Tensor):
        return [values]
    if is_dataclass(values) and not isinstance(values, type):
        values = vars(values)
    if isinstance(values, Mapping):
        values = tuple(values.values())
    if isinstance(values, tuple | list):
        return [tensor for value in values for tensor in tensors(value)]
    return []


def changed(values: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same nest of dictionaries, lists, tuples and dataclasses with every tensor changed."""
    if isinstance(values, Tensor):
        return change(values)
    if isinstance(values, dict):
        return {key: changed(value, change) for key, value in values.items()}
    if isinstance(values, list):
        return [changed(value, change) for value in values]
    if isinstance(values, tuple):
        items = [changed(value, change) for value in values]
        return type(values)(*items) if hasattr(values, "_fields") else tuple(items)
    if is_dataclass(values) and not isinstance(values, type):
        return replace(values, **changed(vars(values), change))
    return values


def copied(values: Any) -> Any:
    """The same nest with tensors of its own."""
    return changed(values, torch.clone)


def cast(values: Any, dtype: torch.dtype, device: torch.device | None = None) -> Any:
    """The same nest with its tensors on the device, and those of floating point in dtype."""

    def convert(tensor: Tensor) -> Tensor:
        return tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype)

    return changed(values, convert)


def relative_error(found: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """The largest relative L2 error of several tensors; infinite if they cannot be compared."""
    if len(found) != len(exact) or not exact:
        return math.inf
    return max(relative_l2(a, b) for a, b in zip(found, exact))


def relative_l2(found: Tensor, exact: Tensor) -> float:
    """|found - exact| / |exact|, in float64. Tokens (b n c) and a picture (b c h w) may stand for each other."""
    found = found.double()
    exact = exact.double()
    if found.ndim == 3 and exact.ndim == 4:
        exact = exact.flatten(2).transpose(1, 2)
    elif found.ndim == 4 and exact.ndim == 3 and found.flatten(2).shape != exact.shape:
        found = found.flatten(2).transpose(1, 2)
    if found.numel() != exact.numel():
        return math.inf
    found = found.reshape(exact.shape)
    if torch.equal(found, exact):
        return 0.0
    error = ((found - exact).norm() / exact.norm()).item()
    return math.inf if math.isnan(error) else error
