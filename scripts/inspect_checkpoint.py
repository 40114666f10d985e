"""What is this file? Families, layouts and adapters told by keys, shapes and metadata; what its tensors hold.

    python scripts/inspect_checkpoint.py model.safetensors                        # a model, a part, an adapter
    python scripts/inspect_checkpoint.py fine_tune.safetensors --base sd15        # what a fine-tune changed, and where
    python scripts/inspect_checkpoint.py stabilityai/sdxl-turbo --variant fp16 --json

Every value is looked at, for NaN and infinity; --quick reads the headers only. Exit code 1 if some are not finite.
"""

import argparse
import json
import sys
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from tqdm import tqdm

from weights import CheckpointError, hub_files, lora_files, lora_kinds
from weights.alone import read_part
from weights.errors import listed
from weights.files import Held
from weights.fill import account, empty, harmless, take
from weights.load import located, read_checkpoint
from weights.parts import Checkpoint, Part
from weights.safetensors_file import FLOATS, read_header, read_tensors

PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")


@dataclass
class Report:
    """What is told of a source; empty fields are left out."""

    source: str
    what: str
    told_by: list[str] = field(default_factory=list)
    facts: dict = field(default_factory=dict)
    networks: list[dict] = field(default_factory=list)
    blocks: list[dict] = field(default_factory=list)
    adapter: list[dict] = field(default_factory=list)
    changed: list[dict] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    not_finite: list[str] = field(default_factory=list)
    metadata: dict[str, str] = field(default_factory=dict)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="a folder, a .safetensors file, or owner/name on the hub")
    parser.add_argument("--base", help="compare each tensor with that of this model")
    parser.add_argument("--quick", action="store_true", help="do not look at the values")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--variant", help="weight files to take, for example fp16")
    parser.add_argument("--revision", help="of a repository: a branch, tag or commit")
    parser.add_argument("--offline", action="store_true", help="take only what was downloaded before")
    return parser.parse_args()


def fail(message: str):
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def networks_in(source: str, args: argparse.Namespace) -> tuple[Path, dict[str, Part], Checkpoint | None]:
    """Where it lies, its networks, and what is known of the whole, if it is one. Neither for an adapter."""
    path, _ = located(source, lambda names: hub_files.model_files(names, args.variant), args.revision, args.offline)
    try:
        checkpoint = read_checkpoint(path, args.variant)
        return path, checkpoint.parts, checkpoint
    except CheckpointError as whole:
        found = {}
        for name in PARTS:
            try:
                part = read_part(path, name, args.variant)
            except CheckpointError:
                continue
            if part.path not in {other.path for other in found.values()} or part.prefix not in {
                    other.prefix for other in found.values()}:
                found[name] = part
        if not found and not is_adapter(path):
            raise whole from None
        return path, found, None


def is_adapter(path: Path) -> bool:
    if path.is_dir() and not (path / lora_files.FILES[0]).exists() and not (path / lora_files.FILES[1]).exists():
        return False
    tensors, _ = lora_files.read_all(lora_files.adapter_file(path))
    return bool(lora_files.grouped(path, tensors)[0])


def describe(source: str, path: Path, parts: dict[str, Part], whole: Checkpoint | None) -> Report:
    if not parts:
        return describe_adapter(source, path)
    report = Report(source, "one network" if len(parts) == 1 else "networks")
    if whole:
        form = "a folder" if whole.layout == "diffusers" else "a single file"
        report.what = f"{whole.facts.family}: {form} in the layout of {whole.layout}"
        report.told_by = [*whole.reasons, *whole.guesses]
        facts = asdict(whole.facts)
        report.facts = {key: value for key, value in facts.items() if key not in ("unet", "vae", "texts")}
        report.left_out = counted(whole.extras)
        report.metadata = whole.metadata
    for name, part in parts.items():
        places = account(empty(part), part)
        held = [place.held for place in places.values()]
        report.networks.append(dict(
            part=name, network=part.network.__name__, names=part.names, tensors=len(part.stored),
            parameters=sum(number_of(empty(part)).values()), dtypes=dict(Counter(h.entry.dtype for h in set(held))),
            bytes=sum(h.entry.end - h.entry.begin for h in set(held))))
        report.left_out |= counted({key: harmless(key, part) for key in part.stored if harmless(key, part)
                                    and key not in {place.piece.key for place in places.values()}})
        blocks = Counter()
        for path_, count in number_of(empty(part)).items():
            blocks[block_of(path_)] += count
        report.blocks += [dict(part=name, block=block, parameters=count) for block, count in blocks.items()]
    return report


def number_of(network: torch.nn.Module) -> dict[str, int]:
    return {name: parameter.numel() for name, parameter in network.named_parameters()}


def block_of(name: str) -> str:
    """The block of a parameter: down_blocks.1, encoder.mid_block, text_model.encoder.layers.3."""
    words = name.split(".")
    numbers = [i for i, word in enumerate(words) if word.isdigit()]
    if numbers and words[numbers[0] - 1] in ("down_blocks", "up_blocks", "layers"):
        return ".".join(words[:numbers[0] + 1])
    return ".".join(words[:2]) if words[0] in ("encoder", "decoder", "text_model") else words[0]


def counted(extras: dict[str, str]) -> dict[str, str]:
    """By what they are, not one by one."""
    kinds = defaultdict(list)
    for key, what in extras.items():
        kinds[what].append(key)
    return {what: f"{len(keys)} tensors, {listed(keys)}" for what, keys in kinds.items()}


