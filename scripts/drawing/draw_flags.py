"""The flags of `ldm draw`, in the groups that its --help shows."""

import argparse
from pathlib import Path

from common import add_download_flags, add_run_flags, add_swap_flags, fail, make_parser
from drawing import prompt_rules
from ldm.scratch import at_home
from settings import parse_seed
from threads import add_threads_flag


def parse_arguments(text: str | None) -> argparse.Namespace:
    """text: the program's own docstring, which --help shows first."""
    parser = make_parser(text)
    parser.usage = "%(prog)s (--prompt TEXT | --prompts FILE | --again PNG | --words) [flags]"
    add_subject_flags(parser)
    add_model_flags(parser)
    add_picture_flags(parser)
    add_output_flags(parser)
    return parser.parse_args()


def add_subject_flags(parser: argparse.ArgumentParser):
    group = parser.add_argument_group("what to draw", "one of the first four; docs/draw.md has an example of each")
    what = group.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompt", metavar="TEXT", help="what to draw")
    of_file = "a text file with one prompt per line; or a .csv, .json or .jsonl with settings for each row; - is stdin"
    what.add_argument("--prompts", type=at_home, metavar="FILE", help=of_file)
    what.add_argument("--again", type=at_home, metavar="PNG", help="make this picture again; other flags override")
    what.add_argument("--words", action="store_true", help="list what the small model that ships knows by name")
    group.add_argument("--negative", metavar="TEXT", help="what to move away from")
    of_second = "the text for SDXL's second text tower (default: as --prompt)"
    group.add_argument("--prompt-2", metavar="TEXT", help=of_second)
    of_rule = "read weights of words, as (word:1.2), and prompts of any length, as this program does; docs/prompts.md"
    group.add_argument("--prompt-rule", choices=prompt_rules.RULES, help=of_rule)
    of_skip = "leave out the last N layers of the text towers; A1111's count is one more"
    group.add_argument("--clip-skip", type=int, metavar="N", help=of_skip)
    of_sweep = (
        "a picture for each value of one or two settings, with a labelled grid, as guidance=1.5..8 sampler=euler,ddim"
    )
    group.add_argument("--xy", nargs="+", action="extend", metavar="AXIS", help=of_sweep)


def add_model_flags(parser: argparse.ArgumentParser):
    group = parser.add_argument_group("the model")
    group.add_argument("--model", help="a folder, a .safetensors file or owner/name on the hub; default: miniature")
    add_download_flags(group)
    add_swap_flags(group)
    group.add_argument("--lora", action="append", metavar="FILE[:STRENGTH]", help="an adapter; may be repeated")
    leave_out = "leave out what has no place in the model, and say what"
    group.add_argument("--partial-lora", action="store_true", default=None, help=leave_out)
    add_threads_flag(group)
    group.add_argument("--embedding", action="append", metavar="FILE[:TOKEN]", help="a new word; may be repeated")
    add_run_flags(group)


def add_picture_flags(parser: argparse.ArgumentParser):
    group = parser.add_argument_group("how to draw it", "what is not given is as the model was published")
    of_seed = "of the first picture (default: 0); -1 or random: any, which the name and the record of the picture tell"
    group.add_argument("--seed", type=seed_flag, metavar="SEED", help=of_seed)
    group.add_argument("--count", type=int, default=1, help="pictures per prompt")
    group.add_argument("--batch", type=int, default=8, help="pictures made at once; they differ by rounding only")
    group.add_argument("--steps", type=int)
    group.add_argument("--guidance", type=float, help="1 or less: off")
    group.add_argument("--sampler", help='such as dpmpp_2m; other programs\' names too, as "DPM++ 2M Karras"')
    group.add_argument("--schedule", help="of noise levels, such as karras; other programs' names too")
    of_sampler = "of the sampler, such as eta=0.5; may be repeated"
    group.add_argument("--option", action="append", metavar="NAME=VALUE", help=of_sampler)
    group.add_argument("--height", type=int)
    group.add_argument("--width", type=int)


def add_output_flags(parser: argparse.ArgumentParser):
    group = parser.add_argument_group("where it goes")
    group.add_argument("--out", type=at_home, default=Path("outputs"), help="a folder, or the name of one picture")
    group.add_argument(
        "--format", type=format_name, choices=("png", "webp", "jpg"), help="default: as --out ends, or else png"
    )
    group.add_argument("--overwrite", action="store_true", help="replace the picture that --out names")
    group.add_argument("--grid", action="store_true", help="write grid.png too")
    group.add_argument("--columns", type=int, help="of the grid (default: --count, one row per prompt)")
    of_preview = "write preview.png while drawing; taesd=SOURCE: by a small decoder, sharper than without"
    group.add_argument("--preview", nargs="?", const="linear", metavar="taesd=SOURCE", help=of_preview)
    group.add_argument("--preview-every", type=int, default=4, metavar="N", help="steps between two previews")
    group.add_argument("--json", action="store_true", help="write a report as JSON to stdout, all else to stderr")
    group.add_argument("--force", action="store_true", help="draw also what seems too much for one run")


def format_name(text: str) -> str:
    """As our names of files end; a text that is none of them as it is."""
    name = text.strip().casefold().removeprefix(".")
    return {"jpeg": "jpg", "jpg": "jpg", "png": "png", "webp": "webp"}.get(name, text)


def seed_flag(text: str) -> int:
    try:
        return parse_seed(text)
    except ValueError as error:
        fail(f"--seed {text[:40]}: {error}")
