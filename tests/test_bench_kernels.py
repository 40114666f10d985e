"""The benchmark of the kernels runs, on small shapes and without a GPU, so that it does when there is one."""

import math
import runpy

import pytest
import torch

from conftest import ROOT

CHOSEN = "SDXL: 2x20x1024", "VAE: 1x128x1024", "UNet: 2x1280x8x8, chan", "2048x", "text tower: 2x12"


@pytest.mark.skipif(torch.cuda.is_available(), reason="--dry is for machines without a GPU")
def test_a_dry_run_writes_its_table(script, tmp_path):
    run = script("bench_kernels.py", "--dry", "--only", *CHOSEN, "--out", tmp_path / "table.md")
    assert run.returncode == 0, run.stderr
    text = (tmp_path / "table.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")][1:]
    names = [row[0] for row in rows]
    assert all(any(part in name for name in names) for part in CHOSEN)
    assert {row[1] for row in rows} == {"forward", "backward"} and len(rows) == 2 * len(set(names)) == 18
    assert all(float(row[2]) > 0 and 0 < float(row[-1]) < 1e-2 for row in rows)      # bfloat16: two units are 8e-3
    assert "bench_kernels.py --dry --only" in text and f"torch {torch.__version__}" in text


def test_floating_point_operations_are_those_of_the_published_model():
    """0.8590 + 0.6442 TFLOP of self-attention in one guided step of SDXL, ten and sixty layers."""
    cases = runpy.run_path(str(ROOT / "scripts" / "bench_kernels.py"))["cases"]()
    work = {case.name: case.work for case in cases}
    fine, coarse = (work[f"attention, SDXL: 2x{heads}x{n}, {n} keys, head 64"] for heads, n in ((10, 4096), (20, 1024)))
    assert math.isclose(10 * fine, 0.8590e12, rel_tol=1e-4) and math.isclose(60 * coarse, 0.6442e12, rel_tol=1e-4)
