"""Block by block: our network and its reference, whose modules have the same paths.

Every block of ours is given what the reference's block of that path was given, so a fault shows where it is and not
where it leads. Both are measured against the reference in float64. A block departs if its error is more than twice
that of the reference in the same dtype, plus two rounding units: the rule by which FlashAttention's kernels pass.
"""

import inspect
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from tqdm import tqdm

from ldm import ops
from ldm.unet import TokenConv

LIMIT = 2  # of error / noise


class Case(NamedTuple):
    """Two networks and what each is given. run and run_reference return the tensors to compare."""

    name: str
    ours: nn.Module  # on the meta device if it shall have the reference's own weights
    reference: nn.Module
    run: Callable[..., list[Tensor]]
    run_reference: Callable[..., list[Tensor]]
    inputs: dict
    reference_inputs: dict
    dtype: torch.dtype


class Call(NamedTuple):
    """What a block was given, and the tensors that came out: none if it failed."""

    block: nn.Module
    args: tuple
    kwargs: dict
    outputs: list[Tensor]


class Expected(NamedTuple):
    """What a block of the reference was given and what comes out of it in float64; run_exact: what came out where the
    whole network ran in float64. noise: the relative error of the reference in the case's dtype, plus one rounding
    unit."""

    call: Call
    exact: list[Tensor]
    noise: float
    run_exact: list[Tensor]
    run_noise: float


@dataclass
class Row:
    """A block of ours. error: given the reference's inputs. run_error: where our network runs on its own; None if it
    does not call the block as a module. failure: what it raised."""

    path: str
    kind: str
    error: float
    noise: float
    run_error: float | None
    run_noise: float
    departs: bool
    failure: str = ""
    own: bool = False  # departs, and no block within it does
    first_seen: str = ""  # if own: the first block in it that is given something else than the reference's


@torch.no_grad()
def expect(case: Case) -> dict[str, Expected]:
    """All blocks of the reference in the order in which they start, from the whole network, "", on.

    To float64 there is no more exact truth. Its noise is that of float32 times the ratio of their rounding units, and
    twice that, since what stands for the truth is rounded too.
    """
    double = case.dtype == torch.float64
    rough, other = (torch.float32, torch.float32) if double else (case.dtype, torch.float64)
    unit = torch.finfo(case.dtype).eps
    scale = unit / torch.finfo(rough).eps
    here = reference_run(case, case.dtype)
    there = reference_run(case, other)  # converted in place, not copied: memory for one network is enough
    alone = {
        path: tensors(call.block(*cast(call.args, other), **cast(call.kwargs, other))) if path else there[""].outputs
        for path, call in tqdm(here.items(), case.name, disable=None, leave=False)
    }
    case.reference.to(case.dtype)

    def truth(given: list[Tensor], converted: list[Tensor]) -> tuple[list[Tensor], float]:
        exact, rounded = (given, converted) if double else (converted, given)
        return exact, (1 + double) * (relative_error(rounded, exact) * scale + unit)

    return {
        path: Expected(call, *truth(call.outputs, alone[path]), *truth(call.outputs, there[path].outputs))
        for path, call in here.items()
        if call.outputs
    }


def reference_run(case: Case, dtype: torch.dtype) -> dict[str, Call]:
    case.reference.to(dtype)
    with recorded(case.reference) as calls:
        outputs = case.run_reference(case.reference, **cast(case.reference_inputs, dtype, device(case)))
    return {"": Call(case.reference, (), {}, outputs)} | {our_path(case, path): calls[path] for path in calls if path}


