"""Layer normalisation (arXiv 1607.06450) over the last axis, forward and backward, with a residual added before it.

    total = x + residual,   y = (total - mean) * rstd * weight + bias

A program holds BLOCK_R whole rows, so statistics take two passes over registers and one over memory. `total` is rounded
to the type of x before it is normalised, as if it had been added by itself. Letters: r rows, d width of a row.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .hardware import FUSED, check, processors, require, require_affine
from .precision import rounded

ELEMENTS = 4096  # that a program holds at a time: 32 for each of 128 threads
WIDEST = 8192


@triton.jit(do_not_specialize=["r"])
def layer_norm_kernel(
    x,
    residual,
    weight,
    bias,
    total,
    out,
    mean,
    rstd,
    eps,
    r,
    d,
    RESIDUAL: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    rows, columns = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_D)
    inside = (rows < r)[:, None] & (columns < d)[None, :]
    offsets = rows[:, None].to(tl.int64) * d + columns[None, :]
    value = tl.load(x + offsets, inside, other=0.0)
    if RESIDUAL:
        added = value.to(tl.float32) + tl.load(residual + offsets, inside, other=0.0).to(tl.float32)
        value = rounded(added, total.dtype.element_ty)
        tl.store(total + offsets, value, inside)
    value = value.to(tl.float32)
    row_mean = tl.sum(value, 1) / d
    difference = tl.where(inside, value - row_mean[:, None], 0.0)
    row_rstd = 1 / tl.sqrt(tl.sum(difference * difference, 1) / d + eps)
    w = tl.load(weight + columns, columns < d, other=0.0).to(tl.float32)[None, :]
    b = tl.load(bias + columns, columns < d, other=0.0).to(tl.float32)[None, :]
    tl.store(out + offsets, rounded(difference * row_rstd[:, None] * w + b, out.dtype.element_ty), inside)
    tl.store(mean + rows, row_mean, rows < r)
    tl.store(rstd + rows, row_rstd, rows < r)


@triton.jit(do_not_specialize=["r", "span"])
def layer_norm_gradient_kernel(
    grad_out,
    grad_total,
    x,
    weight,
    mean,
    rstd,
    grad_x,
    grad_weight,
    grad_bias,
    r,
    d,
    span,
    RESIDUAL: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """dx = rstd * (g - mean(g) - z * mean(g * z)) with z = (x - mean) * rstd and g = weight * grad_out, plus what
    arrives at `total` by itself. A program walks over `span` rows and writes its share of the sums over rows."""
    first, columns = tl.program_id(0) * span, tl.arange(0, BLOCK_D)
    w = tl.load(weight + columns, columns < d, other=0.0).to(tl.float32)[None, :]
    sum_weight = tl.zeros([BLOCK_R, BLOCK_D], tl.float32)
    sum_bias = tl.zeros([BLOCK_R, BLOCK_D], tl.float32)
    for start in tl.range(first, tl.minimum(r, first + span), BLOCK_R):
        rows = start + tl.arange(0, BLOCK_R)
        inside = (rows < r)[:, None] & (columns < d)[None, :]
        offsets = rows[:, None].to(tl.int64) * d + columns[None, :]
        value = tl.load(x + offsets, inside, other=0.0).to(tl.float32)
        row_mean, row_rstd = tl.load(mean + rows, rows < r, other=0.0), tl.load(rstd + rows, rows < r, other=0.0)
        z = tl.where(inside, (value - row_mean[:, None]) * row_rstd[:, None], 0.0)
        grad = tl.load(grad_out + offsets, inside, other=0.0).to(tl.float32)
        sum_weight += grad * z
        sum_bias += grad
        g = grad * w
        slope = (g - tl.sum(g, 1)[:, None] / d - z * (tl.sum(g * z, 1)[:, None] / d)) * row_rstd[:, None]
        if RESIDUAL:
            slope += tl.load(grad_total + offsets, inside, other=0.0).to(tl.float32)
        tl.store(grad_x + offsets, rounded(slope, grad_x.dtype.element_ty), inside)
    to = tl.program_id(0) * d + columns
    tl.store(grad_weight + to, tl.sum(sum_weight, 0), columns < d)
    tl.store(grad_bias + to, tl.sum(sum_bias, 0), columns < d)


def blocks(d: int) -> dict:
    wide = triton.next_power_of_2(d)
    return dict(BLOCK_R=max(1, ELEMENTS // wide), BLOCK_D=wide, num_warps=4 if wide <= ELEMENTS else 8)


def check_layer_norm(x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor) -> None:
    check("layer_norm", x=x, residual=residual, weight=weight, bias=bias)
    d = x.shape[-1]
    require(d <= WIDEST, "layer_norm", f"rows are {d} wide, more than {WIDEST}")
    require(x.is_contiguous(), "layer_norm", f"x is not contiguous: strides {x.stride()} for shape {tuple(x.shape)}")
    require(
        weight.shape == bias.shape == (d,) and weight.stride() == bias.stride() == (1,),
        "layer_norm",
        f"weight and bias have shapes {tuple(weight.shape)} and {tuple(bias.shape)}, not ({d},)",
    )
    if residual is not None:
        require(
            residual.shape == x.shape and residual.dtype == x.dtype and residual.is_contiguous(),
            "layer_norm",
            "residual must be contiguous, of the shape and type of x",
        )


def layer_norm_forward(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x + residual (empty without a residual), the result, and mean and 1 / standard deviation of every row."""
    check_layer_norm(x, residual, weight, bias)
    total, out, mean, rstd = new_layer_norm(x, residual)
    d, r = x.shape[-1], mean.numel()
    block = blocks(d)
    with torch.cuda.device_of(x):
        layer_norm_kernel[(triton.cdiv(r, block["BLOCK_R"]),)](
            x,
            residual,
            weight,
            bias,
            total,
            out,
            mean,
            rstd,
            eps,
            r,
            d,
            RESIDUAL=residual is not None,
            **block,
            **FUSED,
        )
    return total, out, mean, rstd


