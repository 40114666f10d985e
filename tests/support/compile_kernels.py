"""Compile the Triton kernels for GPUs that are not here; print one JSON line for each with what it needs.

    python tests/compile_kernels.py sm_80 sm_90 [--every]

The operations are called on tensors without data (meta), of published shapes, so that exactly the specialisations are
compiled that a GPU would run; the driver only says which GPU it stands for, and launching is left out.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

sys.path.insert(0, str(Path(__file__).parents[2]))

from ldm.kernels import attention, attention_gradients, geglu, group_norm, group_norm_gradients, hardware, layer_norm  # noqa: E402

HALF, BRAIN, FLOAT = torch.float16, torch.bfloat16, torch.float32
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


def stand_in(name: str) -> SimpleNamespace:
    """A driver for a GPU that is not here."""
    target = GPUTarget("cuda", int(name[3:]), 32) if name.startswith("sm_") else GPUTarget("hip", name, 64)
    hardware.gpu = lambda device: (name, 132)
    return SimpleNamespace(
        get_current_target=lambda: target, get_current_device=lambda: name, get_current_stream=lambda device: 0
    )


def meta(*shape: int, dtype: torch.dtype = HALF, channels_last: bool = False) -> Tensor:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=dtype, device="meta", memory_format=layout)


def attend(heads: int, n: int, m: int, d: int, dtype: torch.dtype = HALF, causal: bool = False) -> None:
    """Forward and backward, q, k and v each a part of a packed projection."""
    q, k, v = (meta(2, length, 3, heads, d, dtype=dtype)[:, :, i].transpose(1, 2) for i, length in enumerate((n, m, m)))
    out, highest, total = attention.attention_forward(q, k, v, causal)
    attention_gradients.gradients(out, q, k, v, out, highest, total, causal)


def normalize(
    c: int, size: int, groups: int = 32, channels_last: bool = False, shift: bool = False, dtype: torch.dtype = HALF
) -> None:
    x, weight = meta(2, c, size, size, dtype=dtype, channels_last=channels_last), meta(c, dtype=dtype)
    shift = meta(2, c, dtype=dtype) if shift else None
    out, mean, rstd = group_norm.group_norm_forward(x, weight, weight, shift, groups, 1e-5, True)
    group_norm_gradients.gradients(out, x, weight, weight, shift, mean, rstd, True)


def normalize_rows(r: int, d: int, residual: bool, dtype: torch.dtype = HALF) -> None:
    x, weight = meta(r, d, dtype=dtype), meta(d, dtype=dtype)
    total, out, mean, rstd = layer_norm.layer_norm_forward(x, x if residual else None, weight, weight, 1e-5)
    layer_norm.gradients(out, out if residual else None, x, weight, mean, rstd)


def gate(r: int, d: int, bias: bool, dtype: torch.dtype = HALF) -> None:
    x, bias = meta(r, 2 * d, dtype=dtype), meta(2 * d, dtype=dtype) if bias else None
    geglu.gradients(geglu.geglu_forward(x, bias), x, bias)


# name -> call; those of the second table with --every
CASES = {
    "head 40, 4096 tokens": lambda: attend(8, 4096, 4096, 40),
    "head 64, 4096 tokens": lambda: attend(10, 4096, 4096, 64, BRAIN),
    "head 80, 1024 tokens": lambda: attend(8, 1024, 1024, 80),
    "head 160, 256 tokens": lambda: attend(8, 256, 256, 160),
    "head 512, 4096 tokens": lambda: attend(1, 4096, 4096, 512, BRAIN),
    "head 64, prompt": lambda: attend(10, 4096, 77, 64),
    "head 64, text tower": lambda: attend(12, 77, 77, 64, HALF, causal=True),
    "head 64 in float32": lambda: attend(5, 2304, 2304, 64, FLOAT),
    "GroupNorm, pixels": lambda: normalize(128, 512),
    "GroupNorm, odd picture": lambda: normalize(1280, 17, shift=True),
    "GroupNorm, channels, shift": lambda: normalize(320, 64, channels_last=True, shift=True),
    "LayerNorm": lambda: normalize_rows(8192, 640, residual=False),
    "add, LayerNorm": lambda: normalize_rows(2048, 1280, residual=True),
    "GEGLU": lambda: gate(2048, 5120, bias=False),
    "bias, GEGLU": lambda: gate(8192, 2560, bias=True),
}
MORE = (
    {
        f"head {d}, {n} tokens, {m} keys, {dtype}": lambda n=n, m=m, d=d, dtype=dtype: attend(8, n, m, d, dtype)
        for d, n in ((40, 4096), (64, 1000), (80, 1024), (160, 64), (512, 4000))
        for m in (n, 77, 154)
        for dtype in (HALF, BRAIN, FLOAT)
    }
    | {
        f"GroupNorm {c}, {size}, {layout}, {dtype}": lambda c=c, size=size, layout=layout, dtype=dtype: normalize(
            c, size, channels_last=layout == "channels", shift=size < 512, dtype=dtype
        )
        for c, size in ((128, 1024), (512, 64), (960, 32), (2560, 8), (1280, 4))
        for layout in ("pixels", "channels")
        for dtype in (HALF, BRAIN, FLOAT)
    }
    | {
        f"LayerNorm {d}, {dtype}": lambda d=d, dtype=dtype: normalize_rows(4096, d, True, dtype)
        for d in (320, 768, 1024, 8192)
        for dtype in (BRAIN, FLOAT)
    }
    | {f"GEGLU {dtype}": lambda dtype=dtype: gate(4096, 1280, True, dtype) for dtype in (BRAIN, FLOAT)}
)


def resources(kernel) -> dict:
    """What the machine code needs, read from it: registers, bytes of stack (where spilled registers go), shared
    memory; and which instructions the assembler code uses."""
    found = dict(warps=kernel.metadata.num_warps, shared=kernel.metadata.shared)
    if "cubin" in kernel.asm:
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(kernel.asm["cubin"])
            file.flush()
            usage = subprocess.run([CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True)
        registers, stack, local = re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", usage.stdout).groups()
        ptx = kernel.asm["ptx"]
        return found | dict(
            registers=int(registers),
            stack=int(stack) + int(local),
            wgmma="wgmma.mma_async" in ptx,
            mma="mma.sync" in ptx,
            tf32=".tf32" in ptx,
            copies=len(re.findall(r"cp\.async\.c[ga]\.shared", ptx)),
            atomics=bool(re.search(r"\b(atom|red)\.", ptx)),
            widest=max((int(n) for n in re.findall(r"(?:ld|st)\.global\S*\.v(\d)\.b32", ptx)), default=1),
        )
    number = lambda key: int(re.search(rf"\.{key}:? +(\d+)", kernel.asm["amdgcn"]).group(1))
    return found | dict(
        registers=number("vgpr_count"),
        stack=number("private_segment_fixed_size"),
        spills=number("vgpr_spill_count") + number("sgpr_spill_count"),
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="+")
    parser.add_argument("--every", action="store_true")
    parser.add_argument("--only", nargs="+", default=[""], help="cases whose name contains one of these")
    args = parser.parse_args()
    run = JITFunction.run

    def compile_only(self, *arguments, grid, warmup, **options):
        assert len(grid) < 3 or max(grid[1:]) < 2**16, grid
        start = time.perf_counter()
        kernel = run(self, *arguments, grid=grid, warmup=True, **options)
        if kernel not in seen:
            seen.append(kernel)
            print(
                json.dumps(
                    dict(
                        target=target,
                        case=case,
                        kernel=self.fn.__name__,
                        **resources(kernel),
                        seconds=round(time.perf_counter() - start, 2),
                    )
                ),
                flush=True,
            )

    JITFunction.run = compile_only
    for target in args.targets:
        driver.set_active(stand_in(target))
        seen = []
        for case, call in (CASES | MORE if args.every else CASES).items():
            if any(part in case for part in args.only):
                call()


if __name__ == "__main__":
    main()
