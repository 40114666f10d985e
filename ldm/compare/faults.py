"""What is wrong with a block that departs: where inside it that first shows, and what is visibly different."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .calls import Call, Rules, attempt, named_arguments, recorded
from .reference import Truth
from .rows import LIMIT, Row, within


def find_first_seen(
    fault: Row,
    blocks: Mapping[str, tuple[nn.Module, Truth]],
    calls: Mapping[str, Call],
    rules: Rules,
    tolerance: float | None,
) -> str:
    """Where the code between blocks went wrong: the path of the first block within the faulty one that is given
    something else than the reference's; "" if none is. calls: in a run of our whole network."""
    # Inside a block the calls are those that it makes when it is given what the reference's block was given.
    if fault.path:
        block, truth = blocks[fault.path]
        with recorded(block) as calls:
            attempt(rules.run, block, truth.call)
    allowed = 2 * (LIMIT * fault.noise if tolerance is None else tolerance)
    for path, (block, truth) in blocks.items():
        if not within(path, fault.path):
            continue
        call = calls.get(path.removeprefix(fault.path + "."))
        if call is None:
            continue
        args, kwargs = rules.arguments(block, truth.call)
        wanted = named_arguments(Call(block, args, kwargs, []))
        given = named_arguments(call)
        errors = [rules.input_error(name, given[name], wanted[name]) for name in given if name in wanted]
        if max(errors, default=0.0) > allowed:
            return path
    return ""


def explain(block: nn.Module, truth: Truth) -> str:
    """What is visibly different from the reference's block: numbers such as an epsilon, and weights."""
    theirs = truth.call.block
    reasons = []
    for name, value in vars(block).items():
        other = vars(theirs).get(name, value)
        plain = isinstance(value, int | float | str | tuple) and isinstance(other, int | float | str | tuple)
        if plain and not name.startswith("_") and name != "training" and value != other:
            reasons.append(f"{name} is {value} here and {other} in the reference")
    their_weights = own_tensors(theirs)
    for name, weight in own_tensors(block).items():
        other = their_weights.pop(name, None)
        if other is None or other.numel() != weight.numel():
            continue
        wanted = other.to(weight).reshape(weight.shape)
        if weight.ndim == 2 and weight.shape[0] == weight.shape[1] and torch.equal(weight.T, wanted):
            reasons.append(f"its {name} is that of the reference transposed")
        elif not torch.equal(weight, wanted):
            reasons.append(f"its {name} is not that of the reference")
    if type(block).__name__ == type(theirs).__name__:
        reasons += [f"it has no {name}" for name in their_weights]
    return ", ".join(reasons)


def own_tensors(block: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, without those of the blocks within."""
    return {**dict(block.named_parameters(recurse=False)), **dict(block.named_buffers(recurse=False))}
