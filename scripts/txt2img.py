"""Draw pictures from text.

    python scripts/txt2img.py --prompt "a red apple"
    python scripts/txt2img.py --prompt "a red apple" --count 8 --grid --out apples
    python scripts/txt2img.py --prompts prompts.txt --sampler euler --steps 30 --seed 7
    python scripts/txt2img.py --again outputs/00000-0.png       # make a picture again from its own metadata
    python scripts/txt2img.py --prompt "a fox" --model sdxl.safetensors --vae fix --lora style.safetensors:0.8

Picture k of a prompt has seed --seed + k. Every PNG holds what is needed to make it again, as the text that
A1111's programs read (`parameters`) and as JSON (`ldm`).
"""

import argparse
import json
import os
import re
import sys
from importlib.metadata import version
from math import inf, isfinite
from pathlib import Path

import torch
from einops import rearrange
from PIL import Image, PngImagePlugin, UnidentifiedImageError
from tqdm import tqdm

import weights
from ldm import tasks
from ldm.adapters import lora
from ldm.model import Model
from samplers import SAMPLERS, find

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}
TASK_FLAGS = {"steps": int, "guidance": float, "sampler": str, "schedule": str, "height": int, "width": int}
MODEL_FLAGS = {
    "model": str,
    "variant": str,
    "revision": str,
    "unet": str,
    "vae": str,
    "prediction": str,
    "ema": bool,
    "lora": list,
    "embedding": list,
    "partial_lora": bool,
}
RECORDED = TASK_FLAGS | MODEL_FLAGS | {"prompt": str, "negative": str, "dtype": str, "seed": int}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompt", help="what to draw")
    what.add_argument("--prompts", type=Path, metavar="FILE", help="a text file with one prompt per line")
    what.add_argument("--again", type=Path, metavar="PNG", help="make this picture again; other flags override")
    parser.add_argument("--negative", help="what to move away from")
    parser.add_argument(
        "--model", help="a folder, a .safetensors file or owner/name on the hub (default: the miniature)"
    )
    parser.add_argument("--variant", help="weight files to take, for example fp16")
    parser.add_argument("--revision", help="of a repository: a branch, tag or commit")
    parser.add_argument("--offline", action="store_true", help="take only what was downloaded before")
    parser.add_argument("--unet", help="take the UNet from here")
    parser.add_argument("--vae", help="take the VAE from here")
    parser.add_argument("--prediction", choices=("eps", "v"), help="of an SD 2 file that does not say it")
    parser.add_argument("--ema", action="store_true", default=None, help="the averaged UNet of a single file")
    parser.add_argument("--lora", action="append", metavar="FILE[:STRENGTH]", help="an adapter; may be repeated")
    parser.add_argument(
        "--partial-lora",
        action="store_true",
        default=None,
        help="leave out what has no place in the model, and say what",
    )
    parser.add_argument(
        "--embedding", action="append", metavar="FILE[:TOKEN]", help="a textual inversion; may be repeated"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=DTYPES)
    parser.add_argument("--seed", type=int, help="of the first picture (default: 0)")
    parser.add_argument("--count", type=int, default=1, help="pictures per prompt")
    parser.add_argument("--batch", type=int, default=8, help="pictures made at once; they differ by rounding only")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--guidance", type=float, help="1 or less: off")
    parser.add_argument("--sampler")
    parser.add_argument("--schedule")
    parser.add_argument("--height", type=int)
    parser.add_argument("--width", type=int)
    parser.add_argument("--grid", action="store_true", help="write grid.png too")
    parser.add_argument("--columns", type=int, help="of the grid (default: --count, one row per prompt)")
    parser.add_argument("--out", type=Path, default=Path("outputs"), help="a folder, or the name of one picture, *.png")
    return parser.parse_args()


def fail(message: str):
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def warn(message: str):
    tqdm.write(f"warning: {message}", file=sys.stderr)


def recorded(path: Path) -> dict:
    """The JSON record of a picture that this program made."""
    try:
        with Image.open(path) as image:
            record = json.loads(image.text["ldm"])
    except UnidentifiedImageError:
        fail(f"{path}: not a picture")
    except OSError as error:
        fail(f"{path}: {error.strerror or error}")
    except (KeyError, AttributeError, ValueError):
        fail(f"{path}: holds no record of how it was made; give a PNG that this program wrote")
    if not isinstance(record, dict) or not isinstance(record.get("prompt"), str):
        fail(f"{path}: its record is damaged: it names no prompt")
    for key, kind in RECORDED.items():
        value = record.get(key)
        if value is not None and type(value) not in ((int, float) if kind is float else (kind,)):
            fail(f"{path}: its record is damaged: {key} is {value!r}")
    if record.get("dtype") not in (None, *DTYPES):
        fail(f"{path}: its record is damaged: dtype is {record['dtype']!r}")
    return record


