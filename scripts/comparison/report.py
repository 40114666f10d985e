"""The rows of a comparison as a line, a table, JSON, a page and a heat map. Colors stand for error / noise."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path
from string import Template

from comparison.blocks import LIMIT, Row, within

Results = dict[str, list[Row]]  # name of a case -> its rows
AGREES = ((0.1, "#eef5fa"), (LIMIT, "#9ecae1"))  # error / noise -> color
DEPARTS = ((LIMIT, "#fdae61"), (30, "#f46d43"), (1e3, "#d73027"), (1e6, "#a50026"))


def verdict(name: str, rows: list[Row]) -> str:
    """One line: the first block that departs, or that none does."""
    faults, worst = [row for row in rows if row.own], max(rows, key=ratio)
    overflows = sum(math.isinf(row.noise) for row in rows)
    if faults:
        said = found(faults[0], rows) + (f"; {len(faults) - 1} more depart by themselves" if faults[1:] else "")
    else:
        said = f"all {len(rows)} blocks agree; error / noise is at most {ratio(worst):.2f}, in {title(worst)}"
    return f"{name}: {said}" + (f"; in {overflows} blocks the reference itself overflows" if overflows else "")


def found(fault: Row, rows: list[Row]) -> str:
    said = f"{title(fault)} departs first: error {fault.error:.1e}, noise {fault.noise:.1e}"
    if fault.first_seen:
        said += f"; all blocks in it agree, and it shows first in what {fault.first_seen} is given"
    elif any(within(row.path, fault.path) for row in rows):
        said += "; all blocks in it agree, and it shows in what comes out"
    return said + (f"; {fault.failure}" if fault.failure else "")


def title(row: Row) -> str:
    return f"{row.path} ({row.kind})" if row.path else f"the network itself ({row.kind})"


def ratio(row: Row) -> float:
    return 0.0 if math.isinf(row.noise) else row.error / row.noise


def run_ratio(row: Row) -> float | None:
    return None if row.run_error is None or math.isinf(row.run_noise) else row.run_error / row.run_noise


def shown(rows: list[Row], everything: bool) -> list[tuple[int, Row, str]]:
    """Rows with their depth and their names within the blocks that hold them. Without what lies in a block that
    agrees, from the third level on."""
    chosen = []
    for row in rows:
        around = [outer for outer in rows if within(row.path, outer.path)]
        if everything or row.departs or not any(not outer.departs for outer in around[2:]):
            name = row.path.removeprefix(around[-1].path + ".") if around else "the network"
            chosen.append((len(around), row, name))
    return chosen


def table(rows: list[Row], everything: bool = False) -> str:
    """error and noise of each block on the reference's inputs; in the last column error / noise in a run of its own."""
    some = shown(rows, everything)
    width = max(2 * depth + len(name) for depth, _, name in some) + 2
    lines = [f"{'block':<{width}}{'error':>9}{'noise':>9}{'ratio':>9}{'in a run':>10}"]
    for depth, row, name in some:
        mark = "  <-- departs" if row.own else "  departs" if row.departs else ""
        lines.append(
            f"{'  ' * depth + name:<{width}}{row.error:>9.1e}{row.noise:>9.1e}{number(ratio(row)):>9}"
            f"{number(run_ratio(row)):>10}{mark}"
        )
    return "\n".join(lines)


def number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if value < 100 else f"{value:.0f}" if value < 1e5 else f"{value:.0e}"


def record(results: Results, facts: dict) -> dict:
    """All of it, for json.dumps; infinite numbers become null."""
    finite = lambda value: None if isinstance(value, float) and not math.isfinite(value) else value
    blocks = {
        name: [{key: finite(value) for key, value in asdict(row).items()} for row in rows]
        for name, rows in results.items()
    }
    return facts | {
        "limit": LIMIT,
        "agrees": agrees(results),
        "networks": blocks,
        "verdicts": {name: verdict(name, rows) for name, rows in results.items()},
    }


def agrees(results: Results) -> bool:
    return not any(row.departs for rows in results.values() for row in rows)


