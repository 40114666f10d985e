"""docs/security.md names tests; each of them is there."""

import re

from support.paths import ROOT


def test_every_test_that_the_page_names_is_there():
    rows = [line for line in (ROOT / "docs" / "security.md").read_text().splitlines() if line.startswith("|")]
    named = {name for row in rows for name in re.findall(r"`([a-z0-9]+(?:_[a-z0-9]+)+)`", row)}
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    there = set(re.findall(r"^def test_(\w+)\(", tests, re.M))
    assert len(named) > 20 and named <= there, named - there
