"""Time the Triton kernels on published shapes, against PyTorch's own, forward and backward.

    python scripts/bench_kernels.py --out docs/benchmarks/kernels_h100.md      # the goals first, for 9 minutes
    python scripts/bench_kernels.py --only LayerNorm GEGLU --rounds 50         # or: attention, "head 64", GroupNorm
    python scripts/bench_kernels.py --only "SDXL: 2x10x4096" --sweep forward   # other tiles for a kernel of attention
    TRITON_INTERPRET=1 python scripts/bench_kernels.py --dry                   # small shapes, on the CPU: does it run?

All contenders of a case work on the same inputs in one process, in turn, first one way round and then the other. Each
works through several sets of inputs that together exceed the cache; the calls of one turn are one CUDA graph. Times
are medians over the turns. A rate is given as a share of what a large copy and a large matrix product reach here.
Rows are written as they are measured; what fails becomes a row that says so.
"""

import argparse
import itertools
import math
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

import torch
import triton
from torch import Tensor

from kernel_cases import Case, cases, shrink
from ldm.kernels import attention_tiles

CACHE = 60e6  # bytes; the L2 of an H100 is 50 MB, of an H200 also
MOST_SETS = 256  # of inputs: 84 MB of the smallest
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


@dataclass(frozen=True)
class Bench:
    """Where and how to measure; without a stream on the CPU, where nothing is captured."""

    device: str
    stream: torch.cuda.Stream | None
    dtype: torch.dtype
    rounds: int


def draw(case: Case, bench: Bench, seed: int) -> list[Tensor]:
    """Random inputs, never zeros: a GPU multiplies those faster."""
    generator = torch.Generator(bench.device).manual_seed(seed)
    first, *others = (
        torch.randn(shape, generator=generator, device=bench.device).to(bench.dtype) for shape in case.inputs
    )
    return [x.requires_grad_() for x in (case.layout(first), *others)]