def color(value: float | None) -> str:
    """Of error / noise: blue below the limit, from orange to dark red above it, on a logarithmic scale."""
    if value is None:
        return "#ffffff"
    stops = AGREES if value <= LIMIT else DEPARTS
    (low, first), (high, last) = next(((a, b) for a, b in zip(stops, stops[1:]) if value <= b[0]), stops[-2:])
    mix = min(max(math.log(max(value, low) / low) / math.log(high / low), 0), 1) if math.isfinite(value) else 1
    return "#" + "".join(
        f"{round(int(first[i : i + 2], 16) * (1 - mix) + int(last[i : i + 2], 16) * mix):02x}" for i in (1, 3, 5)
    )


def write_page(path: Path, results: Results, facts: dict, everything: bool):
    """One HTML file that needs no other."""
    template = Template(Path(__file__).with_name("page.html").read_text())
    sections = "\n".join(section(name, rows, everything) for name, rows in results.items())
    told = ", ".join(f"{key} {value}" for key, value in facts.items())
    path.write_text(
        template.substitute(
            facts=escape(told), limit=LIMIT, sections=sections, state="agrees" if agrees(results) else "departs"
        )
    )


def section(name: str, rows: list[Row], everything: bool) -> str:
    first = next((row for row in rows if row.own), None)
    lines = []
    for depth, row, short in shown(rows, everything):
        cells = "".join(
            f'<td class="heat" style="background:{color(value)};color:{ink(value)}">{number(value)}</td>'
            for value in (ratio(row), run_ratio(row))
        )
        marks = ' class="first"' if row is first else ' class="own"' if row.own else ""
        lines.append(
            f'<tr{marks}><th scope="row" style="--depth:{depth}" title="{escape(row.path)}">{escape(short)} '
            f"<small>{escape(row.kind)}</small></th>{cells}<td>{row.error:.1e}</td><td>{row.noise:.1e}</td></tr>"
        )
    head = "".join(f'<th scope="col">{text}</th>' for text in ("block", "error / noise", "in a run", "error", "noise"))
    return (
        f"<h2>{escape(name)}</h2>\n<p>{escape(verdict(name, rows))}.</p>\n<table>\n<thead><tr>{head}</tr></thead>\n"
        "<tbody>\n" + "\n".join(lines) + "\n</tbody>\n</table>"
    )


def ink(value: float | None) -> str:
    return "#ffffff" if value is not None and value > 300 else "#1a1a1a"


def write_heat_map(path: Path, results: Results, facts: dict, everything: bool):
    """A PNG. Raises ImportError without matplotlib."""
    from matplotlib.figure import Figure

    columns = {name: [row for _, row, _ in shown(rows, everything)] for name, rows in results.items()}
    tallest = max(map(len, columns.values()))
    figure = Figure(figsize=(5 * len(columns), min(1.6 + 0.2 * tallest, 200)), layout="constrained")
    for axes, (name, rows) in zip(figure.subplots(1, len(columns), squeeze=False)[0], columns.items()):
        draw(axes, name, rows, tallest)
    told = ", ".join(f"{key} {value}" for key, value in facts.items())
    figure.suptitle(f"error / noise: blue up to {LIMIT}, red above it: departs\n{told}", fontsize=9)
    figure.savefig(path, dpi=100)


def draw(axes, name: str, rows: Sequence[Row], tallest: int):
    from matplotlib.patches import Rectangle

    for y, row in enumerate(rows):
        for x, value in enumerate((ratio(row), run_ratio(row))):
            axes.add_patch(Rectangle((x, y), 1, 1, facecolor=color(value), edgecolor="white", linewidth=0.5))
            axes.text(x + 0.5, y + 0.5, number(value), ha="center", va="center", fontsize=7, color=ink(value))
    first = next((y for y, row in enumerate(rows) if row.own), None)
    if first is not None:
        axes.add_patch(Rectangle((0, first), 1, 1, fill=False, edgecolor="black", linewidth=3, zorder=3))
    axes.set(xlim=(0, 2), ylim=(tallest, 0), frame_on=False)
    axes.set_title(name, fontsize=10)
    axes.set_xticks([0.5, 1.5], ["given the\nreference's inputs", "in a run\nof its own"], fontsize=8)
    axes.set_yticks([y + 0.5 for y in range(len(rows))], [row.path or "the network" for row in rows], fontsize=7)
    axes.tick_params(length=0)
    axes.xaxis.tick_top()
