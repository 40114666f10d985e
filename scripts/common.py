"""What the programs of this folder share: names of dtypes, flags with the same meaning, and one-line errors."""

import argparse
import sys
from itertools import pairwise
from typing import Any, NoReturn, TextIO

import torch
from tqdm import tqdm

from devices import available, check_device
from ldm import stopping, terminal

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}
MAY_BE_EMPTY = ("--prompt", "--negative")


class Parser(argparse.ArgumentParser):
    """Its errors are one line, and an empty value is one of them, but for a prompt."""

    def parse_args(self, args=None, namespace=None):
        words = sys.argv[1:] if args is None else args
        for before, word in pairwise(["", *words]):
            flag, equals, value = word.partition("=")
            if word == "":
                self.refuse_empty(before)
            elif equals and not value and flag.startswith("--"):
                self.refuse_empty(flag)
        return super().parse_args(args, namespace)

    def refuse_empty(self, flag: str):
        if not flag.startswith("--"):
            self.error("an argument is empty: give a name, or leave it out")
        if not any(name.startswith(flag) for name in MAY_BE_EMPTY):
            self.error(f"{flag} is empty: give a value, or leave it out")

    def _print_message(self, message: str, file: Any = None):
        """Where --help writes; argparse itself would say nothing of a full disk."""
        terminal.say(message, file or sys.stderr, end="")

    def error(self, message: str) -> NoReturn:
        line = terminal.one_line(f"{self.prog}: error: {message}")
        terminal.say(f"{line} (--help lists the flags)", sys.stderr)
        sys.exit(2)


def make_parser(text: str | None) -> argparse.ArgumentParser:
    """A parser whose --help shows the program's own docstring, line for line."""
    return Parser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)


def add_run_flags(parser: argparse._ActionsContainer, device: str | None = None, dtype: str | None = None):
    """--device and --dtype, a key of DTYPES. Without a default, the device is the best that this machine has."""
    if device is None:
        device = available()[0]
    parser.add_argument("--device", default=device, type=parse_device, help=f"where to compute (default: {device})")
    default = "" if dtype is None else f" (default: {dtype})"
    parser.add_argument(
        "--dtype", type=dtype_name, choices=DTYPES, default=dtype, help=f"of the weights and activations{default}"
    )


def dtype_name(text: str) -> str:
    """The key of DTYPES that a text stands for, such as fp16 or torch.float16; the text itself if there is none."""
    from weights.load import dtype_of_name  # not every program that has flags reads weights

    try:
        return str(dtype_of_name(text)).removeprefix("torch.")
    except ValueError:
        return text


def parse_device(text: str) -> str:
    try:
        return check_device(text)
    except ValueError as error:
        fail(str(error))


def add_download_flags(parser: argparse._ActionsContainer):
    """--variant, --revision and --offline: which files of a folder or repository are read."""
    parser.add_argument("--variant", help="weight files to take, for example fp16")
    parser.add_argument("--revision", help="of a repository: a branch, tag or commit")
    parser.add_argument("--offline", action="store_true", help="take only what was downloaded before")


def add_swap_flags(parser: argparse._ActionsContainer):
    """--unet, --vae, --text, --prediction, --zero-snr and --ema: networks from elsewhere, and facts that a file may not
    hold."""
    parser.add_argument("--unet", help="take the UNet from here")
    parser.add_argument("--vae", help="take the VAE from here")
    one = "take the text towers from here; TOWER, text_encoder or text_encoder_2, takes that one, and may be repeated"
    parser.add_argument("--text", action="append", metavar="[TOWER=]SOURCE", help=one)
    parser.add_argument("--prediction", choices=("eps", "v"), help="of an SD 2 file that does not say it")
    # None, not False, if absent: a record of an earlier run may hold the value
    zero = "the model was trained to the end of its noise, and no file says it"
    parser.add_argument("--zero-snr", action="store_true", default=None, help=zero)
    parser.add_argument("--ema", action="store_true", default=None, help="take the averaged UNet of a single file")


def model_arguments(args: argparse.Namespace) -> dict:
    """What the flags of add_swap_flags are to weights.describe."""
    known = dict(unet=args.unet, vae=args.vae, text=text_sources(args.text), prediction=args.prediction)
    return known | dict(zero_snr=bool(args.zero_snr), ema=bool(args.ema))


def text_sources(values: list[str] | None) -> str | dict[str, str] | None:
    """What --text stands for, as weights.load takes it."""
    towers = {}
    for value in values or ():
        tower, equals, source = value.partition("=")
        if not equals or tower not in ("text_encoder", "text_encoder_2"):
            tower, source = "", value
        if not source:
            fail(f"--text {value}: names no source: give {tower}=SOURCE")
        if tower in towers:
            fail(f"--text {value}: {tower or 'one source for all towers'} was given before")
        towers[tower] = source
    if "" in towers and len(towers) > 1:
        fail("--text: give one source for all towers, or each with the name of its tower")
    return towers.get("", towers) or None


def fail(message: str) -> NoReturn:
    """End the program: one line on stderr, exit status 2. After a signal it is the stop that is told, not this."""
    if stopping.asked():
        raise KeyboardInterrupt
    terminal.say(f"error: {terminal.one_line(message)}", sys.stderr)
    sys.exit(2)


def warn(message: str):
    """One line on stderr, above a progress bar if there is one."""
    note(f"warning: {message}")


def note(message: str):
    """One line on stderr, above a progress bar if there is one."""
    write(terminal.one_line(message), sys.stderr)


def tell(text: object):
    """Lines on stdout, above a progress bar if there is one."""
    write(str(text), sys.stdout)


def write(text: str, stream: TextIO):
    with tqdm.external_write_mode(file=stream):
        terminal.say(text, stream)


def as_text(flag: str, text: str | None) -> str | None:
    """A text from the command line. Where the system's alphabet lacks a character, Python holds its bytes as halves of
    characters, which are put together here; what is no UTF-8 ends the program."""
    try:
        return None if text is None else text.encode("utf-8", "surrogateescape").decode("utf-8")
    except UnicodeError:
        fail(f"{flag}: holds bytes that are not UTF-8: {text!r}")


def first_line(error: BaseException) -> str:
    """Of the error's message, without the number of an error of the system; the name of its class if it has none."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, OverflowError):  # Python's message names nothing
        return "a number is too large to compute with: choose smaller values"
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