@torch.no_grad()
def compare(case: Case, expected: dict[str, Expected], backend: str = "torch") -> list[Row]:
    """A row for every block that both networks have, in the reference's order."""
    share_weights(case)
    blocks = our_blocks(case.ours, expected)
    with ops.backend(backend):
        inputs = cast(case.inputs, case.dtype, device(case))
        with recorded(case.ours) as run:
            outputs, failure = attempt(case.run, case.ours, **inputs)
        run[""] = Call(case.ours, (), inputs, outputs)
        rows = [make_row("", case.ours, expected[""], outputs, failure, run[""])]
        for path, block in list(blocks.items())[1:]:
            outputs, failure = attempt(evaluate, block, expected[path].call)
            rows.append(make_row(path, block, expected[path], outputs, failure, run.get(path)))
        for row in rows:
            row.own = row.departs and not any(inner.departs and within(inner.path, row.path) for inner in rows)
            if row.own:
                row.first_seen = first_seen(row, blocks, expected, run)
    return rows


def make_row(
    path: str, block: nn.Module, there: Expected, outputs: list[Tensor], failure: str, in_run: Call | None
) -> Row:
    error = relative_error(outputs, there.exact)
    run_error = None if in_run is None else relative_error(in_run.outputs, there.run_exact)
    return Row(
        path,
        type(block).__name__,
        error,
        there.noise,
        run_error,
        there.run_noise,
        departs=not error <= LIMIT * there.noise,
        failure=failure,
    )


def first_seen(fault: Row, blocks: dict[str, nn.Module], expected: dict[str, Expected], run: dict[str, Call]) -> str:
    """Where the code between blocks went wrong: the first block within that is given something else than the
    reference's; "" if none is."""
    if fault.path:
        with recorded(blocks[fault.path]) as run:
            attempt(evaluate, blocks[fault.path], expected[fault.path].call)
    for path, block in blocks.items():
        call = run.get(path.removeprefix(fault.path + ".")) if within(path, fault.path) else None
        if call and input_error(call, arguments(block, expected[path].call)) > 2 * LIMIT * fault.noise:
            return path
    return ""


def input_error(call: Call, wanted: list) -> float:
    """Of what a block was given; of `like` only the size counts, and of a list of skips its end."""
    given = inspect.signature(call.block.forward).bind(*call.args, **call.kwargs).arguments
    errors = [0.0]
    for (name, value), right in zip(given.items(), wanted):
        if name == "like":
            errors.append(0.0 if value.shape[2:] == right.shape[2:] else math.inf)
        elif name == "skips":
            errors.append(relative_error(value[1 - len(right) :], right[1:]))
        elif isinstance(right, Tensor) and right.is_floating_point():
            errors.append(relative_l2(value, right.double()))
    return max(errors)


def share_weights(case: Case):
    """Our network takes the very tensors of the reference, and no memory of its own, unless it was loaded."""
    if any(parameter.is_meta for parameter in case.ours.parameters()):
        state = case.reference.state_dict()
        case.ours.load_state_dict({our_path(case, key): tensor for key, tensor in state.items()}, assign=True)
    case.ours.to(case.dtype).eval()


def attempt(run: Callable[..., list[Tensor]], *args, **kwargs) -> tuple[list[Tensor], str]:
    """What comes out, or what was raised: a wrong network may well fail."""
    try:
        return run(*args, **kwargs), ""
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
        return [], f"{type(error).__name__}: {str(error).splitlines()[0]}"


def device(case: Case) -> torch.device:
    return next(case.reference.parameters()).device


@contextmanager
def recorded(network: nn.Module) -> Iterator[dict[str, Call]]:
    """The calls of all modules from here on, by path, in the order in which they start."""
    calls, handles = {}, []
    for path, module in network.named_modules():

        def start(module, args, kwargs, path=path):
            calls[path] = Call(module, copied(args), copied(kwargs), [])

        def end(_, args, output, path=path):
            calls[path].outputs.extend(tensors(output))

        handles += [module.register_forward_pre_hook(start, with_kwargs=True), module.register_forward_hook(end)]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def copied(values):
    """With lists of their own: a network may empty those that it passes."""
    pairs = values.items() if isinstance(values, dict) else enumerate(values)
    copies = {key: list(value) if isinstance(value, list) else value for key, value in pairs}
    return copies if isinstance(values, dict) else tuple(copies.values())


