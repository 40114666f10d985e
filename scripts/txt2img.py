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
from math import ceil, inf, isfinite
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import weights
from common import DTYPES, add_download_flags, add_run_flags, add_swap_flags, fail, first_line, make_parser, warn
from ldm import pictures, tasks
from ldm.adapters import lora
from ldm.model import Model
from ldm.version import version

TASK_FIELDS = ("steps", "guidance", "sampler", "schedule", "options", "height", "width")
TYPES = {  # of all that decides a picture and stands in its record; most fields are flags of the same name
    str: "prompt negative sampler schedule dtype model variant revision unet vae prediction".split(),
    int: "steps height width seed".split(),
    float: ["guidance"],
    bool: ["ema", "partial_lora"],
    list: ["lora", "embedding"],
    dict: ["options"],
}
FIELDS = [(name, kind) for kind, names in TYPES.items() for name in names]


def arguments() -> argparse.Namespace:
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
    args = arguments()
    try:
        run(args)
    except KeyboardInterrupt:
        print("stopped; the pictures named above are complete", file=sys.stderr)
        sys.exit(130)
    # CheckpointError is a ValueError; a TypeError tells that --option gave a word for a number, or the like.
    except (ValueError, TypeError, ArithmeticError, OSError, RuntimeError) as error:
        fail(first_line(error))


def run(args: argparse.Namespace):
    record = {}
    if args.again:
        record = pictures.read_record(args.again)
        check_fields(args.again, record)
    prompts = choose_prompts(args, record)
    check_output(args, len(prompts) * args.count)
    chosen = choose_settings(args, record)

    model, origin = load(chosen, args)
    for key, default in tasks.defaults(model.facts, chosen["sampler"]).items():
        if chosen[key] is None or key == "sampler":  # the default of a sampler's name is how we spell it
            chosen[key] = default
    commit = model.revisions.get(chosen["model"], chosen["revision"])
    told = chosen | origin | {"revision": commit, "torch": torch.__version__, "ldm": version()}
    warn_of_changes(args.again, record, told)
    warn_of_cuts(model, [*prompts, chosen["negative"] or ""])
    draw(model, prompts, chosen, told, args)


def check_fields(path: Path, record: dict[str, Any]):
    """Refuse a record with values that no flag could have given."""
    for key, kind in FIELDS:
        value = record.get(key)
        fits = value is None or type(value) is kind or (kind is float and type(value) is int)
        if isinstance(value, list):
            fits = fits and all(isinstance(text, str) for text in value)
        if not fits:
            fail(f"{path}: its record is damaged: {key} is {value!r}")
    if record.get("dtype") not in (None, *DTYPES):
        fail(f"{path}: its record is damaged: dtype is {record['dtype']!r}")


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
    if args.count < 1 or args.batch < 1 or (args.columns is not None and args.columns < 1):
        fail("--count, --batch and --columns: choose at least 1")
    ending = args.out.suffix.lower()
    if ending == ".png" and count > 1:
        fail(f"--out {args.out}: one name for several pictures; give a folder")
    if ending in (".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tiff"):
        fail(f"--out {args.out}: pictures are written as PNG; give a folder or a name that ends in .png")
    if ending != ".png" and args.out.is_file():
        fail(f"--out {args.out}: is a file; give a folder or a name that ends in .png")


def choose_settings(args: argparse.Namespace, record: dict[str, Any]) -> dict[str, Any]:
    """Every field that decides a picture: from its flag or, with --again, from the picture's record."""
    chosen = {}
    for key, _ in FIELDS:
        given = getattr(args, key, None)
        chosen[key] = record.get(key) if given is None else given
    if args.option is not None:
        chosen["options"] = dict(parse_option(text) for text in args.option)
    if chosen["options"] is None:
        chosen["options"] = {}
    if chosen["dtype"] is None:
        chosen["dtype"] = "float32" if args.device == "cpu" else "float16"
    if chosen["seed"] is None:
        chosen["seed"] = 0
    return chosen


