"""Products and roundings, as a GPU does them; Triton's interpreter does both otherwise, and is corrected here."""

import triton
import triton.language as tl

from . import hardware

INTERPRETED: tl.constexpr = tl.constexpr(hardware.INTERPRETED)


@triton.jit
def dot(a, b, sum):
    """sum + a @ b in float32; float32 operands are not rounded to tf32."""
    if INTERPRETED:  # it would multiply the bits of bfloat16 as integers
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, sum, input_precision="ieee")


@triton.jit
def rounded(value, dtype: tl.constexpr):
    """float32 as another type, to nearest, ties to even."""
    if INTERPRETED and dtype == tl.bfloat16:  # it would cut the last 16 bits off: carry first
        bits = value.to(tl.uint32, bitcast=True)
        value = ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).to(tl.float32, bitcast=True)
    return value.to(dtype)
