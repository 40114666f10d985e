"""What `ldm draw` refuses before the first picture is drawn, in one line: what is too much, and what cannot be."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import weights
from common import as_text, fail, first_line
from drawing import estimate
from drawing.jobs import Settings, batch_key, batches
from drawing.preview import PREVIEW
from drawing.prompt_files import Row
from drawing.prompt_rules import check_words
from ldm.model import Model
from ldm.plan import plan
from ldm.tasks.text_to_image import picture_size


def check_before(args: argparse.Namespace, settings: Sequence[Settings], total: int):
    """Refuse what is too much or no text, as far as that is known before a model is loaded."""
    for chosen in settings:
        as_text("--prompt", chosen["prompt"])
        as_text("--negative", chosen["negative"])
    if args.preview_every < 1:
        fail("--preview-every: choose at least 1")
    if args.preview and args.out.name == PREVIEW:
        fail(f"--out {args.out}: previews have this name; choose another")
    if total > estimate.MANY:
        estimate.check_count(total, with_usual(settings[0]), args.force)
    estimate.check_sizes(settings, args.device, args.force)
    if args.grid:
        columns = min(args.columns or args.count, total)
        estimate.check_grid(total, columns, settings[0]["width"], settings[0]["height"])


def with_usual(chosen: Settings) -> Settings:
    """The settings with what the model was published with, if it lies here and can be described."""
    source = chosen["model"] or weights.MINIATURE
    if not Path(source).exists():
        return chosen
    facts = weights.describe(source, variant=chosen["variant"]).facts
    usual = {"steps": facts.steps, "width": facts.size, "height": facts.size}
    return chosen | {name: value for name, value in usual.items() if chosen[name] is None}


def check_drawable(model: Model, settings: Sequence[Settings], rows: Sequence[Row]):
    """Refuse numbers of steps, schedules and sizes that this model cannot have, and prompts that a rule cannot read,
    before the first picture is drawn."""
    check_words(model, settings)
    checked = set()
    for k, chosen in enumerate(settings):
        key = batch_key(chosen)
        if key in checked:
            continue
        checked.add(key)
        try:
            plan(model, chosen["steps"], chosen["sampler"], chosen["schedule"], chosen["options"])
            picture_size(model, chosen["height"], chosen["width"])
        except ValueError as error:
            fail(f"{rows[k].where if k < len(rows) else ''}{first_line(error)}")


def check_after(args: argparse.Namespace, model: Model, jobs: Sequence[Settings], columns: int):
    """Refuse what does not fit, now that all sizes are known."""
    largest = {name: max(job[name] for job in jobs) for name in ("width", "height")}
    if args.grid or args.xy:
        estimate.check_grid(len(jobs), min(columns, len(jobs)), **largest)
    if args.grid and any(job[name] != largest[name] for job in jobs for name in largest):
        fail("--grid: pictures of different sizes make no grid; leave it out")
    if not args.force:
        estimate.check_batches(model, jobs, batches(jobs, args.batch))
