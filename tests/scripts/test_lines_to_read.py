"""scripts/lines_to_read.py counts what a run executes, and that stays little."""

import re
from functools import partial

import pytest

from samplers.basics import karras
from scripts.lines_to_read import CASES, ROOT, count, executed, file_of, length, lines_of_files
from support.paths import ROOT as HERE


@pytest.mark.parametrize("name", CASES)
def test_a_reader_needs_few_lines_and_files(name):
    case = CASES[name]
    functions = count(case)
    assert sum(functions.values()) <= case.lines
    assert len(lines_of_files(functions)) <= case.files


def test_the_limits_are_those_that_were_promised():
    assert {name: (case.lines, case.files) for name, case in CASES.items()} == {
        "dpmpp_2m": (600, 12),
        "euler": (480, 12),
        "unet": (141, 2),
        "load": (800, 12),
    }


def test_it_counts_what_ran():
    """The spine is there with all its moves, each function once, and nothing that did not run."""
    functions = count(CASES["dpmpp_2m"])
    names = {f"{file_of(code)}:{code.co_name}" for code in functions}
    moves = {
        "ldm/tasks/text_to_image.py:text_to_image",
        "ldm/conditioning.py:encode",
        "ldm/plan.py:plan",
        "ldm/draw.py:start",
        "ldm/guidance.py:guide",
        "ldm/draw.py:draw",
        "samplers/basics.py:dpmpp_2m",
        "samplers/basics.py:karras",
    }
    assert moves <= names
    assert not {"samplers/basics.py:euler", "samplers/basics.py:leading", "ldm/guidance.py:guide_by"} & names


def test_lines_are_those_of_the_source():
    """A function of this project counts with its signature; one of the tests or of torch does not."""
    (lines,) = executed(partial(karras, 0.1, 10, 5)).values()
    assert lines == 5  # signature, documentation and three lines of code
    assert executed(partial(sorted, [3, 1])) == {}


def test_the_program_prints_what_a_fresh_process_counts(script):
    """So the numbers above do not depend on the tests that ran before."""
    run = script("lines_to_read.py", "--functions")
    assert run.returncode == 0, run.stderr
    told = [tuple(map(int, found)) for found in re.findall(r": (\d+) lines, (\d+) functions, (\d+) files", run.stdout)]
    expected = []
    for case in CASES.values():
        functions = count(case)
        expected.append((sum(functions.values()), len(functions), len(lines_of_files(functions))))
    assert told == expected
    assert "UNet.forward" in run.stdout and ROOT == HERE


def test_the_readme_quotes_it():
    """To a tenth, so that not every change of a line is one of the README too."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    files = lines_of_files(count(CASES["dpmpp_2m"]))
    listed = re.findall(r"^\| \[`(\S+)`\]\(\1\) \| .+ \| (\d+) \|$", readme, re.M)
    assert {file for file, _ in listed} == set(files)
    for file, lines in listed:
        assert int(lines) == pytest.approx(length(file), rel=0.1), f"{file} has {length(file)} lines: tell README.md"
    quoted = re.search(r"(\d+)\s+lines\s+in\s+(\d+)\s+files;\s+(\d+).+?the\s+UNet\s+alone\s+(\d+)", readme, re.S)
    assert quoted is not None
    counts = [sum(count(CASES[name]).values()) for name in ("dpmpp_2m", "euler", "unet")]
    assert [int(quoted[k]) for k in (1, 3, 4)] == pytest.approx(counts, rel=0.1)
    assert int(quoted[2]) == len(files)
