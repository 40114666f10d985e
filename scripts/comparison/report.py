"""Comparisons as JSON, as a page and as a heat map. Colors stand for error / noise."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from ldm.compare import LIMIT, Comparison, Row
from ldm.compare.rows import number, ratio, run_ratio, shown

Results = dict[str, Comparison]  # by the name of the case
Shown = tuple[int, Row, str]  # its depth, a block, and its name within the block that holds it
AGREES = ((0.1, "#eef5fa"), (LIMIT, "#9ecae1"))  # error / noise -> color
DEPARTS = ((LIMIT, "#fdae61"), (30, "#f46d43"), (1e3, "#d73027"), (1e6, "#a50026"))


def describe(name: str, found: Comparison) -> str:
    """One line: the verdict on one network."""
    return f"{name}: {found.verdict()}"


def all_agree(results: Results) -> bool:
    return all(found.agrees for found in results.values())


def make_record(results: Results, facts: dict[str, str]) -> dict[str, Any]:
    """All that was found, for json.dumps; infinite numbers become null."""
    blocks = {}
    verdicts = {}
    for name, found in results.items():
        blocks[name] = [replace_infinite(asdict(row)) for row in found.rows]
        verdicts[name] = describe(name, found)
    return facts | {"limit": LIMIT, "agrees": all_agree(results), "networks": blocks, "verdicts": verdicts}


def replace_infinite(row: dict[str, Any]) -> dict[str, Any]:
    """JSON has no infinity: it becomes None."""
    kept = {}
    for key, value in row.items():
        infinite = isinstance(value, float) and not math.isfinite(value)
        kept[key] = None if infinite else value
    return kept


def choose_color(value: float | None) -> str:
    """The color of error / noise: blue below the limit, from orange to dark red above it, on a logarithmic scale."""
    if value is None:
        return "#ffffff"
    stops = AGREES if value <= LIMIT else DEPARTS
    # The two stops that the value lies between; beyond the last one its color stays
    (low, first), (high, last) = stops[-2:]
    for start, end in zip(stops, stops[1:]):
        if value <= end[0]:
            (low, first), (high, last) = start, end
            break
    mix = 1.0
    if math.isfinite(value):
        mix = min(math.log(max(value, low) / low) / math.log(high / low), 1.0)
    channels = []
    for i in (1, 3, 5):
        channel = int(first[i : i + 2], 16) * (1 - mix) + int(last[i : i + 2], 16) * mix
        channels.append(f"{round(channel):02x}")
    return "#" + "".join(channels)


def write_page(path: Path, results: Results, facts: dict[str, str], everything: bool):
    """One HTML file that needs no other."""
    template = Template(Path(__file__).with_name("page.html").read_text())
    sections = "\n".join(make_section(name, found, everything) for name, found in results.items())
    state = "agrees" if all_agree(results) else "departs"
    text = template.substitute(facts=escape(list_facts(facts)), limit=LIMIT, sections=sections, state=state)
    path.write_text(text)


def list_facts(facts: dict[str, str]) -> str:
    """What was compared, with which versions."""
    return ", ".join(f"{key} {value}" for key, value in facts.items())


def make_section(name: str, found: Comparison, everything: bool) -> str:
    """The verdict on one network, and under it the table, which is folded if all agrees."""
    head = "".join(f'<th scope="col">{text}</th>' for text in ("block", "error / noise", "in a run", "error", "noise"))
    bodies = "\n".join(make_body(rows, found) for rows in split_at_outer_blocks(shown(found.rows, everything)))
    state = "" if found.agrees else " open"
    return (
        f"<details{state}>\n<summary><h2>{escape(describe(name, found))}</h2></summary>\n"
        f"<table>\n<thead><tr>{head}</tr></thead>\n{bodies}\n</table>\n</details>"
    )


def split_at_outer_blocks(rows: Sequence[Shown]) -> list[list[Shown]]:
    """An outer block of the network with all that it holds, one after another; the network itself is the first."""
    groups: list[list[Shown]] = []
    for depth, row, short in rows:
        if depth <= 1 or not groups:
            groups.append([])
        groups[-1].append((depth, row, short))
    return groups


def make_body(rows: Sequence[Shown], found: Comparison) -> str:
    """An outer block, and under it the blocks that it holds, which its box unfolds. It is open if one of them departs
    by itself."""
    first = found.faults[0] if found.faults else None
    lines = []
    for k, (depth, row, short) in enumerate(rows):
        cells = ""
        for value in (ratio(row), run_ratio(row)):
            style = f"background:{choose_color(value)};color:{choose_ink(value)}"
            cells += f'<td class="heat" style="{style}">{number(value)}</td>'
        marks = " data-inner" if k > 0 else ""
        if row is first:
            marks += ' class="first"'
        elif row.own:
            marks += ' class="own"'
        label = f"{escape(short)} <small>{escape(row.kind)}</small>"
        if k == 0 and len(rows) > 1:
            checked = " checked" if any(inner.own for _, inner, _ in rows[1:]) else ""
            label = f'<label><input type="checkbox"{checked}> {label} <small>{len(rows) - 1} inside</small></label>'
        lines.append(
            f'<tr{marks}><th scope="row" style="--depth:{depth}" title="{escape(row.path)}">{label}</th>'
            f"{cells}<td>{row.error:.1e}</td><td>{row.noise:.1e}</td></tr>"
        )
    return "<tbody>\n" + "\n".join(lines) + "\n</tbody>"


def choose_ink(value: float | None) -> str:
    """The color of letters on choose_color."""
    return "#ffffff" if value is not None and value > 300 else "#1a1a1a"


def write_heat_map(path: Path, results: Results, facts: dict[str, str], everything: bool):
    """A PNG. Raises ImportError without matplotlib."""
    from matplotlib.figure import Figure

    columns = {}
    for name, found in results.items():
        columns[name] = [row for _, row, _ in shown(found.rows, everything)]
    tallest = max(map(len, columns.values()))
    figure = Figure(figsize=(5 * len(columns), min(1.6 + 0.2 * tallest, 200)), layout="constrained")
    for axes, (name, rows) in zip(figure.subplots(1, len(columns), squeeze=False)[0], columns.items()):
        draw(axes, name, rows, tallest)
    figure.suptitle(f"error / noise: blue up to {LIMIT}, red above it: departs\n{list_facts(facts)}", fontsize=9)
    figure.savefig(path, dpi=100)


def draw(axes: Any, name: str, rows: Sequence[Row], tallest: int):
    """A row of two cells for each block; the first that departs by itself is outlined."""
    from matplotlib.patches import Rectangle

    for y, row in enumerate(rows):
        for x, value in enumerate((ratio(row), run_ratio(row))):
            axes.add_patch(Rectangle((x, y), 1, 1, facecolor=choose_color(value), edgecolor="white", linewidth=0.5))
            axes.text(x + 0.5, y + 0.5, number(value), ha="center", va="center", fontsize=7, color=choose_ink(value))
    first = next((y for y, row in enumerate(rows) if row.own), None)
    if first is not None:
        axes.add_patch(Rectangle((0, first), 1, 1, fill=False, edgecolor="black", linewidth=3, zorder=3))
    axes.set(xlim=(0, 2), ylim=(tallest, 0), frame_on=False)
    axes.set_title(name, fontsize=10)
    axes.set_xticks([0.5, 1.5], ["given the\nreference's inputs", "in a run\nof its own"], fontsize=8)
    axes.set_yticks([y + 0.5 for y in range(len(rows))], [row.path or "the network" for row in rows], fontsize=7)
    axes.tick_params(length=0)
    axes.xaxis.tick_top()
