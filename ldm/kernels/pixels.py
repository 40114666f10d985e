"""Pictures (b c h w) in blocks of BLOCK_C channels x BLOCK_P pixels, whichever of the two lie next to each other."""

import triton
import triton.language as tl
from torch import Tensor

from .hardware import processors
from .precision import rounded

WHERE_PIXELS_TOUCH = dict(BLOCK_C=4, BLOCK_P=1024, num_warps=4)  # 2 KB of 16-bit pixels in a row
WHERE_CHANNELS_TOUCH = dict(BLOCK_C=64, BLOCK_P=64, num_warps=4)  # 128 bytes of channels in a row
FEW_PIXELS = dict(BLOCK_C=16, BLOCK_P=64, num_warps=4)  # many programs for little work; odd rows fit, too
PROGRAMS_PER_PROCESSOR = 8  # enough loads in flight to hide the way to memory


@triton.jit
def load(x, strides, image, channels, pixels, inside):
    offsets = channels[:, None] * strides[1] + pixels[None, :] * strides[2]
    return tl.load(x + image * strides[0] + offsets, inside, other=0.0).to(tl.float32)


@triton.jit
def store(out, strides, image, channels, pixels, inside, value):
    offsets = channels[:, None] * strides[1] + pixels[None, :] * strides[2]
    tl.store(out + image * strides[0] + offsets, rounded(value, out.dtype.element_ty), inside)


@triton.jit
def of_channels(vector, channels, c):
    return tl.load(vector + channels, channels < c, other=0.0).to(tl.float32)[:, None]


def pixel_strides(x: Tensor) -> tuple[int, int, int] | None:
    """Strides of pictures, channels and pixels, the last counted row after row; None if rows do not follow each other,
    or neither pixels nor channels lie next to each other."""
    (_, c, h, w), (image, channel, row, pixel) = x.shape, x.stride()
    pixel = row if w == 1 else pixel
    if h > 1 and w > 1 and row != w * pixel or (1 not in (pixel, channel) and c * h * w > 1):
        return None
    return image, channel, pixel


def countable(x: Tensor) -> bool:
    """Whether 32 bits count the elements of a picture, and those that it spans in memory."""
    _, c, h, w = x.shape
    span = sum((size - 1) * stride for size, stride in zip((c, h, w), x.stride()[1:]))
    return max(c * h * w, span) < 2**31


def blocks(strides: tuple[int, int, int], p: int) -> dict:
    if p < WHERE_PIXELS_TOUCH["BLOCK_P"]:
        return FEW_PIXELS
    return WHERE_PIXELS_TOUCH if strides[2] == 1 else WHERE_CHANNELS_TOUCH


def split_pixels(x: Tensor, block: dict) -> tuple[int, int]:
    """Into so many parts, of so many pixels each, that all processors have work."""
    b, c, p = x.shape[0], x.shape[1], x.shape[2] * x.shape[3]
    wanted = PROGRAMS_PER_PROCESSOR * processors(x.device) // (b * triton.cdiv(c, block["BLOCK_C"]))
    splits = max(1, min(wanted, triton.cdiv(p, block["BLOCK_P"])))
    span = triton.cdiv(triton.cdiv(p, splits), block["BLOCK_P"]) * block["BLOCK_P"]
    return triton.cdiv(p, span), span
