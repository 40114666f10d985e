"""How `time_kernels.py` measures: contenders in turn, each a CUDA graph over inputs that exceed the cache."""

import math
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from kernel_cases import Case

CACHE = 60e6  # bytes; the L2 of an H100 is 50 MB, of an H200 also
MOST_SETS = 256  # of inputs: 84 MB of the smallest


@dataclass(frozen=True)
class Bench:
    """Where and how to measure. stream: of the GPU; None on the CPU, where nothing is captured."""

    device: str
    stream: torch.cuda.Stream | None
    dtype: torch.dtype
    rounds: int


def draw(case: Case, bench: Bench, seed: int) -> list[Tensor]:
    """Random inputs, never zeros: a GPU multiplies those faster."""
    generator = torch.Generator(bench.device).manual_seed(seed)
    inputs = []
    for shape in case.inputs:
        x = torch.randn(shape, generator=generator, device=bench.device).to(bench.dtype)
        inputs.append(x)
    inputs[0] = case.layout(inputs[0])
    return [x.requires_grad_() for x in inputs]


def call_contender(call: Callable, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    """What a contender returns, always as a tuple."""
    found = call(*inputs)
    return found if isinstance(found, tuple) else (found,)


def make_timed_call(call: Callable, sets: list[list[Tensor]], backward: bool) -> Callable[[], None]:
    """A function that calls the contender once on every set of inputs, or goes once backward through those calls."""

    def forward() -> None:
        with torch.no_grad():
            for inputs in sets:
                call(*inputs)

    if not backward:
        return forward
    outs = [call_contender(call, inputs) for inputs in sets]
    grads = [[torch.randn_like(out) for out in found] for found in outs]

    def back() -> None:
        for out, inputs, grad in zip(outs, sets, grads):
            torch.autograd.grad(out, inputs, grad, retain_graph=True)

    return back


def capture(run: Callable[[], object], stream: torch.cuda.Stream | None) -> Callable[[], float]:
    """Seconds of one replay of the calls of `run`, captured as a CUDA graph; on the CPU, of the calls themselves."""

    def seconds_here() -> float:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    if stream is None:
        return seconds_here
    # Kernels are compiled and tuned before the capture
    for _ in range(3):
        run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        run()

    def seconds_of_replay() -> float:
        start = torch.cuda.Event(enable_timing=True)
        end = torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    return seconds_of_replay


def measure(clocks: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each, taking turns."""
    times = {name: [] for name in clocks}
    for turn in range(rounds):
        order = list(clocks) if turn % 2 else list(reversed(clocks))
        for name in order:
            times[name].append(clocks[name]())
    return times


def first_line(problem: Exception) -> str:
    """Why something failed, for a cell of the table."""
    if isinstance(problem, torch.OutOfMemoryError):
        return "out of memory"
    if "No available kernel" in str(problem) or "No viable backend" in str(problem):
        return "not served"
    line, _, _ = str(problem).partition("\n")
    return f"{type(problem).__name__}: {line}".replace("|", "/")  # "|" would end the cell


def count_sets(case: Case) -> int:
    """How many sets of 16-bit inputs to work through, so that what one call leaves in the cache is gone when the same
    set comes again."""
    size = sum(2 * math.prod(shape) for shape in case.inputs)
    return max(2, min(MOST_SETS, int(3 * CACHE / size)))


def compete(case: Case, backward: bool, bench: Bench) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Seconds of one call of each contender, turn by turn; and why others were left out."""
    count = count_sets(case) if bench.stream else 1
    sets = [draw(case, bench, seed) for seed in range(count)]
    clocks: dict[str, Callable[[], float]] = {}
    left_out: dict[str, str] = {}
    for name, call in case.contenders.items():
        try:
            clocks[name] = capture(make_timed_call(call, sets, backward), bench.stream)
            clocks[name]()
        except Exception as problem:
            if name == "ours":
                raise
            clocks.pop(name, None)
            left_out[name] = first_line(problem)
    times = measure(clocks, bench.rounds)
    return {name: [seconds / count for seconds in turns] for name, turns in times.items()}, left_out


def measure_error(case: Case, backward: bool, bench: Bench) -> float:
    """Relative L2 error against PyTorch in float32: the largest of all results, or of all gradients."""
    inputs = draw(case, bench, seed=0)
    exact = [x.detach().float().requires_grad_() for x in inputs]
    found = []
    for call, given in ((case.contenders["ours"], inputs), (case.exact, exact)):
        outs = call_contender(call, given)
        if backward:
            generator = torch.Generator(bench.device).manual_seed(1)
            grads = []
            for x in outs:
                # Rounded once, so that both contenders are given the same gradients
                grad = torch.randn(x.shape, generator=generator, device=x.device).to(bench.dtype)
                grads.append(grad.to(x))
            outs = torch.autograd.grad(outs, given, grads)
        found.append([x.detach().float() for x in outs])
    return max(((a - b).norm() / b.norm()).item() for a, b in zip(*found))


def read_gpu_state(bench: Bench) -> str:
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


def measure_ceilings(bench: Bench, size: int) -> dict[str, float]:
    """TFLOP/s of a large matrix product, and GB/s of a large copy, counting what is read and what is written."""
    a, b = (torch.randn(size, size, device=bench.device).to(bench.dtype) for _ in range(2))
    c = torch.empty_like(a)
    source = torch.randn(8 * size, size, device=bench.device).to(bench.dtype)
    target = torch.empty_like(source)
    runs = {"product": lambda: torch.mm(a, b, out=c), "copy": lambda: target.copy_(source)}
    times = measure({name: capture(run, bench.stream) for name, run in runs.items()}, 20)
    product = statistics.median(times["product"])
    copy = statistics.median(times["copy"])
    return {"TFLOP/s": 2 * size**3 / product / 1e12, "GB/s": 2 * source.nbytes / copy / 1e9}


def require_gpu(bench: Bench, write: Callable = print) -> None:
    """End the program if an error, such as an illegal access to memory, has taken the GPU from this process."""
    try:
        if bench.stream:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
    except RuntimeError as problem:
        write(f"\nStopped, for the GPU no longer answers this process: {first_line(problem)}")
        raise SystemExit(1) from None