def our_path(case: Case, path: str) -> str:
    """transformers >= 5.6 drops the level "text_model." of CLIPTextModel in memory; every published file has it."""
    dropped = path and hasattr(case.ours, "text_model") and not hasattr(case.reference, "text_model")
    return f"text_model.{path}" if dropped else path


def our_blocks(network: nn.Module, paths: Iterable[str]) -> dict[str, nn.Module]:
    """Those of our modules that compute and hold parameters; "" is the network."""
    modules = dict(network.named_modules())
    return {
        path: modules[path]
        for path in paths
        if path in modules
        and list(modules[path].parameters())
        and (not path or type(modules[path]).forward is not nn.Module.forward)
    }


def within(path: str, outer: str) -> bool:
    return path != outer and (not outer or path.startswith(outer + "."))


def arguments(block: nn.Module, call: Call) -> list:
    """What our block is given in place of what the reference's was: x first, then the others by our names for them."""
    given = inspect.signature(call.block.forward).bind(*call.args, **call.kwargs).arguments
    x = tensors(given)[0]
    if isinstance(block, TokenConv) and x.ndim == 4:
        x = rearrange(x, "b c h w -> b (h w) c")
    if isinstance(block, nn.GroupNorm) and x.ndim == 3:
        x = rearrange(x, "b c n -> b c n 1")
    context = given.get("encoder_hidden_states")
    size = given.get("output_size") or given.get("upsample_size") or [2 * n for n in x.shape[2:]]
    like = x.new_empty(1, 1, *size) if x.ndim == 4 else None
    others = dict(
        emb=given.get("temb"),
        context=x if context is None else context,
        guidance=given.get("condition"),
        like=like,
        skips=[like, *given.get("res_hidden_states_tuple", ())],
    )
    return [x, *(others[name] for name in inspect.signature(block.forward).parameters if name in others)]


def evaluate(block: nn.Module, call: Call) -> list[Tensor]:
    """What comes out of our block in place of the reference's; norms are computed by ops, as in our networks."""
    args = arguments(block, call)
    match block:
        case nn.GroupNorm():
            return [ops.group_norm(*args, block)]
        case nn.LayerNorm():
            return [ops.layer_norm(*args, block)]
        case _:
            return tensors(block(*args))


def tensors(values) -> list[Tensor]:
    """All that nested tuples, lists and dictionaries hold, in order."""
    if isinstance(values, dict):
        values = tuple(values.values())
    if isinstance(values, tuple | list):
        return [tensor for value in values for tensor in tensors(value)]
    return [values] if isinstance(values, Tensor) else []


def cast(values, dtype: torch.dtype, device: torch.device | None = None):
    """The same nest with its tensors on the device and those of floating point in dtype."""
    if isinstance(values, dict):
        return {key: cast(value, dtype, device) for key, value in values.items()}
    if isinstance(values, tuple | list):
        return type(values)(cast(value, dtype, device) for value in values)
    if isinstance(values, Tensor):
        return values.to(device, dtype if values.is_floating_point() else values.dtype)
    return values


def relative_error(found: list[Tensor], exact: list[Tensor]) -> float:
    """Of L2 norms, the largest of several tensors; infinite if they cannot be compared."""
    if len(found) != len(exact) or not exact:
        return math.inf
    return max(relative_l2(a, b.double()) for a, b in zip(found, exact))


def relative_l2(found: Tensor, exact: Tensor) -> float:
    if found.ndim == 3 and exact.ndim == 4:  # SD1's projections: a convolution there, a linear layer here
        exact = rearrange(exact, "b c h w -> b (h w) c")
    if found.numel() != exact.numel():
        return math.inf
    found = found.double().reshape(exact.shape)
    error = 0.0 if torch.equal(found, exact) else ((found - exact).norm() / exact.norm()).item()
    return math.inf if math.isnan(error) else error
