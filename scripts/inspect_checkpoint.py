"""What is this file? Families, layouts and adapters, by keys, shapes and metadata; what its tensors hold.

    python scripts/inspect_checkpoint.py model.safetensors                        # a model, a part, an adapter
    python scripts/inspect_checkpoint.py fine_tune.safetensors --base sd15        # what a fine-tune changed, and where
    python scripts/inspect_checkpoint.py stabilityai/sdxl-turbo --variant fp16 --json

Every value is looked at, for NaN and infinity; --quick reads the headers only. Exit code 1 if some are not finite, 2 if
a part is missing or damaged.
"""

if __name__ == "__main__":
    from ldm import stopping

    stopping.listen()

import argparse
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor
from tqdm import tqdm

import weights
from common import add_download_flags, add_swap_flags, fail, first_line, make_parser, model_arguments, tell
from found import Found, find
from ldm.terminal import printable
from tables import table
from weights.checkpoint import Part

IN_ADAPTERS = (
    *("lora_te2", "lora_te1", "lora_te", "lora_unet", "oft_unet", "lycoris", "diffusion_model", "clip_l", "clip_g"),
    *("text_encoders.clip_l", "text_encoders.clip_g", "text_encoders.clip_h", "text_encoder_2", "text_encoder", "unet"),
)


@dataclass
class Report:
    """What is known of a source; empty fields are not printed."""

    source: str
    what: str
    evidence: list[str] = field(default_factory=list)
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
    parser = make_parser(__doc__)
    parser.add_argument("source", help="a folder, a .safetensors file, or owner/name on the hub")
    parser.add_argument("--base", help="compare each tensor with that of this model")
    parser.add_argument("--quick", action="store_true", help="do not look at the values")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_download_flags(parser)
    add_swap_flags(parser)
    return parser.parse_args()


def describe(source: str, found: Found) -> Report:
    if found.adapter:
        return describe_adapter(source, found.adapter)
    what = "one network" if len(found.parts) == 1 else "networks"
    report = Report(source, what, problems=list(found.problems))
    for name, part in found.parts.items():
        describe_part(name, part, report)
    if not found.whole:
        extras = [extra for part in found.parts.values() for extra in part.left_out()]
        report.left_out = count_extras(extras)
        return report
    whole = found.whole
    form = "a folder" if whole.layout == "diffusers" else "a single file"
    report.what = f"{whole.facts.family.name}: {form} in the layout of {whole.layout}"
    report.evidence = [*whole.evidence, *whole.warnings]
    report.metadata = dict(whole.metadata)
    report.facts = asdict(whole.facts) | {"family": whole.facts.family.name}
    for name in ("unet", "vae", "texts"):
        del report.facts[name]
    report.left_out = count_extras(whole.left_out())
    return report


def describe_part(name: str, part: Part, report: Report):
    network, places = part.match()
    blocks: Counter = Counter()
    for parameter, tensor in network.named_parameters():
        blocks[block_of(parameter)] += tensor.numel()
    held = {place.held for place in places.values()}
    report.networks.append(
        dict(
            part=name,
            network=type(network).__name__,
            names=part.names,
            tensors=len(part.stored),
            parameters=blocks.total(),
            dtypes=dict(sorted(Counter(tensor.entry.dtype for tensor in held).items())),
            bytes=sum(tensor.entry.end - tensor.entry.begin for tensor in held),
        )
    )
    report.blocks += [dict(part=name, block=block, parameters=count) for block, count in blocks.items()]


def block_of(name: str) -> str:
    """The block of a parameter: down_blocks.1, encoder.mid_block, text_model.encoder.layers.3."""
    words = name.split(".")
    numbers = [i for i, word in enumerate(words) if word.isdigit()]
    if numbers and words[numbers[0] - 1] in ("down_blocks", "up_blocks", "layers"):
        return ".".join(words[: numbers[0] + 1])
    return ".".join(words[:2]) if words[0] in ("encoder", "decoder", "text_model") else words[0]


def count_extras(extras: Iterable[tuple[str, str]]) -> dict[str, str]:
    """By what they are, not one by one."""
    kinds = defaultdict(list)
    for key, what in extras:
        kinds[what].append(key)
    found = {}
    for what, keys in kinds.items():
        more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
        found[what] = f"{len(keys)} tensors, {', '.join(map(repr, keys[:3]))}{more}"
    return found


