"""Time and memory of loading a single-file SDXL in float16, beside diffusers' from_single_file, in fresh processes.

    python scripts/bench/time_load.py --out docs/benchmarks/loading.md        # writes a random file of 6.9 GB first

Memory is the growth of the process over what it had before, at its peak: pages of a mapped file count when they were
touched. "ours" is the default and reads every value to find NaN and infinity; diffusers does not, so "ours, unchecked",
which is `check_finite=False`, is the row to compare it with. Both of ours also turn the VAE to float32, in which it
does not overflow.
"""

if __name__ == "__main__":
    from ldm import stopping

    stopping.listen()

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

LOADERS = ("ours", "ours, unchecked", "diffusers")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a single SDXL file in float16 (default: a random one is written)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="write the table here, as markdown")
    parser.add_argument("--worker", nargs=3, metavar=("LOADER", "FILE", "CONFIG"), help=argparse.SUPPRESS)
    return parser.parse_args()


def make_random_model():
    """An SDXL of random weights in float16. Imports are local: the memory of a worker shall hold only what it loads."""
    from ldm.clip import CLIPText
    from ldm.config import MODELS, VAES
    from ldm.model import Model
    from ldm.tokenizer import Tokenizer
    from ldm.unet import UNet
    from ldm.vae import VAE

    facts = MODELS["sdxl"]
    with torch.device("meta"):
        unet = UNet(facts.unet)
        vae = VAE(VAES["sdxl"])
        texts = {part: CLIPText(cfg) for part, cfg in zip(facts.family.towers, facts.texts)}
    for network in (unet, vae, *texts.values()):
        state = {}
        for name, tensor in network.state_dict().items():
            state[name] = torch.empty(tensor.shape, dtype=torch.float16).uniform_(-0.05, 0.05)
        network.load_state_dict(state, assign=True)
    return Model(unet, vae, texts, Tokenizer(), facts)


def read_memory(field: str) -> int:
    """Bytes, by a field of this process's status: VmRSS now, VmHWM at its peak."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field + ":"))
    return 1024 * int(line.split()[1])


def run_worker(loader: str, file: str, config: str):
    """Load once and print what it took."""
    if loader == "diffusers":
        from diffusers import StableDiffusionXLPipeline

        def load() -> Any:
            return StableDiffusionXLPipeline.from_single_file(
                file, config=config, torch_dtype=torch.float16, local_files_only=True
            )
    else:
        import weights

        def load() -> Any:
            return weights.load(file, dtype=None, check_finite=loader == "ours")

    before = read_memory("VmRSS")
    start = time.perf_counter()
    model = load()
    seconds = time.perf_counter() - start
    assert model.unet.conv_in.weight.dtype == torch.float16
    print(json.dumps(dict(seconds=seconds, peak=read_memory("VmHWM") - before)))


def read_into_cache(file: Path):
    """Read a file once, so that the operating system holds it in memory for the loader."""
    with file.open("rb") as opened:
        while opened.read(2**26):
            pass


def measure(loader: str, file: Path, config: Path) -> dict:
    read_into_cache(file)
    command = [sys.executable, __file__, "--worker", loader, str(file), str(config)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["it was killed"]
        sys.exit(f"error: {loader}: {lines[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def make_table(runs: dict[str, list[dict]], size: int) -> str:
    base = statistics.median(run["seconds"] for run in runs["diffusers"])
    rows = [
        "| loader | seconds, median (min to max) | diffusers' time / this | peak memory / file size |",
        "|---|---|---|---|",
    ]
    for loader, measured in runs.items():
        seconds = sorted(run["seconds"] for run in measured)
        middle = statistics.median(seconds)
        peak = statistics.median(run["peak"] for run in measured)
        rows.append(
            f"| {loader} | {middle:.2f} ({seconds[0]:.2f} to {seconds[-1]:.2f}) | {base / middle:.1f} "
            f"| {peak / size:.2f} |"
        )
    return "\n".join(rows)


def main():
    args = parse_arguments()
    if args.worker:
        return run_worker(*args.worker)
    import weights
    from ldm.config import MODELS
    from weights.layouts.diffusers import write_facts

    with tempfile.TemporaryDirectory() as scratch:
        file = args.model or Path(scratch) / "sdxl.safetensors"
        config = Path(scratch) / "config"
        if not args.model:
            weights.save(make_random_model(), file)
        write_facts(config, MODELS["sdxl"])
        runs = {loader: [] for loader in LOADERS}
        for _ in range(args.rounds):
            for loader in LOADERS:
                runs[loader].append(measure(loader, file, config))
                print(loader, runs[loader][-1], file=sys.stderr)
        size = file.stat().st_size
    text = make_table(runs, size)
    print(text)
    if args.out:
        packages = ("torch", "diffusers", "transformers", "safetensors")
        versions = ", ".join(f"{name} {version(name)}" for name in packages)
        args.out.write_text(
            f"# Loading a single-file SDXL\n\n`python scripts/bench/time_load.py --out {args.out}`, "
            f"{date.today()}, CPU; {versions}. A file of {size / 1e9:.2f} GB in float16, "
            f"{args.rounds} rounds in which the loaders take turns, each in a new process, the file in "
            f"the page cache.\n\n{text}\n\n{__doc__.split(chr(10) * 2)[2]}\n"
        )


if __name__ == "__main__":
    stopping.run(main)
