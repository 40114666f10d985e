"""What a study writes beside its figures: one HTML page that needs no other file, and a table."""

import base64
import csv
from html import escape
from itertools import product
from math import isnan
from pathlib import Path
from string import Template

from lab.figures import Figure, Section, Study
from lab.measure import Run, find_order, select


def write_page(folder: Path, study: Study, sections: list[Section], about: str) -> Path:
    """lab.html, which holds the figures and the errors."""
    parts = []
    for title, caption, figures in sections:
        images = "".join(embed(figure) for figure in figures)
        kind = "plots" if len(figures) > 1 else "alone"
        parts.append(f'<h2>{escape(title)}</h2>\n<p>{escape(caption)}</p>\n<div class="{kind}">{images}</div>')
    rows = []
    for name, schedule in product(study.samplers, study.schedules):
        runs = select(study.runs, name, schedule)
        cells = [name, schedule]
        cells += [format_number(run.error, ".2e") for run in runs]
        cells.append(format_number(find_order(runs), ".1f"))
        rows.append("<tr>" + "".join(f"<td>{escape(cell)}" for cell in cells) + "</tr>")
    heads = "".join(f"<th>{n} steps" for n in study.steps)
    template = Template(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))
    page = folder / "lab.html"
    text = template.substitute(about=escape(about), sections="\n".join(parts), heads=heads, rows="\n".join(rows))
    page.write_text(text, encoding="utf-8")
    return page


def embed(figure: Figure) -> str:
    """A PNG file as an element of a page."""
    data = base64.b64encode(figure.path.read_bytes()).decode()
    return f'<img alt="{escape(figure.alt)}" src="data:image/png;base64,{data}">'


def format_number(value: float, form: str) -> str:
    """A dash where it is not known."""
    return "–" if isnan(value) else format(value, form)


def write_table(folder: Path, runs: list[Run]) -> None:
    """lab.csv: a line for each run, without where it ended."""
    with open(folder / "lab.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(Run._fields[:-1])
        table.writerows(run[:-1] for run in runs)
