"""What the blocks of the reference are given, what they give, and how exact that is."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .calls import Call, Inputs, Run, call_network, cast, converted, copied, recorded, relative_error, split, tensors


class Truth(NamedTuple):
    """A block of the reference: its call, and what comes out of it in float64 when it is given the same.

    run_exact: what came out where the whole network ran in float64. noise: the relative error of the reference in the
    dtype of the comparison, plus one rounding unit.
    """

    call: Call
    exact: list[Tensor]
    noise: float
    run_exact: list[Tensor]
    run_noise: float


class Expected(NamedTuple):
    """The reference and all of its blocks in the order in which they start, from the whole network, "", on."""

    network: nn.Module
    inputs: Inputs
    dtype: torch.dtype
    blocks: dict[str, Truth]


@torch.no_grad()
def expect(
    reference: nn.Module,
    inputs: Inputs,
    *,
    dtype: torch.dtype | None = None,
    run: Run = call_network,
    progress: Callable[[list[str]], Iterable[str]] = iter,
) -> Expected:
    """Run the reference and each of its blocks, in dtype and in float64.

    inputs: of the network, by name or in order. dtype: of the comparison; None is that of the reference's weights.
    run(network, inputs...): what to compare if it is not what the network returns, such as `vae.decode`. progress:
    wraps the paths of all blocks, as tqdm does. The reference is left as it was.

    Nothing here is more exact than float64. If dtype is float64, its own results stand for the truth, and the noise is
    that of float32 times the ratio of the two rounding units, doubled because the truth is rounded too. Raises
    ValueError if the reference returns no tensors.
    """
    own = [tensor for tensor in reference.parameters() if tensor.is_floating_point()]
    dtype = dtype or (own[0].dtype if own else torch.float32)
    other = torch.float32 if dtype == torch.float64 else torch.float64
    with converted(reference, dtype):
        calls = record_run(reference, inputs, dtype, run)
        # Within the first conversion, so that the weights are those that dtype can hold.
        with converted(reference, other):
            other_calls = record_run(reference, inputs, other, run)
            alone = {"": other_calls[""].outputs}  # what each block gives in the other dtype, given the same
            for path in progress([path for path in calls if path]):
                call = calls[path]
                alone[path] = tensors(call.block(*cast(call.args, other), **cast(call.kwargs, other)))
    if not calls[""].outputs:
        raise ValueError("the reference returns no tensors: say with run=... what to compare")
    blocks = {}
    for path, call in calls.items():
        if call.outputs:
            exact, noise = find_truth(call.outputs, alone[path], dtype)
            run_exact, run_noise = find_truth(call.outputs, other_calls[path].outputs, dtype)
            blocks[path] = Truth(call, exact, noise, run_exact, run_noise)
    return Expected(reference, inputs, dtype, blocks)


def find_truth(given: list[Tensor], other: list[Tensor], dtype: torch.dtype) -> tuple[list[Tensor], float]:
    """What a block gives exactly, and its noise, from what it gives in dtype and in the other one: see `expect`."""
    unit = torch.finfo(dtype).eps
    if dtype == torch.float64:
        scale = unit / torch.finfo(torch.float32).eps
        return given, 2 * (relative_error(other, given) * scale + unit)
    return other, relative_error(given, other) + unit


def record_run(network: nn.Module, inputs: Inputs, dtype: torch.dtype, run: Run) -> dict[str, Call]:
    """All calls in a run of the network; that of the network itself is called ""."""
    args, kwargs = split(cast(inputs, dtype, device_of(network)))
    with recorded(network) as calls:
        outputs = tensors(run(network, *copied(args), **copied(kwargs)))
    calls.pop("", None)  # run may call some method of the network in place of the network
    return {"": Call(network, args, kwargs, outputs)} | calls


def device_of(network: nn.Module) -> torch.device | None:
    """The device of the network's weights; None without weights, which leaves inputs where they are."""
    for tensor in network.parameters():
        return tensor.device
    return None
