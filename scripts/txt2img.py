"""Draw pictures from text.

    python scripts/txt2img.py --prompt "a red apple"
    python scripts/txt2img.py --prompt "a red apple" --count 8 --grid --out apples
    python scripts/txt2img.py --prompts prompts.txt --sampler euler_ancestral --option eta=0.5 --steps 30 --seed 7
    python scripts/txt2img.py --prompt "a red apple" --xy guidance=1.5..8 sampler=euler,ddim
    python scripts/txt2img.py --again outputs/00000-0.png       # make a picture again from its own metadata
    python scripts/txt2img.py --prompt "a fox" --model sdxl.safetensors --vae fix --lora style.safetensors:0.8

Picture k of a prompt has seed --seed + k. Every PNG holds what is needed to make it again, as the text that
A1111's programs read (`parameters`) and as JSON (`ldm`).
"""

if __name__ == "__main__":
    from ldm import stopping

    stopping.listen()

import argparse
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import weights
from common import DTYPES, as_text, fail, first_line, tell, text_sources, warn
from destination import Destination, Lost, check_space, choose_destination, held
from drawing import known_words
from drawing.axes import parse_axes
from drawing.before_drawing import check_after, check_before, check_drawable
from drawing.draw_flags import parse_arguments
from drawing.jobs import Settings, draw_batches, in_turn, repeat
from drawing.preview import PREVIEW, Preview, make_decoder
from drawing.prompt_files import Row, read_rows
from drawing.prompt_rules import without_syntax
from drawing.prompt_syntax import find_syntax
from drawing.report import Report, reported
from drawing.sweep import Sweep, check_plan, choose_folder, draw_cells, find_missing, make_sweep, save_cells
from ldm import pictures
from ldm.adapters import lora
from ldm.conditioning import TextCut
from ldm.model import Model
from ldm.version import version
from settings import check_record, choose_settings, complete, parse_strength, split_at_colon
from threads import set_threads


def main():
    with reported("--json" in sys.argv) as report, warnings.catch_warnings():
        warnings.simplefilter("ignore", TextCut)  # warn_of_words tells it
        args = parse_arguments(__doc__)
        try:
            run(args, report)
        except (ValueError, ArithmeticError, OSError, RuntimeError) as error:  # CheckpointError is a ValueError
            fail(first_line(error))


def run(args: argparse.Namespace, report: Report):
    if args.words:
        tell("\n".join(known_words.known_names()))
        return
    args.prompt = as_text("--prompt", args.prompt)
    args.negative = as_text("--negative", args.negative)
    args.prompt_2 = as_text("--prompt-2", args.prompt_2)
    earlier = {}
    if args.again:
        earlier = pictures.read_record(args.again)
        check_record(args.again, earlier)
    rows = choose_rows(args, earlier)
    settings = [choose_settings(args, earlier, row.values, row.where) for row in rows]
    counts = [row.values.get("count", args.count) for row in rows]
    swept = choose_sweep(args, settings)
    folder = choose_folder(args.out, swept) if swept else args.out
    total = len(swept.cells) if swept else sum(counts)
    cells = swept.cells if swept else settings
    destination = check_output(args, folder, total)
    check_before(args, cells, total)
    if swept:
        check_plan(swept, folder)

    with held(destination.folder, destination.longest_name):
        check_space(destination, total, cells[0])
        model, adapters, origin = load(settings[0], args)
        for k, chosen in enumerate(cells):
            complete(chosen, model, rows[k].where if k < len(rows) else "")
        check_drawable(model, cells, rows)
        set_threads(args.threads, model, min(args.batch, total) * cells[0]["height"] * cells[0]["width"])
        check_space(destination, total, cells[0])
        commit = model.revisions.get(settings[0]["model"], settings[0]["revision"])
        record = origin | {"revision": commit, "torch": torch.__version__, "ldm": version()}
        warn_of_changes(args.again, earlier, record)
        warn_of_words(model, cells)
        if swept:
            check_after(args, model, cells, swept.columns)
            draw_sweep(model, adapters, swept, record, args, folder, report)
            return
        merge(model, adapters, settings[0])
        jobs = []
        for chosen, count in zip(settings, counts):
            jobs += repeat(chosen, count)
        check_after(args, model, jobs, args.columns or args.count)
        draw(model, jobs, record, args, destination, report)


def choose_sweep(args: argparse.Namespace, settings: list[Settings]) -> Sweep | None:
    if args.xy is None:
        return None
    if len(settings) > 1 or args.count > 1 or args.grid or args.out.suffix.lower() in pictures.FORMATS:
        fail("--xy: takes one prompt and a folder, without --count and --grid; seed=0..3 is an axis, and so is prompt=")
    if args.format not in (None, "png"):
        fail(f"--xy: writes PNG; leave out --format {args.format}")
    return make_sweep(parse_axes(args.xy), settings[0])


def choose_rows(args: argparse.Namespace, record: dict[str, Any]) -> list[Row]:
    """One prompt from --prompt or from the record of --again, or those of the file."""
    if args.prompts is not None:
        return read_rows(args.prompts)
    return [Row("", {"prompt": record["prompt"] if args.prompt is None else args.prompt})]


