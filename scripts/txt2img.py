"""Draw pictures from text.

    python scripts/txt2img.py --prompt "a red apple"
    python scripts/txt2img.py --prompt "a red apple" --count 8 --grid --out apples
    python scripts/txt2img.py --prompts prompts.txt --sampler euler_ancestral --option eta=0.5 --steps 30 --seed 7
    python scripts/txt2img.py --again outputs/00000-0.png       # make a picture again from its own metadata
    python scripts/txt2img.py --prompt "a fox" --model sdxl.safetensors --vae fix --lora style.safetensors:0.8

Picture k of a prompt has seed --seed + k. Every PNG holds what is needed to make it again, as the text that
A1111's programs read (`parameters`) and as JSON (`ldm`).
"""

import argparse
import sys
import warnings
from collections.abc import Callable
from math import ceil
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import weights
from common import (
    DTYPES,
    add_download_flags,
    add_run_flags,
    add_swap_flags,
    fail,
    first_line,
    make_parser,
    text_sources,
    warn,
)
from ldm import pictures, tasks
from ldm.adapters import lora
from ldm.model import Model
from ldm.version import version
from settings import check_options, check_record, choose_settings, parse_strength, split_at_colon

TASK_FIELDS = ("steps", "guidance", "sampler", "schedule", "options", "height", "width")


