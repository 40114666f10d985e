"""Make notebooks of pages of the documentation: a cell for each block of Python, and one for the prose between two.

    python scripts/notebooks.py                    # again, those that docs/notebooks/ holds
    python scripts/notebooks.py docs/samplers.md   # that of another page

They are plain JSON in nbformat 4.5 and hold no outputs. Change the page, never the notebook.
"""

if __name__ == "__main__":
    from ldm import stopping

    stopping.listen()

import json
import re
from pathlib import Path
from typing import Any

from common import fail, make_parser, tell

DOCS = Path(__file__).parents[1] / "docs"
NOTEBOOKS = DOCS / "notebooks"
CODE = re.compile(r"^```python\n(.*?)^```\n?", re.M | re.S)
LINK = re.compile(r"(\]\()(?!\w+:|#|/)")  # to a file that lies beside the page; not to the web, nor to a heading


def main():
    parser = make_parser(__doc__)
    parser.add_argument("pages", nargs="*", type=Path, metavar="PAGE", help="default: the pages that have one")
    pages = parser.parse_args().pages
    if not pages:
        pages = [DOCS / f"{path.stem}.md" for path in sorted(NOTEBOOKS.glob("*.ipynb"))]
    for page in pages:
        target = NOTEBOOKS / f"{page.stem}.ipynb"
        try:
            text = convert(page.read_text(encoding="utf-8"))
            target.parent.mkdir(exist_ok=True)
            target.write_text(text, encoding="utf-8")
        except OSError as error:
            fail(f"{error.filename}: {error.strerror}")
        tell(target)


def convert(page: str) -> str:
    """A page in Markdown -> the notebook, as the text of its file. The same page gives the same text."""
    cells = []
    # Between two matches of CODE stands its group: prose and code take turns
    for k, text in enumerate(CODE.split(page)):
        kind = "markdown" if k % 2 == 0 else "code"
        text = text.strip("\n")
        if kind == "markdown":
            text = LINK.sub(r"\1../", text)  # a notebook lies one folder deeper
        if text:
            cells.append(make_cell(len(cells), kind, text))
    notebook = {
        "cells": cells,
        "metadata": {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return json.dumps(notebook, ensure_ascii=False, indent=1) + "\n"


def make_cell(number: int, kind: str, text: str) -> dict[str, Any]:
    cell = {"cell_type": kind, "id": f"cell-{number}", "metadata": {}, "source": text.splitlines(keepends=True)}
    if kind == "code":
        cell |= {"execution_count": None, "outputs": []}
    return cell


if __name__ == "__main__":
    stopping.run(main)
