"""Kill -9 at random points of whatever writes: save, convert, download and drawing.

    make faults                          # 100 kills; the figures are in docs/security.md
    python tests/faults.py --kills 12

After each kill, what lies under a final name is complete, byte for byte; the next run ends well, with the same bytes;
and then there is nothing else.
"""

import argparse
import contextlib
import hashlib
import os
import random
import re
import runpy
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

import pytest  # noqa: E402
import torch  # noqa: E402
from huggingface_hub import constants  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

import weights  # noqa: E402
from support.hub_server import Hub, connect  # noqa: E402
from weights.hub.download import fetch  # noqa: E402

VAE = weights.MINIATURE / "vae" / "diffusion_pytorch_model.safetensors"
PROMPT = ["--prompt", "a red apple", "--steps", "1", "--count", "2", "--batch", "1"]


class Job(NamedTuple):
    """run: writes into a folder. leftover: whether a file may be there after a kill, by its path in that folder."""

    name: str
    run: Callable[[Path], None]
    leftover: Callable[[Path], bool]


def in_scratch(path: Path) -> bool:
    return path.parts[0].startswith(".part-")


def in_cache(path: Path) -> bool:
    """Scratch of the cache, parts that the next run goes on with, and the locks that the hub's clients share."""
    return any(part.startswith(".part-") or part == ".locks" for part in path.parts) or path.suffix == ".incomplete"


def save_folder(home: Path) -> None:
    weights.save(weights.load(weights.MINIATURE), home / "model", shard_size=3_000_000)


def save_file(home: Path) -> None:
    weights.save(weights.load(weights.MINIATURE), home / "model.safetensors")


def program(name: str, *arguments: object) -> None:
    """A program of scripts/, in this process."""
    sys.argv = [name, *map(str, arguments)]
    with contextlib.suppress(SystemExit):
        runpy.run_path(str(ROOT / "scripts" / name), run_name="__main__")


def convert_pickle(home: Path) -> None:
    program("convert.py", PICKLED, "--to", home / "vae.safetensors", "--part", "vae")


def convert_model(home: Path) -> None:
    program("convert.py", weights.MINIATURE, "--to", home / "model", "--dtype", "float32")


def draw(home: Path) -> None:
    program("txt2img.py", *PROMPT, "--seed", 1, "--out", home / "pictures")


def download(home: Path) -> None:
    constants.HF_HUB_CACHE = str(home)
    fetch("owner/name", lambda names: names, tell=lambda line: None)


PICKLED = Path("set by prepared")
JOBS = {
    "save": [Job("save a folder", save_folder, in_scratch), Job("save a file", save_file, in_scratch)],
    "convert": [Job("convert a pickle", convert_pickle, in_scratch), Job("convert a model", convert_model, in_scratch)],
    "download": [Job("download", download, in_cache)],
    "draw": [Job("draw", draw, lambda path: any(part.startswith(".part-") for part in path.parts))],
}


@contextlib.contextmanager
def prepared():
    """A pickled file, and a hub to download from."""
    global PICKLED
    with tempfile.TemporaryDirectory() as folder, Hub() as hub:
        PICKLED = Path(folder) / "vae"
        PICKLED.mkdir()
        torch.save(load_file(VAE), PICKLED / "diffusion_pytorch_model.bin")
        shutil.copy(VAE.with_name("config.json"), PICKLED)
        hub.push("owner/name", {"a.json": b"{}", "b.safetensors": os.urandom(10**7), "c.safetensors": os.urandom(9)})
        with pytest.MonkeyPatch.context() as patch:
            connect(patch, hub.url, Path(folder))
            yield


def start(job: Job, home: Path) -> int:
    """The job in a process of its own, which is there at once: torch is imported already."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1)
            os.dup2(quiet, 2)
            job.run(home)
            status = 0
        finally:
            os._exit(status)
    return pid


def finish(job: Job, home: Path) -> float:
    """Seconds that the job takes when nobody kills it. An end that says "exists already" is a good one too."""
    begin = time.monotonic()
    os.waitpid(start(job, home), 0)
    return time.monotonic() - begin


def files_in(home: Path) -> dict[Path, str]:
    """Path -> hash of the content, or where a link leads."""
    found = {}
    for path in sorted(home.rglob("*")):
        if path.is_symlink() or path.is_file():
            content = os.readlink(path).encode() if path.is_symlink() else path.read_bytes()
            found[path.relative_to(home)] = hashlib.sha256(content).hexdigest()
    return found


def plain(path: Path) -> Path:
    """Without the number of a picture: those of the next run are counted on."""
    return path.with_name(re.sub(r"^\d{5}-", "", path.name))


def is_whole(job: Job, home: Path, expected: dict[Path, str]) -> bool:
    """Whatever has a final name is as it should be, and a model of several files is there with all of them."""
    found = {path: digest for path, digest in files_in(home).items() if not job.leftover(path)}
    if any(expected.get(plain(path)) != digest for path, digest in found.items()):
        return False
    models = {path for path in expected if path.parts[0] == "model"}
    return not models & found.keys() or models <= found.keys()


class Report(NamedTuple):
    """Of one job: kills, how many of them left something, and what went wrong."""

    kills: int
    left: int
    faults: list[str]


def kept(home: Path) -> dict[Path, str]:
    """All but locks."""
    return {plain(path): digest for path, digest in files_in(home).items() if ".locks" not in path.parts}


def try_job(job: Job, kills: int, random_numbers: random.Random) -> Report:
    left = 0
    faults = []
    with tempfile.TemporaryDirectory() as folder:
        reference = Path(folder) / "home"
        reference.mkdir()
        seconds = finish(job, reference)
        expected = kept(reference)
        assert expected, f"{job.name} writes nothing"
        shutil.rmtree(reference)
        for number in range(kills):
            home = Path(folder) / "home"
            home.mkdir()
            moment = random_numbers.uniform(0, seconds)
            pid = start(job, home)
            time.sleep(moment)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            where = f"{job.name}, kill {number} after {moment:.3f} of {seconds:.3f} s"
            left += any(job.leftover(path) and ".locks" not in path.parts for path in files_in(home))
            if not is_whole(job, home, expected):
                faults.append(f"{where}: half-written")
            finish(job, home)
            found = kept(home)
            missing = expected.items() - found.items()
            more = found.keys() - expected.keys()
            if missing or more or list(home.rglob(".part-*")):
                faults.append(f"{where}: after the next run, not the same {sorted(missing)}, or more {sorted(more)}")
            shutil.rmtree(home)
    return Report(kills, left, faults)


def shares(count: int, parts: int) -> list[int]:
    """Of nearly the same size; 25 in two are 13 and 12."""
    return [(count + parts - 1 - number) // parts for number in range(parts)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)  # a process that was forked has none of the others
    faults = []
    with prepared():
        for number, (name, jobs) in enumerate(JOBS.items()):
            reports = []
            for job, share in zip(jobs, shares(shares(args.kills, len(JOBS))[number], len(jobs))):
                reports.append(try_job(job, share, random.Random(args.seed + number)))
            faults += [fault for report in reports for fault in report.faults]
            kills, left = sum(report.kills for report in reports), sum(report.left for report in reports)
            print(f"{name:10} {kills:4} kills, {left:4} left something to sweep", flush=True)
    print("\n".join(faults) or "nothing half-written, and nothing left after the next run")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
