"""What is this file? Families, layouts and adapters told by keys, shapes and metadata; what its tensors hold.

    python scripts/inspect_checkpoint.py model.safetensors                        # a model, a part, an adapter
    python scripts/inspect_checkpoint.py fine_tune.safetensors --base sd15        # what a fine-tune changed, and where
    python scripts/inspect_checkpoint.py stabilityai/sdxl-turbo --variant fp16 --json

Every value is looked at, for NaN and infinity; --quick reads the headers only. Exit code 1 if some are not finite, 2 if
a part is missing or damaged.
"""

import argparse
import json
import os
import sys
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from tqdm import tqdm

from weights import CheckpointError, adapter_file
from weights.alone import PARTS, read_part
from weights.errors import listed, shown
from weights.files import Held
from weights.fill import account, empty, left_out, take
from weights.hub_files import model_files, one_file, part_files
from weights.load import located, read_checkpoint
from weights.lora_files import grouped, read_configs
from weights.lora_kinds import build, scale_of
from weights.parts import Checkpoint, Part
from weights.safetensors_file import FLOATS, mapped, read_header, read_tensors

NETWORKS = ("lora_te2", "lora_te1", "lora_te", "lora_unet", "text_encoder_2", "text_encoder", "unet")  # in adapters


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
    problems: list[str] = field(default_factory=list)
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


@dataclass
class Found:
    """What lies at a path: networks, and what is known of the whole if it is one; or an adapter, which has neither."""

    path: Path
    parts: dict[str, Part]
    whole: Checkpoint | None = None
    problems: list[str] = field(default_factory=list)


def find(source: str, args: argparse.Namespace) -> Found:
    path, _ = located(source, lambda names: wanted(names, args.variant), args.revision, args.offline)
    try:
        whole = read_checkpoint(path, args.variant)
        return Found(path, whole.parts, whole)
    except CheckpointError as error:
        problem = error
    found, problems = {}, [str(problem)] * (path / "model_index.json").exists()
    for name in PARTS:
        try:
            part = read_part(path, name, args.variant)
        except CheckpointError as error:
            problems += [str(error)] * (path / name).is_dir()
            continue
        if all((part.path, part.prefix) != (other.path, other.prefix) for other in found.values()):
            found[name] = part
    if not found and not is_adapter(path):
        raise problem
    return Found(path, found, problems=list(dict.fromkeys(problems)))


def wanted(names: list[str], variant: str | None) -> list[str]:
    """Of a repository: a model, a network alone or an adapter."""
    if "model_index.json" in names:
        return model_files(names, variant)
    if "config.json" in names:
        return part_files(names, variant=variant)
    return [*one_file(names), *{"adapter_config.json"}.intersection(names)]


def is_adapter(path: Path) -> bool:
    try:
        file = adapter_file(path)
    except CheckpointError:  # a folder without one
        return False
    return bool(grouped(file, read_header(file).entries)[0])


def describe(source: str, found: Found) -> Report:
    if not found.parts:
        return describe_adapter(source, adapter_file(found.path))
    report = Report(source, "one network" if len(found.parts) == 1 else "networks", problems=found.problems)
    whole, extras = found.whole, []
    if whole:
        form = "a folder" if whole.layout == "diffusers" else "a single file"
        report.what = f"{whole.facts.family.name}: {form} in the layout of {whole.layout}"
        report.told_by, report.metadata = [*whole.reasons, *whole.guesses], whole.metadata
        report.facts = {key: value for key, value in asdict(whole.facts).items() if key not in ("unet", "vae", "texts")}
        extras += whole.extras.items()
    for name, part in found.parts.items():
        network = empty(part)
        held = {place.held for place in account(network, part).values()}
        blocks = Counter()
        for parameter, tensor in network.named_parameters():
            blocks[block_of(parameter)] += tensor.numel()
        report.networks.append(
            dict(
                part=name,
                network=part.network.__name__,
                names=part.names,
                tensors=len(part.stored),
                parameters=blocks.total(),
                dtypes=dict(sorted(Counter(h.entry.dtype for h in held).items())),
                bytes=sum(h.entry.end - h.entry.begin for h in held),
            )
        )
        report.blocks += [dict(part=name, block=block, parameters=count) for block, count in blocks.items()]
        extras += left_out(part).items()
    report.left_out = counted(extras)
    return report


def block_of(name: str) -> str:
    """The block of a parameter: down_blocks.1, encoder.mid_block, text_model.encoder.layers.3."""
    words = name.split(".")
    numbers = [i for i, word in enumerate(words) if word.isdigit()]
    if numbers and words[numbers[0] - 1] in ("down_blocks", "up_blocks", "layers"):
        return ".".join(words[: numbers[0] + 1])
    return ".".join(words[:2]) if words[0] in ("encoder", "decoder", "text_model") else words[0]


def counted(extras: list[tuple[str, str]]) -> dict[str, str]:
    """By what they are, not one by one."""
    kinds = defaultdict(list)
    for key, what in extras:
        kinds[what].append(key)
    return {what: f"{len(keys)} tensors, {listed(keys)}" for what, keys in kinds.items()}


