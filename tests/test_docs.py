"""The code blocks of the documentation run, in order, and what they assert holds."""

import re

import pytest

from support.paths import ROOT


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda p: p.stem)
def test_code_of_the_page_runs(page):
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S)
    assert blocks
    names = {}
    for block in blocks:
        exec(compile(block, str(page), "exec"), names)


def test_tests_that_the_pages_name_are_there():
    named = {
        match.groups()
        for page in (ROOT / "docs").glob("*.md")
        for match in re.finditer(r"`(tests/[\w/]+\.py)::(\w+)`", page.read_text(encoding="utf-8"))
    }
    assert len(named) > 20
    for file, test in sorted(named):
        assert f"\ndef {test}(" in (ROOT / file).read_text(encoding="utf-8"), f"{file}::{test}"
