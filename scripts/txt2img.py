"""Draw pictures from text.

    python scripts/txt2img.py --prompt "a red apple"
    python scripts/txt2img.py --prompt "a red apple" --count 8 --grid --out apples
    python scripts/txt2img.py --prompts prompts.txt --sampler euler --steps 30 --seed 7
    python scripts/txt2img.py --again outputs/00000-0.png       # make a picture again from its own metadata

Picture k of a prompt has seed --seed + k. Every PNG holds what is needed to make it again, as the text that
A1111's programs read (`parameters`) and as JSON (`ldm`).
"""

import argparse
import json
import os
import sys
from importlib.metadata import version
from pathlib import Path

import torch
from einops import rearrange
from PIL import Image, PngImagePlugin, UnidentifiedImageError
from tqdm import tqdm

import weights
from ldm import tasks

TASK_FLAGS = ("steps", "guidance", "sampler", "schedule", "height", "width")
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompt", help="what to draw")
    what.add_argument("--prompts", type=Path, metavar="FILE", help="a text file with one prompt per line")
    what.add_argument("--again", type=Path, metavar="PNG", help="make this picture again; other flags override")
    parser.add_argument("--negative", help="what to move away from")
    parser.add_argument("--model", help="a folder in the diffusers layout (default: the miniature)")
    parser.add_argument("--variant", help="weight files to take, for example fp16")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=DTYPES)
    parser.add_argument("--seed", type=int, help="of the first picture (default: 0)")
    parser.add_argument("--count", type=int, default=1, help="pictures per prompt")
    parser.add_argument("--batch", type=int, default=8, help="pictures made at once; does not change them")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--guidance", type=float, help="1 or less: off")
    parser.add_argument("--sampler")
    parser.add_argument("--schedule")
    parser.add_argument("--height", type=int)
    parser.add_argument("--width", type=int)
    parser.add_argument("--grid", action="store_true", help="write grid.png too: one row per prompt")
    parser.add_argument("--out", type=Path, default=Path("outputs"), help="a folder, or the name of the one picture")
    return parser.parse_args()


def fail(message: str):
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def recorded(path: Path) -> dict:
    """The JSON record of a picture that this program made."""
    try:
        with Image.open(path) as image:
            return json.loads(image.text["ldm"])
    except UnidentifiedImageError:
        fail(f"{path}: not a picture")
    except OSError as error:
        fail(f"{path}: {error.strerror or error}")
    except (KeyError, AttributeError, ValueError):
        fail(f"{path}: holds no record of how it was made; give a PNG that this program wrote")


def read_prompts(path: Path) -> list[str]:
    try:
        prompts = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        fail(f"{path}: cannot be read as text: {error}")
    return prompts or fail(f"{path}: holds no prompts; write one per line")


def settings(args: argparse.Namespace) -> dict:
    """Everything that decides a picture, from the flags and, with --again, from a picture's record."""
    record = recorded(args.again) if args.again else {}
    given = {key: value for key, value in vars(args).items() if value is not None}
    chosen = {key: given.get(key, record.get(key)) for key in
              ("negative", "model", "variant", "dtype", "seed", *TASK_FLAGS)}
    prompts = read_prompts(args.prompts) if args.prompts else [record["prompt"] if args.again else args.prompt]
    chosen["dtype"] = chosen["dtype"] or ("float32" if args.device == "cpu" else "float16")
    return chosen | dict(prompts=prompts, seed=chosen["seed"] or 0, model=chosen["model"] or str(weights.MINIATURE))


def parameters(record: dict) -> str:
    """The record as A1111's programs write and read it."""
    negative = f"\nNegative prompt: {record['negative']}" if record["negative"] else ""
    facts = {"Steps": record["steps"], "Sampler": record["sampler"], "Schedule type": record["schedule"],
             "CFG scale": record["guidance"], "Seed": record["seed"], "Size": f"{record['width']}x{record['height']}",
             "Model hash": next((sha[:10] for name, sha in record["files"].items() if "unet" in name), ""),
             "Model": Path(record["model"]).name}
    return record["prompt"] + negative + "\n" + ", ".join(f"{key}: {value}" for key, value in facts.items())


