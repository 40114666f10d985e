"""Compare our networks, block by block, with those of diffusers and transformers: same weights, same inputs.

    python scripts/compare.py                                            # the miniature, every network
    python scripts/compare.py --network unet_sdxl --dtype bfloat16       # random weights of any published shape
    python scripts/compare.py --model stable-diffusion-v1-5 --parts unet vae --out report

Prints the first block that departs from its reference, and a table; --out takes a folder for a page, a heat map and
JSON as well. Exit status: 0 if all blocks agree, 1 if one departs, 2 for bad input. Needs the `test` extra.
docs/compare.md says how blocks are compared, and how to read the table.
"""

import argparse
import json
import sys
from pathlib import Path

import diffusers
import torch
import transformers

import weights
from comparison import cases, report
from comparison.blocks import compare, expect
from ldm import ops

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--model", type=Path, help="a folder in the diffusers layout (default: the miniature)")
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
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="float64 shows the smallest faults")
    parser.add_argument("--backend", choices=ops.BACKENDS, default="torch")
    parser.add_argument("--prompt", default="a red apple", help="for the text towers of a model, and for its UNet")
    parser.add_argument("--height", type=int, default=128, help="of the picture, in pixels")
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--seed", type=int, default=0, help="of the inputs, and of random weights")
    parser.add_argument("--all", action="store_true", help="show every block, not only the outer and those that depart")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--out", type=Path, help="a folder for compare.html, compare.png and compare.json")
    args = parser.parse_args()
    if args.network and (args.parts or args.variant):
        parser.error("--parts and --variant go with --model")
    return args


def fail(message: str):
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def run(args: argparse.Namespace) -> report.Results:
    common = dict(dtype=DTYPES[args.dtype], device=args.device, height=args.height, width=args.width, seed=args.seed)
    if args.network:
        found = cases.random_cases(args.network, **common)
    else:
        found = cases.model_cases(
            args.model or weights.MINIATURE, args.parts, variant=args.variant, prompt=args.prompt, **common
        )
    results = {}
    for case in found:
        results[case.name] = rows = compare(case, expect(case), args.backend)
        if not args.json:
            print(report.verdict(case.name, rows), report.table(rows, args.all), sep="\n", end="\n\n", flush=True)
    return results


def write(folder: Path, results: report.Results, facts: dict, everything: bool):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "compare.json").write_text(json.dumps(report.record(results, facts), indent=1) + "\n")
    report.write_page(folder / "compare.html", results, facts, everything)
    try:
        report.write_heat_map(folder / "compare.png", results, facts, everything)
    except ImportError as error:
        print(f"compare.png is left out: {error}: pip install matplotlib", file=sys.stderr)


def main():
    args = arguments()
    for name in ("height", "width"):
        if getattr(args, name) % 8 or getattr(args, name) < 8:
            fail(f"--{name} {getattr(args, name)}: choose a multiple of 8, at least 8")
    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    facts = {
        "source": args.network or str(args.model or "the miniature"),
        "dtype": args.dtype,
        "backend": args.backend,
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
    }
    try:
        results = run(args)
        if args.out:
            write(args.out, results, facts, args.all)
    except (ValueError, OSError, RuntimeError) as error:  # CheckpointError is a ValueError
        fail(str(error).splitlines()[0])
    if args.json:
        print(json.dumps(report.record(results, facts), indent=1))
    sys.exit(0 if report.agrees(results) else 1)


if __name__ == "__main__":
    main()
