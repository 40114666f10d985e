"""The report of --json: what a program drew, with the warnings and errors that people read beside it."""

import json
import re
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, TextIO, cast

from ldm import stopping, terminal
from ldm.version import version

MESSAGE = re.compile(r"(?:[^:]{1,40}: )?(warning|error): (.*)")  # a parser of flags puts the program's name before it


class Report:
    """pictures: path, seed, settings and seconds of each, in order. files: what else was written, by kind."""

    def __init__(self):
        self.began = time.perf_counter()
        self.pictures: list[dict[str, Any]] = []
        self.files: dict[str, str] = {}

    def add_picture(self, path: Path, record: dict[str, Any], seconds: float, is_new: bool = True):
        """seconds: that its batch took, shared evenly. is_new: False if an earlier run drew it."""
        entry = {"path": str(path), "seed": record["seed"], "seconds": round(seconds, 4), "settings": record}
        self.pictures.append(entry if is_new else entry | {"drawn_before": True})

    def add_file(self, kind: str, path: Path):
        self.files[kind] = str(path)

    def as_json(self, lines: list[str], status: int) -> str:
        """lines: what was written for people."""
        messages: dict[str, list[str]] = {"warning": [], "error": []}
        for line in lines:
            found = MESSAGE.match(line)
            if found:
                messages[found[1]].append(found[2])
        words = {0: "complete", 130: "stopped", 143: "stopped"}
        content = {
            "status": words.get(status, "failed"),
            "exit": status,
            "pictures": self.pictures,
            "files": self.files,
            "warnings": messages["warning"],
            "errors": messages["error"],
            "seconds": round(time.perf_counter() - self.began, 4),
            "ldm": version(),
        }
        return json.dumps(content, ensure_ascii=True, allow_nan=False, default=str)


class Listener:
    """A stream that hands on what is written to it, and remembers the lines."""

    closed = False

    def __init__(self, stream: TextIO):
        self.stream = stream
        self.unfinished = ""
        self.lines: list[str] = []

    def write(self, text: str) -> int:
        self.stream.write(text)
        *lines, self.unfinished = (self.unfinished + text).replace("\r", "\n").split("\n")
        self.lines += [line for line in lines if MESSAGE.match(line)]
        return len(text)

    def flush(self):
        self.stream.flush()

    def isatty(self) -> bool:
        return self.stream.isatty()

    def fileno(self) -> int:
        return self.stream.fileno()

    @property
    def name(self) -> str:
        return self.stream.name

    @property
    def encoding(self) -> str:  # tqdm draws its bar in characters that this has
        return self.stream.encoding


@contextmanager
def reported(wanted: bool) -> Generator[Report]:
    """A report that is written to stdout as one JSON object at the end of the block, however it ends; all that the
    block writes for people goes to stderr. Not wanted, it is kept and nothing else changes."""
    report = Report()
    if not wanted:
        yield report
        return
    out = sys.stdout
    listener = Listener(sys.stderr)
    status = 0
    try:
        with redirect_stdout(cast(TextIO, listener)), redirect_stderr(cast(TextIO, listener)):
            yield report
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        raise
    except KeyboardInterrupt:
        status = stopping.status()
        raise
    except BaseException:
        status = stopping.status() if stopping.asked() else 1
        raise
    finally:
        terminal.say(report.as_json(listener.lines, status), out)
