"""Time the Triton kernels on published shapes, against PyTorch's own, forward and backward.

    python scripts/bench_kernels.py --out docs/benchmarks/kernels_h100.md     # everything; about ten minutes on an H100
    python scripts/bench_kernels.py --only "head 64" --rounds 50
    python scripts/bench_kernels.py --only "head 64" --sweep                  # other tiles for our attention, forward
    TRITON_INTERPRET=1 python scripts/bench_kernels.py --dry                  # small shapes, on the CPU: does it run?

All contenders of a case work on the same inputs in one process, in turn, first one way round and then the other. Each
works through several sets of inputs that together exceed the cache; the calls of one turn are one CUDA graph. Times
are medians over the turns. A rate is given as a share of what a large copy and a large matrix product reach here.
"""

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

import torch
import torch.nn.functional as F
import triton
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from ldm.kernels import attention, attention_tiles, geglu, group_norm, hardware, layer_norm

CACHE = 60e6   # bytes; the L2 of an H100 is 50 MB, of an H200 also


@dataclass(frozen=True)
class Case:
    """inputs: shapes, of which the first `differentiated` get gradients. work: FLOP, or bytes that must be moved."""

    name: str
    contenders: dict[str, Callable]
    inputs: list[tuple[int, ...]]
    work: float
    unit: str                        # TFLOP/s or GB/s
    backward_work: float
    layout: Callable = lambda x: x   # memory layout of the first input


def tokens(out: Tensor) -> Tensor:
    """(b heads n d) -> (b n heads*d), the input of the next layer: a copy if the kernel wrote another order."""
    return out.transpose(1, 2).flatten(2)


def with_backend(backend: SDPBackend, causal: bool) -> Callable:
    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return tokens(F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), is_causal=causal))
    return call


def attention_case(name: str, b: int, heads: int, n: int, m: int, d: int, causal: bool = False) -> Case:
    ours = lambda q, k, v: tokens(attention.attention(*(x.transpose(1, 2) for x in (q, k, v)), causal))
    backends = {"flash": SDPBackend.FLASH_ATTENTION, "cuDNN": SDPBackend.CUDNN_ATTENTION,
                "efficient": SDPBackend.EFFICIENT_ATTENTION, "math": SDPBackend.MATH}
    contenders = {"ours": ours} | {key: with_backend(value, causal) for key, value in backends.items()}
    flop = 4 * b * heads * n * m * d / (2 if causal else 1)
    return Case(f"attention, {name}: {b}x{heads}x{n}, {m} keys, head {d}", contenders,
                [(b, n, heads, d), (b, m, heads, d), (b, m, heads, d)], flop, "TFLOP/s", 2.5 * flop)


def group_norm_case(name: str, b: int, c: int, size: int, channels_last: bool, shift: bool) -> Case:
    def native(x: Tensor, weight: Tensor, bias: Tensor, shift: Tensor | None = None) -> Tensor:
        return F.silu(F.group_norm(x if shift is None else x + shift[:, :, None, None], 32, weight, bias, 1e-5))

    ours = lambda x, weight, bias, shift=None: group_norm.group_norm(x, weight, bias, 32, 1e-5, True, shift)
    moved = b * c * size * size * 2                  # bytes of 16-bit numbers: read twice, written once
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return Case(f"GroupNorm + SiLU{' of a sum' * shift}, {name}: {b}x{c}x{size}x{size}, "
                f"{'channels-last' if channels_last else 'contiguous'}", {"ours": ours, "native": native},
                [(b, c, size, size), (c,), (c,)] + [(b, c)] * shift, 3 * moved, "GB/s", 5 * moved,
                lambda x: x.contiguous(memory_format=layout))


def layer_norm_case(r: int, d: int) -> Case:
    native = lambda x, y, weight, bias: F.layer_norm(x + y, (d,), weight, bias) + (x + y)   # the sum is needed, too
    ours = lambda x, y, weight, bias: sum(layer_norm.add_layer_norm(x, y, weight, bias, 1e-5))
    return Case(f"add, LayerNorm: {r}x{d}", {"ours": ours, "native": native}, [(r, d), (r, d), (d,), (d,)],
                2 * 7 * r * d, "GB/s", 2 * 7 * r * d)


def geglu_case(r: int, d: int) -> Case:
    def native(x: Tensor, bias: Tensor) -> Tensor:
        value, gate = (x + bias).chunk(2, dim=-1)
        return value * F.gelu(gate)

    return Case(f"bias, GEGLU: {r}x{d}", {"ours": geglu.geglu, "native": native}, [(r, 2 * d), (2 * d,)],
                2 * 3 * r * d, "GB/s", 2 * 5 * r * d)


