"""scripts/drawing/axes.py, sweep.py and labelled_grid.py: a picture for each value of one or two settings."""

import csv
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from PIL import Image, ImageDraw

import weights
from drawing.axes import parse_axes, parse_axis
from drawing.labelled_grid import BACKGROUND, Layout, Texts, label_grid, wrap
from drawing.report import Report
from drawing.sweep import check_plan, draw_cells, find_missing, make_sweep, save_cells
from ldm import tasks
from ldm.adapters import lora
from support.paths import ROOT

SETTINGS = {"prompt": "a red apple", "negative": None, "options": {"s_noise": 1}, "lora": ["x/style.safetensors:0.5"]}


@pytest.mark.parametrize(
    "text, values",
    [
        ("guidance=1.5..8", (1.5, 3.125, 4.75, 6.375, 8.0)),
        ("guidance=8..1:2", (8.0, 1.0)),
        ("guidance=0..1/0.1", tuple(round(k / 10, 1) for k in range(11))),
        ("guidance=1,2.5,4..5:2", (1.0, 2.5, 4.0, 5.0)),
        ("steps=4", (4,)),
        ("steps=10..40/10", (10, 20, 30, 40)),
        ("steps=40..10/10", (40, 30, 20, 10)),
        ("seed=0..3", (0, 1, 2, 3)),
        ("seed=0..100", (0, 25, 50, 75, 100)),
        ("width=64..128", (64, 80, 96, 112, 128)),
        ("width=64..80", (64, 72, 80)),
        ("sampler=euler, ddim", ("euler", "ddim")),
        ('prompt="a fox, 3d style",an owl', ("a fox, 3d style", "an owl")),
        ("option.eta=0..1:3", (0.0, 0.5, 1.0)),
        ("option.pece=true,false", (True, False)),
        ("prompt~red->blue,green", ("red", "blue", "green")),
    ],
)
def test_values_of_an_axis(text, values):
    axis = parse_axis(text)
    assert axis.values == values
    assert list(map(type, axis.values)) == list(map(type, values))
    assert all(label and len(label) < 20 for label in axis.labels)


@pytest.mark.parametrize(
    "texts, words",
    [
        (["guidance"], "give NAME=VALUES"),
        (["guidance="], "give NAME=VALUES"),
        (["model=a,b"], "'model': it cannot be varied: choose prompt"),
        (["steps=1..3:0"], "choose 1 to 1000 values"),
        (["guidance=1..3/0"], "choose a step"),
        (["guidance=0..9999/0.001"], "choose a step that gives 1 to 1000 values"),
        (["guidance=1..1e999"], "a range has two numbers"),
        (["seed=1..5000:2000"], "choose 1 to 1000 values"),
        (["steps=many"], "'many': give a number"),
        (["steps=2.5"], "give a whole number"),
        (["steps=4,4"], "a value is there twice"),
        (["prompt~red"], "give prompt~OLD->NEW"),
        (["prompt~blue->red"], "does not hold 'blue'"),
        (["sampler=eular"], "unknown sampler 'eular'"),
        (["schedule=caras"], "unknown schedule 'caras'"),
        (["lora.other=0..1"], "no --lora is called so"),
        (["steps=1,2", "steps=3,4"], "two different settings"),
        (["steps=1,2", "seed=3,4", "guidance=1,2"], "one axis, or two"),
    ],
)
def test_a_wrong_axis_is_one_line(texts, words):
    with pytest.raises(ValueError, match="^(--xy|unknown)") as error:
        make_sweep(parse_axes(texts), SETTINGS)
    assert words in str(error.value) and len(str(error.value)) < 900


def test_cells_take_the_values_row_by_row():
    swept = make_sweep(parse_axes(["sampler=DPM++ 2M Karras,Euler a", "option.eta=0,1"]), SETTINGS)
    assert [cell["sampler"] for cell in swept.cells] == ["dpmpp_2m", "euler_ancestral"] * 2
    assert swept.cells[0]["schedule"] == "karras" and "schedule" not in swept.cells[1]
    assert [cell["options"] for cell in swept.cells] == [{"s_noise": 1, "eta": eta} for eta in (0, 0, 1, 1)]
    assert [swept.name(number) for number in range(4)] == [f"y0{y}-x0{x}.png" for y in (0, 1) for x in (0, 1)]
    swept = make_sweep(parse_axes(["lora.style=0..1:2", "prompt~red->blue"]), SETTINGS)
    assert [cell["lora"] for cell in swept.cells] == [["x/style.safetensors:0"], ["x/style.safetensors:1"]] * 2
    assert [cell["prompt"] for cell in swept.cells] == ["a red apple"] * 2 + ["a blue apple"] * 2