def describe_adapter(source: str, file: Path) -> Report:
    header = read_header(file)
    with mapped(file) as opened:
        tensors = {key: opened.get_tensor(key) for key in header.entries}  # their values stay on the disk
    report = Report(source, "an adapter", metadata=header.metadata)
    groups, unknown = grouped(file, tensors)
    configs, kinds = read_configs(file, tensors, header.metadata), defaultdict(list)
    for module, group in groups.items():
        fields = {name: tensor for name, (_, tensor) in group.items()}
        scale = scale_of(module, fields, configs)
        try:
            change = [*build(fields, scale).values()][-1]  # a bias comes first
        except ValueError as error:
            report.problems.append(f"{file}: {shown(module)}: {error}")
            continue
        rank = getattr(getattr(change, "direction", change), "rank", None) or 0  # DoRA's is that of its direction
        network = next((word for word in NETWORKS if module.startswith(word)), "")
        kinds[network, type(change).__name__, rank, round(scale * rank, 6)].append(module)
    report.adapter = [
        dict(network=part, kind=name, rank=rank, alpha=alpha, layers=len(modules), first=modules[0])
        for (part, name, rank, alpha), modules in sorted(kinds.items(), key=lambda item: str(item[0]))
    ]
    report.left_out = counted([(key, "unknown") for key in unknown])
    return report


def check_values(found: Found, report: Report):
    """Name the tensors that hold NaN or infinity."""
    held = [held for part in found.parts.values() for held in part.stored.values()]
    if not found.parts:
        file = adapter_file(found.path)
        held = [Held(file, key, entry) for key, entry in read_header(file).entries.items()]
    for file in dict.fromkeys(h.file for h in held):
        entries = {h.key: h.entry for h in held if h.file == file and h.entry.dtype in FLOATS}
        with tqdm(total=len(entries), desc=file.name, unit="tensor", disable=None) as bar:
            for key, tensor in read_tensors(file, entries, torch.float32, torch.device("cpu")):
                bad = tensor.numel() - int(tensor.isfinite().sum())
                if bad:
                    report.not_finite.append(f"{key}: {bad} of {tensor.numel()} values")
                bar.update()


def compare(parts: dict[str, Part], base: dict[str, Part], report: Report):
    """By block: the norm of the change over that of the base, and how many tensors are equal bit for bit."""
    shared = [name for name in parts if name in base]
    if not shared:
        raise CheckpointError(f"--base: {report.source} and the base have no network in common")
    for name in shared:
        if parts[name].config != base[name].config:
            raise CheckpointError(f"{name} and that of the base have different sizes: they are of different families")
        ours, theirs = parameters(parts[name]), parameters(base[name])
        blocks = defaultdict(lambda: [0.0, 0.0, 0, 0])
        for key in tqdm(list(ours), desc=name, unit="tensor", disable=None):
            a, b = ours[key](), theirs[key]()
            row = blocks[block_of(key)]
            row[0] += float((a - b).double().square().sum())
            row[1] += float(b.double().square().sum())
            row[2] += int(not torch.equal(a, b))
            row[3] += 1
        report.changed += [
            dict(part=name, block=block, change=(moved / max(norm, 1e-30)) ** 0.5, tensors=count, changed=changed)
            for block, (moved, norm, changed, count) in blocks.items()
        ]


def parameters(part: Part) -> dict:
    """Name of a parameter -> a function that reads it as float32."""
    network = empty(part)
    shapes = network.state_dict()

    def read(place, shape):
        ((_, tensor),) = read_tensors(
            place.held.file, {place.held.key: place.held.entry}, torch.float32, torch.device("cpu")
        )
        return take(place.piece, tensor, shape)

    return {
        name: (lambda place=place, name=name: read(place, shapes[name].shape))
        for name, place in account(network, part).items()
    }


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
    return "\n".join(
        "  ".join(
            cell.rjust(width) if to_right else cell.ljust(width) for cell, width, to_right in zip(row, widths, right)
        ).rstrip()
        for row in cells
    )


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
    for name, lines in (("not finite", report.not_finite), ("problems", report.problems)):
        if lines:
            print(f"\n{name}: " + "; ".join(lines))


def printed(report: Report):
    """JSON has no NaN: null."""
    values = json.dumps({key: value for key, value in asdict(report).items() if value})
    print(json.dumps(json.loads(values, parse_constant=lambda name: None), indent=2))


def main():
    args = arguments()
    sys.stdout.reconfigure(errors="backslashreplace")
    try:
        found = find(args.source, args)
        report = describe(args.source, found)
        if args.base:
            base = find(args.base, args)
            report.problems += base.problems
            compare(found.parts, base.parts, report)
        if not args.quick:
            check_values(found, report)
        (printed if args.json else show)(report)
        sys.stdout.flush()
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # whoever read it has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {error}".splitlines()[0], file=sys.stderr)
        sys.exit(2)
    sys.exit(2 if report.problems else 1 if report.not_finite else 0)


if __name__ == "__main__":
    main()
