"""Time the Triton kernels on published shapes, against PyTorch's own, forward and backward.

    python scripts/bench/time_kernels.py --out docs/benchmarks/kernels_h100.md      # the goals first, for 9 minutes
    python scripts/bench/time_kernels.py --only LayerNorm GEGLU --rounds 50         # or: attention, "head 64"
    python scripts/bench/time_kernels.py --only "SDXL: 2x10x4096" --sweep forward   # other tiles for attention
    TRITON_INTERPRET=1 python scripts/bench/time_kernels.py --dry                   # small shapes, on the CPU

All contenders of a case work on the same inputs in one process, in turn, first one way round and then the other. Each
works through several sets of inputs that together exceed the cache; the calls of one turn are one CUDA graph. Times
are medians over the turns. A rate is given as a share of what a large copy and a large matrix product reach here.
Rows are written as they are measured; what fails becomes a row that says so.
"""

if __name__ == "__main__":
    from ldm import stopping

    stopping.listen()

import argparse
import itertools
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import date
from pathlib import Path

import torch
import triton

from kernel_cases import Case, cases, shrink
from kernel_timing import Bench, compete, first_line, measure_ceilings, measure_error, read_gpu_state, require_gpu
from ldm.kernels import attention_tiles

COLUMNS = (
    "case",
    "pass",
    "ours, ms",
    "min - max",
    "others, ms",
    "best other / ours",
    "rate",
    "of the ceiling",
    "error",
    "GPU",
)
UNITS = {"TFLOP/s": 1e12, "GB/s": 1e9}


def measure_row(case: Case, backward: bool, bench: Bench, ceilings: dict[str, float]) -> str:
    """A case measured, as a line of the table; one that fails says why."""
    head = [case.name, "backward" if backward else "forward"]
    try:
        wrong = measure_error(case, backward, bench)
        times, left_out = compete(case, backward, bench)
    except Exception as problem:
        empty = ["" for _ in COLUMNS[3:]]
        return join_cells([*head, f"failed: {first_line(problem)}", *empty])
    turns = times.pop("ours")
    ours = statistics.median(turns)
    others = {name: statistics.median(seconds) for name, seconds in times.items()}
    cells = [f"{name} {1e3 * seconds:.3f}" for name, seconds in others.items()]
    cells += [f"{name}: {reason}" for name, reason in left_out.items()]
    advantage = "-"
    if others:
        best = min(others, key=lambda name: others[name])
        advantage = f"{others[best] / ours:.2f} ({best})"
    work = case.backward_work if backward else case.work
    rate = work / ours / UNITS[case.unit]
    return join_cells(
        [
            *head,
            f"{1e3 * ours:.3f}",
            f"{1e3 * min(turns):.3f} - {1e3 * max(turns):.3f}",
            ", ".join(cells),
            advantage,
            f"{rate:.0f} {case.unit}",
            f"{rate / ceilings[case.unit]:.0%}",
            f"{wrong:.0e}",
            read_gpu_state(bench),
        ]
    )