def describe_adapter(source: str, path: Path) -> Report:
    file = lora_files.adapter_file(path)
    tensors, metadata = lora_files.read_all(file)
    groups, unknown = lora_files.grouped(file, tensors)
    kinds = defaultdict(list)
    for module, group in groups.items():
        fields = {name: tensor for name, (_, tensor) in group.items()}
        name = next(word for word, mark in (("LoHa", "hada_w1_a"), ("LoKr", "lokr"), ("LoRA", "up"), ("full", "diff"),
                                            ("", "")) if any(key.startswith(mark) for key in fields))
        name = "DoRA" if {"dora_scale", "magnitude"} & fields.keys() else name
        rank = next((len(tensor) for key, tensor in fields.items() if key in lora_kinds.RANKED), 0)
        alpha = fields["alpha"].item() if "alpha" in fields else rank
        part = next((word for word in ("lora_te2", "lora_te1", "lora_te", "lora_unet", "text_encoder_2", "text_encoder",
                                       "unet") if module.startswith(word)), "")
        kinds[part, name, rank, alpha].append(module)
    report = Report(source, "an adapter", metadata=metadata)
    report.adapter = [dict(network=part, kind=name, rank=rank, alpha=alpha, layers=len(modules), first=modules[0])
                      for (part, name, rank, alpha), modules in sorted(kinds.items(), key=lambda item: str(item[0]))]
    report.left_out = {"unknown": f"{len(unknown)} tensors, {listed(unknown)}"} if unknown else {}
    return report


def check_values(parts: dict[str, Part], path: Path, report: Report):
    """Name the tensors that hold NaN or infinity."""
    if parts:
        held = [h for part in parts.values() for h in part.stored.values() if h.entry.dtype in FLOATS]
    else:
        file = lora_files.adapter_file(path)
        held = [Held(file, key, entry) for key, entry in read_header(file).entries.items() if entry.dtype in FLOATS]
    for file in dict.fromkeys(h.file for h in held):
        entries = {h.key: h.entry for h in held if h.file == file}
        with tqdm(total=len(entries), desc=file.name, unit="tensor", disable=None) as bar:
            for key, tensor in read_tensors(file, entries, torch.float32, torch.device("cpu")):
                bad = tensor.numel() - int(tensor.isfinite().sum())
                if bad:
                    report.not_finite.append(f"{key}: {bad} of {tensor.numel()} values")
                bar.update()


def compare(parts: dict[str, Part], base: dict[str, Part], report: Report):
    """By block: the norm of the change over that of the base, and how many tensors are equal bit for bit."""
    for name in parts.keys() & base.keys():
        if parts[name].config != base[name].config:
            fail(f"{name} and that of the base have different sizes: they are of different families")
        ours, theirs = parameters(parts[name]), parameters(base[name])
        blocks = defaultdict(lambda: [0.0, 0.0, 0, 0])
        for key in tqdm(list(ours), desc=name, unit="tensor", disable=None):
            a, b = ours[key](), theirs[key]()
            row = blocks[block_of(key)]
            row[0] += float((a - b).double().square().sum())
            row[1] += float(b.double().square().sum())
            row[2] += int(not torch.equal(a, b))
            row[3] += 1
        report.changed += [dict(part=name, block=block, change=(moved / max(norm, 1e-30)) ** 0.5, tensors=count,
                                changed=changed) for block, (moved, norm, changed, count) in blocks.items()]


def parameters(part: Part) -> dict:
    """Name of a parameter -> a function that reads it as float32."""
    network = empty(part)
    shapes = network.state_dict()

    def read(place, shape):
        ((_, tensor),) = read_tensors(place.held.file, {place.held.key: place.held.entry}, torch.float32,
                                      torch.device("cpu"))
        return take(place.piece, tensor, shape)
    return {name: (lambda place=place, name=name: read(place, shapes[name].shape))
            for name, place in account(network, part).items()}


def table(rows: list[dict]) -> str:
    """Columns under their names, numbers to the right."""
    def text(value) -> str:
        if isinstance(value, float):
            return f"{value:.3g}"
        if isinstance(value, dict):
            return " ".join(f"{key}:{count}" for key, count in value.items())
        return f"{value:,}" if type(value) is int else str(value)

    cells = [list(rows[0])] + [[text(value) for value in row.values()] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    right = [type(value) in (int, float) for value in rows[0].values()]
    return "\n".join("  ".join(cell.rjust(width) if to_right else cell.ljust(width)
                               for cell, width, to_right in zip(row, widths, right)).rstrip() for row in cells)


def show(report: Report):
    print(f"{report.source}\n  {report.what}")
    for line in report.told_by:
        print(f"  {line}")
    for key, value in report.facts.items():
        print(f"    {key} = {value}")
    for rows in (report.networks, report.blocks, report.adapter, report.changed):
        if rows:
            print("\n" + table(rows))
    for name, values in (("left out", report.left_out), ("metadata", report.metadata)):
        if values:
            print(f"\n{name}")
            for key, value in values.items():
                print(f"  {key}: {value if len(value) <= 300 else value[:300] + '...'}")
    if report.not_finite:
        print("\nnot finite: " + "; ".join(report.not_finite))


def main():
    args = arguments()
    try:
        path, parts, whole = networks_in(args.source, args)
        report = describe(args.source, path, parts, whole)
        if not args.quick:
            check_values(parts, path, report)
        if args.base:
            compare(parts, networks_in(args.base, args)[1], report)
    except KeyboardInterrupt:
        sys.exit(130)
    except (ValueError, OSError, RuntimeError) as error:
        fail(str(error).splitlines()[0])
    if args.json:
        print(json.dumps({key: value for key, value in asdict(report).items() if value}, indent=2))
    else:
        show(report)
    sys.exit(1 if report.not_finite else 0)


if __name__ == "__main__":
    main()