def new_layer_norm(x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    total = x.new_empty(0) if residual is None else torch.empty_like(x)
    mean, rstd = (x.new_empty(x.shape[:-1], dtype=torch.float32) for _ in range(2))
    return total, torch.empty_like(x), mean, rstd


forward = torch.library.custom_op("ldm::layer_norm", layer_norm_forward, mutates_args=())
forward.register_fake(lambda x, residual, weight, bias, eps: new_layer_norm(x, residual))


def gradients(
    grad_out: Tensor, grad_total: Tensor | None, x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x (and of the residual: the same), weight and bias."""
    d, r = x.shape[-1], mean.numel()
    block, grad_x = blocks(d), torch.empty_like(x)
    programs = min(4 * processors(x.device), triton.cdiv(r, block["BLOCK_R"]))
    span = triton.cdiv(triton.cdiv(r, programs), block["BLOCK_R"]) * block["BLOCK_R"]
    programs = triton.cdiv(r, span)
    sums = x.new_empty(2, programs, d, dtype=torch.float32)
    with torch.cuda.device_of(x):
        layer_norm_gradient_kernel[(programs,)](
            grad_out.contiguous(),
            grad_total if grad_total is None else grad_total.contiguous(),
            x,
            weight,
            mean,
            rstd,
            grad_x,
            *sums,
            r,
            d,
            span,
            RESIDUAL=grad_total is not None,
            **block,
            **FUSED,
        )
    return grad_x, *(part.sum(0).to(weight.dtype) for part in sums)


backward = torch.library.custom_op("ldm::layer_norm_backward", gradients, mutates_args=())


@backward.register_fake
def _(grad_out, grad_total, x, weight, mean, rstd):
    return torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight)


def keep(ctx, inputs, output) -> None:
    x, residual, weight, _, _ = inputs
    total, _, mean, rstd = output
    ctx.residual = residual is not None
    ctx.save_for_backward(total if ctx.residual else x, weight, mean, rstd)
    ctx.mark_non_differentiable(mean, rstd, *(() if ctx.residual else (total,)))


def differentiate(ctx, grad_total, grad_out, *_):
    grad_x, grad_weight, grad_bias = backward(grad_out, grad_total if ctx.residual else None, *ctx.saved_tensors)
    return grad_x, grad_x if ctx.residual else None, grad_weight, grad_bias, None


forward.register_autograd(differentiate, setup_context=keep)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """x (... d) contiguous, weight and bias (d) -> (... d). Raises ValueError for what it does not take."""
    require_affine("layer_norm", weight, bias)
    return forward(x, None, weight, bias, eps)[1]


def add_layer_norm(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x + residual, and that normalised: (... d) each."""
    require_affine("layer_norm", weight, bias)
    return forward(x, residual, weight, bias, eps)[:2]