def join_cells(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def vary_tiles(kernel: str, shipped: attention_tiles.Tiles) -> list[attention_tiles.Tiles]:
    """The shipped tiles and half and twice as many queries and keys; the short kernel holds all keys."""

    def around(size: int) -> list[int]:
        return [x for x in (size, size // 2, 2 * size) if 16 <= x <= 256]

    keys = [shipped.keys] if kernel == "short" else around(shipped.keys)
    return [
        replace(shipped, queries=q, keys=k, warps=w, stages=s)
        for q, k, w, s in itertools.product(around(shipped.queries), keys, (4, 8), (2, 3))
    ]


def sweep(case: Case, kernel: str, bench: Bench, choose: Callable = vary_tiles) -> None:
    """Print the times of a case with other tiles for one of the kernels of attention, the best at the end."""
    queries, keys_shape = case.inputs[:2]
    width = queries[3]
    like = torch.empty(0, device=bench.device, dtype=bench.dtype)
    used = "short" if attention_tiles.short_tiles(width, keys_shape[1], like) else "forward"
    if kernel in ("forward", "short") and kernel != used:
        print(f"{case.name}: computed by the {used} kernel")
        return
    sizes = attention_tiles.sizes_of(kernel, like)
    widest = next(w for w in sizes if width <= w)
    shipped = sizes[widest]
    backward = kernel in ("queries", "keys")
    alone = replace(case, contenders={"ours": case.contenders["ours"]})
    times = {}
    try:
        for tile in choose(kernel, shipped):
            sizes[widest] = tile
            try:
                times[tile] = statistics.median(compete(alone, backward, bench)[0]["ours"])
                print(f"{times[tile] * 1e3:9.4f} ms  {tile}", flush=True)
            except Exception as problem:
                print(f"   failed     {tile}: {first_line(problem)}", flush=True)
                require_gpu(bench)
    finally:
        sizes[widest] = shipped
    if times:
        best = min(times, key=lambda tile: times[tile])
        print(f"best: {times[best] * 1e3:.4f} ms  {best}; shipped: {times.get(shipped, math.nan) * 1e3:.4f} ms")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[""], help="cases whose name contains one of these")
    parser.add_argument("--dtype", default="bfloat16", choices=["float16", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=9, help="start no further case after so long")
    parser.add_argument("--forward", action="store_true", help="no backward passes")
    parser.add_argument("--sweep", choices=["forward", "short", "queries", "keys"], help="a kernel of attention")
    parser.add_argument("--dry", action="store_true", help="small shapes, on the CPU, one round")
    parser.add_argument("--out", type=Path, help="a Markdown file to write")
    return parser.parse_args()


def make_header(args: argparse.Namespace, bench: Bench, ceilings: dict[str, float]) -> str:
    where = f"{platform.machine()} CPU, in Triton's interpreter" if args.dry else torch.cuda.get_device_name()
    return "\n".join(
        [
            "# The Triton kernels against PyTorch",
            "",
            "    " + " ".join(["python", *sys.argv]),
            "",
            f"{date.today()}, {where}, torch {torch.__version__}, triton {triton.__version__}, "
            f"cuDNN {torch.backends.cudnn.version()}, {args.dtype}, medians of {bench.rounds} turns. A matrix product "
            f'reaches {ceilings["TFLOP/s"]:.0f} TFLOP/s here, a copy {ceilings["GB/s"]:.0f} GB/s. "default": what '
            "PyTorch chooses by itself. Error: relative L2, of results or gradients, against PyTorch in float32. "
            "GPU: clock, temperature in C and power after the row.",
            "",
            join_cells(COLUMNS),
            "|" + "".join("---|" for _ in COLUMNS),
        ]
    )


def write_table(args: argparse.Namespace, chosen: list[Case], bench: Bench, start: float) -> None:
    """Measure case by case, forward and backward, until the time is over; each row is written at once."""
    write = open_writer(args.out)
    ceilings = measure_ceilings(bench, 64 if args.dry else 8192)
    write(make_header(args, bench, ceilings))
    passes = (False,) if args.forward else (False, True)
    work = list(itertools.product(chosen, passes))
    for i, (case, backward) in enumerate(work):
        if time.monotonic() - start > 60 * args.minutes:
            write(f"\nEnded after {args.minutes:g} minutes: {len(work) - i} rows are missing.")
            break
        write(measure_row(case, backward, bench, ceilings))
        require_gpu(bench, write)


def main():
    args = parse_arguments()
    start = time.monotonic()
    if args.dry:
        bench = Bench("cpu", None, getattr(torch, args.dtype), rounds=1)
    else:
        bench = Bench("cuda", torch.cuda.Stream(), getattr(torch, args.dtype), args.rounds)
    chosen = [case for case in cases() if any(part in case.name for part in args.only)]
    if args.dry:
        chosen = [shrink(case) for case in chosen]
    with torch.cuda.stream(bench.stream):  # graphs capture what runs on it, also backward; None does nothing
        if not args.sweep:
            write_table(args, chosen, bench, start)
            return
        for case in chosen:
            if "attention" in case.name:
                print(case.name)
                sweep(case, args.sweep, bench)


def open_writer(path: Path | None) -> Callable[[str], None]:
    """Prints lines, and writes each to the file at once."""
    file = path.open("w", buffering=1) if path else None

    def write(line: str) -> None:
        print(line, flush=True)
        if file:
            file.write(line + "\n")

    return write


if __name__ == "__main__":
    stopping.run(main)
