"""Group normalisation (arXiv 1803.08494) of x (b c h w), with a summand per channel before it and SiLU after it.

    y = silu((x + shift - mean) * rstd * weight + bias)        shift (b c), such as the time embedding; both optional

x is read twice, for the statistics and to be normalised. Pixels may lie next to each other, or channels
(channels-last); the result has the layout of x. A program owns BLOCK_C channels x BLOCK_P pixels at a time, of one
group or of several, and many programs share a large plane; two pictures of 1280 x 8 x 8 make work for 160.

Variance is never E[x^2] - E[x]^2, which loses all digits where the mean is large: blocks take the squares of
differences from their own mean, and means and squares of two parts are joined exactly (Chan, Golub, LeVeque 1979).
Letters: p pixels = h*w, g groups; per picture, `mean` and `rstd` (b g) are float32.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import group_norm_gradients
from .hardware import FUSED, check, require, require_affine
from .pixels import blocks, countable, load, of_channels, pixel_strides, split_pixels, store

JOINED = dict(BLOCK_G=4, BLOCK=1024, num_warps=8)  # groups that one program joins, and parts at a time


@triton.jit
def statistics_kernel(x, strides, means, squares, c, p, span, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr):
    """Of each channel over `span` pixels: the mean, and the sum of squared differences from it: (b c splits)."""
    split, image = tl.program_id(0), tl.program_id(2).to(tl.int64)
    channels = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    count, mean, square = 0.0, tl.zeros([BLOCK_C], tl.float32), tl.zeros([BLOCK_C], tl.float32)
    for first in tl.range(split * span, tl.minimum(p, split * span + span), BLOCK_P):
        pixels = first + tl.arange(0, BLOCK_P)
        inside = (channels < c)[:, None] & (pixels < p)[None, :]
        value = load(x, strides, image, channels, pixels, inside)
        new = tl.minimum(p - first, BLOCK_P).to(tl.float32)
        new_mean = tl.sum(value, 1) / new
        difference = tl.where(inside, value - new_mean[:, None], 0.0)
        step = new_mean - mean
        square += tl.sum(difference * difference, 1) + step * step * (count * new / (count + new))
        mean += step * (new / (count + new))
        count += new
    to = (image * c + channels) * tl.num_programs(0) + split
    tl.store(means + to, mean, channels < c)
    tl.store(squares + to, square, channels < c)


@triton.jit
def parts_of_groups(means, shift, first, part, inside, splits, span, p, SHIFT: tl.constexpr):
    """Mean and pixel count of parts of groups that start at channels `first`; what is added moves the mean."""
    mean = tl.load(means + first * splits + part, inside, other=0.0)
    if SHIFT:
        mean += tl.load(shift + first + part // splits, inside, other=0.0).to(tl.float32)
    return mean, tl.where(inside, tl.minimum(p - part % splits * span, span), 0).to(tl.float32)


@triton.jit
def join_kernel(
    means,
    squares,
    shift,
    mean,
    rstd,
    eps,
    c,
    p,
    groups,
    span,
    splits,
    SHIFT: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """All parts of a group become its mean and 1 / standard deviation; here for BLOCK_G groups of a picture."""
    group, image = tl.program_id(0) * BLOCK_G + tl.arange(0, BLOCK_G), tl.program_id(1).to(tl.int64)
    size = c // groups
    parts, elements = size * splits, (size * p).to(tl.float32)
    first = (image * c + group * size)[:, None]
    group_mean = tl.zeros([BLOCK_G], tl.float32)
    for start in tl.range(0, parts, BLOCK):
        part = start + tl.arange(0, BLOCK)[None, :]
        inside = (group < groups)[:, None] & (part < parts)
        part_mean, count = parts_of_groups(means, shift, first, part, inside, splits, span, p, SHIFT)
        group_mean += tl.sum(part_mean * (count / elements), 1)
    variance = tl.zeros([BLOCK_G], tl.float32)
    for start in tl.range(0, parts, BLOCK):
        part = start + tl.arange(0, BLOCK)[None, :]
        inside = (group < groups)[:, None] & (part < parts)
        part_mean, count = parts_of_groups(means, shift, first, part, inside, splits, span, p, SHIFT)
        square = tl.load(squares + first * splits + part, inside, other=0.0)
        step = part_mean - group_mean[:, None]
        variance += tl.sum((square + step * step * count) / elements, 1)
    to = image * groups + group
    tl.store(mean + to, group_mean, group < groups)
    tl.store(rstd + to, 1 / tl.sqrt(variance + eps), group < groups)


@triton.jit
def normalize_kernel(
    x,
    strides,
    shift,
    weight,
    bias,
    mean,
    rstd,
    out,
    out_strides,
    c,
    p,
    groups,
    SHIFT: tl.constexpr,
    SILU: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    channels, image = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C), tl.program_id(2).to(tl.int64)
    pixels = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    inside = (channels < c)[:, None] & (pixels < p)[None, :]
    value = load(x, strides, image, channels, pixels, inside)
    if SHIFT:
        value += of_channels(shift + image * c, channels, c)
    group = channels // (c // groups)
    value -= of_channels(mean + image * groups, group, groups)
    value *= of_channels(rstd + image * groups, group, groups)
    value = value * of_channels(weight, channels, c) + of_channels(bias, channels, c)
    if SILU:
        value = value / (1 + tl.exp(-value))
    store(out, out_strides, image, channels, pixels, inside, value)


def statistics(x: Tensor, shift: Tensor | None, groups: int, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and 1 / standard deviation of every group of x + shift: (b g) each."""
    (b, c, h, w), strides = x.shape, pixel_strides(x)
    block = blocks(strides, h * w)
    splits, span = split_pixels(x, block)
    means, squares = (x.new_empty(b, c, splits, dtype=torch.float32) for _ in range(2))
    mean, rstd = (x.new_empty(b, groups, dtype=torch.float32) for _ in range(2))
    grid = splits, triton.cdiv(c, block["BLOCK_C"]), b
    statistics_kernel[grid](x, strides, means, squares, c, h * w, span, **block, **FUSED)
    join_kernel[(triton.cdiv(groups, JOINED["BLOCK_G"]), b)](
        means,
        squares,
        shift,
        mean,
        rstd,
        eps,
        c,
        h * w,
        groups,
        span,
        splits,
        SHIFT=shift is not None,
        **JOINED,
        **FUSED,
    )
    return mean, rstd


