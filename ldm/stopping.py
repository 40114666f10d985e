"""How a program is stopped: Ctrl-C, SIGTERM and SIGHUP end it with one line and the status 128 + the signal's number.

A program calls `listen` before it imports anything large, and `run` in the place of main:

    if __name__ == "__main__":
        from ldm import stopping

        stopping.listen()

While `run` works, a signal raises KeyboardInterrupt, so that everything on the way up cleans up. Before and after,
when there is nothing to clean up, the process ends at once. Signals belong to a process as a whole, so this module
keeps its state as one; it is for programs, and the library never imports it.
"""

import atexit
import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any, NoReturn

from . import terminal

NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP
PATIENCE = 2  # signals that a clean-up outlives; the next one ends the process at once
AGAIN = 0.01  # seconds until a stop that was swallowed is raised again


@dataclass
class State:
    """asked: the signal that asked the program to stop, 0 if none did. told: whether its line was written.
    status: with which the program ends, once that is decided."""

    asked: int = 0
    count: int = 0
    working: bool = False
    told: bool = False
    line: str = "stopped"
    status: int | None = None


state = State()


def listen() -> None:
    """Obey the signals from now on. One that whoever started this process ignores, as nohup does, stays ignored."""
    terminal.prepare()
    wait_without_spinning()
    atexit.register(end)  # the first to be registered is the last to be called
    for name in NAMES:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, obey)
    sys.unraisablehook = raise_again
    try:
        os.getcwd()
    except OSError:  # PyTorch would not even load
        terminal.say("error: the current folder does not exist any more: change to another one", sys.stderr)
        sys.exit(2)


def wait_without_spinning() -> None:
    """Threads of OpenMP that wait for each other leave their cores to others; OpenMP reads this when PyTorch loads.
    What the user has chosen stays."""
    if "GOMP_SPINCOUNT" not in os.environ and "KMP_BLOCKTIME" not in os.environ:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def asked() -> bool:
    """Whether a signal asked this program to stop: what fails after it is no fault to tell."""
    return state.asked != 0


def status() -> int:
    """The exit status of a program that was stopped."""
    return 128 + (state.asked or signal.SIGINT)


def obey(number: int, frame: FrameType | None) -> None:
    state.count += 1
    if not state.asked:
        state.asked = number
        if state.working:
            raise KeyboardInterrupt
        leave()
    if not state.working or state.count > PATIENCE:
        leave()


def leave() -> NoReturn:
    """End at once. Nothing is cleaned up, not even by the interpreter, whose teardown a signal could break."""
    tell()
    os._exit(status())


def tell() -> None:
    """The line, once; past the buffers of Python, which may be in use where the signal arrived."""
    if not state.told:
        state.told = True
        try:
            os.write(2, (state.line + "\n").encode())
        except OSError:
            pass


def end() -> None:
    """End without the interpreter's teardown, which takes a while and in which signals have no handlers any more."""
    if state.status is not None:
        terminal.finish()
        os._exit(state.status)


def raise_again(unraisable: Any) -> None:
    """Python cannot raise an exception out of a finalizer and goes on without it. A stop is raised again a little
    later; what fails after a stop is not told; anything else is told as usual."""
    if not state.asked:
        sys.__unraisablehook__(unraisable)
    elif issubclass(unraisable.exc_type, KeyboardInterrupt) and state.working and hasattr(signal, "setitimer"):
        signal.signal(signal.SIGALRM, stop_again)
        signal.setitimer(signal.ITIMER_REAL, AGAIN)


def stop_again(number: int, frame: FrameType | None) -> None:
    if state.working:
        raise KeyboardInterrupt


def run(main: Callable[[], object], line: str = "stopped") -> NoReturn:
    """Call main and exit with its status: 0 if it returns, 1 and a traceback after an error that it did not expect.
    If a signal asked for it, exit with this line and the status of the signal, whatever exception arrives here:
    libraries raise others over a KeyboardInterrupt on its way up."""
    state.line = line
    code: int | str | None = 0
    try:
        try:
            state.working = True
            main()
        finally:
            state.working = False
    except SystemExit as ended:
        code = ended.code or 0
    except KeyboardInterrupt:
        state.asked = status() - 128
    except BrokenPipeError as error:  # of a print to a reader that has seen enough
        terminal.failures["<stdout>"] = error
    except OSError as error:
        code = 2
        if not state.asked:
            terminal.say(f"error: {terminal.one_line(str(error))}", sys.stderr)
    except BaseException:
        code = 1
        if not state.asked:
            terminal.say(traceback.format_exc(), sys.stderr, end="")
    state.working = False
    complete = terminal.finish()
    if state.asked:
        tell()
        code = 128 + state.asked
    elif not code and not complete:
        code = 2
    if isinstance(code, int):
        state.status = code
    sys.exit(code)
