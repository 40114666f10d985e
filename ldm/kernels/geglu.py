"""Gated GELU (arXiv 2002.05202) in its erf form, forward and backward, with the bias of the projection before it.

x (... 2d), bias (2d) -> (... d): with value and gate the halves of x + bias,

    y = value * gate * P(gate),   P(z) = (1 + erf(z / sqrt 2)) / 2

A program owns BLOCK_R rows x BLOCK_D columns at a time. Letters: r rows, d width of the result.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .hardware import FUSED, check, processors, require
from .precision import rounded

BLOCK = dict(BLOCK_R=16, BLOCK_D=256, num_warps=8)
SQRT_HALF: tl.constexpr = tl.constexpr(0.7071067811865476)
DENSITY: tl.constexpr = tl.constexpr(0.3989422804014327)  # 1 / sqrt(2 pi)


@triton.jit
def load_halves(x, bias, r, d, rows, columns, BIAS: tl.constexpr):
    """value and gate, with the bias added if there is one."""
    inside = (rows < r)[:, None] & (columns < d)[None, :]
    offsets = rows[:, None].to(tl.int64) * (2 * d) + columns[None, :]
    value = tl.load(x + offsets, inside, other=0.0).to(tl.float32)
    gate = tl.load(x + d + offsets, inside, other=0.0).to(tl.float32)
    if BIAS:
        value += tl.load(bias + columns, columns < d, other=0.0).to(tl.float32)[None, :]
        gate += tl.load(bias + d + columns, columns < d, other=0.0).to(tl.float32)[None, :]
    return value, gate


@triton.jit(do_not_specialize=["r"])
def geglu_kernel(x, bias, out, r, d, BIAS: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr):
    rows = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    columns = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    value, gate = load_halves(x, bias, r, d, rows, columns, BIAS)
    result = value * gate * (0.5 + 0.5 * tl.erf(gate * SQRT_HALF))
    inside = (rows < r)[:, None] & (columns < d)[None, :]
    tl.store(out + rows[:, None].to(tl.int64) * d + columns[None, :], rounded(result, out.dtype.element_ty), inside)


@triton.jit(do_not_specialize=["r", "span"])
def geglu_gradient_kernel(
    grad_out, x, bias, grad_x, grad_bias, r, d, span, BIAS: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr
):
    """d/dgate (gate * P(gate)) = P(gate) + gate * P'(gate). A program walks over `span` rows of its columns; with a
    bias it writes its share of the sums over rows: (programs 2d)."""
    first, columns = tl.program_id(0) * span, tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    sum_value = tl.zeros([BLOCK_R, BLOCK_D], tl.float32)
    sum_gate = tl.zeros([BLOCK_R, BLOCK_D], tl.float32)
    for start in tl.range(first, tl.minimum(r, first + span), BLOCK_R):
        rows = start + tl.arange(0, BLOCK_R)
        inside = (rows < r)[:, None] & (columns < d)[None, :]
        value, gate = load_halves(x, bias, r, d, rows, columns, BIAS)
        grad = tl.load(grad_out + rows[:, None].to(tl.int64) * d + columns[None, :], inside, other=0.0).to(tl.float32)
        normal = 0.5 + 0.5 * tl.erf(gate * SQRT_HALF)
        of_value = grad * gate * normal
        of_gate = grad * value * (normal + gate * DENSITY * tl.exp(-0.5 * gate * gate))
        offsets = rows[:, None].to(tl.int64) * (2 * d) + columns[None, :]
        tl.store(grad_x + offsets, rounded(of_value, grad_x.dtype.element_ty), inside)
        tl.store(grad_x + d + offsets, rounded(of_gate, grad_x.dtype.element_ty), inside)
        if BIAS:
            sum_value += of_value
            sum_gate += of_gate
    if BIAS:
        to = tl.program_id(0) * 2 * d + columns
        tl.store(grad_bias + to, tl.sum(sum_value, 0), columns < d)
        tl.store(grad_bias + d + to, tl.sum(sum_gate, 0), columns < d)


def check_geglu(x: Tensor, bias: Tensor | None) -> None:
    check("geglu", x=x, bias=bias)
    require(x.shape[-1] % 2 == 0, "geglu", f"the last axis of x, {x.shape[-1]}, has no two halves")
    require(x.is_contiguous(), "geglu", f"x is not contiguous: strides {x.stride()} for shape {tuple(x.shape)}")
    require(
        bias is None or bias.shape == x.shape[-1:] and bias.is_contiguous(),
        "geglu",
        f"bias must be contiguous, of shape ({x.shape[-1]},)",
    )


def geglu_forward(x: Tensor, bias: Tensor | None) -> Tensor:
    check_geglu(x, bias)
    out = new_geglu(x)
    d, r = out.shape[-1], out.numel() // out.shape[-1]
    grid = triton.cdiv(r, BLOCK["BLOCK_R"]), triton.cdiv(d, BLOCK["BLOCK_D"])
    with torch.cuda.device_of(x):
        geglu_kernel[grid](x, bias, out, r, d, BIAS=bias is not None, **BLOCK, **FUSED)
    return out


def new_geglu(x: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], x.shape[-1] // 2)


forward = torch.library.custom_op("ldm::geglu", geglu_forward, mutates_args=())
forward.register_fake(lambda x, bias: new_geglu(x))


def gradients(grad_out: Tensor, x: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Gradients of x and of the bias; without a bias the second is empty."""
    grad_x, d = torch.empty_like(x), x.shape[-1] // 2
    r, wide = x.numel() // (2 * d), triton.cdiv(d, BLOCK["BLOCK_D"])
    programs = min(triton.cdiv(r, BLOCK["BLOCK_R"]), max(1, 4 * processors(x.device) // wide))
    span = triton.cdiv(triton.cdiv(r, programs), BLOCK["BLOCK_R"]) * BLOCK["BLOCK_R"]
    programs = triton.cdiv(r, span)
    sums = x.new_empty(programs if bias is not None else 0, 2 * d, dtype=torch.float32)
    with torch.cuda.device_of(x):
        geglu_gradient_kernel[(programs, wide)](
            grad_out.contiguous(), x, bias, grad_x, sums, r, d, span, BIAS=bias is not None, **BLOCK, **FUSED
        )
    return grad_x, x.new_empty(0) if bias is None else sums.sum(0).to(bias.dtype)


backward = torch.library.custom_op("ldm::geglu_backward", gradients, mutates_args=())


@backward.register_fake
def _(grad_out, x, bias):
    return torch.empty_like(x), x.new_empty(0) if bias is None else torch.empty_like(bias)


def keep(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)


def differentiate(ctx, grad_out):
    x, bias = ctx.saved_tensors
    grad_x, grad_bias = backward(grad_out, x, bias)
    return grad_x, None if bias is None else grad_bias


forward.register_autograd(differentiate, setup_context=keep)


def geglu(x: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (... 2d) contiguous, bias (2d) or None -> (... d). Raises ValueError for what it does not take.

    The networks give no bias: their linear layers add it within the matrix product. It stays here because
    scripts/bench/time_kernels.py measures whether the addition is cheaper in this kernel.
    """
    return forward(x, bias)