def cases() -> list[Case]:
    """Shapes of SD 1.5 at 512, SD 2.1 at 768 and SDXL at 1024 pixels, with guidance: batch 2; the VAE's: batch 1."""
    attends = [("SD 1.5", 8, 4096, 40), ("SD 1.5", 8, 1024, 80), ("SD 1.5", 8, 256, 160), ("SD 1.5", 8, 64, 160),
               ("SD 2.1", 5, 9216, 64), ("SD 2.1", 10, 2304, 64), ("SD 2.1", 20, 576, 64), ("SD 2.1", 20, 144, 64),
               ("SDXL", 10, 4096, 64), ("SDXL", 20, 1024, 64)]
    found = [attention_case(name, 2, heads, n, m, d) for name, heads, n, d in attends for m in (n, 77)]
    found += [attention_case("VAE", 1, 1, n, n, 512) for n in (4096, 9216, 16384)]
    found += [attention_case("text tower", 2, heads, 77, 77, 64, causal=True) for heads in (12, 16, 20)]
    for channels_last in (False, True):
        found += [group_norm_case("VAE", 1, c, size, channels_last, False)
                  for c, size in ((512, 128), (512, 256), (512, 512), (256, 1024), (128, 1024))]
        found += [group_norm_case("UNet", 2, c, size, channels_last, shift)
                  for c, size in ((320, 128), (640, 64), (1280, 32), (320, 64), (1280, 8)) for shift in (False, True)]
        found += [group_norm_case("UNet", 2, c, size, channels_last, False) for c, size in ((960, 128), (2560, 32))]
    found += [layer_norm_case(r, d) for r, d in ((8192, 320), (18432, 320), (8192, 640), (2048, 1280), (154, 768))]
    return found + [geglu_case(r, d) for r, d in ((8192, 1280), (18432, 1280), (8192, 2560), (2048, 5120))]


def shrink(case: Case) -> Case:
    """At most 24 tokens, rows or prompt words, two heads, 5 x 5 pixels: for a machine without a GPU."""
    limits = {4: (2, 10**6, 5, 5) if "GroupNorm" in case.name else (1, 24, 2, 10**6), 2: (24, 10**6), 1: (10**6,)}
    inputs = [tuple(map(min, shape, limits[len(shape)])) for shape in case.inputs]
    contenders = {name: call for name, call in case.contenders.items() if name in ("ours", "native", "math")}
    return replace(case, inputs=inputs, contenders=contenders, work=0, backward_work=0)


def draw(case: Case, dtype: torch.dtype, device: str, seed: int) -> list[Tensor]:
    """Random inputs, never zeros: a GPU multiplies those faster."""
    generator = torch.Generator(device).manual_seed(seed)
    first, *others = (torch.randn(shape, generator=generator, device=device).to(dtype) for shape in case.inputs)
    return [x.requires_grad_() for x in (case.layout(first), *others)]


def timed_calls(call: Callable, sets: list[list[Tensor]], backward: bool) -> Callable[[], None]:
    """A function that works once through all sets."""
    if not backward:
        def run():
            with torch.no_grad():
                for inputs in sets:
                    call(*inputs)
        return run
    results = [call(*inputs) for inputs in sets]
    grads = [torch.randn_like(out) for out in results]
    return lambda: [torch.autograd.grad(out, inputs, grad, retain_graph=True)
                    for out, inputs, grad in zip(results, sets, grads)]


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


def measure(runs: dict[str, Callable], stream, rounds: int) -> dict[str, float]:
    """Median seconds of each, taking turns."""
    clocks, times = {name: as_graph(run, stream) for name, run in runs.items()}, {name: [] for name in runs}
    for turn in range(rounds):
        for name in (clocks if turn % 2 else reversed(clocks)):
            times[name].append(clocks[name]())
    return {name: statistics.median(values) for name, values in times.items()}


def error(case: Case, inputs: list[Tensor]) -> float:
    """Relative L2 error of ours against the first other contender that can do it in float32."""
    with torch.no_grad():
        exact = case.contenders["native" if "native" in case.contenders else "math"](*(x.float() for x in inputs))
        return ((case.contenders["ours"](*inputs).float() - exact).norm() / exact.norm()).item()


def bench(case: Case, backward: bool, dtype: torch.dtype, device: str, rounds: int, stream) -> dict[str, float]:
    """Seconds of one call of each contender that can do the case."""
    count = max(2, min(32, int(3 * CACHE / sum(x.numel() * 2 for x in draw(case, dtype, device, 0))))) if stream else 1
    sets, runs = [draw(case, dtype, device, seed) for seed in range(count)], {}
    for name, call in case.contenders.items():
        try:
            runs[name] = timed_calls(call, sets, backward)
            runs[name]()
        except RuntimeError:             # this backend of PyTorch does not serve the shape
            if name == "ours":
                raise
            runs.pop(name, None)
    return {name: seconds / count for name, seconds in measure(runs, stream, rounds).items()}


