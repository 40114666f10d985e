"""The benchmark of the kernels runs, on small shapes and without a GPU, so that it does when there is one."""

import importlib
import math
import sys
from dataclasses import replace

import pytest
import torch
from triton.runtime.errors import OutOfResources

from ldm.kernels import attention_tiles
from support import quick_interpreter
from support.paths import SCRIPTS

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="--dry is for machines without a GPU")
quick_interpreter.install()
CHOSEN = "SDXL: 2x20x1024, 77", "VAE: 1x128x1024", "UNet: 2x1280x8x8, chan", "2048x", "text tower: 2x12"


@pytest.fixture
def bench(monkeypatch):
    """The script as a module: bench("--dry", ...) runs it."""
    monkeypatch.syspath_prepend(SCRIPTS / "bench")
    module = importlib.import_module("time_kernels")

    def run(*flags: str) -> None:
        monkeypatch.setattr(sys, "argv", ["time_kernels.py", *map(str, flags)])
        module.main()

    module.run = run
    return module


def rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")][1:]


def test_a_dry_run_writes_its_table(script, tmp_path):
    run = script("bench/time_kernels.py", "--dry", "--only", *CHOSEN, "--out", tmp_path / "table.md")
    assert run.returncode == 0, run.stderr
    text = (tmp_path / "table.md").read_text()
    assert text == run.stdout
    names = [row[0] for row in rows(text)]
    assert all(any(part in name for name in names) for part in CHOSEN)
    assert {row[1] for row in rows(text)} == {"forward", "backward"} and len(names) == 2 * len(set(names)) == 16
    assert all(float(row[2]) > 0 and 0 < float(row[8]) < 1e-2 for row in rows(text))  # bfloat16: two units are 8e-3
    assert "time_kernels.py --dry --only" in text and f"torch {torch.__version__}" in text


def failing(problem: Exception):
    """A contender that always fails."""

    def call(*inputs):
        raise problem

    return call


def test_a_kernel_that_fails_costs_its_row_and_no_other(bench, tmp_path, monkeypatch):
    ours = {"ours": failing(OutOfResources(262144, 232448, "shared memory"))}
    cases = [replace(x, contenders=x.contenders | ours) if "GEGLU" in x.name else x for x in bench.cases()]
    monkeypatch.setattr(bench, "cases", cases.copy)
    bench.run("--dry", "--only", "GEGLU: 2048x", "LayerNorm: 2048x", "--out", tmp_path / "table.md")
    normed, _, forward, backward = rows((tmp_path / "table.md").read_text())
    assert float(normed[2]) > 0
    assert forward[2] == backward[2] and forward[2].startswith("failed: OutOfResources: out of resource: shared memory")


def test_a_contender_that_fails_is_named_with_its_reason(bench, tmp_path, monkeypatch):
    case = next(case for case in bench.cases() if case.name == "GEGLU: 2048x5120")
    monkeypatch.setattr(bench, "shrink", lambda case: replace(case, inputs=[(4, 8)]))
    monkeypatch.setattr(bench.Case, "exact", staticmethod(case.contenders["native"]))
    for native, best in (["native"], "(native)"), ([], "-"):
        others = {
            "full": failing(torch.OutOfMemoryError("CUDA out of memory. Tried ...")),
            "flash": failing(RuntimeError("No available kernel. Aborting execution.")),
            "odd": failing(KeyError("x|y")),
        }
        contenders = {name: case.contenders[name] for name in ["ours", *native]} | others
        changed = [replace(case, contenders=contenders)]
        monkeypatch.setattr(bench, "cases", changed.copy)
        bench.run("--dry", "--forward", "--out", tmp_path / "table.md")
        (row,) = rows((tmp_path / "table.md").read_text())
        assert float(row[2]) > 0 and row[5].endswith(best)
        for words in ("full: out of memory", "flash: not served", "odd: KeyError: 'x/y'"):
            assert words in row[4]


def test_time_runs_out(bench, capsys):
    bench.run("--dry", "--only", "GEGLU: 2048x", "--minutes", "0")
    text = capsys.readouterr().out
    assert not rows(text) and "Ended after 0 minutes: 2 rows are missing." in text


def test_an_error_that_takes_the_gpu_ends_the_program(bench, monkeypatch):
    def lost():
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors might ...")

    monkeypatch.setattr(torch.cuda, "synchronize", lost)
    lines = []
    with pytest.raises(SystemExit) as end:
        bench.require_gpu(bench.Bench("cuda", "a stream", torch.bfloat16, 20), lines.append)
    assert end.value.code == 1
    assert lines == [
        "\nStopped, for the GPU no longer answers this process: "
        "RuntimeError: CUDA error: an illegal memory access was encountered"
    ]


def test_a_sweep_times_other_tiles_and_leaves_the_shipped_ones(bench, capsys):
    case = next(bench.shrink(case) for case in bench.cases() if "text tower" in case.name)
    machine = bench.Bench("cpu", None, torch.bfloat16, 1)
    shipped = attention_tiles.TILES["sm_90"]["keys"][64]
    two = lambda kernel, shipped: [shipped, replace(shipped, queries=32)]
    bench.sweep(case, "keys", machine, two)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and "queries=32" in lines[1] and lines[2].startswith("best: ")
    bench.sweep(case, "forward", machine, two)
    assert "computed by the short kernel" in capsys.readouterr().out
    assert attention_tiles.TILES["sm_90"]["keys"][64] == shipped
    found = bench.vary_tiles("forward", attention_tiles.Tiles(128, 64, 8, 3))
    assert len(found) == len(set(found)) == 36
    assert {tile.keys for tile in bench.vary_tiles("short", attention_tiles.Tiles(128, 128, 8, 2))} == {128}


def test_inputs_exceed_the_cache(bench):
    kernel_timing = importlib.import_module("kernel_timing")
    for case in bench.cases():
        size = sum(2 * math.prod(shape) for shape in case.inputs)
        assert kernel_timing.count_sets(case) * size > 50e6 and kernel_timing.count_sets(case) >= 2, case.name


def test_both_layer_norms_return_the_sum_and_move_four_tensors(bench):
    case = next(case for case in bench.cases() if case.name == "add, LayerNorm: 2048x1280")
    inputs = [torch.randn(shape) for shape in bench.shrink(case).inputs]
    for call in case.contenders.values():
        total, out = call(*inputs)
        assert torch.equal(total, inputs[0] + inputs[1]) and total.shape == out.shape
    assert case.work == case.backward_work == 4 * 2048 * 1280 * 2


def test_the_goals_come_first(bench):
    names = [case.name for case in bench.cases()]
    assert len(names) == len(set(names)) == 70
    goals = (
        "2x10x4096, 4096 keys, head 64",
        "2x8x4096, 4096 keys, head 40",
        "2x10x4096, 77 keys",
        "2x8x4096, 77 keys",
        "16384 keys, head 512",
        "VAE: 1x128x1024x1024, channels-last",
    )
    assert all(goal in name for goal, name in zip(goals, names))


def test_floating_point_operations_are_those_of_the_published_model(bench):
    """0.8590 + 0.6442 TFLOP of self-attention in one guided step of SDXL, ten and sixty layers."""
    work = {case.name: case.work for case in bench.cases()}
    fine, coarse = (work[f"attention, SDXL: 2x{heads}x{n}, {n} keys, head 64"] for heads, n in ((10, 4096), (20, 1024)))
    assert math.isclose(10 * fine, 0.8590e12, rel_tol=1e-4) and math.isclose(60 * coarse, 0.6442e12, rel_tol=1e-4)