def check_output(args: argparse.Namespace, out: Path, count: int) -> Destination:
    """Refuse a name that so many pictures cannot be written to, before any of them is drawn."""
    if args.count < 1 or args.batch < 1 or (args.columns is not None and args.columns < 1):
        fail("--count, --batch and --columns: choose at least 1")
    return choose_destination(out, args.format, args.overwrite, count)


Loaded = tuple[Model, list[lora.Adapter], dict[str, dict[str, str]]]


def load(chosen: Settings, args: argparse.Namespace) -> Loaded:
    """The model with the words that were added to it, the adapters to merge, and where all comes from: the hashes of
    the model's files and of those that were added, and the commits of what came from the hub."""
    # Before anything is read: a slip in a flag should not cost the time of loading
    for text in chosen["lora"] or ():
        parse_strength(*split_at_colon(text))

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
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
    for warning in caught:
        warn(str(warning.message))
    files = {name: weights.file_hash(path) for name, path in model.files.items()}
    origin = {"files": files, "added": {}, "revisions": dict(model.revisions)}

    for text in chosen["embedding"] or ():
        source, token = split_at_colon(text)
        model = weights.add_embedding(model, fetch(source, args.offline, origin, weights.embedding_file), token)
    adapters = []
    for text in chosen["lora"] or ():
        source, _ = split_at_colon(text)
        file = fetch(source, args.offline, origin)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            adapter = weights.load_adapter(file, model, partial=bool(chosen["partial_lora"]))
        if adapter.unmatched:
            names = ", ".join(adapter.unmatched)
            warn(f"{source}: {len(adapter.unmatched)} tensors have no place in the model and are left out: {names}")
        for warning in caught:
            warn(str(warning.message))
        adapters.append(adapter)
    return model, adapters, origin


def merge(model: Model, adapters: Sequence[lora.Adapter], chosen: Settings):
    """For good, each with its strength."""
    strengths = [parse_strength(*split_at_colon(text)) for text in chosen["lora"] or ()]
    lora.merge(model, list(zip(adapters, strengths)))


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


def warn_of_words(model: Model, settings: Sequence[Settings]):
    """Say what of the prompts is not read, is read literally, or means nothing to the small model that ships."""
    prompts = list(dict.fromkeys(chosen["prompt"] for chosen in settings))
    negatives = list(dict.fromkeys(chosen["negative"] or "" for chosen in settings))
    texts = [*prompts, *negatives]
    rule = settings[0].get("prompt_rule")
    for message in find_syntax(texts, rule):
        warn(message)
    for text, cut in zip(texts, model.tokenizer(texts).cut):
        if cut and rule is None:
            warn(f"too long, the end is not read: {shorten(text, 40)!r} is cut before {shorten(cut, 60)!r}")
    names = known_words.known_names(model)
    words = [without_syntax(text, rule) for text in prompts]
    unknown = known_words.find_unknown(words, names, model.tokenizer.added) if names else {}
    if unknown:
        warn(known_words.tell_unknown(unknown, names))


def shorten(text: str, length: int) -> str:
    return text if len(text) <= length else text[:length] + "..."


def choose_preview(args: argparse.Namespace, model: Model, folder: Path) -> Preview | None:
    if args.preview is None:
        return None
    return Preview(folder / PREVIEW, make_decoder(model, args.preview, args.offline), args.preview_every)


def draw_sweep(
    model: Model, adapters: list[lora.Adapter], swept: Sweep, record: dict[str, Any], args: argparse.Namespace,
    folder: Path, report: Report,
):  # fmt: skip
    """Draw the cells that are not there yet, and the grid of all."""
    records = [record | cell for cell in swept.cells]
    missing = find_missing(swept, folder, records)
    if len(missing) < len(records):
        tell(f"{len(records) - len(missing)} of {len(records)} pictures are in {folder} already")
    look = choose_preview(args, model, folder)
    drawn = draw_cells(model, adapters, records, missing, args.batch, look)
    save_cells(swept, folder, records, drawn, report)


def draw(
    model: Model,
    jobs: list[Settings],
    record: dict[str, Any],
    args: argparse.Namespace,
    destination: Destination,
    report: Report,
):
    """Draw and save batch by batch, so that what is finished stays when the rest is stopped."""
    for job in jobs:  # refuse a record that is too long for the format, before the first picture is drawn
        pictures.metadata(Path(f"picture{destination.suffix}"), record | job)
    look = choose_preview(args, model, destination.folder)
    images = []
    lost = Lost()
    for number, image, seconds in in_turn(draw_batches(model, jobs, args.batch, look)):
        made = record | jobs[number]
        with lost.told_later(f"the picture of seed {made['seed']}"):
            path = destination.save(image, made)
            tell(path)
            report.add_picture(path, made, seconds)
        if args.grid:
            images.append(image.cpu())
    if args.grid:
        with lost.told_later("the grid"):
            columns = min(args.columns or args.count, len(images))
            path = save_grid(pictures.grid(torch.stack(images), columns), destination)
            report.add_file("grid", path)
    lost.tell()


def save_grid(image: torch.Tensor, destination: Destination) -> Path:
    path = destination.folder / f"grid{destination.suffix}"
    earlier = pictures.save_latest(image, path)
    if earlier is not None:
        warn(f"{path} of an earlier run is {earlier} now")
    tell(path)
    return path


if __name__ == "__main__":
    stopping.run(main, "stopped; the pictures named above are complete")