def test_strengths_of_an_adapter_are_merged_in_turn_and_undone():
    """Strength 0 is the model without it, bit for bit, also after a cell with it."""
    model = weights.load(weights.MINIATURE)
    adapter = lora.new(model, "unet.mid_block.*.to_?", rank=2)
    for name, delta in adapter.deltas.items():
        adapter.deltas[name] = replace(delta, up=torch.ones_like(delta.up))
    cell = {"prompt": "a fox", "negative": None, "seed": 1, "sampler": "euler", "schedule": "karras", "steps": 1,
            "guidance": 1.0, "options": {}, "height": 64, "width": 64, "lora": ["style:0.5"]}  # fmt: skip
    swept = make_sweep(parse_axes(["lora=1,0"]), cell)
    drawn = {number: image for number, image, _ in draw_cells(model, [adapter], swept.cells, [0, 1], 8)}
    plain = tasks.text_to_image(model, "a fox", seeds=1, sampler="euler", schedule="karras", steps=1, guidance=1.0)[0]
    assert torch.equal(drawn[1], plain) and (drawn[0] - plain).abs().max() > 1e-3


def test_what_a_sweep_did_not_make_keeps_its_content(tmp_path, capsys):
    """A grid of an earlier run, a file with the name of a cell, and links that were planted."""
    victim = tmp_path / "victim"
    victim.write_text("mine")
    out = tmp_path / "out"
    out.mkdir()
    (out / "grid.png").write_text("a grid")
    (out / "y00-x00.png").write_text("a picture")
    (out / "y00-x01.png").symlink_to(victim)
    (out / "cells.csv").symlink_to(victim)
    settings = SETTINGS | dict.fromkeys(("seed", "steps", "guidance", "width", "height"), 8)
    settings |= {"sampler": "euler", "schedule": "karras", "files": {"unet": "0" * 10}, "model": None}
    swept = make_sweep(parse_axes(["seed=0,1"]), settings)
    drawn = [(number, torch.zeros(3, 8, 8), 1.0) for number in range(2)]
    for _ in range(2):  # as two runs at once do
        save_cells(swept, out, swept.cells, drawn, Report())
    assert {path.name: path.read_text() for path in out.glob("*-1.*")} == {
        "cells-1.csv": "mine", "grid-1.png": "a grid", "y00-x00-1.png": "a picture", "y00-x01-1.png": "mine"
    }  # fmt: skip
    assert find_missing(swept, out, swept.cells) == [] and victim.read_text() == "mine"
    assert len(list(out.iterdir())) == 9 and capsys.readouterr().err.count("did not make") == 4


def test_labels_are_whole_and_touch_no_picture(monkeypatch):
    """Every text lies within the page, beside every picture, and pictures come out as they went in."""
    drawn = []
    text = ImageDraw.ImageDraw.text

    def noted(self, place, line, **settings):
        if line:
            drawn.append(
                (self._image.size, self.textbbox(place, line, font=settings["font"], anchor=settings["anchor"]))
            )
        text(self, place, line, **settings)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", noted)
    columns = ["1.5", "DPM++ 2M SDE Karras", "a_name_without_spaces_of_great_length" * 3, "Ångström, jpg"]
    rows = ["a long row label of many words that says much and more than fits into three lines", "", "gy"]
    pictures = [[Image.new("RGB", (64 + 8 * x, 64), (20 * x, 90, 40 * y)) for x in range(4)] for y in range(3)]
    texts = Texts("a title " * 60, "a note " * 60, "guidance", "sampler", columns, rows)
    page = label_grid(pictures, texts)
    cells = [[picture.resize((picture.width * 3, picture.height * 3)) for picture in row] for row in pictures]
    layout = Layout(cells, texts)
    assert page.size == (layout.width, layout.height)
    assert len(drawn) > 15
    for size, (left, top, right, bottom) in drawn:
        assert left >= 0 and top >= 0 and right <= size[0] and bottom <= size[1]
        if size == page.size:  # else it is the name of the rows, drawn on a strip of its own
            assert right <= layout.left or bottom <= layout.top
    for row, y_place in zip(pictures, layout.y_places):
        for picture, x_place in zip(row, layout.x_places):
            box = (x_place, y_place, x_place + 3 * picture.width, y_place + 192)
            assert page.crop(box).getcolors() == [(9 * picture.width * 64, picture.getpixel((0, 0)))]
    assert page.getpixel((layout.width - 2, layout.height - 2)) == BACKGROUND