def read_prompts(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        fail(f"{path}: cannot be read as text: {error}")
    return [line.strip() for line in lines if line.strip()] or fail(f"{path}: holds no prompts; write one per line")


def settings(args: argparse.Namespace, record: dict) -> dict:
    """Everything that decides a picture, from the flags and, with --again, from a picture's record."""
    given = {key: value for key, value in vars(args).items() if value is not None}
    chosen = {key: given.get(key, record.get(key)) for key in RECORDED}
    chosen["dtype"] = chosen["dtype"] or ("float32" if args.device == "cpu" else "float16")
    chosen["seed"] = chosen["seed"] or 0
    return chosen


def parameters(record: dict) -> str:
    """The record as the text that A1111's programs read."""
    negative = f"\nNegative prompt: {record['negative']}" if record["negative"] else ""
    facts = {
        "Steps": record["steps"],
        "Sampler": SAMPLERS[find(record["sampler"])].label or record["sampler"],
        "Schedule type": record["schedule"].capitalize(),
        "CFG scale": record["guidance"],
        "Seed": record["seed"],
        "Size": f"{record['width']}x{record['height']}",
        "Model hash": model_hash(record["files"]),
        "Model": Path(record["model"] or weights.MINIATURE).name,
    }
    quoted = [f"{key}: {json.dumps(value) if set(str(value)) & set(',:') else value}" for key, value in facts.items()]
    return record["prompt"] + negative + "\n" + ", ".join(quoted)


def model_hash(files: dict[str, str]) -> str:
    """Of the UNet's file, or of the one that holds everything."""
    return next((sha for name, sha in files.items() if "unet" in name), next(iter(files.values())))[:10]


def save(image: torch.Tensor, path: Path, record: dict | None = None):
    """Write image (3 h w) in [-1, 1] as PNG, whole or not at all."""
    pixels = ((image.float() + 1) * 127.5).round().byte().cpu()
    info = PngImagePlugin.PngInfo()
    if record:
        info.add_itxt("parameters", parameters(record))
        info.add_itxt("ldm", json.dumps(record, ensure_ascii=False))
    part = path.with_name(path.name + ".part")
    try:
        Image.fromarray(rearrange(pixels, "c h w -> h w c").numpy()).save(part, format="PNG", pnginfo=info)
        os.replace(part, path)
    except OSError as error:
        raise OSError(f"{path}: cannot be written: {error.strerror}") from error
    finally:
        part.unlink(missing_ok=True)


def next_number(folder: Path) -> int:
    """Pictures are numbered on from those that are there."""
    names = (re.fullmatch(r"(\d{5,})-\d+\.png", p.name) for p in folder.glob("*.png"))
    return max((int(name[1]) for name in names if name), default=-1) + 1


def load(chosen: dict, args: argparse.Namespace) -> tuple[Model, dict]:
    """The model with all that was added to it, and for the record: hashes of its files and of what was added, and the
    commits of all that came from the hub."""
    divide = [divided(text) for text in chosen["lora"] or ()]
    loras = [(source, number(strength or "1", f"--lora {source}")) for source, strength in divide]
    model = weights.load(
        chosen["model"] or weights.MINIATURE,
        DTYPES[chosen["dtype"]],
        args.device,
        chosen["variant"],
        chosen["revision"],
        args.offline,
        chosen["unet"],
        chosen["vae"],
        chosen["prediction"],
        bool(chosen["ema"]),
    )
    added, adapters, revisions = {}, [], dict(model.revisions)

    def fetched(source: str) -> Path:
        path, commit = weights.locate(source, weights.one_file, offline=args.offline)
        revisions.update({source: commit} if commit else {})
        added[source] = weights.adapter_file(path)
        return added[source]

    for text in chosen["embedding"] or ():
        source, token = divided(text)
        model = weights.add_embedding(model, fetched(source), token)
    for source, strength in loras:
        adapter = weights.load_adapter(fetched(source), model, partial=bool(chosen["partial_lora"]))
        if left := adapter.unmatched:
            warn(f"{source}: {len(left)} tensors have no place in the model and are left out: {', '.join(left)}")
        adapters.append((adapter, strength))
    lora.merge(model, adapters)
    hashes = [{name: weights.file_hash(file) for name, file in files.items()} for files in (model.files, added)]
    return model, dict(files=hashes[0], added=hashes[1], revisions=revisions)


def divided(text: str) -> tuple[str, str | None]:
    """FILE:WORD -> the file and the word; a colon of the file's own name does not count."""
    source, colon, word = text.rpartition(":")
    source, word = (source, word) if colon and not Path(text).exists() else (text, None)
    return source or fail(f"{text}: names no file before the colon"), word


def number(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = inf
    return value if isfinite(value) else fail(f"{where}: the strength {text!r} is no number")


def draw(args: argparse.Namespace, prompts: list[str], chosen: dict, record: dict):
    model, origin = load(chosen, args)
    for key, default in tasks.defaults(model.facts, chosen["sampler"]).items():
        chosen[key] = default if chosen[key] is None or key == "sampler" else chosen[key]
    told = (
        chosen
        | origin
        | dict(
            revision=model.revisions.get(chosen["model"], chosen["revision"]),
            torch=torch.__version__,
            ldm=version("ldm"),
        )
    )
    for key in ("files", "added", "torch", "ldm"):
        if key in record and record[key] != told[key]:
            warn(f"{args.again} was made with other {key}: it may come out differently")
    for text, cut in zip(
        [*prompts, chosen["negative"] or ""], model.tokenizer([*prompts, chosen["negative"] or ""]).cut
    ):
        if cut:
            warn(f"too long, the end is not read: {shorten(text, 40)!r} is cut before {shorten(cut, 60)!r}")

    single = args.out.suffix.lower() == ".png"
    folder = args.out.parent if single else args.out
    jobs = [(prompt, chosen["seed"] + k) for prompt in prompts for k in range(args.count)]
    tasks.pair(*zip(*jobs))  # refuse a wrong seed before the first picture is drawn
    images, number = [], next_number(folder)
    with tqdm(total=-(-len(jobs) // args.batch) * chosen["steps"], unit="step", disable=None) as bar:
        for first in range(0, len(jobs), args.batch):
            batch, seeds = zip(*jobs[first : first + args.batch])
            drawn = tasks.text_to_image(
                model,
                batch,
                seeds=seeds,
                negative=chosen["negative"],
                watch=lambda step: bar.update(),
                **{key: chosen[key] for key in TASK_FLAGS},
            )
            folder.mkdir(parents=True, exist_ok=True)
            for k, (image, prompt, seed) in enumerate(zip(drawn, batch, seeds), first):
                path = args.out if single else folder / f"{number + k:05d}-{seed}.png"
                save(image, path, told | dict(prompt=prompt, seed=seed))
                tqdm.write(str(path))
            if args.grid:
                images.append(drawn.cpu())
    if args.grid:
        save(arranged(torch.cat(images), args.columns or args.count), folder / "grid.png")
        print(folder / "grid.png")


def arranged(images: torch.Tensor, columns: int) -> torch.Tensor:
    """Pictures (n c h w) row by row -> one (c rows*h columns*w); what is missing in the last row is white."""
    missing = torch.ones_like(images[:1]).expand(-len(images) % columns, -1, -1, -1)
    return rearrange(torch.cat([images, missing]), "(rows columns) c h w -> c (rows h) (columns w)", columns=columns)


def shorten(text: str, length: int) -> str:
    return text if len(text) <= length else text[:length] + "..."


def main():
    args = arguments()
    record = recorded(args.again) if args.again else {}
    prompts = read_prompts(args.prompts) if args.prompts else [args.prompt or record.get("prompt", "")]
    if min(args.count, args.batch, 1 if args.columns is None else args.columns) < 1:
        fail("--count, --batch and --columns: choose at least 1")
    if args.out.suffix.lower() == ".png" and len(prompts) * args.count > 1:
        fail(f"--out {args.out}: one name for several pictures; give a folder")
    if args.out.suffix.lower() in (".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tiff"):
        fail(f"--out {args.out}: pictures are written as PNG; give a folder or a name that ends in .png")
    if args.out.suffix.lower() != ".png" and args.out.is_file():
        fail(f"--out {args.out}: is a file; give a folder or a name that ends in .png")
    try:
        draw(args, prompts, settings(args, record), record)
    except KeyboardInterrupt:
        print("stopped; the pictures named above are complete", file=sys.stderr)
        sys.exit(130)
    except (ValueError, ArithmeticError, OSError, RuntimeError) as error:  # CheckpointError is a ValueError
        fail(str(error).splitlines()[0])


if __name__ == "__main__":
    main()
