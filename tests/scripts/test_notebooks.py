"""The notebooks of the documentation are those of its pages, and run as a notebook does."""

import json
import os
import subprocess
import sys

import pytest

from scripts import notebooks
from support.paths import NO_NETWORK, ROOT

COMMITTED = sorted(notebooks.NOTEBOOKS.glob("*.ipynb"))
PAGES = ("extend", "text_to_picture")  # a reader starts here, so these have one
RUN = """
import json, sys
names = {"__name__": "__main__"}
for cell in json.load(open(sys.argv[1], encoding="utf-8"))["cells"]:
    if cell["cell_type"] == "code":
        exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
"""


@pytest.mark.parametrize("name", PAGES)
def test_the_first_pages_have_a_notebook(name):
    page = ROOT / f"docs/{name}.md"
    assert not page.exists() or notebooks.NOTEBOOKS / f"{name}.ipynb" in COMMITTED


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_a_notebook_is_that_of_its_page(path):
    page = ROOT / f"docs/{path.stem}.md"
    assert path.read_text(encoding="utf-8") == notebooks.convert(page.read_text(encoding="utf-8")), (
        f"docs/{path.stem}.md has changed: run `make notebooks`"
    )


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path):
    """In a new interpreter, with all cells in one namespace, and from the folder of the notebook, as Jupyter does."""
    run = subprocess.run(
        [sys.executable, "-c", RUN, path],
        cwd=path.parent,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(NO_NETWORK), str(ROOT)])},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert run.returncode == 0, run.stderr


def test_prose_code_and_links_of_a_page():
    page = (
        "# Title\n\n[near](samplers.md), ![plot](a/b.png), [far](https://example.org), [below](#title)\n"
        "```python\nx = 1\n\nprint(x)\n```\n```\nmake test\n```\n```python\ny = x\n```\n"
    )
    prose, first, shell, second = json.loads(notebooks.convert(page))["cells"]
    assert prose["source"][2] == (
        "[near](../samplers.md), ![plot](../a/b.png), [far](https://example.org), [below](#title)"
    )
    assert (first["cell_type"], first["source"]) == ("code", ["x = 1\n", "\n", "print(x)"])
    assert (shell["cell_type"], "".join(shell["source"])) == ("markdown", "```\nmake test\n```")
    assert second["source"] == ["y = x"] and len({cell["id"] for cell in (prose, first, shell, second)}) == 4


def test_a_page_that_is_missing_is_told_in_one_line(script):
    run = script("notebooks.py", "docs/no_such_page.md")
    assert run.returncode == 2 and run.stderr == "error: docs/no_such_page.md: No such file or directory\n"