def results(call: Callable, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    found = call(*inputs)
    return found if isinstance(found, tuple) else (found,)


def timed_calls(call: Callable, sets: list[list[Tensor]], backward: bool) -> Callable[[], None]:
    """A function that works once through all sets."""
    if not backward:

        def run():
            with torch.no_grad():
                for inputs in sets:
                    call(*inputs)

        return run
    outs = [results(call, inputs) for inputs in sets]
    grads = [[torch.randn_like(out) for out in found] for found in outs]
    return lambda: [
        torch.autograd.grad(out, inputs, grad, retain_graph=True) for out, inputs, grad in zip(outs, sets, grads)
    ]


def as_graph(run: Callable, stream) -> Callable[[], float]:
    """Seconds of one replay of the calls of `run`, captured as a CUDA graph; on the CPU, of the calls themselves."""
    if stream is None:

        def seconds():
            start = time.perf_counter()
            run()
            return time.perf_counter() - start

        return seconds
    for _ in range(3):
        run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        run()

    def seconds():
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    return seconds


def measure(clocks: dict[str, Callable], rounds: int) -> dict[str, list[float]]:
    """Seconds of each, taking turns."""
    times = {name: [] for name in clocks}
    for turn in range(rounds):
        for name in clocks if turn % 2 else reversed(clocks):
            times[name].append(clocks[name]())
    return times


def first_line(problem: Exception) -> str:
    if isinstance(problem, torch.OutOfMemoryError):
        return "out of memory"
    if "No available kernel" in str(problem) or "No viable backend" in str(problem):
        return "not served"
    return f"{type(problem).__name__}: {(str(problem).splitlines() or [''])[0]}".replace("|", "/")


def sets_of(case: Case) -> int:
    """So many sets of 16-bit inputs that what one call leaves in the cache is gone when its turn comes again."""
    return max(2, min(MOST_SETS, int(3 * CACHE / sum(2 * math.prod(shape) for shape in case.inputs))))


def compete(case: Case, backward: bool, bench: Bench) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Seconds of one call of each contender, turn by turn; and why others were left out."""
    count = sets_of(case) if bench.stream else 1
    sets, clocks, left_out = [draw(case, bench, seed) for seed in range(count)], {}, {}
    for name, call in case.contenders.items():
        try:
            clocks[name] = as_graph(timed_calls(call, sets, backward), bench.stream)
            clocks[name]()
        except Exception as problem:
            if name == "ours":
                raise
            clocks.pop(name, None)
            left_out[name] = first_line(problem)
    times = measure(clocks, bench.rounds)
    return {name: [seconds / count for seconds in turns] for name, turns in times.items()}, left_out


def error(case: Case, backward: bool, bench: Bench) -> float:
    """Relative L2 error against PyTorch in float32: the largest of all results, or of all gradients."""
    inputs = draw(case, bench, seed=0)
    exact, found = [x.detach().float().requires_grad_() for x in inputs], []
    for call, given in ((case.contenders["ours"], inputs), (case.exact, exact)):
        outs = results(call, given)
        if backward:
            generator = torch.Generator(bench.device).manual_seed(1)
            grads = [torch.randn(x.shape, generator=generator, device=x.device).to(bench.dtype).to(x) for x in outs]
            outs = torch.autograd.grad(outs, given, grads)
        found.append([x.detach().float() for x in outs])
    return max(((a - b).norm() / b.norm()).item() for a, b in zip(*found))


def gpu_state(bench: Bench) -> str:
    """Clock, temperature and power at this moment."""
    if bench.stream is None or shutil.which("nvidia-smi") is None:
        return "-"
    query = [
        "nvidia-smi",
        f"--id=GPU-{torch.cuda.get_device_properties().uuid}",
        "--format=csv,noheader",
        "--query-gpu=clocks.sm,temperature.gpu,power.draw",
    ]
    run = subprocess.run(query, capture_output=True, text=True)
    return run.stdout.strip() if run.returncode == 0 else "-"


def row(case: Case, backward: bool, bench: Bench, ceilings: dict[str, float]) -> str:
    head = [case.name, "backward" if backward else "forward"]
    try:
        wrong = error(case, backward, bench)
        times, left_out = compete(case, backward, bench)
    except Exception as problem:
        return table_line(head + [f"failed: {first_line(problem)}"] + [""] * (len(COLUMNS) - 3))
    medians = {name: statistics.median(turns) for name, turns in times.items()}
    ours, spread = medians.pop("ours"), [1e3 * seconds for seconds in (min(times["ours"]), max(times["ours"]))]
    best = min(medians, key=medians.get, default=None)
    others = [f"{name} {s * 1e3:.3f}" for name, s in medians.items()] + [f"{n}: {why}" for n, why in left_out.items()]
    rate = (case.backward_work if backward else case.work) / ours / (1e12 if case.unit == "TFLOP/s" else 1e9)
    return table_line(
        [
            *head,
            f"{ours * 1e3:.3f}",
            f"{spread[0]:.3f} - {spread[1]:.3f}",
            ", ".join(others),
            f"{medians[best] / ours:.2f} ({best})" if best else "-",
            f"{rate:.0f} {case.unit}",
            f"{rate / ceilings[case.unit]:.0%}",
            f"{wrong:.0e}",
            gpu_state(bench),
        ]
    )


def table_line(cells) -> str:
    return f"| {' | '.join(cells)} |"


def measure_ceilings(bench: Bench, size: int) -> dict[str, float]:
    """TFLOP/s of a large matrix product, and GB/s of a large copy, counting what is read and what is written."""
    a, b, c = (torch.randn(size, size, device=bench.device).to(bench.dtype) for _ in range(3))
    source = torch.randn(8 * size, size, device=bench.device).to(bench.dtype)
    target = torch.empty_like(source)
    runs = {"product": lambda: torch.mm(a, b, out=c), "copy": lambda: target.copy_(source)}
    times = measure({name: as_graph(run, bench.stream) for name, run in runs.items()}, 20)
    product, copy = (statistics.median(times[name]) for name in runs)
    return {"TFLOP/s": 2 * size**3 / product / 1e12, "GB/s": 2 * source.nbytes / copy / 1e9}


def candidates(kernel: str, shipped: attention_tiles.Tiles) -> list[attention_tiles.Tiles]:
    """The shipped tiles and half and twice as many queries and keys; the short kernel holds all keys."""
    around = lambda size: [x for x in (size, size // 2, 2 * size) if 16 <= x <= 256]
    keys = [shipped.keys] if kernel == "short" else around(shipped.keys)
    return [
        replace(shipped, queries=q, keys=k, warps=w, stages=s)
        for q, k, w, s in itertools.product(around(shipped.queries), keys, (4, 8), (2, 3))
    ]


def require_gpu(bench: Bench, write: Callable = print) -> None:
    """End the program if an error, such as an illegal access to memory, has taken the GPU from this process."""
    try:
        if bench.stream:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
    except RuntimeError as problem:
        write(f"\nStopped, for the GPU no longer answers this process: {first_line(problem)}")
        raise SystemExit(1) from None


def sweep(case: Case, kernel: str, bench: Bench, choose: Callable = candidates) -> None:
    """Print the times of a case with other tiles for one of the kernels of attention, the best at the end."""
    (_, _, _, width), (_, m, _, _) = case.inputs[:2]
    like = torch.empty(0, device=bench.device, dtype=bench.dtype)
    used = "short" if attention_tiles.short_tiles(width, m, like) else "forward"
    if kernel in ("forward", "short") and kernel != used:
        return print(f"{case.name}: computed by the {used} kernel")
    sizes = attention_tiles.sizes_of(kernel, like)
    widest = next(w for w in sizes if width <= w)
    shipped, backward, times = sizes[widest], kernel in ("queries", "keys"), {}
    alone = replace(case, contenders={"ours": case.contenders["ours"]})
    for tile in choose(kernel, shipped):
        sizes[widest] = tile
        try:
            times[tile] = statistics.median(compete(alone, backward, bench)[0]["ours"])
            print(f"{times[tile] * 1e3:9.4f} ms  {tile}", flush=True)
        except Exception as problem:
            print(f"   failed     {tile}: {first_line(problem)}", flush=True)
            require_gpu(bench)
    sizes[widest] = shipped
    if times:
        best = min(times, key=times.get)
        print(f"best: {times[best] * 1e3:.4f} ms  {best}; shipped: {times.get(shipped, math.nan) * 1e3:.4f} ms")


def arguments() -> argparse.Namespace:
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


def header(args: argparse.Namespace, bench: Bench, ceilings: dict[str, float]) -> str:
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
            table_line(COLUMNS),
            "|" + "---|" * len(COLUMNS),
        ]
    )


def main():
    args, start = arguments(), time.monotonic()
    bench = Bench(
        "cpu" if args.dry else "cuda",
        None if args.dry else torch.cuda.Stream(),
        getattr(torch, args.dtype),
        1 if args.dry else args.rounds,
    )
    chosen = [shrink(case) if args.dry else case for case in cases() if any(part in case.name for part in args.only)]
    passes = (False,) if args.forward else (False, True)
    with torch.cuda.stream(bench.stream):  # graphs capture what runs on it, also backward; None does nothing
        if args.sweep:
            for case in (case for case in chosen if "attention" in case.name):
                print(case.name)
                sweep(case, args.sweep, bench)
            return
        write = writer(args.out)
        ceilings = measure_ceilings(bench, 64 if args.dry else 8192)
        write(header(args, bench, ceilings))
        for i, (case, backward) in enumerate(itertools.product(chosen, passes)):
            if time.monotonic() - start > 60 * args.minutes:
                write(f"\nEnded after {args.minutes:g} minutes: {len(chosen) * len(passes) - i} rows are missing.")
                break
            write(row(case, backward, bench, ceilings))
            require_gpu(bench, write)


def writer(path: Path | None) -> Callable[[str], None]:
    """Prints lines, and writes each to the file at once."""
    file = path.open("w", buffering=1) if path else None

    def write(line: str) -> None:
        print(line, flush=True)
        if file:
            file.write(line + "\n")

    return write


if __name__ == "__main__":
    main()
