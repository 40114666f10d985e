"""The gradients of group normalisation: sums over each channel in one kernel, then the gradient of x in another.

With z = (x + shift - mean) * rstd, y = silu(weight * z + bias) and g the gradient of weight * z + bias:
    dweight = sum g z,   dbias = sum g,   dx = rstd * (weight * g - mean(weight * g) - z * mean(weight * g * z)),
where the means are those of a group, and dshift the sum of dx over a channel. All of them follow from three sums over
channels: of g, of g z and of z. Nothing is added atomically; the few last numbers are summed by PyTorch.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .hardware import FUSED
from .pixels import blocks, countable, load, of_channels, pixel_strides, split_pixels, store


@triton.jit
def gradient_of_normalized(grad, value, weight, bias, SILU: tl.constexpr):
    """From the gradient of y to that of value * weight + bias, through SiLU if it was applied."""
    if SILU:
        z = value * weight + bias
        gate = 1 / (1 + tl.exp(-z))
        grad = grad * gate * (1 + z * (1 - gate))
    return grad


@triton.jit
def sums_kernel(
    grad_out,
    grad_strides,
    x,
    strides,
    shift,
    weight,
    bias,
    mean,
    rstd,
    sums,
    c,
    p,
    groups,
    span,
    SHIFT: tl.constexpr,
    SILU: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Over `span` pixels of each channel, the sums of g, g * z and z: (3 b c splits), where z is x normalised, and g
    the gradient of weight * z + bias."""
    split, image = tl.program_id(0), tl.program_id(2).to(tl.int64)
    channels = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    group = channels // (c // groups)
    middle, scale = of_channels(mean + image * groups, group, groups), of_channels(rstd + image * groups, group, groups)
    if SHIFT:
        middle -= of_channels(shift + image * c, channels, c)
    w, b = of_channels(weight, channels, c), of_channels(bias, channels, c)
    zeros = tl.zeros([BLOCK_C], tl.float32)
    sum_g, sum_gz, sum_z = zeros, zeros, zeros
    for first in tl.range(split * span, tl.minimum(p, split * span + span), BLOCK_P):
        pixels = first + tl.arange(0, BLOCK_P)
        inside = (channels < c)[:, None] & (pixels < p)[None, :]
        z = tl.where(inside, (load(x, strides, image, channels, pixels, inside) - middle) * scale, 0.0)
        grad = load(grad_out, grad_strides, image, channels, pixels, inside)
        grad = gradient_of_normalized(grad, z, w, b, SILU)
        sum_g += tl.sum(grad, 1)
        sum_gz += tl.sum(grad * z, 1)
        sum_z += tl.sum(z, 1)
    to, size = (image * c + channels) * tl.num_programs(0) + split, tl.num_programs(2) * c * tl.num_programs(0)
    tl.store(sums + to, sum_g, channels < c)
    tl.store(sums + size + to, sum_gz, channels < c)
    tl.store(sums + 2 * size + to, sum_z, channels < c)


@triton.jit
def gradient_kernel(
    grad_out,
    grad_strides,
    x,
    strides,
    shift,
    weight,
    bias,
    mean,
    rstd,
    mean_g,
    mean_gz,
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
    """dx = rstd * (weight * g - mean(weight * g) - z * mean(weight * g * z)); the means are those of the group."""
    channels, image = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C), tl.program_id(2).to(tl.int64)
    pixels = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    inside = (channels < c)[:, None] & (pixels < p)[None, :]
    value = load(x, strides, image, channels, pixels, inside)
    grad = load(grad_out, grad_strides, image, channels, pixels, inside)
    if SHIFT:
        value += of_channels(shift + image * c, channels, c)
    group = channels // (c // groups)
    scale = of_channels(rstd + image * groups, group, groups)
    z = (value - of_channels(mean + image * groups, group, groups)) * scale
    w = of_channels(weight, channels, c)
    grad = w * gradient_of_normalized(grad, z, w, of_channels(bias, channels, c), SILU)
    grad -= of_channels(mean_g + image * groups, group, groups)
    grad -= z * of_channels(mean_gz + image * groups, group, groups)
    store(out, out_strides, image, channels, pixels, inside, grad * scale)


def gradients(
    grad_out: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    shift: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    silu: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, weight, bias and shift; without a shift, of one of zeros."""
    (b, c, h, w), strides, groups, out = x.shape, pixel_strides(x), mean.shape[1], torch.empty_like(x)
    if pixel_strides(grad_out) is None or not countable(grad_out):  # an expanded one, such as that of a sum
        grad_out = torch.empty_like(x).copy_(grad_out)
    block = blocks(strides, h * w)
    splits, span = split_pixels(x, block)
    sums = x.new_empty(3, b, c, splits, dtype=torch.float32)
    inputs = grad_out, pixel_strides(grad_out), x, strides, shift, weight, bias, mean, rstd
    options = dict(SHIFT=shift is not None, SILU=silu, **block, **FUSED)
    blocks_c, blocks_p = triton.cdiv(c, block["BLOCK_C"]), triton.cdiv(h * w, block["BLOCK_P"])
    with torch.cuda.device_of(x):
        sums_kernel[(splits, blocks_c, b)](*inputs, sums, c, h * w, groups, span, **options)
        sum_g, sum_gz, sum_z = sums.sum(-1)  # (b c)
        mean_g, mean_gz = (
            (weight.float() * s).unflatten(1, (groups, -1)).sum(-1) / (c // groups * h * w) for s in (sum_g, sum_gz)
        )
        gradient_kernel[(blocks_p, blocks_c, b)](
            *inputs, mean_g, mean_gz, out, pixel_strides(out), c, h * w, groups, **options
        )
    channels = lambda of_group: of_group.repeat_interleave(c // groups, dim=1)
    grad_shift = sum_g * weight.float() - h * w * channels(mean_g) - sum_z * channels(mean_gz)
    grad_shift = (grad_shift * channels(rstd)).to(x.dtype if shift is None else shift.dtype)
    return out, sum_gz.sum(0).to(weight.dtype), sum_g.sum(0).to(bias.dtype), grad_shift
