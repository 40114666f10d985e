"""Compare our networks, block by block, with those of diffusers and transformers: same weights, same inputs.

    python scripts/compare.py                                            # the miniature, every network
    python scripts/compare.py --network unet_sdxl --dtype bfloat16       # random weights of any published shape
    python scripts/compare.py --model stable-diffusion-v1-5 --parts unet vae --out report

Prints the first block that departs from its reference, and a table; --out takes a folder for a page, a heat map and
JSON as well. Exit status: 0 if all blocks agree, 1 if one departs, 2 for bad input. Needs the `test` extra.
docs/compare.md says how blocks are compared, how to read the table, and how to compare a network of your own.
"""

if __name__ == "__main__":
    from ldm import stopping

    stopping.listen()

import argparse
import json
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import diffusers
import torch
import transformers
from diffusers.utils import logging as diffusers_logging
from tqdm import tqdm
from transformers.utils import logging as transformers_logging

import weights
from common import DTYPES, add_run_flags, fail, first_line, make_parser, note, tell
from comparison import cases, report
from comparison.blocks import compare, expect
from destination import held
from ldm import ops
from ldm.scratch import at_home, together
from weights.sources import as_written


def parse_arguments() -> argparse.Namespace:
    parser = make_parser(__doc__)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--model", type=as_written, help="a folder in the diffusers layout (default: the miniature)")
    what.add_argument(
        "--network",
        choices=cases.NETWORKS,
        metavar="NAME",
        help=f"random weights instead; one of {', '.join(cases.NETWORKS)}",
    )
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=cases.PARTS,
        default=(),
        metavar="PART",
        help=f"of a model, some of {', '.join(cases.PARTS)} (default: all)",
    )
    parser.add_argument("--variant", help="weight files to take, for example fp16")
    add_run_flags(parser, device="cpu", dtype="float32")
    parser.add_argument("--backend", choices=ops.BACKENDS, default="torch")
    parser.add_argument("--prompt", default="a red apple", help="for the text towers of a model, and for its UNet")
    parser.add_argument("--height", type=int, default=128, help="of the picture, in pixels")
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--seed", type=int, default=0, help="of the inputs, and of random weights")
    parser.add_argument("--all", action="store_true", help="show every block, not only the outer and those that depart")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--out", type=at_home, help="a folder for compare.html, compare.png and compare.json")
    args = parser.parse_args()
    if args.network and (args.parts or args.variant):
        parser.error("--parts and --variant go with --model")
    return args


def run(args: argparse.Namespace) -> report.Results:
    """Compare each network, and print what was found as soon as it is known."""
    setting = cases.Setting(DTYPES[args.dtype], args.device, args.height, args.width, args.seed)
    if args.network:
        found = cases.random_cases(args.network, setting)
    else:
        found = cases.model_cases(args.model or weights.MINIATURE, args.parts, setting, args.variant, args.prompt)
    results = {}
    for case in found:
        expected = expect(case, partial(tqdm, desc=case.name, disable=None, leave=False))
        compared = compare(case, expected, args.backend)
        results[case.name] = compared
        if not args.json:
            tell(f"{report.describe(case.name, compared)}\n{compared.table(args.all)}\n")
    return results


def write(folder: Path, results: report.Results, facts: dict[str, str], everything: bool):
    """JSON, the page and the heat map."""
    with together(folder) as scratch:
        (scratch / "compare.json").write_text(json.dumps(report.make_record(results, facts), indent=1) + "\n")
        report.write_page(scratch / "compare.html", results, facts, everything)
        try:
            report.write_heat_map(scratch / "compare.png", results, facts, everything)
        except ImportError as error:
            note(f"compare.png is left out: {error}: pip install matplotlib")


def main():
    args = parse_arguments()
    for name, pixels in (("height", args.height), ("width", args.width)):
        if pixels % 8 or pixels < 8:
            fail(f"--{name} {pixels}: choose a multiple of 8, at least 8")
    diffusers_logging.set_verbosity_error()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    facts = {
        "source": args.network or str(args.model or "the miniature"),
        "dtype": args.dtype,
        "backend": args.backend,
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
    }
    try:
        with held(args.out, "compare.html") if args.out else nullcontext():
            results = run(args)
            if args.out:
                write(args.out, results, facts, args.all)
    except (ValueError, OSError, RuntimeError) as error:  # CheckpointError is a ValueError
        fail(first_line(error))
    if args.json:
        tell(json.dumps(report.make_record(results, facts), indent=1))
    sys.exit(0 if report.all_agree(results) else 1)


if __name__ == "__main__":
    stopping.run(main)
