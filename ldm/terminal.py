"""What programs write for people: lines in which nothing from a file can command the terminal, on streams that may be
closed, full, or of any encoding.
"""

import os
import sys
import unicodedata
from io import TextIOWrapper
from typing import TextIO

LONGEST = 2000  # characters of an error or a warning
HIDDEN = ("Cc", "Cs", "Zl", "Zp")  # categories of Unicode: controls, halves of a character, separators of lines
DIRECTIONS = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # can show text in false order

failures: dict[str, OSError] = {}  # name of a stream -> why it takes no more


def printable(text: str, keep: str = "") -> str:
    """The text with every character escaped that a terminal would obey rather than show, but those to keep."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(character if character in keep else escape(character) for character in text)


def escape(character: str) -> str:
    if unicodedata.category(character) in HIDDEN or character in DIRECTIONS:
        return character.encode("unicode_escape", "surrogatepass").decode("ascii")
    return character


def one_line(message: str) -> str:
    """A message of any length and content as one line of bounded length."""
    if len(message) > LONGEST:
        message = f"{message[: LONGEST // 2]} ... {message[-LONGEST // 4 :]}"
    return printable(message)


def say(text: str, stream: TextIO | None, end: str = "\n") -> None:
    """Write text, whose lines and tabs stay. A stream that takes no more is left alone from then on: what it was to
    show matters less than the work of the program. `finish` tells it."""
    if stream is None or stream.closed:
        return
    try:
        stream.write(printable(text, keep="\n\t") + end)
        stream.flush()
    except OSError as error:
        give_up(stream, error)


def give_up(stream: TextIO, error: OSError) -> None:
    """Send whatever else is written to it, and what its buffer holds, to nowhere."""
    failures[stream.name] = error
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def prepare() -> None:
    """Make the standard streams safe to use: a closed one leads nowhere, since the next file that is opened would take
    its number and be written to; and characters that the encoding lacks are escaped, not refused."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
        stream = getattr(sys, name)
        if stream is None and number > 0:
            setattr(sys, name, open(number, "w", errors="backslashreplace", closefd=False))
        elif number > 0 and isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def finish() -> bool:
    """Write what is still in the buffers. False, after one line, if what a program printed is lost: its disk is full,
    for example. A reader that has seen enough and closed its pipe is no failure."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None and not stream.closed:
                stream.flush()
        except OSError as error:
            give_up(stream, error)
    error = failures.pop("<stdout>", None)
    if error is None or isinstance(error, BrokenPipeError):
        return True
    say(f"error: the output cannot be written: {error.strerror}", sys.stderr)
    return False