def row(case: Case, backward: bool, seconds: dict[str, float], ceilings: dict[str, float], wrong: float) -> str:
    ours, others = seconds["ours"], {name: s for name, s in seconds.items() if name != "ours"}
    best = min(others, key=others.get)
    rate = (case.backward_work if backward else case.work) / ours / (1e12 if case.unit == "TFLOP/s" else 1e9)
    listed = ", ".join(f"{name} {s * 1e3:.3f}" for name, s in others.items())
    return (f"| {case.name} | {'backward' if backward else 'forward'} | {ours * 1e3:.3f} | {listed} | "
            f"{others[best] / ours:.2f} ({best}) | {rate:.0f} {case.unit} | {rate / ceilings[case.unit]:.0%} | "
            f"{wrong:.0e} |")


def measure_ceilings(dtype: torch.dtype, device: str, size: int, stream) -> dict[str, float]:
    """TFLOP/s of a large matrix product, and GB/s of a large copy, counting what is read and what is written."""
    a, b, c = (torch.randn(size, size, device=device).to(dtype) for _ in range(3))
    source = torch.randn(8 * size, size, device=device).to(dtype)
    target = torch.empty_like(source)
    times = measure({"product": lambda: torch.mm(a, b, out=c), "copy": lambda: target.copy_(source)}, stream, 20)
    return {"TFLOP/s": 2 * size**3 / times["product"] / 1e12,
            "GB/s": 2 * source.nbytes / times["copy"] / 1e9}


def sweep(case: Case, dtype: torch.dtype, device: str, rounds: int, stream) -> None:
    """Print the times of our forward kernel with other tiles."""
    width = case.inputs[0][-1]
    tables = attention_tiles.TILES[hardware.gpu(torch.device(device))[0]]["forward"][2]
    widest = next(w for w in tables if width <= w)
    shipped = tables[widest]
    for queries, keys, warps, stages in [(q, k, w, s) for q in (64, 128) for k in (32, 64, 128) for w in (4, 8)
                                         for s in (2, 3, 4)]:
        tables[widest] = replace(shipped, queries=queries, keys=keys, warps=warps, stages=stages)
        try:
            seconds = bench(replace(case, contenders={"ours": case.contenders["ours"]}), False, dtype, device, rounds,
                            stream)["ours"]
            print(f"{case.work / seconds / 1e12:7.1f} TFLOP/s  {tables[widest]}", flush=True)
        except triton.runtime.errors.OutOfResources:
            continue
    tables[widest] = shipped


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[""], help="cases whose name contains one of these")
    parser.add_argument("--dtype", default="bfloat16", choices=["float16", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--forward", action="store_true", help="no backward passes")
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--dry", action="store_true", help="small shapes, on the CPU, one round")
    parser.add_argument("--out", type=Path, help="a Markdown file to write")
    args = parser.parse_args()

    device = "cpu" if args.dry else "cuda"
    stream = None if args.dry else torch.cuda.Stream()
    dtype, rounds = getattr(torch, args.dtype), 1 if args.dry else args.rounds
    chosen = [shrink(case) if args.dry else case for case in cases()
              if any(part in case.name for part in args.only)]
    with torch.cuda.stream(stream):              # graphs capture what runs on it, also backward; None does nothing
        if args.sweep:
            for case in chosen:
                print(case.name)
                sweep(case, dtype, device, rounds, stream)
            return
        ceilings = measure_ceilings(dtype, device, 64 if args.dry else 8192, stream)
        rows = []
        for case in tqdm(chosen, disable=None):
            wrong = error(case, draw(case, dtype, device, seed=0))
            for backward in (False,) if args.forward else (False, True):
                rows.append(row(case, backward, bench(case, backward, dtype, device, rounds, stream), ceilings, wrong))

    where = f"{platform.machine()} CPU, in Triton's interpreter" if args.dry else torch.cuda.get_device_name()
    table = ["# The Triton kernels against PyTorch", "", "    " + " ".join(["python", *sys.argv]), "",
             f"{date.today()}, {where}, torch {torch.__version__}, triton {triton.__version__}, "
             f"cuDNN {torch.backends.cudnn.version()}, {args.dtype}, medians of {rounds} turns. A matrix product "
             f"reaches {ceilings['TFLOP/s']:.0f} TFLOP/s here, a copy {ceilings['GB/s']:.0f} GB/s. Error: relative L2 "
             "of the forward pass, against PyTorch in float32.", "",
             "| case | pass | ours, ms | others, ms | best other / ours | rate | of the ceiling | error |",
             "|---|---|---|---|---|---|---|---|", *rows, ""]
    print("\n".join(table))
    if args.out:
        args.out.write_text("\n".join(table))


if __name__ == "__main__":
    main()