def parse_option(text: str) -> tuple[str, bool | int | float | str]:
    """NAME=VALUE, where the value is true, false, a number or a word."""
    name, equals, value = text.partition("=")
    if not name.isidentifier() or not equals or not value:
        fail(f"--option {text}: give NAME=VALUE, for example eta=0.5")
    if value in ("true", "false"):
        return name, value == "true"
    for kind in (int, float):
        try:
            return name, kind(value)
        except ValueError:
            continue
    return name, value


def load(chosen: dict[str, Any], args: argparse.Namespace) -> tuple[Model, dict[str, dict[str, str]]]:
    """The model with all that was added to it, and where it comes from: the hashes of its files and of those that were
    added, and the commits of all that came from the hub."""
    # before anything is read: a slip in a flag should not cost the time of loading
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
        prediction=chosen["prediction"],
        ema=bool(chosen["ema"]),
    )
    files = {name: weights.file_hash(path) for name, path in model.files.items()}
    origin = {"files": files, "added": {}, "revisions": dict(model.revisions)}

    for text in chosen["embedding"] or ():
        source, token = split_at_colon(text)
        model = weights.add_embedding(model, fetch(source, args.offline, origin), token)
    adapters = []
    for source, strength in loras:
        file = fetch(source, args.offline, origin)
        adapter = weights.load_adapter(file, model, partial=bool(chosen["partial_lora"]))
        left = adapter.unmatched
        if left:
            warn(f"{source}: {len(left)} tensors have no place in the model and are left out: {', '.join(left)}")
        adapters.append((adapter, strength))
    lora.merge(model, adapters)
    return model, origin


def split_at_colon(text: str) -> tuple[str, str | None]:
    """FILE:WORD -> the file and the word, None without one; a colon in the name of a file that exists is no mark."""
    source, colon, word = text.rpartition(":")
    if not colon or Path(text).exists():
        return text, None
    if not source:
        fail(f"{text}: names no file before the colon")
    return source, word


def parse_strength(source: str, text: str | None) -> float:
    try:
        strength = float(text or 1)
    except ValueError:
        strength = inf
    if not isfinite(strength):
        fail(f"--lora {source}: the strength {text!r} is no number")
    return strength


def fetch(source: str, offline: bool, origin: dict[str, dict[str, str]]) -> Path:
    """The file of an adapter or embedding, downloaded if need be; its hash and commit go into `origin`."""
    path, commit = weights.locate(source, weights.one_file, offline=offline)
    file = weights.adapter_file(path)
    origin["added"][source] = weights.file_hash(file)
    if commit:
        origin["revisions"][source] = commit
    return file


def warn_of_changes(path: Path, record: dict[str, Any], told: dict[str, Any]):
    for key in ("files", "added", "torch", "ldm"):
        if key in record and record[key] != told[key]:
            warn(f"{path} was made with other {key}: it may come out differently")


def warn_of_cuts(model: Model, texts: list[str]):
    for text, cut in zip(texts, model.tokenizer(texts).cut):
        if cut:
            warn(f"too long, the end is not read: {shorten(text, 40)!r} is cut before {shorten(cut, 60)!r}")


def shorten(text: str, length: int) -> str:
    return text if len(text) <= length else text[:length] + "..."


def draw(model: Model, prompts: list[str], chosen: dict[str, Any], told: dict[str, Any], args: argparse.Namespace):
    """Draw and save batch by batch, so that what is finished stays when the rest is stopped."""
    texts = [prompt for prompt in prompts for _ in range(args.count)]
    seeds = [chosen["seed"] + k for _ in prompts for k in range(args.count)]
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
                pictures.save(image, path, told | {"prompt": prompt, "seed": seed})
                tqdm.write(str(path))
                number += 1
            if args.grid:
                images.append(drawn.cpu())
    if args.grid:
        pictures.save(pictures.grid(torch.cat(images), args.columns or args.count), folder / "grid.png")
        print(folder / "grid.png")


if __name__ == "__main__":
    main()
