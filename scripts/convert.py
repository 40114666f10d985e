"""Convert a checkpoint from any published layout to any other.

    python scripts/convert.py sd_xl_base_1.0.safetensors --to sdxl                        # a folder as diffusers has it
    python scripts/convert.py sdxl --to sdxl.safetensors --dtype float16                  # one file
    python scripts/convert.py sdxl --to vae.safetensors --part vae --names ldm            # one network
    python scripts/convert.py old.ckpt --to new.safetensors                               # out of pickle; adapters too
    python scripts/convert.py sdxl --to mine --unet spin.safetensors --shard-size 2GB     # parts put together

The source may be a folder, a file or a repository of the hub. What is written appears under its name when it is
complete. Metadata of a single file are kept; what has no place in what is written is told on stderr. Pickled files are
opened here and nowhere else in this project, in a process of their own that takes tensors alone and runs nothing of
them (pickles/pickled.py).
"""

if __name__ == "__main__":
    from ldm import stopping

    stopping.listen()

import argparse
import re
import signal
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import weights
from common import (
    DTYPES,
    add_download_flags,
    add_swap_flags,
    dtype_name,
    fail,
    make_parser,
    model_arguments,
    note,
    tell,
    text_sources,
    warn,
)
from ldm.scratch import at_home, scratch_folder, sweep
from weights import CheckpointError
from weights.disk.settings import JSON_BYTES, open_file
from weights.hub.wanted import model_files, part_files
from weights.layouts.landmarks import holds_one_network

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}
FOR_ALL = {"source", "to", "dtype", "variant", "revision", "offline"}
FOR_MODELS = FOR_ALL | {"layout", "unet", "vae", "text", "prediction", "zero_snr", "ema"}
OPTIONS = {  # what is written -> the options that say something of it
    "a folder": FOR_MODELS | {"shard_size", "write_variant"},
    "one file": FOR_MODELS,
    "one network": FOR_ALL | {"part", "names"},
    "an adapter or embedding": FOR_ALL,
}
OTHER_FILES = {  # names of files, and of no folder that anybody means
    *(".safetensors", ".safetensor", ".sft", ".gguf", ".ckpt", ".bin", ".pt", ".pth", ".pkl", ".onnx", ".npz", ".h5"),
    *(".zip", ".tar", ".gz", ".json", ".txt", ".png"),
}
UNPICKLE = Path(__file__).parent / "pickles" / "pickled.py"
PATIENCE = 600  # seconds for a pickle, and more for a large one, by
SLOWEST = 1_000_000  # bytes per second


def arguments() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("source", help="a folder, a file, or owner/name on the hub")
    parser.add_argument("--to", type=at_home, required=True, help="a new folder, or a new .safetensors file")
    parser.add_argument("--layout", choices=("diffusers", "ldm", "sgm"), help="default: by the name of --to")
    parser.add_argument("--part", choices=("unet", "vae", "text_encoder", "text_encoder_2"), help="this network alone")
    parser.add_argument("--names", choices=("diffusers", "ldm", "open_clip"), help="of its tensors; default: diffusers")
    parser.add_argument("--dtype", type=dtype_name, choices=DTYPES, help="of all tensors (default: each as it is)")
    parser.add_argument("--shard-size", type=size, help="of the files of a folder, for example 5GB")
    parser.add_argument("--write-variant", help="a word in the names of a folder's files, for example fp16")
    add_download_flags(parser)
    add_swap_flags(parser)
    return parser.parse_args()


def size(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?) *([KMG]?)B?", text.upper(), re.ASCII)
    count = float(match[1][:30]) * UNITS[match[2]] if match else 0
    if not 1 <= count < 2**63:
        fail(f"--shard-size {text[:40]}: give a number of bytes, with KB, MB or GB, for example 5GB")
    return int(count)


def kind(args: argparse.Namespace) -> str:
    """What is asked for, of OPTIONS."""
    if args.part:
        return "one network"
    folder = args.layout == "diffusers" if args.layout else args.to.suffix != ".safetensors"
    return "a folder" if folder else "one file"


def check(args: argparse.Namespace, what: str):
    """Refuse whatever would have no effect on what is written, or none that can be read."""
    if args.to.suffix.lower() in OTHER_FILES and args.to.suffix != ".safetensors":
        fail(f"--to {args.to}: models are written as .safetensors, or as a folder, whose name ends otherwise")
    if "\0" in str(args.to):
        fail(f"--to {args.to}: no name can hold a null character")
    if (what == "a folder") == (args.to.suffix == ".safetensors"):
        fail(f"--to {args.to}: the name of a file must end with .safetensors, and that of a folder must not")
    for name, value in vars(args).items():
        if value and name not in OPTIONS[what]:
            fail(f"--{name.replace('_', '-')} has no effect on {what}, and that is what would be written")
    if not re.fullmatch(r"[\w-]+", args.write_variant or "none", re.ASCII):
        fail(f"--write-variant {args.write_variant}: it can have letters, digits, _ and -")
    if args.to.exists() or args.to.is_symlink():
        sweep(args.to.parent)  # a program may have been killed just after it was done
        fail(f"{args.to} exists already: choose another name, or remove it")


# out of pickle


