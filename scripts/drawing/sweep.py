"""A sweep: one picture for each value of one or two settings, and a labelled grid of all of them.

A folder of its own holds a picture for each cell (y00-x00.png and so on), grid.png, and the table of all cells as
cells.csv and cells.json. The same command in the same folder draws only what is missing, so a sweep that was stopped,
by whatever, goes on. A folder with the cells of another sweep is refused.
"""

import csv
import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from common import tell, warn
from drawing.axes import Axis
from drawing.jobs import Settings, draw_batches
from drawing.labelled_grid import Texts, label_grid
from drawing.preview import Preview
from drawing.report import Report
from ldm import pictures
from ldm.adapters import lora
from ldm.model import Model
from ldm.scratch import together
from samplers.options import show
from settings import parse_strength, split_at_colon

DEFAULT_OUT = Path("outputs")
PLAN = "cells.json"
UNREADABLE = "no record"
FILES = {"grid": "grid.png", "csv": "cells.csv", "json": PLAN}
NOTED = {  # settings in the note of a grid, if all cells share them
    "negative": "without {}",
    "sampler": "{}",
    "schedule": "{}",
    "steps": "{} steps",
    "guidance": "guidance {:g}",
    "seed": "seed {}",
}
COLUMNS = ("prompt", "negative", "seed", "steps", "guidance", "sampler", "schedule", "width", "height")  # of the CSV


@dataclass(frozen=True)
class Sweep:
    """axes: the first goes to the right, the second down. cells: the settings of each picture, row by row."""

    axes: Sequence[Axis]
    cells: Sequence[Settings]

    @property
    def columns(self) -> int:
        return len(self.axes[0].values)

    def place(self, number: int) -> tuple[int, int]:
        """Row and column of a cell."""
        return divmod(number, self.columns)

    def name(self, number: int) -> str:
        row, column = self.place(number)
        return f"y{row:02d}-x{column:02d}.png"

    def value(self, axis: int, number: int) -> Any:
        return self.axes[axis].values[self.place(number)[1 - axis]]


def make_sweep(axes: Sequence[Axis], settings: Settings) -> Sweep:
    """Raises ValueError for a value that a picture cannot have."""
    rows = [settings]
    if len(axes) == 2:
        rows = [axes[1].apply(settings, value) for value in axes[1].values]
    return Sweep(axes, [axes[0].apply(row, value) for row in rows for value in axes[0].values])


def choose_folder(out: Path, sweep: Sweep) -> Path:
    """--out, or under outputs/ a folder whose name follows from the settings: the same command finds it again."""
    if out != DEFAULT_OUT:
        return out
    plan = json.dumps([sweep.cells, [axis.name for axis in sweep.axes]], sort_keys=True)
    return out / f"xy-{hashlib.sha256(plan.encode()).hexdigest()[:8]}"


def find_missing(sweep: Sweep, folder: Path, records: Sequence[Mapping[str, Any]]) -> list[int]:
    """The numbers of the cells that are still to be drawn. Raises ValueError if the folder holds another sweep, or a
    picture of a cell's name that was made otherwise."""
    check_plan(sweep, folder)
    missing = []
    for number, record in enumerate(records):
        path = folder / sweep.name(number)
        difference = find_difference(path, record)
        if difference == UNREADABLE:
            missing.append(number)
        elif difference is not None:
            raise ValueError(f"{path}: is there already, and was made with {difference}: choose another --out")
    return missing


def find_difference(path: Path, record: Mapping[str, Any]) -> str | None:
    """What of the picture there was made otherwise; None if it is the one of this record, UNREADABLE if it is none."""
    try:
        found = pictures.read_record(path)
    except (OSError, ValueError):  # not there, or damaged
        return UNREADABLE
    expected = json.loads(json.dumps(record))
    for key, value in expected.items():
        if found.get(key) != value:
            return f"{key} {show(found.get(key))}, not {show(value)}"
    return None


def keep_aside(path: Path):
    """Give whatever has this name another one."""
    if os.path.lexists(path):
        earlier = pictures.move_aside(path)
        warn(f"{path}, which this sweep did not make, is {earlier} now")


def check_plan(sweep: Sweep, folder: Path):
    try:
        plan = json.loads((folder / PLAN).read_text(encoding="utf-8"))
        axes = [(axis["name"], axis["values"]) for axis in plan["axes"]]
    except FileNotFoundError:
        return
    except OSError as error:
        raise ValueError(f"{folder / PLAN}: cannot be read: {error.strerror}: choose another --out") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError(f"{folder / PLAN}: is no table of a sweep: choose another --out") from None
    if axes != [(axis.name, list(axis.values)) for axis in sweep.axes]:
        raise ValueError(f"{folder}: holds another sweep, over {describe(axes)}: choose another --out")


def describe(axes: Sequence[tuple[str, Sequence[Any]]]) -> str:
    parts = [f"{str(name)[:40]} = {show(values)}" for name, values in axes]
    return " and ".join(parts)


