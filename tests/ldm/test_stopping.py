"""How programs end: real processes and real signals, in programs so small that a start takes a moment."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from support.paths import ROOT

PROGRAM = """
from ldm import stopping
stopping.listen()
import atexit, os, sys, time

{body}

stopping.run(main, "stopped; all is well")
"""
WAIT = "print('ready', flush=True)\n    time.sleep(100)"


def start(body: str, *before: str, **more) -> subprocess.Popen:
    """A program with this body, which defines main; it has said that it is ready."""
    command = [*before, sys.executable, "-c", PROGRAM.format(body=body)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | more
    process = subprocess.Popen(command, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}, **pipes)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def end(process: subprocess.Popen, *signals: signal.Signals) -> tuple[int, str, str]:
    """Exit status, output, errors; the signals come one tenth of a second apart."""
    for number in signals:
        time.sleep(0.1)
        process.send_signal(number)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
@pytest.mark.parametrize(
    "body",
    [
        f"def main():\n    {WAIT}",
        # As a library did: what it cleans up does not exist yet, and the error hides the stop
        f"def main():\n  try:\n    {WAIT}\n  finally:\n    None.lock",
        f"def main():\n  try:\n    {WAIT}\n  except BaseException:\n    raise OSError('the library failed')",
        f"def main():\n  try:\n    {WAIT}\n  finally:\n    sys.exit(2)",
        # What Python raises in a finalizer goes no further
        f"class Held:\n  def __del__(self):\n    {WAIT}\n\ndef main():\n  Held()\n  time.sleep(100)",
        # Before main, as in the middle of an import
        f"def main(): pass\n\nif True:\n    {WAIT}",
        # After it
        f"def late():\n    {WAIT}\n\natexit.register(late)\ndef main(): pass",
    ],
    ids=["plain", "hidden", "replaced", "exit", "finalizer", "import", "teardown"],
)
def test_a_stop_is_one_line_and_its_own_status(body, number, status):
    told = "stopped\n" if "if True" in body else "stopped; all is well\n"
    assert end(start(body), number) == (status, "", told)


CLEANUP = f"def main():\n  try:\n    {WAIT}\n  finally:\n    time.sleep(0.5)\n    print('clean', flush=True)"


def test_a_second_signal_does_not_break_the_clean_up():
    assert end(start(CLEANUP), signal.SIGINT, signal.SIGTERM) == (130, "clean\n", "stopped; all is well\n")


def test_a_third_signal_ends_a_clean_up_that_hangs():
    hangs = CLEANUP.replace("0.5", "100")
    assert end(start(hangs), *[signal.SIGINT] * 3) == (130, "", "stopped; all is well\n")


def test_what_is_ignored_stays_ignored():
    process = start("def main():\n  print('ready', flush=True)\n  time.sleep(0.5)\n  print('done')", "nohup")
    assert end(process, signal.SIGHUP) == (0, "done\n", "")


def test_an_unexpected_error_shows_where_and_gives_the_terminal_no_orders():
    code, out, err = end(start("def main():\n  print('ready', flush=True)\n  raise KeyError('\\x1b[2J')"))
    assert code == 1 and out == "" and err.startswith("Traceback") and "\x1b" not in err


@pytest.mark.skipif(sys.platform != "linux", reason="reads in /proc which signals have handlers")
def test_a_program_is_stopped_at_any_moment_of_its_start(tmp_path):
    """From the moment on in which it has handlers: while it imports, loads, draws and ends."""
    rng = random.Random(0)
    command = [sys.executable, ROOT / "scripts/txt2img.py", "--prompt", "x", "--steps", "50", "--out", tmp_path / "out"]
    for number, status in ((signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGTERM, 143)):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while not has_handler(process.pid):
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 1.5))
        process.send_signal(number)
        _, err = process.communicate(timeout=600)
        assert process.returncode == status and err.startswith("stopped") and err.count("\n") == 1, err
    assert not list(tmp_path.rglob("*part*"))


def has_handler(pid: int) -> bool:
    """Whether a process catches SIGTERM."""
    with open(f"/proc/{pid}/status") as status:
        caught = next(line for line in status if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> signal.SIGTERM - 1 & 1)
