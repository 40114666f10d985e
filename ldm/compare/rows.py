"""What a comparison found: a row for each block, the verdict in words, and a table."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

LIMIT = 2  # of error / noise


@dataclass
class Row:
    """A block. Errors and noise are relative L2 against the reference in float64."""

    path: str  # in your network; "" is the whole
    kind: str  # its class
    error: float  # the block's own: it was given what the reference's block was given
    noise: float  # error of the reference's block in the dtype of the comparison, plus one rounding unit
    run_error: float | None  # where your network runs by itself: inherited and own; None if it never calls the block
    run_noise: float
    departs: bool  # the error is more than the tolerance, or without one more than LIMIT times the noise
    failure: str = ""  # what the block raised
    own: bool = False  # departs, and no block within it does: the fault is in its own code or weights
    first_seen: str = ""  # if own: the first block in it that is given something else than the reference's
    reason: str = ""  # if own: what is visibly different, such as an epsilon or a transposed weight


@dataclass
class Comparison:
    """The rows in the order in which the reference's blocks start; print it for a verdict and a table."""

    rows: list[Row]
    tolerance: float | None = None  # None: LIMIT times the noise
    unmatched: list[str] = field(default_factory=list)  # blocks of yours that have no counterpart: not compared
    misfits: list[str] = field(default_factory=list)  # blocks that need other arguments: not compared

    @property
    def agrees(self) -> bool:
        return not any(row.departs for row in self.rows)

    @property
    def faults(self) -> list[Row]:
        """Blocks that depart by themselves, the first of them first; not those that only hold such a block."""
        return [row for row in self.rows if row.own]

    def verdict(self) -> str:
        """One line: the first block that departs and how, or that none does."""
        return "; ".join(self.findings())

    def table(self, everything: bool = False) -> str:
        """A line for each block: error, noise and their ratio; in the last column the ratio where your network ran by
        itself. everything: also the blocks deep within one that agrees."""
        return table(self.rows, everything)

    def findings(self) -> list[str]:
        """The verdict, statement by statement."""
        said = []
        if self.faults:
            said += describe(self.faults[0], self.rows, self.tolerance)
            others = len(self.faults) - 1
            if others == 1:
                said.append("1 more departs by itself")
            elif others > 1:
                said.append(f"{others} more depart by themselves")
        else:
            worst = max(self.rows, key=ratio)
            said.append(f"all {len(self.rows)} blocks agree")
            said.append(f"error / noise is at most {ratio(worst):.2f}, in {title(worst)}")
        overflows = sum(math.isinf(row.noise) for row in self.rows)
        if overflows:
            said.append(f"in {overflows} blocks the reference itself overflows")
        return said

    def __str__(self) -> str:
        parts = [self.verdict(), self.table()]
        if self.unmatched:
            parts.append(f"not compared, since the reference has no counterpart: {listed(self.unmatched)}")
        if self.misfits:
            parts.append(f"not compared, since they need other arguments (see Rules): {listed(self.misfits)}")
        return "\n".join(parts)


def describe(fault: Row, rows: Sequence[Row], tolerance: float | None) -> list[str]:
    """What is wrong with a block that departs by itself."""
    allowed = f"noise {fault.noise:.1e}" if tolerance is None else f"tolerance {tolerance:.1e}"
    said = [f"{title(fault)} departs first: error {fault.error:.1e}, {allowed}"]
    if fault.first_seen:
        said.append(f"all blocks in it agree, and it shows first in what {fault.first_seen} is given")
    elif any(within(row.path, fault.path) for row in rows):
        said.append("all blocks in it agree, and it shows in what comes out")
    if fault.reason:
        said.append(fault.reason)
    if fault.failure:
        said.append(fault.failure)
    return said


def listed(paths: Sequence[str]) -> str:
    """The first five paths in one line."""
    return ", ".join(paths[:5]) + (", ..." if len(paths) > 5 else "")


def title(row: Row) -> str:
    """Path and class of a block."""
    return f"{row.path} ({row.kind})" if row.path else f"the network itself ({row.kind})"


def within(path: str, outer: str) -> bool:
    """Whether the block at path lies inside the one at outer; "" is the network."""
    return path != outer and (not outer or path.startswith(outer + "."))


def ratio(row: Row) -> float:
    """error / noise; 0 where the reference itself overflows, since nothing can be said there."""
    return 0.0 if math.isinf(row.noise) else row.error / row.noise


def run_ratio(row: Row) -> float | None:
    """The same where the network ran by itself; None where nothing can be said."""
    if row.run_error is None or math.isinf(row.run_noise):
        return None
    return row.run_error / row.run_noise


def shown(rows: Sequence[Row], everything: bool) -> list[tuple[int, Row, str]]:
    """(depth, row, name within the block that holds it) of the rows of a table. From the third level on, blocks within
    one that agrees are left out, unless everything is asked for."""
    chosen = []
    for row in rows:
        around = [outer for outer in rows if within(row.path, outer.path)]  # the network first, then inwards
        if everything or row.departs or all(outer.departs for outer in around[2:]):
            name = row.path.removeprefix(around[-1].path + ".") if around else "the network"
            chosen.append((len(around), row, name))
    return chosen


def table(rows: Sequence[Row], everything: bool = False) -> str:
    """A line for each block; an arrow marks those that depart by themselves."""
    some = shown(rows, everything)
    width = max(2 * depth + len(name) for depth, _, name in some) + 2
    lines = [f"{'block':<{width}}{'error':>9}{'noise':>9}{'ratio':>9}{'in a run':>10}"]
    for depth, row, name in some:
        mark = ""
        if row.own:
            mark = "  <-- departs"
        elif row.departs:
            mark = "  departs"
        lines.append(
            f"{'  ' * depth + name:<{width}}{row.error:>9.1e}{row.noise:>9.1e}{number(ratio(row)):>9}"
            f"{number(run_ratio(row)):>10}{mark}"
        )
    return "\n".join(lines)


def number(value: float | None) -> str:
    """A ratio in few characters."""
    if value is None:
        return "-"
    if value < 100:
        return f"{value:.2f}"
    return f"{value:.0f}" if value < 1e5 else f"{value:.0e}"
