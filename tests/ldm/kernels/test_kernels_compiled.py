"""The Triton kernels as machine code for GPUs that are not here: nothing spilled, within shared memory, right units."""

import json
import os
import subprocess
import sys

import pytest

from support.paths import ROOT

SHARED = {"sm_80": 163 * 1024, "sm_89": 99 * 1024, "sm_90": 227 * 1024, "gfx942": 64 * 1024}  # bytes, of a program
ATTENTION = ("forward_kernel", "short_kernel", "queries_kernel", "keys_kernel")


def compiled(*arguments: str) -> list[dict]:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    # -P: the folder of the program has a numbers.py, which would stand before Python's own.
    run = subprocess.run(
        [sys.executable, "-P", str(ROOT / "tests" / "support" / "compile_kernels.py"), *arguments],
        text=True,
        capture_output=True,
        env=environment,
        cwd=ROOT,
    )
    assert run.returncode == 0, run.stderr
    return [json.loads(line) for line in run.stdout.splitlines()]


def assert_sound(kernel: dict, stack: int = 0) -> None:
    assert kernel["stack"] <= stack, kernel  # spilled registers would be there
    assert kernel["shared"] <= SHARED[kernel["target"]], kernel
    if kernel["target"].startswith("sm_"):
        assert not kernel["tf32"] and not kernel["atomics"], kernel
        assert kernel["registers"] * 32 * kernel["warps"] <= 65536, kernel
        small = "odd" in kernel["case"] or kernel["kernel"] == "join_kernel"  # which reads a few sums
        assert kernel["widest"] == 4 or small, kernel  # 16 bytes per thread and access, somewhere


FEWER = "head 40", "head 160", "head 512", "prompt", "channels, shift", "add, LayerNorm", "bias, GEGLU"
WIDE = ("head 512",)  # its tiles for sm_80 would not fit into the shared memory of sm_89


@pytest.fixture(scope="module")
def kernels() -> list[dict]:
    return compiled("sm_90") + compiled("sm_80", "--only", *FEWER) + compiled("sm_89", "--only", *WIDE)


def test_every_kernel_fits(kernels):
    for kernel in kernels:
        assert_sound(kernel)


@pytest.mark.parametrize("target, cases", [("sm_80", 7), ("sm_90", 15)])
def test_every_kernel_was_compiled(kernels, target, cases):
    here = [kernel for kernel in kernels if kernel["target"] == target]
    assert {kernel["kernel"] for kernel in here} == {
        *ATTENTION,
        "statistics_kernel",
        "join_kernel",
        "normalize_kernel",
        "sums_kernel",
        "gradient_kernel",
        "layer_norm_kernel",
        "layer_norm_gradient_kernel",
        "geglu_kernel",
        "geglu_gradient_kernel",
    }
    assert len({kernel["case"] for kernel in here}) == cases and len(here) >= 3 * cases - 3


def test_attention_uses_the_tensor_cores_of_its_target(kernels):
    """Hopper's asynchronous ones, but for the gradients of the 512-wide head, whose blocks are too small for them.
    float32 uses none, so it is never rounded to tf32."""
    for kernel in kernels:
        dots = kernel["kernel"] in ATTENTION and "float32" not in kernel["case"]
        asynchronous = (
            dots
            and kernel["target"] == "sm_90"
            and not ("512" in kernel["case"] and kernel["kernel"] in ("queries_kernel", "keys_kernel"))
        )
        assert kernel["wgmma"] == asynchronous, kernel
        assert kernel["mma"] == (dots and not asynchronous), kernel
        assert not dots or kernel["copies"], kernel  # loads run ahead of the products


def test_two_programs_of_the_common_heads_fit_on_a_processor(kernels):
    """One multiplies while the other takes exponentials: 64 and 40 wide, forward, on a processor of an H100."""
    for kernel in kernels:
        if kernel["target"] == "sm_90" and kernel["kernel"] == "forward_kernel" and "512" not in kernel["case"]:
            if "head 40" in kernel["case"] or "head 64" in kernel["case"]:
                assert 2 * kernel["registers"] * 32 * kernel["warps"] <= 65536, kernel
                assert 2 * (kernel["shared"] + 1024) <= 228 * 1024, kernel


def test_the_kernels_compile_for_amd():
    found = compiled("gfx942", "--only", "head 40", "head 512", "text tower", "bias, GEGLU")
    assert len({kernel["case"] for kernel in found}) == 4
    for kernel in found:
        assert_sound(kernel)
        assert kernel["spills"] == 0


@pytest.mark.full
def test_every_published_case_fits_on_smaller_gpus():
    found = compiled("sm_89", "gfx942")
    assert len({(kernel["target"], kernel["case"]) for kernel in found}) == 2 * 15
    for kernel in found:
        assert_sound(kernel)
        assert not kernel.get("spills"), kernel


@pytest.mark.full
def test_every_specialisation_fits():
    """The assembler keeps up to eight words of some float32 kernels on the stack, with registers to spare."""
    for kernel in compiled("sm_90", "sm_80", "--every"):
        assert_sound(kernel, stack=32 if "float32" in kernel["case"] else 0)