def save(image: torch.Tensor, path: Path, record: dict | None = None):
    """Write image (3 h w) in [-1, 1] as PNG, whole or not at all."""
    pixels = ((image + 1) * 127.5).round().byte().cpu()
    info = PngImagePlugin.PngInfo()
    if record:
        info.add_itxt("parameters", parameters(record))
        info.add_itxt("ldm", json.dumps(record, ensure_ascii=False))
    part = path.with_name(path.name + ".part")
    Image.fromarray(rearrange(pixels, "c h w -> h w c").numpy()).save(part, format="PNG", pnginfo=info)
    os.replace(part, path)


def next_number(folder: Path) -> int:
    """Pictures are numbered on from those that are there."""
    return max((int(p.name[:5]) for p in folder.glob("[0-9][0-9][0-9][0-9][0-9]-*.png")), default=-1) + 1


def draw(args: argparse.Namespace, chosen: dict):
    model = weights.load(chosen["model"], dtype=DTYPES[chosen["dtype"]], device=args.device, variant=chosen["variant"])
    facts = model.facts
    for key, default in dict(steps=facts.steps, guidance=facts.guidance, sampler=facts.sampler,
                             schedule=facts.schedule, height=facts.size, width=facts.size).items():
        chosen[key] = default if chosen[key] is None else chosen[key]
    for prompt, cut in zip(chosen["prompts"], model.tokenizer(chosen["prompts"]).cut):
        if cut:
            print(f"warning: too long, not read: ...{cut!r} (prompt {prompt[:30]!r})", file=sys.stderr)

    single = args.out.suffix.lower() == ".png"
    folder = args.out.parent if single else args.out
    folder.mkdir(parents=True, exist_ok=True)
    record = {key: value for key, value in chosen.items() if key != "prompts"}
    record |= dict(files=weights.file_hashes(model), torch=torch.__version__, ldm=version("ldm"))
    jobs = [(prompt, chosen["seed"] + k) for prompt in chosen["prompts"] for k in range(args.count)]
    images, number = [], next_number(folder)
    with tqdm(total=-(-len(jobs) // args.batch) * chosen["steps"], unit="step", disable=None) as bar:
        for first in range(0, len(jobs), args.batch):
            prompts, seeds = zip(*jobs[first:first + args.batch])
            batch = tasks.text_to_image(model, prompts, seeds=seeds, negative=chosen["negative"],
                                        watch=lambda step: bar.update(),
                                        **{key: chosen[key] for key in TASK_FLAGS})
            for image, prompt, seed in zip(batch, prompts, seeds):
                path = args.out if single else folder / f"{number + len(images):05d}-{seed}.png"
                save(image, path, record | dict(prompt=prompt, seed=seed))
                images.append(image)
                tqdm.write(str(path))
    if args.grid:
        grid = rearrange(torch.stack(images), "(rows columns) c h w -> c (rows h) (columns w)", columns=args.count)
        save(grid, folder / "grid.png")
        print(folder / "grid.png")


def main():
    args = arguments()
    if args.count < 1 or args.batch < 1:
        fail("--count and --batch: choose at least 1")
    chosen = settings(args)
    if args.out.suffix.lower() == ".png" and len(chosen["prompts"]) * args.count > 1:
        fail(f"--out {args.out}: one name for several pictures; give a folder")
    try:
        draw(args, chosen)
    except KeyboardInterrupt:
        print("stopped; the pictures named above are complete", file=sys.stderr)
        sys.exit(130)
    except (ValueError, ArithmeticError, OSError, RuntimeError) as error:   # CheckpointError is a ValueError
        fail(str(error).splitlines()[0])


if __name__ == "__main__":
    main()