def describe_adapter(source: str, adapter: weights.AdapterFile) -> Report:
    report = Report(source, "an adapter", problems=list(adapter.problems), metadata=dict(adapter.metadata))
    kinds = defaultdict(list)
    for change in adapter.changes:
        network = next((word for word in IN_ADAPTERS if change.module.startswith(word)), "")
        kinds[network, change.kind, change.rank, change.alpha].append(change.module)
    for (network, kind, rank, alpha), modules in sorted(kinds.items(), key=lambda item: item[0]):
        row = dict(network=network, kind=kind, rank=rank, alpha=alpha, layers=len(modules), first=modules[0])
        report.adapter.append(row)
    report.left_out = count_extras((key, "unknown") for key in adapter.unknown)
    if adapter.words:
        report.left_out["new words, for add_embedding"] = ", ".join(map(repr, adapter.words[:20]))
    return report


def check_values(values: Iterator[tuple[str, Tensor]], count: int | None, what: str, report: Report):
    """Name the tensors that hold NaN or infinity."""
    for key, tensor in tqdm(values, total=count, desc=what, unit="tensor", disable=None):
        bad = tensor.numel() - int(tensor.isfinite().sum())
        if bad:
            report.not_finite.append(f"{key}: {bad} of {tensor.numel()} values")


def compare(parts: dict[str, Part], base: dict[str, Part], report: Report):
    """By block: the norm of the change over that of the base, and how many tensors are equal bit for bit."""
    shared = [name for name in parts if name in base]
    if not shared:
        raise weights.CheckpointError(f"--base: {report.source} and the base have no network in common")
    for name in shared:
        if parts[name].config != base[name].config:
            what = f"{name} and that of the base have different sizes"
            raise weights.CheckpointError(f"{what}: they are of different families")
        blocks: dict[str, Difference] = defaultdict(Difference)
        pairs = zip(parts[name].parameters(), base[name].parameters(), strict=True)
        for (key, ours), (_, theirs) in tqdm(pairs, desc=name, unit="tensor", disable=None):
            blocks[block_of(key)].add(ours, theirs)
        for block, difference in blocks.items():
            report.changed.append(dict(part=name, block=block) | difference.row())


@dataclass
class Difference:
    """Between the tensors of a block and those of the base: sums of squares, and how many tensors differ."""

    moved: float = 0.0
    norm: float = 0.0
    changed: int = 0
    tensors: int = 0

    def add(self, ours: Tensor, theirs: Tensor):
        self.moved += float((ours - theirs).double().square().sum())
        self.norm += float(theirs.double().square().sum())
        self.changed += int(not torch.equal(ours, theirs))
        self.tensors += 1

    def row(self) -> dict:
        change = (self.moved / max(self.norm, 1e-30)) ** 0.5
        return dict(change=change, tensors=self.tensors, changed=self.changed)


def show(report: Report):
    tell(f"{printable(report.source)}\n  {printable(report.what)}")
    for line in report.evidence:
        tell(f"  {printable(line)}")
    for key, value in report.facts.items():
        tell(f"    {key} = {value}")
    for rows in (report.networks, report.blocks, report.adapter, report.changed):
        if rows:
            tell("\n" + table(rows))
    for name, values in (("left out", report.left_out), ("metadata", report.metadata)):
        if values:
            tell(f"\n{name}")
            for key, value in values.items():
                text = value if len(value) <= 300 else value[:300] + "..."
                tell(printable(f"  {key[:300]}: {text}"))
    for name, lines in (("not finite", report.not_finite), ("problems", report.problems)):
        if lines:
            tell(f"\n{name}: " + printable("; ".join(lines)))


def show_json(report: Report):
    """JSON has no NaN: null."""
    values = json.dumps({key: value for key, value in asdict(report).items() if value})
    text = json.dumps(json.loads(values, parse_constant=lambda name: None), indent=2)
    tell(text.replace("\x7f", "\\u007f"))  # the one control character that JSON does not escape


def inspect(args: argparse.Namespace) -> Report:
    found = find(args.source, args, model_arguments(args))
    report = describe(args.source, found)
    if args.base:
        base = find(args.base, args, {})
        report.problems += base.problems
        compare(found.parts, base.parts, report)
    if not args.quick:
        for name, part in found.parts.items():
            check_values(part.values(), len(part.stored), name, report)
        if found.adapter:
            check_values(found.adapter.values(), None, found.adapter.path.name, report)
    return report


def main():
    args = arguments()
    try:
        report = inspect(args)
        if args.json:
            show_json(report)
        else:
            show(report)
    except (ValueError, OSError, RuntimeError) as error:
        fail(first_line(error))
    if report.problems:
        sys.exit(2)
    sys.exit(1 if report.not_finite else 0)


if __name__ == "__main__":
    stopping.run(main)
