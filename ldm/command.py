"""The command `ldm`: one door to the programs of scripts/, each of which can be run as a file too.

ldm draw --prompt "a red apple"      the same as    python scripts/txt2img.py --prompt "a red apple"
ldm --help                           every command, with one line each
ldm draw --help                      the flags of one
"""

import ast
import importlib.util
import sys
from pathlib import Path
from typing import NoReturn

from . import stopping, terminal
from .version import DISTRIBUTION, version

COMMANDS = {  # command -> program
    "draw": "txt2img.py",
    "convert": "convert.py",
    "inspect": "inspect_checkpoint.py",
    "compare": "compare.py",
    "lab": "sampler_lab.py",
}
EXTRAS = {"diffusers": "test", "transformers": "test", "matplotlib": "viz"}  # package -> extra that installs it


def main(arguments: list[str] | None = None):
    """Run `ldm` with these arguments, those of the command line if None. Exit status: that of the program; 2 for a
    command that does not exist or a package that is missing; 130 after Ctrl-C."""
    if arguments is None:
        stopping.listen()
        arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        return show(overview())
    name = arguments[0]
    if name == "--version":
        return show(f"ldm {version()}")
    if name not in COMMANDS:
        fail(f"unknown command {name!r}: choose one of {', '.join(COMMANDS)}")
    try:
        run(name, arguments[1:])
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        if package not in EXTRAS:
            raise
        extra = f"{DISTRIBUTION}[{EXTRAS[package]}]"
        fail(f"ldm {name} needs the package {package}, which is not installed: pip install '{extra}'")


def overview() -> str:
    """The text of `ldm --help`; what a command does is the first line of its program."""
    lines = ["usage: ldm COMMAND [flags]", ""]
    for name, program in COMMANDS.items():
        summary = ast.get_docstring(ast.parse((programs() / program).read_text(encoding="utf-8"))) or ""
        lines.append(f"  {name:10}{summary.partition(chr(10))[0]}")
    lines += ["", "ldm COMMAND --help lists the flags of one, ldm --version the version."]
    return "\n".join(lines)


def programs() -> Path:
    """The folder of the programs: scripts/ of a checkout, ldm_scripts of an installed wheel."""
    root = Path(__file__).parents[1]
    for name in ("scripts", "ldm_scripts"):
        if (root / name / "txt2img.py").is_file():
            return root / name
    fail(f"the programs are missing beside {root / 'ldm'}: install {DISTRIBUTION} again")


def run(name: str, arguments: list[str]):
    """Run a program as `python scripts/PROGRAM` does, but let it call itself `ldm NAME` in its messages.

    That is why this is not runpy.run_path, which puts the path of the file in the place of sys.argv[0].
    """
    path = programs() / COMMANDS[name]
    sys.path.insert(0, str(path.parent))  # programs import what lies beside them
    sys.argv = [f"ldm {name}", *arguments]
    spec = importlib.util.spec_from_file_location("__main__", path)
    assert spec is not None and spec.loader is not None  # it is a Python file
    module = importlib.util.module_from_spec(spec)
    module.__spec__ = None  # as it is of a file that was run
    sys.modules["__main__"] = module
    spec.loader.exec_module(module)


def show(text: str):
    terminal.say(text, sys.stdout)
    if not terminal.finish():
        sys.exit(2)


def fail(message: str) -> NoReturn:
    terminal.say(f"error: {terminal.one_line(message)}", sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
