"""Is my network right? Block by block against another one, on the same inputs.

    expected = expect(reference, inputs)           # once: what every block of the reference is given, and gives
    print(compare(mine, expected, names))          # after each change of yours: which block is wrong, and how
    assert_same(mine, reference, names, inputs)    # in a test: fails with the verdict

Any two modules can be compared. `names` says which blocks of yours are which of the reference's, as
{"down.*.res": "down_blocks.*.resnets"}: the pattern may be the beginning of a path, "*" stands for one part of it, and
blocks of equal paths need no name. Every block of yours is given what the reference's block was given, so a fault
shows where it is and not where it leads. Both are measured against the reference in float64. A block departs if its
error is more than twice that of the reference in the same dtype plus two rounding units: the rule by which
FlashAttention's kernels pass.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .calls import (
    Call,
    Inputs,
    Rules,
    Run,
    attempt,
    call_network,
    cast,
    converted,
    copied,
    recorded,
    relative_error,
    split,
)
from .faults import explain, find_first_seen
from .names import pair_modules, take_weights
from .reference import Expected, Truth, device_of, expect
from .rows import LIMIT, Comparison, Row, within

__all__ = ["LIMIT", "Comparison", "Expected", "Row", "Rules", "assert_same", "compare", "expect", "take_weights"]


@torch.no_grad()
def compare(
    ours: nn.Module,
    expected: Expected,
    names: Mapping[str, str] | None = None,
    *,
    inputs: Inputs | None = None,
    run: Run = call_network,
    rules: Rules | None = None,
    tolerance: float | None = None,
) -> Comparison:
    """A row for every block that both networks have, in the reference's order.

    names: pattern of paths in ours -> path in the reference. inputs: of our network, None for those of the reference.
    run: as in `expect`. tolerance: the relative error that is allowed in a block; None is LIMIT times the noise. A
    network on the meta device takes the reference's own tensors; any other is left as it was.
    Raises ValueError if names or tensors do not fit the networks. What our network raises is a finding.
    """
    names = names or {}
    rules = rules or Rules()
    if any(tensor.is_meta for tensor in ours.parameters()):
        take_weights(ours, expected.network, names)
    pairs = pair_modules(ours, expected.network, names)
    blocks, misfits = match_blocks(ours, expected, pairs, rules)
    given = cast(expected.inputs if inputs is None else inputs, expected.dtype, device_of(expected.network))
    args, kwargs = split(given)
    rows = []
    with converted(ours, expected.dtype):
        with recorded(ours) as calls:
            outputs, failure = attempt(run, ours, *copied(args), **copied(kwargs))
        calls[""] = Call(ours, args, kwargs, outputs)
        for path, (block, truth) in blocks.items():
            if path:
                outputs, failure = attempt(rules.run, block, truth.call)
            rows.append(make_row(path, block, truth, outputs, failure, calls.get(path), tolerance))
        for row in rows:
            row.own = row.departs and not any(inner.departs and within(inner.path, row.path) for inner in rows)
            if row.own:
                row.first_seen = find_first_seen(row, blocks, calls, rules, tolerance)
                row.reason = explain(*blocks[row.path])
    return Comparison(rows, tolerance, find_unmatched(ours, set(pairs.values()), rules), misfits)


def assert_same(
    ours: nn.Module,
    reference: nn.Module,
    names: Mapping[str, str] | None,
    inputs: Inputs,
    tolerance: float | None = None,
    *,
    dtype: torch.dtype | None = None,
    run: Run = call_network,
    rules: Rules | None = None,
) -> None:
    """For tests. Raises AssertionError, whose message names the first block that departs and says how.

    inputs and run: of both networks; inputs are a tuple if the two call their arguments by different names. Others as
    in `expect` and `compare`.
    """
    expected = expect(reference, inputs, dtype=dtype, run=run)
    found = compare(ours, expected, names, run=run, rules=rules, tolerance=tolerance)
    if not found.agrees:
        whole = found.rows[0]
        end = f"what the whole network gives is off by {whole.error:.1e}"
        raise AssertionError("\n  ".join([*found.findings(), end]))


def match_blocks(
    ours: nn.Module, expected: Expected, pairs: Mapping[str, str], rules: Rules
) -> tuple[dict[str, tuple[nn.Module, Truth]], list[str]]:
    """Our path -> our block and the truth about it, in the reference's order, "" for the network; and the paths of
    blocks that cannot be given what the reference's was given."""
    modules = dict(ours.named_modules())
    found = {"": (ours, expected.blocks[""])}
    misfits = []
    for there, truth in expected.blocks.items():
        path = pairs.get(there, "")
        block = modules[path]
        if path == "" or not computes(block) or not rules.compares(block):
            continue
        if rules.fits(block, truth.call):
            found[path] = block, truth
        else:
            misfits.append(path)
    return found, misfits


def computes(block: nn.Module) -> bool:
    """Whether a module has a forward of its own; lists of modules only hold others."""
    return type(block).forward is not nn.Module.forward


def find_unmatched(ours: nn.Module, paired: set[str], rules: Rules) -> list[str]:
    """Blocks with weights that have no counterpart, without those inside them."""
    found: list[str] = []
    for path, block in ours.named_modules():
        if path in paired or not computes(block) or not rules.compares(block):
            continue
        inside = any(within(path, outer) for outer in found)
        has_weights = next(block.parameters(), None) is not None
        if has_weights and not inside:
            found.append(path)
    return found


def make_row(
    path: str,
    block: nn.Module,
    truth: Truth,
    outputs: list[Tensor],
    failure: str,
    in_run: Call | None,
    tolerance: float | None,
) -> Row:
    """outputs, failure: of the block alone, given what the reference's was given. in_run: its call in a run of our
    whole network, None if that never calls it."""
    error = relative_error(outputs, truth.exact)
    run_error = None if in_run is None else relative_error(in_run.outputs, truth.run_exact)
    allowed = LIMIT * truth.noise if tolerance is None else tolerance
    departs = not error <= allowed  # so that NaN departs
    return Row(path, type(block).__name__, error, truth.noise, run_error, truth.run_noise, departs, failure)
