"""The steps that the kernels of attention share: load a block, multiply two, mask the scores, store the result.

The d columns of a head are held as two blocks, MAIN and TAIL wide, since blocks are powers of two: 40 = 32 + 8 (of 16).
"""

import math

import triton
import triton.language as tl

from .precision import dot, rounded

LOG2_E: tl.constexpr = tl.constexpr(math.log2(math.e))


@triton.jit
def load(
    start,
    stride,
    length,
    ROWS: tl.constexpr,
    FIRST: tl.constexpr,
    COLUMNS: tl.constexpr,
    WIDTH: tl.constexpr,
    RAGGED: tl.constexpr,
):
    """ROWS rows from `start`, and of each the COLUMNS columns from FIRST; zeros beyond `length` rows and WIDTH."""
    rows, columns = tl.arange(0, ROWS), FIRST + tl.arange(0, COLUMNS)
    pointers = start + rows[:, None] * stride + columns[None, :]
    if RAGGED or FIRST + COLUMNS > WIDTH:
        return tl.load(pointers, (rows < length)[:, None] & (columns < WIDTH)[None, :], other=0.0)
    else:
        return tl.load(pointers)


@triton.jit
def load_both(
    start,
    stride,
    length,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    MAIN: tl.constexpr,
    TAIL: tl.constexpr,
    RAGGED: tl.constexpr,
):
    """The main columns and the tail of ROWS rows; without a tail the second is the first, and unused."""
    main = load(start, stride, length, ROWS, 0, MAIN, WIDTH, RAGGED)
    tail = main
    if TAIL:
        tail = load(start, stride, length, ROWS, MAIN, TAIL, WIDTH, RAGGED)
    return main, tail


@triton.jit
def dot_both(a, a_tail, b, b_tail, TAIL: tl.constexpr):
    """a @ b.T over all columns of both: (rows of a, rows of b)."""
    sum = dot(a, tl.trans(b), tl.zeros([a.shape[0], b.shape[0]], tl.float32))
    if TAIL:
        sum = dot(a_tail, tl.trans(b_tail), sum)
    return sum


@triton.jit
def store(start, stride, length, value, FIRST: tl.constexpr, WIDTH: tl.constexpr):
    rows, columns = tl.arange(0, value.shape[0]), FIRST + tl.arange(0, value.shape[1])
    pointers = start + rows[:, None] * stride + columns[None, :]
    tl.store(pointers, rounded(value, start.dtype.element_ty), (rows < length)[:, None] & (columns < WIDTH)[None, :])


@triton.jit
def store_both(start, stride, length, main, tail, WIDTH: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr):
    store(start, stride, length, main, 0, WIDTH)
    if TAIL:
        store(start, stride, length, tail, MAIN, WIDTH)


@triton.jit
def visible(scores, queries, keys, m, CAUSAL: tl.constexpr):
    """scores, but -inf for keys that do not exist and, if causal, for keys later than the query."""
    scores = tl.where(keys < m, scores, -float("inf"))
    if CAUSAL:
        scores = tl.where(keys <= queries, scores, -float("inf"))
    return scores