def test_lines_fit_and_lose_only_what_three_dots_tell():
    font = Layout([[Image.new("RGB", (200, 200))]], Texts("", "", "", "", ["x"], [""])).font
    for text in ("a fox in the snow", "dpmpp_2m_sde_heun", "i" * 400, "W" * 50, "a, b, c " * 90, "x"):
        lines = wrap(text, 100, font)
        assert 1 <= len(lines) <= 3 and all(font.getlength(line) <= 100 for line in lines)
        kept = "".join(lines).replace(" ", "")
        if kept.endswith("..."):
            assert text.replace(" ", "").startswith(kept[:-3])
        else:
            assert kept == text.replace(" ", "")
    assert wrap("", 100, font) == []


def test_a_killed_sweep_goes_on_where_it_stopped(script, tmp_path):
    """kill -9 in the middle; the same command draws the rest, another is refused, and the tables tell all cells."""
    out = tmp_path / "sweep"
    command = [sys.executable, str(ROOT / "scripts/txt2img.py"), "--prompt", "a fox", "--steps", "2", "--out", str(out),
               "--batch", "1", "--xy", "guidance=1,3,5", "seed=4,5"]  # fmt: skip
    unbuffered = os.environ | {"PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=unbuffered)
    first = process.stdout.readline().strip()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = {path: path.stat().st_mtime_ns for path in out.glob("y*.png") if path.suffix == ".png"}
    assert str(out / "y00-x00.png") == first and 1 <= len(before) < 6 and not (out / "grid.png").exists()

    # A cell that was damaged is drawn again, too
    (out / "y00-x00.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    run = script("txt2img.py", *command[2:], "--json")
    assert run.returncode == 0, run.stderr
    report = json.loads(run.stdout)
    assert (
        report["status"] == "complete"
        and len(report["pictures"]) == 6
        and set(report["files"]) == {"grid", "csv", "json"}
    )
    kept = [path for path in before if path.name != "y00-x00.png"]
    assert all(path.stat().st_mtime_ns == before[path] for path in kept)
    assert [picture.get("drawn_before", False) for picture in report["pictures"]].count(True) == len(kept)

    cells = json.loads((out / "cells.json").read_text())["cells"]
    assert [(cell["values"]["guidance"], cell["values"]["seed"]) for cell in cells] == [
        (guidance, seed) for seed in (4, 5) for guidance in (1, 3, 5)
    ]
    with open(out / "cells.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["path"] for row in table] == [cell["path"] for cell in cells]
    for cell, row in zip(cells, table):
        with Image.open(out / cell["path"]) as picture:
            record = json.loads(picture.text["ldm"])
        assert record == cell["settings"] and record["guidance"] == float(row["guidance"])
        assert record["seed"] == int(row["seed"]) == cell["values"]["seed"]
    with Image.open(out / "grid.png") as grid:
        assert grid.width > 3 * 192 and grid.height > 2 * 192

    settings = cells[0]["settings"]
    with pytest.raises(ValueError, match="holds another sweep, over guidance = .* and seed = .*: choose another --out"):
        check_plan(make_sweep(parse_axes(["guidance=1,3,5", "seed=4,6"]), settings), out)
    same = make_sweep(parse_axes(["guidance=1,3,5", "seed=4,5"]), settings)
    assert find_missing(same, out, [cell["settings"] for cell in cells]) == []
    with pytest.raises(ValueError, match="y00-x00.png: is there .*made with prompt 'a fox', not 'a cat': choose anoth"):
        find_missing(same, out, [cell["settings"] | {"prompt": "a cat"} for cell in cells])
