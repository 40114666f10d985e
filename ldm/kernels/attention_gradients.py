"""The gradients of attention: of the queries in one kernel, of keys and values in another.

With scores s = scale * q k', weights p = softmax(s), out = p v and the gradient g of out:
    dv = p' g,   dp = g v',   ds = p * (dp - delta),   dq = scale * ds k,   dk = scale * ds' q,
where delta = rowsum(p * dp) = rowsum(g * out) (arXiv 2205.14135, appendix B). Scores are computed again from q and k;
the highest score and the sum of each row, kept from the forward pass, turn them into the same weights at once. Each
kernel owns the rows of what it writes, so nothing is added atomically and results are the same bits every time; the
price is that s and dp are computed twice.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .attention_blocks import LOG2_E, dot_both, load, load_both, store_both, visible
from .attention_tiles import columns_in_blocks, tiles
from .hardware import FUSED, alignment, processors
from .precision import dot, rounded


@triton.jit
def weights_again(scores, highest, total, dtype: tl.constexpr):
    """2**(scores - highest) / total. In 16 bits one number per row will do, and takes fewer registers: what float32
    loses of it where scores are in the thousands is less than the rounding of a weight."""
    if dtype == tl.float32:
        return tl.exp2(scores - highest) * (1 / total)
    else:
        return tl.exp2(scores - (highest + tl.log2(total)))


@triton.jit(do_not_specialize=["n", "m"])
def queries_kernel(
    q,
    q_strides,
    k,
    k_strides,
    v,
    v_strides,
    out,
    grad_out,
    row_highest,
    row_total,
    delta,
    grad_q,
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
    """dq, and delta for the other kernel. A program owns BLOCK_Q queries of a head and walks over the keys."""
    first, head = tl.program_id(0) * BLOCK_Q, tl.program_id(1).to(tl.int64)
    parts: tl.constexpr = MAIN // COLUMNS
    image, part = tl.program_id(2).to(tl.int64) // parts, tl.program_id(2) % parts
    heads = tl.num_programs(1)
    q += tl.multiple_of(image * q_strides[0] + head * q_strides[1] + first * q_strides[2], ALIGN)
    k += tl.multiple_of(image * k_strides[0] + head * k_strides[1], ALIGN)
    v += tl.multiple_of(image * v_strides[0] + head * v_strides[1], ALIGN)
    packed = tl.multiple_of(((image * n + first) * heads + head) * WIDTH, ALIGN)
    rows = (image * heads + head) * n + first + tl.arange(0, BLOCK_Q)
    exists = first + tl.arange(0, BLOCK_Q) < n

    grad, grad_tail = load_both(grad_out + packed, heads * WIDTH, n - first, BLOCK_Q, WIDTH, MAIN, TAIL, True)
    result, result_tail = load_both(out + packed, heads * WIDTH, n - first, BLOCK_Q, WIDTH, MAIN, TAIL, True)
    row_delta = tl.sum(grad.to(tl.float32) * result.to(tl.float32), 1)
    if TAIL:
        row_delta += tl.sum(grad_tail.to(tl.float32) * result_tail.to(tl.float32), 1)
    tl.store(delta + rows, row_delta, exists)

    query, query_tail = load_both(q, q_strides[2], n - first, BLOCK_Q, WIDTH, MAIN, TAIL, True)
    highest = tl.load(row_highest + rows, exists, other=0.0)
    total = tl.load(row_total + rows, exists, other=1.0)
    sums = tl.zeros([BLOCK_Q, COLUMNS], tl.float32)
    sums_tail = tl.zeros([BLOCK_Q, TAIL if TAIL else 16], tl.float32)
    last = tl.minimum(m, first + BLOCK_Q) if CAUSAL else m
    for start in tl.range(0, last, BLOCK_K):
        key, key_tail = load_both(k, k_strides[2], m - start, BLOCK_K, WIDTH, MAIN, TAIL, RAGGED)
        value, value_tail = load_both(v, v_strides[2], m - start, BLOCK_K, WIDTH, MAIN, TAIL, RAGGED)
        scores = dot_both(query, query_tail, key, key_tail, TAIL)
        if RAGGED or CAUSAL:
            keys = start + tl.arange(0, BLOCK_K)
            scores = visible(scores, first + tl.arange(0, BLOCK_Q)[:, None], keys[None, :], m, CAUSAL)
        weights = weights_again(scores * (scale * LOG2_E), highest[:, None], total[:, None], key.dtype)
        slopes = weights * (dot_both(grad, grad_tail, value, value_tail, TAIL) - row_delta[:, None])
        slopes = rounded(slopes, key.dtype)
        if COLUMNS < MAIN:
            key = load(k + part * COLUMNS, k_strides[2], m - start, BLOCK_K, 0, COLUMNS, WIDTH, RAGGED)
        sums = dot(slopes, key, sums)
        if TAIL:
            sums_tail = dot(slopes, key_tail, sums_tail)
        k += BLOCK_K * k_strides[2]
        v += BLOCK_K * v_strides[2]
    store_both(
        grad_q + packed + part * COLUMNS, heads * WIDTH, n - first, sums * scale, sums_tail * scale, WIDTH, MAIN, TAIL
    )


@triton.jit(do_not_specialize=["n", "m", "span"])
def keys_kernel(
    q,
    q_strides,
    k,
    k_strides,
    v,
    v_strides,
    grad_out,
    row_highest,
    row_total,
    delta,
    grad_k,
    grad_v,
    scale,
    n,
    m,
    span,
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
    """dk and dv. A program owns BLOCK_K keys of a head and walks over `span` queries, here as columns: scores are
    (keys, queries). Several programs share the keys where those alone would not fill the GPU; each writes its own sums
    (split b m heads d), to be added later.
    """
    blocks = tl.cdiv(m, BLOCK_K)
    first, split = tl.program_id(0) % blocks * BLOCK_K, tl.program_id(0) // blocks
    head = tl.program_id(1).to(tl.int64)
    parts: tl.constexpr = MAIN // COLUMNS
    image, part = tl.program_id(2).to(tl.int64) // parts, tl.program_id(2) % parts
    heads, images = tl.num_programs(1), tl.num_programs(2) // parts
    begin, end = split * span, tl.minimum(n, split * span + span)
    if CAUSAL:
        begin = tl.maximum(begin, first // BLOCK_Q * BLOCK_Q)  # earlier queries do not see these keys
    k += tl.multiple_of(image * k_strides[0] + head * k_strides[1] + first * k_strides[2], ALIGN)
    v += tl.multiple_of(image * v_strides[0] + head * v_strides[1] + first * v_strides[2], ALIGN)
    q += tl.multiple_of(image * q_strides[0] + head * q_strides[1] + begin * q_strides[2], ALIGN)
    grad_out += tl.multiple_of(((image * n + begin) * heads + head) * WIDTH, ALIGN)
    rows = (image * heads + head) * n

    key, key_tail = load_both(k, k_strides[2], m - first, BLOCK_K, WIDTH, MAIN, TAIL, True)
    value, value_tail = load_both(v, v_strides[2], m - first, BLOCK_K, WIDTH, MAIN, TAIL, True)
    sum_k = tl.zeros([BLOCK_K, COLUMNS], tl.float32)
    sum_v = tl.zeros([BLOCK_K, COLUMNS], tl.float32)
    sum_k_tail = tl.zeros([BLOCK_K, TAIL if TAIL else 16], tl.float32)
    sum_v_tail = tl.zeros([BLOCK_K, TAIL if TAIL else 16], tl.float32)
    for start in tl.range(begin, end, BLOCK_Q):
        queries = start + tl.arange(0, BLOCK_Q)
        query, query_tail = load_both(q, q_strides[2], n - start, BLOCK_Q, WIDTH, MAIN, TAIL, RAGGED)
        grad, grad_tail = load_both(grad_out, heads * WIDTH, n - start, BLOCK_Q, WIDTH, MAIN, TAIL, RAGGED)
        highest = tl.load(row_highest + rows + queries, queries < n, other=0.0)
        total = tl.load(row_total + rows + queries, queries < n, other=1.0)
        row_delta = tl.load(delta + rows + queries, queries < n, other=0.0)
        scores = dot_both(key, key_tail, query, query_tail, TAIL)
        if CAUSAL:
            keys = first + tl.arange(0, BLOCK_K)
            scores = tl.where(keys[:, None] <= queries[None, :], scores, -float("inf"))
        weights = weights_again(scores * (scale * LOG2_E), highest[None, :], total[None, :], key.dtype)
        slopes = weights * (dot_both(value, value_tail, grad, grad_tail, TAIL) - row_delta[None, :])
        weights, slopes = rounded(weights, key.dtype), rounded(slopes, key.dtype)
        if COLUMNS < MAIN:
            query = load(q + part * COLUMNS, q_strides[2], n - start, BLOCK_Q, 0, COLUMNS, WIDTH, RAGGED)
            grad = load(grad_out + part * COLUMNS, heads * WIDTH, n - start, BLOCK_Q, 0, COLUMNS, WIDTH, RAGGED)
        sum_v = dot(weights, grad, sum_v)
        sum_k = dot(slopes, query, sum_k)
        if TAIL:
            sum_v_tail = dot(weights, grad_tail, sum_v_tail)
            sum_k_tail = dot(slopes, query_tail, sum_k_tail)
        q += BLOCK_Q * q_strides[2]
        grad_out += BLOCK_Q * heads * WIDTH
    packed = tl.multiple_of((((split * images + image) * m + first) * heads + head) * WIDTH, ALIGN) + part * COLUMNS
    store_both(grad_v + packed, heads * WIDTH, m - first, sum_v, sum_v_tail, WIDTH, MAIN, TAIL)
    store_both(grad_k + packed, heads * WIDTH, m - first, sum_k * scale, sum_k_tail * scale, WIDTH, MAIN, TAIL)


def gradients(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, highest: Tensor, total: Tensor, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, each (b heads n d) and laid out as (b n heads*d)."""
    (b, heads, n, width), m = q.shape, k.shape[2]
    main, tail = columns_in_blocks(width)
    grad_out, out = (x.transpose(1, 2).contiguous() for x in (grad_out, out))  # they usually are; a hook may move out
    grad_q, delta = torch.empty_like(grad_out), torch.empty_like(highest)
    shared = dict(WIDTH=width, MAIN=main, TAIL=tail, ALIGN=alignment(q, k, v, width=width), CAUSAL=causal, **FUSED)
    inputs = q, q.stride()[:3], k, k.stride()[:3], v, v.stride()[:3]
    scale = width**-0.5
    with torch.cuda.device_of(q):
        tile = tiles("queries", width, q)
        columns = tile.columns or main
        queries_kernel[(triton.cdiv(n, tile.queries), heads, b * main // columns)](
            *inputs,
            out,
            grad_out,
            highest,
            total,
            delta,
            grad_q,
            scale,
            n,
            m,
            COLUMNS=columns,
            RAGGED=m % tile.keys > 0,
            **tile.blocks(),
            **shared,
        )

        tile = tiles("keys", width, q)
        columns = tile.columns or main
        blocks, parts = triton.cdiv(m, tile.keys), main // columns
        span = queries_per_program(n, tile.queries, blocks * heads * b * parts, processors(q.device))
        splits = triton.cdiv(n, span)
        sums = [k.new_empty(splits, b, m, heads, width, dtype=torch.float32 if splits > 1 else k.dtype) for _ in "kv"]
        keys_kernel[(blocks * splits, heads, b * parts)](
            *inputs,
            grad_out,
            highest,
            total,
            delta,
            *sums,
            scale,
            n,
            m,
            span,
            COLUMNS=columns,
            RAGGED=n % tile.queries > 0,
            **tile.blocks(),
            **shared,
        )
    grad_k, grad_v = (x.sum(0).to(k.dtype) if splits > 1 else x[0] for x in sums)
    return tuple(x.transpose(1, 2) for x in (grad_q, grad_k, grad_v))


def queries_per_program(n: int, block: int, programs: int, processors: int) -> int:
    """All of the n queries, or where the keys alone make too few programs, a share: a multiple of `block`."""
    splits = max(1, min(2 * processors // programs, triton.cdiv(n, block)))
    return triton.cdiv(triton.cdiv(n, splits), block) * block