def parse_arguments() -> argparse.Namespace:
    parser = make_parser(__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompt", help="what to draw")
    what.add_argument("--prompts", type=Path, metavar="FILE", help="a text file with one prompt per line")
    what.add_argument("--again", type=Path, metavar="PNG", help="make this picture again; other flags override")
    parser.add_argument("--negative", help="what to move away from")

    parser.add_argument("--model", help="a folder, a .safetensors file or owner/name on the hub; default: miniature")
    add_download_flags(parser)
    add_swap_flags(parser)
    parser.add_argument("--lora", action="append", metavar="FILE[:STRENGTH]", help="an adapter; may be repeated")
    leave_out = "leave out what has no place in the model, and say what"
    parser.add_argument("--partial-lora", action="store_true", default=None, help=leave_out)
    parser.add_argument("--embedding", action="append", metavar="FILE[:TOKEN]", help="a new word; may be repeated")
    add_run_flags(parser)

    parser.add_argument("--seed", type=int, help="of the first picture (default: 0)")
    parser.add_argument("--count", type=int, default=1, help="pictures per prompt")
    parser.add_argument("--batch", type=int, default=8, help="pictures made at once; they differ by rounding only")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--guidance", type=float, help="1 or less: off")
    parser.add_argument("--sampler")
    parser.add_argument("--schedule")
    of_sampler = "of the sampler, such as eta=0.5; may be repeated"
    parser.add_argument("--option", action="append", metavar="NAME=VALUE", help=of_sampler)
    parser.add_argument("--height", type=int)
    parser.add_argument("--width", type=int)

    parser.add_argument("--grid", action="store_true", help="write grid.png too")
    parser.add_argument("--columns", type=int, help="of the grid (default: --count, one row per prompt)")
    parser.add_argument("--out", type=Path, default=Path("outputs"), help="a folder, or the name of one picture, *.png")
    return parser.parse_args()


def main():
    args = parse_arguments()
    try:
        run(args)
    except KeyboardInterrupt:
        print("stopped; the pictures named above are complete", file=sys.stderr)
        sys.exit(130)
    except (ValueError, ArithmeticError, OSError, RuntimeError) as error:  # CheckpointError is a ValueError
        fail(first_line(error))


def run(args: argparse.Namespace):
    earlier = {}
    if args.again:
        earlier = pictures.read_record(args.again)
        check_record(args.again, earlier)
    prompts = choose_prompts(args, earlier)
    check_output(args, len(prompts) * args.count)
    chosen = choose_settings(args, earlier)

    model, origin = load(chosen, args)
    for key, default in tasks.defaults(model.facts, chosen["sampler"]).items():
        if chosen[key] is None or key == "sampler":  # the default of a sampler's name is how we spell it
            chosen[key] = default
    check_options(chosen)
    commit = model.revisions.get(chosen["model"], chosen["revision"])
    record = chosen | origin | {"revision": commit, "torch": torch.__version__, "ldm": version()}
    warn_of_changes(args.again, earlier, record)
    warn_of_cuts(model, [*prompts, chosen["negative"] or ""])
    draw(model, prompts, chosen, record, args)


def choose_prompts(args: argparse.Namespace, record: dict[str, Any]) -> list[str]:
    """One prompt from --prompt or from the record of --again, or those of the file."""
    if args.prompts is None:
        return [record["prompt"] if args.prompt is None else args.prompt]
    try:
        lines = args.prompts.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        fail(f"{args.prompts}: cannot be read as text: {error}")
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        fail(f"{args.prompts}: holds no prompts; write one per line")
    return prompts


def check_output(args: argparse.Namespace, count: int):
    """Refuse a name that so many pictures cannot be written to, before any of them is drawn."""
    if args.count < 1 or args.batch < 1 or (args.columns is not None and args.columns < 1):
        fail("--count, --batch and --columns: choose at least 1")
    ending = args.out.suffix.lower()
    if ending == ".png" and count > 1:
        fail(f"--out {args.out}: one name for several pictures; give a folder")
    if ending in (".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tiff"):
        fail(f"--out {args.out}: pictures are written as PNG; give a folder or a name that ends in .png")
    if ending != ".png" and args.out.is_file():
        fail(f"--out {args.out}: is a file; give a folder or a name that ends in .png")


def load(chosen: dict[str, Any], args: argparse.Namespace) -> tuple[Model, dict[str, dict[str, str]]]:
    """The model with all that was added to it, and where it comes from: the hashes of its files and of those that were
    added, and the commits of all that came from the hub."""
    # Before anything is read: a slip in a flag should not cost the time of loading
    loras = []
    for text in chosen["lora"] or ():
        source, strength = split_at_colon(text)
        loras.append((source, parse_strength(source, strength)))

    model = weights.load(
        chosen["model"] or weights.MINIATURE,
        dtype=DTYPES[chosen["dtype"]],
        device=args.device,
        variant=chosen["variant"],
        revision=chosen["revision"],
        offline=args.offline,
        unet=chosen["unet"],
        vae=chosen["vae"],
        text=text_sources(chosen["text"]),
        zero_snr=bool(chosen["zero_snr"]),
        prediction=chosen["prediction"],
        ema=bool(chosen["ema"]),
    )
    files = {name: weights.file_hash(path) for name, path in model.files.items()}
    origin = {"files": files, "added": {}, "revisions": dict(model.revisions)}

    for text in chosen["embedding"] or ():
        source, token = split_at_colon(text)
        model = weights.add_embedding(model, fetch(source, args.offline, origin, weights.embedding_file), token)
    adapters = []
    for source, strength in loras:
        file = fetch(source, args.offline, origin)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            adapter = weights.load_adapter(file, model, partial=bool(chosen["partial_lora"]))
        if adapter.unmatched:
            names = ", ".join(adapter.unmatched)
            warn(f"{source}: {len(adapter.unmatched)} tensors have no place in the model and are left out: {names}")
        for warning in caught:
            warn(str(warning.message))
        adapters.append((adapter, strength))
    lora.merge(model, adapters)
    return model, origin


def fetch(
    source: str, offline: bool, origin: dict[str, dict[str, str]], find: Callable[[Path], Path] = weights.adapter_file
) -> Path:
    """The file of an adapter or embedding, downloaded if need be; its hash and commit go into `origin`."""
    path, commit = weights.locate(source, weights.one_file, offline=offline)
    file = find(path)
    origin["added"][source] = weights.file_hash(file)
    if commit:
        origin["revisions"][source] = commit
    return file


def warn_of_changes(path: Path, earlier: dict[str, Any], record: dict[str, Any]):
    """Say what is not as it was when the picture of --again was made."""
    for key in ("files", "added", "torch", "ldm"):
        if key in earlier and earlier[key] != record[key]:
            warn(f"{path} was made with other {key}: it may come out differently")


def warn_of_cuts(model: Model, texts: list[str]):
    """Say which texts are too long for the model, and what it does not read."""
    for text, cut in zip(texts, model.tokenizer(texts).cut):
        if cut:
            warn(f"too long, the end is not read: {shorten(text, 40)!r} is cut before {shorten(cut, 60)!r}")


def shorten(text: str, length: int) -> str:
    return text if len(text) <= length else text[:length] + "..."


def draw(model: Model, prompts: list[str], chosen: dict[str, Any], record: dict[str, Any], args: argparse.Namespace):
    """Draw and save batch by batch, so that what is finished stays when the rest is stopped."""
    texts = []
    seeds = []
    for prompt in prompts:
        for k in range(args.count):
            texts.append(prompt)
            seeds.append(chosen["seed"] + k)
    tasks.pair(texts, seeds)  # refuse a wrong seed before the first picture is drawn
    settings = {key: chosen[key] for key in TASK_FIELDS} | {"negative": chosen["negative"]}

    single = args.out.suffix.lower() == ".png"
    folder = args.out.parent if single else args.out
    number = pictures.next_number(folder)
    images = []
    with tqdm(total=ceil(len(texts) / args.batch) * chosen["steps"], unit="step", disable=None) as bar:
        for first in range(0, len(texts), args.batch):
            batch = slice(first, first + args.batch)
            drawn = tasks.text_to_image(
                model, texts[batch], seeds=seeds[batch], watch=lambda step: bar.update(), **settings
            )
            folder.mkdir(parents=True, exist_ok=True)
            for image, prompt, seed in zip(drawn, texts[batch], seeds[batch]):
                path = args.out if single else folder / f"{number:05d}-{seed}.png"
                pictures.save(image, path, record | {"prompt": prompt, "seed": seed})
                tqdm.write(str(path))
                number += 1
            if args.grid:
                images.append(drawn.cpu())
    if args.grid:
        pictures.save(pictures.grid(torch.cat(images), args.columns or args.count), folder / "grid.png")
        print(folder / "grid.png")


if __name__ == "__main__":
    main()
