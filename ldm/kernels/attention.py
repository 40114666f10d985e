"""Softmax attention that never stores the scores (FlashAttention, arXiv 2205.14135 and 2307.08691).

q (b heads n d), k and v (b heads m d), with any strides but the last, which is 1 -> (b heads n d), in memory
(b n heads*d), the input of the next linear layer. So q, k and v may be slices of one packed projection, and nothing is
transposed or copied on the way in or out. Two numbers of each row are kept for the backward pass, its log-sum-exp.

Letters: n queries, m keys, d width of a head. A program owns BLOCK_Q queries of one head of one image and walks over
the keys, BLOCK_K at a time. Blocks are powers of two, so the d columns of a head are held in two of them, MAIN and
TAIL: 40 = 32 + 8 (of 16), 80 = 64 + 16, 160 = 128 + 32; 64 and 512 have no tail. Of 512 columns a program sums only
COLUMNS, since all would not fit into registers, and its neighbour sums the others.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import attention_gradients
from .attention_blocks import LOG2_E, dot_both, load, load_both, store, store_both, visible
from .attention_tiles import columns_in_blocks, short_tiles, tiles
from .hardware import FUSED, alignment, check, processors, require
from .precision import dot, rounded


@triton.jit(do_not_specialize=["n", "m"])
def forward_kernel(
    q,
    q_strides,
    k,
    k_strides,
    v,
    v_strides,
    out,
    row_highest,
    row_total,
    scale,
    n,
    m,
    WIDTH: tl.constexpr,
    MAIN: tl.constexpr,
    TAIL: tl.constexpr,
    COLUMNS: tl.constexpr,
    ALIGN: tl.constexpr,
    CAUSAL: tl.constexpr,
    RAGGED: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    first, head = tl.program_id(0) * BLOCK_Q, tl.program_id(1).to(tl.int64)
    parts: tl.constexpr = MAIN // COLUMNS
    image, part = tl.program_id(2).to(tl.int64) // parts, tl.program_id(2) % parts
    heads = tl.num_programs(1)
    q += tl.multiple_of(image * q_strides[0] + head * q_strides[1] + first * q_strides[2], ALIGN)
    k += tl.multiple_of(image * k_strides[0] + head * k_strides[1], ALIGN)
    v += tl.multiple_of(image * v_strides[0] + head * v_strides[1] + part * COLUMNS, ALIGN)
    out += tl.multiple_of(((image * n + first) * heads + head) * WIDTH + part * COLUMNS, ALIGN)
    rows = (image * heads + head) * n + first + tl.arange(0, BLOCK_Q)

    queries = first + tl.arange(0, BLOCK_Q)
    query, query_tail = load_both(q, q_strides[2], n - first, BLOCK_Q, WIDTH, MAIN, TAIL, True)
    highest = tl.full([BLOCK_Q], -float("inf"), tl.float32)  # largest score so far, in units of log2
    total = tl.zeros([BLOCK_Q], tl.float32)  # sum of 2**(score - highest) so far
    sums = tl.zeros([BLOCK_Q, COLUMNS], tl.float32)  # of the values, weighted likewise
    sums_tail = tl.zeros([BLOCK_Q, TAIL if TAIL else 16], tl.float32)
    scale *= LOG2_E  # exp(x) = 2**(x * log2(e)), and exp2 is one instruction
    last = tl.minimum(m, first + BLOCK_Q) if CAUSAL else m
    for start in tl.range(0, last, BLOCK_K):
        key, key_tail = load_both(k, k_strides[2], m - start, BLOCK_K, WIDTH, MAIN, TAIL, RAGGED)
        scores = dot_both(query, query_tail, key, key_tail, TAIL)
        if RAGGED or CAUSAL:
            keys = start + tl.arange(0, BLOCK_K)
            scores = visible(scores, queries[:, None], keys[None, :], m, CAUSAL)
        higher = tl.maximum(highest, tl.max(scores, 1) * scale)
        weights = tl.exp2(scores * scale - higher[:, None])
        shrink = tl.exp2(highest - higher)  # what was summed so far was relative to `highest`
        highest = higher
        total = total * shrink + tl.sum(weights, 1)
        value = load(v, v_strides[2], m - start, BLOCK_K, 0, COLUMNS, WIDTH, RAGGED)
        sums = dot(rounded(weights, value.dtype), value, sums * shrink[:, None])
        if TAIL:
            value_tail = load(v, v_strides[2], m - start, BLOCK_K, MAIN, TAIL, WIDTH, RAGGED)
            sums_tail = dot(rounded(weights, value.dtype), value_tail, sums_tail * shrink[:, None])
        k += BLOCK_K * k_strides[2]
        v += BLOCK_K * v_strides[2]
    store_both(out, heads * WIDTH, n - first, sums / total[:, None], sums_tail / total[:, None], WIDTH, MAIN, TAIL)
    tl.store(row_highest + rows, highest, queries < n)
    tl.store(row_total + rows, total, queries < n)


@triton.jit(do_not_specialize=["n", "m", "span"])
def short_kernel(
    q,
    q_strides,
    k,
    k_strides,
    v,
    v_strides,
    out,
    row_highest,
    row_total,
    scale,
    n,
    m,
    span,
    WIDTH: tl.constexpr,
    MAIN: tl.constexpr,
    TAIL: tl.constexpr,
    ALIGN: tl.constexpr,
    CAUSAL: tl.constexpr,
    RAGGED: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """For few keys, such as the 77 of a prompt: all of them stay on chip while `span` queries pass by."""
    first, head, image = tl.program_id(0) * span, tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    heads = tl.num_programs(1)
    q += tl.multiple_of(image * q_strides[0] + head * q_strides[1] + first * q_strides[2], ALIGN)
    k += tl.multiple_of(image * k_strides[0] + head * k_strides[1], ALIGN)
    v += tl.multiple_of(image * v_strides[0] + head * v_strides[1], ALIGN)
    out += tl.multiple_of(((image * n + first) * heads + head) * WIDTH, ALIGN)
    rows = (image * heads + head) * n

    key, key_tail = load_both(k, k_strides[2], m, BLOCK_K, WIDTH, MAIN, TAIL, True)
    value, value_tail = load_both(v, v_strides[2], m, BLOCK_K, WIDTH, MAIN, TAIL, True)
    keys = tl.arange(0, BLOCK_K)
    scale *= LOG2_E
    for start in tl.range(first, tl.minimum(n, first + span), BLOCK_Q):
        queries = start + tl.arange(0, BLOCK_Q)
        query, query_tail = load_both(q, q_strides[2], n - start, BLOCK_Q, WIDTH, MAIN, TAIL, RAGGED)
        scores = dot_both(query, query_tail, key, key_tail, TAIL)
        scores = visible(scores, queries[:, None], keys[None, :], m, CAUSAL)
        highest = tl.max(scores, 1) * scale
        weights = tl.exp2(scores * scale - highest[:, None])
        total = tl.sum(weights, 1)
        weights = rounded(weights, value.dtype)
        sums = dot(weights, value, tl.zeros([BLOCK_Q, MAIN], tl.float32)) / total[:, None]
        store(out, heads * WIDTH, n - start, sums, 0, WIDTH)
        if TAIL:
            sums_tail = dot(weights, value_tail, tl.zeros([BLOCK_Q, TAIL], tl.float32)) / total[:, None]
            store(out, heads * WIDTH, n - start, sums_tail, MAIN, WIDTH)
        tl.store(row_highest + rows + queries, highest, queries < n)
        tl.store(row_total + rows + queries, total, queries < n)
        q += BLOCK_Q * q_strides[2]
        out += BLOCK_Q * heads * WIDTH


def check_attention(q: Tensor, k: Tensor, v: Tensor) -> None:
    """Raise ValueError for what the kernels cannot do."""
    check("attention", q=q, k=k, v=v)
    for name, x in dict(q=q, k=k, v=v).items():
        require(x.ndim == 4, "attention", f"{name} has shape {tuple(x.shape)}, not (b heads n d)")
        require(x.dtype == q.dtype, "attention", f"{name} is {x.dtype}, but q is {q.dtype}")
        require(x.stride(3) == 1 or x.shape[3] == 1, "attention", f"{name} has strides {x.stride()}, the last not 1")
        require(
            x.shape[2] * x.stride(2) < 2**31,
            "attention",
            f"one head of {name} spans {x.shape[2] * x.stride(2)} elements, more than 32 bits can count",
        )
    b, heads, _, width = q.shape
    require(
        k.shape == v.shape and (k.shape[0], k.shape[1], k.shape[3]) == (b, heads, width),
        "attention",
        f"shapes {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)} of q, k and v do not agree",
    )
    require(width <= 160 or width == 512, "attention", f"heads are {width} wide; 1 to 160, and 512, are served")


def attention_forward(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Out (b heads n d); of each row the highest score, in units of log2, and the sum of 2**(score - highest): float32
    (b heads n) each. Together they are the log-sum-exp; float32 could not hold it exactly when scores are large."""
    check_attention(q, k, v)
    (b, heads, n, width), m = q.shape, k.shape[2]
    out, highest, total = new_attention(q)
    main, tail = columns_in_blocks(width)
    shared = dict(WIDTH=width, MAIN=main, TAIL=tail, ALIGN=alignment(q, k, v, width=width), CAUSAL=causal, **FUSED)
    inputs = q, q.stride()[:3], k, k.stride()[:3], v, v.stride()[:3], out, highest, total, width**-0.5, n, m
    with torch.cuda.device_of(q):
        if short := short_tiles(width, m, q):
            span = short.queries * max(1, b * heads * n // (short.queries * 8 * processors(q.device)))
            short_kernel[(triton.cdiv(n, span), heads, b)](
                *inputs, span, RAGGED=n % short.queries > 0, **short.blocks(), **shared
            )
        else:
            tile = tiles("forward", width, q)
            columns = tile.columns or main
            forward_kernel[(triton.cdiv(n, tile.queries), heads, b * main // columns)](
                *inputs, COLUMNS=columns, RAGGED=m % tile.keys > 0, **tile.blocks(), **shared
            )
    return out, highest, total


def new_attention(q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    b, heads, n, width = q.shape
    highest, total = (q.new_empty(b, heads, n, dtype=torch.float32) for _ in range(2))
    return q.new_empty(b, n, heads, width).transpose(1, 2), highest, total


forward = torch.library.custom_op("ldm::attention", attention_forward, mutates_args=())
forward.register_fake(lambda q, k, v, causal: new_attention(q))


backward = torch.library.custom_op("ldm::attention_backward", attention_gradients.gradients, mutates_args=())


@backward.register_fake
def _(grad_out, q, k, v, out, highest, total, causal):
    return tuple(x.new_empty(x.transpose(1, 2).shape).transpose(1, 2) for x in (q, k, v))


def keep(ctx, inputs, output) -> None:
    q, k, v, ctx.causal = inputs
    ctx.save_for_backward(q, k, v, *output)
    ctx.mark_non_differentiable(*output[1:])


def differentiate(ctx, grad_out, *_):
    return *backward(grad_out, *ctx.saved_tensors, ctx.causal), None


forward.register_autograd(differentiate, setup_context=keep)


def attention(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> Tensor:
    """softmax(q k' / sqrt(d)) v: q (b heads n d), k and v (b heads m d) -> (b heads n d); float16, bfloat16 or float32.

    If causal, query i sees keys 0..i. Heads are 1 to 160 wide, or 512. Raises ValueError for anything else.
    """
    return forward(q, k, v, causal)[0]
