"""What programs write: nothing that commands a terminal, on streams that may be closed or full."""

import os
import subprocess
import sys

import pytest

from ldm import terminal
from support.paths import ROOT

MANY = "from ldm import stopping, terminal; import sys; stopping.listen(); stopping.run(lambda: {work})"
LINES = "[terminal.say(str(i), sys.stdout) for i in range(9)]"


def shell(work: str, redirected: str, **variables) -> tuple[str, str]:
    """Output and errors; the last line of the output is the exit status of the program."""
    line = f'{{ "$0" -c "$1"; echo $? >&9; }} {redirected}'
    run = subprocess.run(
        ["bash", "-c", f"{{ {line}; }} 9>&1", sys.executable, MANY.format(work=work)],
        capture_output=True,
        text=True,
        errors="replace",
        env=os.environ | {"PYTHONPATH": str(ROOT)} | variables,
    )
    return run.stdout, run.stderr


@pytest.mark.parametrize(
    "text, shown",
    [
        ("plain é 日本 🍎 👩‍🚀", "plain é 日本 🍎 👩‍🚀"),
        ("\x1b[2J\x07", "\\x1b[2J\\x07"),
        ("\x9b31m\x7f", "\\x9b31m\\x7f"),  # C1: an escape sequence in one character
        ("a\nb\rc\u2028d", "a\\nb\\rc\\u2028d"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("\udcff", "\\udcff"),
    ],
)
def test_what_a_terminal_would_obey_is_escaped(text, shown):
    assert terminal.printable(text) == shown


def test_lines_are_bounded():
    assert len(terminal.one_line("x\x00" * 10**6)) < 2 * terminal.LONGEST


def test_a_reader_that_has_seen_enough_is_no_error():
    out, err = shell(LINES, "| head -1")
    assert sorted(out.split()) == ["0", "0"] and err == ""  # the line and the status


def test_a_full_disk_is_told_in_one_line():
    for work in (LINES, "print(1)"):  # at the line, or in the end
        out = shell(work, "> /dev/full", PYTHONUNBUFFERED="")
        assert out == ("2\n", "error: the output cannot be written: No space left on device\n")
    assert shell(LINES, "2> /dev/full")[0].endswith("8\n0\n")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_take_no_file_of_the_program(closed):
    """The next file that is opened would have the number of a closed stream, and what is printed would go there."""
    out, err = shell("sys.exit(open('/dev/null').fileno() < 3 or print('x') or print('y', file=sys.stderr))", closed)
    assert out.endswith("0\n") and err in ("", "y\n")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_every_encoding_shows_something(encoding):
    out, err = shell("terminal.say('é🍎\\udcff', sys.stdout)", "", PYTHONIOENCODING=encoding)
    assert out.endswith("\\udcff\n0\n") and err == ""