def check_group_norm(x: Tensor, weight: Tensor, bias: Tensor, shift: Tensor | None, groups: int) -> None:
    check("group_norm", x=x, weight=weight, bias=bias, shift=shift)
    require(x.ndim == 4, "group_norm", f"x has shape {tuple(x.shape)}, not (b c h w)")
    b, c, h, w = x.shape
    require(groups > 0 and c % groups == 0, "group_norm", f"{c} channels do not make {groups} groups")
    for name, vector, shape in (("weight", weight, (c,)), ("bias", bias, (c,)), ("shift", shift, (b, c))):
        require(
            vector is None or vector.shape == shape and vector.is_contiguous(),
            "group_norm",
            f"{name} must be contiguous, of shape {shape}",
        )
    require(
        pixel_strides(x) is not None,
        "group_norm",
        f"x has strides {x.stride()}: neither pixels nor channels lie next to each other, row after row",
    )
    require(
        countable(x),
        "group_norm",
        f"a picture of shape {(c, h, w)} and strides {x.stride()[1:]} spans more elements than 32 bits can count",
    )


def group_norm_forward(
    x: Tensor, weight: Tensor, bias: Tensor, shift: Tensor | None, groups: int, eps: float, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The result, in the layout of x, and mean and 1 / standard deviation (b g) in float32."""
    check_group_norm(x, weight, bias, shift, groups)
    (b, c, h, w), strides, out = x.shape, pixel_strides(x), torch.empty_like(x)
    block = blocks(strides, h * w)
    with torch.cuda.device_of(x):
        mean, rstd = statistics(x, shift, groups, eps)
        normalize_kernel[(triton.cdiv(h * w, block["BLOCK_P"]), triton.cdiv(c, block["BLOCK_C"]), b)](
            x,
            strides,
            shift,
            weight,
            bias,
            mean,
            rstd,
            out,
            pixel_strides(out),
            c,
            h * w,
            groups,
            SHIFT=shift is not None,
            SILU=silu,
            **block,
            **FUSED,
        )
    return out, mean, rstd


forward = torch.library.custom_op("ldm::group_norm", group_norm_forward, mutates_args=())


@forward.register_fake
def _(x, weight, bias, shift, groups, eps, silu):
    mean, rstd = (x.new_empty(x.shape[0], groups, dtype=torch.float32) for _ in range(2))
    return torch.empty_like(x), mean, rstd


backward = torch.library.custom_op("ldm::group_norm_backward", group_norm_gradients.gradients, mutates_args=())


@backward.register_fake
def _(grad_out, x, weight, bias, shift, mean, rstd, silu):
    grad_shift = x.new_empty(x.shape[:2]) if shift is None else torch.empty_like(shift)
    return torch.empty_like(x), torch.empty_like(weight), torch.empty_like(bias), grad_shift


def keep(ctx, inputs, output) -> None:
    x, weight, bias, shift, _, _, ctx.silu = inputs
    ctx.save_for_backward(x, weight, bias, shift, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def differentiate(ctx, grad_out, *_):
    x, weight, bias, shift, mean, rstd = ctx.saved_tensors  # once: checkpointing gives them out once
    *grads, grad_shift = backward(grad_out, x, weight, bias, shift, mean, rstd, ctx.silu)
    return *grads, None if shift is None else grad_shift, None, None, None


forward.register_autograd(differentiate, setup_context=keep)


def group_norm(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool = False, shift: Tensor | None = None
) -> Tensor:
    """x (b c h w), weight and bias (c), shift (b c) -> (b c h w) in the layout of x; float16, bfloat16 or float32.

    Raises ValueError for other types, and where neither pixels nor channels lie next to each other.
    """
    require_affine("group_norm", weight, bias)
    return forward(x, weight, bias, shift, groups, eps, silu)[0]
