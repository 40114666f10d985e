"""What the programs of this folder share: names of dtypes, flags with the same meaning, and one-line errors."""

import argparse
import sys
from io import TextIOWrapper
from typing import NoReturn, TextIO

import torch
from tqdm import tqdm

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}


def make_parser(text: str | None) -> argparse.ArgumentParser:
    """A parser whose --help shows the program's own docstring, line for line."""
    return argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)


def add_run_flags(parser: argparse.ArgumentParser, device: str | None = None, dtype: str | None = None):
    """--device and --dtype, a key of DTYPES. Without a default, the device is the GPU if there is one."""
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=device, help=f"where to compute (default: {device})")
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


def add_download_flags(parser: argparse.ArgumentParser):
    """--variant, --revision and --offline: which files of a folder or repository are read."""
    parser.add_argument("--variant", help="weight files to take, for example fp16")
    parser.add_argument("--revision", help="of a repository: a branch, tag or commit")
    parser.add_argument("--offline", action="store_true", help="take only what was downloaded before")


def add_swap_flags(parser: argparse.ArgumentParser):
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
        if tower in towers:
            fail(f"--text {value}: {tower or 'one source for all towers'} was given before")
        towers[tower] = source
    if "" in towers and len(towers) > 1:
        fail("--text: give one source for all towers, or each with the name of its tower")
    return towers.get("", towers) or None


def fail(message: str) -> NoReturn:
    """End the program: one line on stderr, exit status 2."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def warn(message: str):
    """One line on stderr, above a progress bar if there is one."""
    tqdm.write(f"warning: {message}", file=sys.stderr)


def first_line(error: BaseException) -> str:
    """Of the error's message; the name of its class if it has none."""
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__


def escape_unprintable(stream: TextIO):
    """Write characters that the stream's encoding lacks as escapes, where it would raise an error."""
    if isinstance(stream, TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