def open_pickle(file: Path, target: Path):
    """The tensors of a pickled file as safetensors."""
    warn(
        f"{file} is pickled Python: it is read in a process of its own that takes tensors alone and runs nothing; "
        "convert only files that you trust"
    )
    seconds = PATIENCE + file.stat().st_size // SLOWEST
    command = [sys.executable, "-I", UNPICKLE, file.resolve(), target]
    try:
        run = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=seconds)
    except subprocess.TimeoutExpired:
        raise CheckpointError(f"{file} cannot be converted: it takes more than {seconds} seconds") from None
    if run.returncode < 0 and -run.returncode == getattr(signal, "SIGXCPU", None):  # Windows has none
        raise CheckpointError(f"{file} cannot be converted: it takes far more time than a file of its size needs")
    if run.returncode:
        reason = run.stderr.strip().splitlines()[-1:] or [f"the process ended with {run.returncode}"]
        raise CheckpointError(f"{file} cannot be converted: {reason[0][:300]}")


def is_pickled(file: Path) -> bool:
    """By its first bytes: a zip archive as torch.save makes it, the tar archive of PyTorch's first years, or bare
    pickle; safetensors can begin like this one."""
    try:
        with file.open("rb") as content:
            start = content.read(262)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}") from None
    if start[:4] == b"PK\x03\x04" or start[257:] == b"ustar":
        return True
    return start[:1] == b"\x80" and start[8:9] != b"{"


def safetensors_name(name: str) -> str:
    """The name that a pickled file, or the index of its shards, has as safetensors."""
    name = re.sub(r"(^|/)pytorch_(?=model[.-])", r"\1", name)  # as transformers names both
    return re.sub(r"\.(ckpt|bin|pth?)(?=$|\.index\.)", ".safetensors", name)


def without_pickle(source: Path, wanted: Callable[[list[str]], list[str]], scratch: Path) -> Path:
    """The source itself, or what stands for it with safetensors in place of the pickled ones among the files wanted."""
    if source.is_file() and not is_pickled(source):
        return source
    if source.is_file():
        copy = scratch / "source.safetensors"
        open_pickle(source, copy)
        return copy
    files = [file for depth in ("*", "*/*") for file in source.glob(depth) if file.is_file()]
    files.sort(key=lambda file: file.suffix == ".safetensors")  # so that these win where both are there
    files = {safetensors_name(file.relative_to(source).as_posix()): file for file in files}
    if not any(name.endswith(".safetensors") and is_pickled(file) for name, file in files.items()):
        return source
    try:
        names = wanted(sorted(files))
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from None
    for name in names:
        file = files[name]
        target = scratch / "source" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".safetensors") and is_pickled(file):
            open_pickle(file, target)
        elif file.name != target.name:  # a list of shards
            rename_shards(file, target)
        else:
            target.symlink_to(file.resolve())
    return scratch / "source"


def rename_shards(index: Path, target: Path):
    """The list of shards, with the names that these have as safetensors."""
    with open_file(index) as file:
        text = file.read(JSON_BYTES).decode("utf-8", "replace")
    target.write_text(text.replace('.bin"', '.safetensors"').replace('"pytorch_model', '"model'))


# conversion


def convert(args: argparse.Namespace):
    swaps = [part for part in ("unet", "vae") if getattr(args, part)]
    text = text_sources(args.text)
    swaps += list(text) if isinstance(text, dict) else []
    wanted = partial(model_files, variant=args.variant, without=swaps)
    if args.part:
        wanted = partial(part_files, part=args.part, variant=args.variant)
    path, _ = weights.locate(args.source, wanted, args.revision, args.offline)
    with scratch_folder(args.to.absolute().parent) as scratch:
        source = without_pickle(path, wanted, scratch)

        # What stood in pickles is read from copies, and messages name these: the user knows the source alone.
        def in_users_words(message: object) -> str:
            return str(message).replace(str(source), args.source)

        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                left = write_as_asked(args, source)
        except ValueError as error:
            raise CheckpointError(in_users_words(error)) from None
    for warning in caught:
        warn(in_users_words(warning.message))
    for what, count in Counter(left).items():
        note(f"left out: {what}" + (f", {count} tensors" if count > 1 else ""))


def write_as_asked(args: argparse.Namespace, source: Path) -> list[str]:
    """What is left out, for each tensor and component."""
    dtype = DTYPES.get(args.dtype)
    if args.part:
        part = weights.describe_part(source, args.part, variant=args.variant)
        network = weights.load_part(source, args.part, "stored", variant=args.variant)
        weights.save_part(network, args.to, args.names or "diffusers", dtype, part.metadata)
        return [what for _, what in part.left_out()]
    if source.is_file() and weights.is_adapter(source):
        check(args, "an adapter or embedding")
        weights.convert_adapter(source, args.to, dtype)
        return []
    asked = model_arguments(args)
    if source.is_file() and not any(asked.values()) and holds_one_network(source):
        check(args, "one network")
        part = weights.describe_part(source)
        weights.save_part(weights.load_part(source, dtype="stored"), args.to, part.names, dtype, part.metadata)
        return [what for _, what in part.left_out()]
    found = weights.describe(source, variant=args.variant, offline=args.offline, **asked)
    model = weights.load(found, "stored")
    weights.save(model, args.to, args.layout, dtype, args.write_variant, args.shard_size, found.metadata)
    return [what for _, what in found.left_out() if what != weights.MARK]  # marks are written anew


def main():
    args = arguments()
    try:
        check(args, kind(args))
        convert(args)
    except OSError as error:
        fail(f"{args.to} cannot be written: {error.strerror or error}")
    except (ValueError, RuntimeError) as error:
        fail(str(error).splitlines()[0])
    tell(args.to)


if __name__ == "__main__":
    stopping.run(main, "stopped; nothing was written")