def write_tables(sweep: Sweep, folder: Path, records: Sequence[Mapping[str, Any]], seconds: Mapping[int, float]):
    """cells.json, and the same as cells.csv. seconds: of the cells that were drawn now."""
    cells: list[dict[str, Any]] = []
    for number, record in enumerate(records):
        row, column = sweep.place(number)
        cells.append({
            "row": row,
            "column": column,
            "path": sweep.name(number),
            "values": {axis.name: sweep.value(k, number) for k, axis in enumerate(sweep.axes)},
            "seconds": seconds.get(number),
            "settings": record,
        })  # fmt: skip
    axes = [{"name": axis.name, "values": axis.values, "labels": axis.labels} for axis in sweep.axes]
    with together(folder) as scratch:
        plan = json.dumps({"axes": axes, "cells": cells}, indent=1, ensure_ascii=False)
        (scratch / PLAN).write_text(plan, encoding="utf-8", newline="")
        (scratch / FILES["csv"]).write_text(as_csv(sweep, cells), encoding="utf-8", newline="")


def as_csv(sweep: Sweep, cells: Sequence[dict[str, Any]]) -> str:
    """A line for each cell, with a column for each axis and for each setting that is none."""
    names = [axis.name for axis in sweep.axes]
    others = [name for name in COLUMNS if name not in names]
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(["row", "column", *names, *others, "options", "path", "seconds"])
    for cell in cells:
        settings = cell["settings"]
        options = " ".join(f"{name}={value}" for name, value in settings["options"].items())
        line = [cell["row"], cell["column"], *cell["values"].values(), *(settings[name] for name in others)]
        table.writerow([*line, options, cell["path"], cell["seconds"]])
    return text.getvalue()


def write_grid(sweep: Sweep, folder: Path):
    """grid.png with all cells, which are read from their files."""
    found = []
    for number in range(len(sweep.cells)):
        with Image.open(folder / sweep.name(number)) as picture:
            found.append(picture.convert("RGB"))
    rows = [found[first : first + sweep.columns] for first in range(0, len(found), sweep.columns)]
    down = sweep.axes[1] if len(sweep.axes) == 2 else None
    texts = Texts(
        title=title_of(sweep),
        note=describe_shared(sweep),
        x=name_of(sweep.axes[0]),
        y=name_of(down) if down else "",
        columns=sweep.axes[0].labels,
        rows=down.labels if down else [""],
    )
    grid = label_grid(rows, texts)
    with together(folder) as scratch:
        grid.save(scratch / FILES["grid"], format="PNG")


def title_of(sweep: Sweep) -> str:
    """The prompt, also where some of its words are replaced; nothing if it is an axis."""
    is_axis = any(axis.name == "prompt" for axis in sweep.axes)
    return "" if is_axis else sweep.cells[0]["prompt"]


def name_of(axis: Axis) -> str:
    return f"“{axis.name.removeprefix('prompt~')}” in the prompt" if axis.name.startswith("prompt~") else axis.name


def all_equal(sweep: Sweep, key: str) -> bool:
    return all(cell[key] == sweep.cells[0][key] for cell in sweep.cells)


def describe_shared(sweep: Sweep) -> str:
    """The settings that are equal in all cells, in a line."""
    parts = []
    for key, form in NOTED.items():
        value = sweep.cells[0][key]
        if value not in (None, "") and all_equal(sweep, key):
            parts.append(form.format(value))
    return " · ".join(parts)


def draw_cells(
    model: Model, adapters: Sequence[lora.Adapter], records: Sequence[Mapping[str, Any]], numbers: Sequence[int],
    batch: int, look: Preview | None = None,
) -> Iterator[tuple[int, Tensor, float]]:  # fmt: skip
    """The cells of these numbers: number, picture (3 h w) and seconds of each. adapters: to merge, one for each --lora.
    Cells whose adapters have equal strengths are drawn while these are merged."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for number in numbers:
        groups.setdefault(tuple(records[number]["lora"] or ()), []).append(number)
    for texts, group in groups.items():
        strengths = [parse_strength(*split_at_colon(text)) for text in texts]
        with lora.merged(model, list(zip(adapters, strengths))):
            for place, image, seconds in draw_batches(model, [records[number] for number in group], batch, look):
                yield group[place], image, seconds


def save_cells(
    sweep: Sweep, folder: Path, records: Sequence[Mapping[str, Any]], drawn: Iterable[tuple[int, Tensor, float]],
    report: Report,
):  # fmt: skip
    """Save each cell as soon as it is drawn; then write the grid and the tables of all."""
    if not (folder / PLAN).exists():
        for name in FILES.values():
            keep_aside(folder / name)  # of a run that was no sweep
    write_tables(sweep, folder, records, {})
    seconds = {}
    for number, image, took in drawn:
        path = folder / sweep.name(number)
        if find_difference(path, records[number]) is not None:
            keep_aside(path)
        pictures.save(image, path, records[number])
        tell(path)
        seconds[number] = took
    for number, record in enumerate(records):
        took = seconds.get(number)
        report.add_picture(folder / sweep.name(number), dict(record), took or 0.0, is_new=took is not None)
    write_tables(sweep, folder, records, seconds)
    write_grid(sweep, folder)
    for kind, name in FILES.items():
        report.add_file(kind, folder / name)
        tell(folder / name)
