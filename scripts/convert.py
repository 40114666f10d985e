"""Convert a checkpoint from any published layout to any other.

    python scripts/convert.py sd_xl_base_1.0.safetensors --to sdxl                        # a folder as diffusers has it
    python scripts/convert.py sdxl --to sdxl.safetensors --dtype float16                  # one file
    python scripts/convert.py sdxl --to vae.safetensors --part vae --names ldm            # one network
    python scripts/convert.py old.ckpt --to new.safetensors                               # out of pickle
    python scripts/convert.py sdxl --to mine --unet spin.safetensors --shard-size 2GB     # parts put together

The source may be a folder, a file or a repository of the hub. What is written appears under its name when it is
complete, and metadata of a single file are kept. Pickled files are opened here and nowhere else in this project, in a
process of their own that accepts tensors alone; convert only those that you trust.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from safetensors.torch import save_file

import weights
from weights.load import read_checkpoint

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}
PICKLED = (".ckpt", ".bin", ".pt", ".pth")
UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="a folder, a file, or owner/name on the hub")
    parser.add_argument("--to", type=Path, required=True, help="a new folder, or a new .safetensors file")
    parser.add_argument("--layout", choices=("diffusers", "ldm", "sgm"), help="default: by the name of --to")
    parser.add_argument("--part", choices=("unet", "vae", "text_encoder", "text_encoder_2"), help="this network alone")
    parser.add_argument("--names", choices=("diffusers", "ldm", "open_clip"), default="diffusers",
                        help="of the tensors of --part (default: diffusers)")
    parser.add_argument("--dtype", choices=DTYPES, help="of all tensors (default: as they are)")
    parser.add_argument("--shard-size", help="of the files of a folder, for example 5GB")
    parser.add_argument("--write-variant", help="a word in the names of a folder's files, for example fp16")
    parser.add_argument("--variant", help="the files to read, for example fp16")
    parser.add_argument("--revision", help="of a repository: a branch, tag or commit")
    parser.add_argument("--offline", action="store_true", help="take only what was downloaded before")
    parser.add_argument("--unet", help="take the UNet from here")
    parser.add_argument("--vae", help="take the VAE from here")
    parser.add_argument("--prediction", choices=("eps", "v"), help="of an SD 2 file that does not say it")
    parser.add_argument("--ema", action="store_true", help="take the averaged UNet of a single file")
    return parser.parse_args()


def fail(message: str):
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def warn(message: str):
    print(f"warning: {message}", file=sys.stderr)


def size(text: str | None) -> int | None:
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?) *([KMG]?B?)", text.upper())
    if not match or float(match[1]) <= 0:
        fail(f"--shard-size {text}: give a number of bytes, with KB, MB or GB, for example 5GB")
    return int(float(match[1]) * UNITS[match[2].removesuffix("B") + "B" if match[2] not in ("", "B") else ""])


def unpickle(source: Path, target: Path):
    """The tensors of a pickled file as safetensors; run as a process of its own."""
    content = torch.load(source, map_location="cpu", weights_only=True, mmap=True)
    content = content.get("state_dict", content) if isinstance(content, dict) else {}
    tensors = {key: value.detach().clone(memory_format=torch.contiguous_format) for key, value in content.items()
               if isinstance(value, torch.Tensor)}
    if not tensors:
        raise ValueError("it holds no tensors by name")
    save_file(tensors, target)


def without_pickle(source: Path, scratch: Path) -> Path:
    """The source itself, or what stands for it with safetensors in place of what was pickled."""
    if source.is_file() and is_pickled(source):
        copy = scratch / (source.stem + ".safetensors")
        open_pickle(source, copy)
        return copy
    pickled = [file for file in sorted(source.rglob("*")) if file.suffix in PICKLED
               and not any(file.parent.glob("*.safetensors"))]
    if source.is_file() or not pickled:
        return source
    copy = scratch / source.name
    for file in source.rglob("*"):
        target = copy / file.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        if file in pickled:
            name = file.with_suffix(".safetensors").name
            open_pickle(file, target.with_name(name.removeprefix("pytorch_")))   # as transformers names both
        elif file.is_file() and file.suffix not in PICKLED:
            target.symlink_to(file.resolve())
    return copy


def open_pickle(file: Path, target: Path):
    warn(f"{file} is pickled Python: it is opened in a process of its own that accepts tensors alone; convert only "
         "files that you trust")
    command = [sys.executable, __file__, "--unpickle", str(file), str(target)]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        reason = run.stderr.strip().splitlines()[-1:] or [f"the process ended with {run.returncode}"]
        fail(f"{file} cannot be converted: {reason[0]}")


def is_pickled(file: Path) -> bool:
    """By its first bytes: a zip archive as torch.save makes it, or bare pickle."""
    with file.open("rb") as opened:
        start = opened.read(4)
    return start == b"PK\x03\x04" or (start[:1] == b"\x80" and file.suffix != ".safetensors")


def convert(args: argparse.Namespace):
    dtype, shard_size = DTYPES.get(args.dtype), size(args.shard_size)
    with tempfile.TemporaryDirectory(dir=existing(args.to.absolute().parent)) as scratch:
        source = args.source
        if Path(source).exists():
            source = without_pickle(Path(source), Path(scratch))
        settings = dict(dtype=None, variant=args.variant, revision=args.revision, offline=args.offline)
        if args.part:
            network = weights.load_part(source, args.part, **settings)
            weights.save_part(network, args.to, args.names, dtype)
            return
        model = weights.load(source, unet=args.unet, vae=args.vae, prediction=args.prediction, ema=args.ema, **settings)
        metadata = {}
        if Path(source).is_file():
            metadata = read_checkpoint(Path(source)).metadata
        weights.save(model, args.to, args.layout, dtype, args.write_variant, shard_size, metadata)


def existing(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def main():
    if sys.argv[1:2] == ["--unpickle"]:
        return unpickle(Path(sys.argv[2]), Path(sys.argv[3]))
    args = arguments()
    warnings.showwarning = lambda message, *rest: warn(str(message))
    try:
        convert(args)
    except KeyboardInterrupt:
        print("stopped; nothing was written", file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError, RuntimeError) as error:
        fail(str(error).splitlines()[0])
    print(args.to)


if __name__ == "__main__":
    main()
