"""The few numerical operations of the networks: a readable reference, PyTorch's fast version, and our Triton kernel.

Letters: b batch, n image or text tokens, m keys, d width of one head, c channels.
`with ops.backend("reference"): ...` runs every network in the block through the reference, "triton" through the kernels
of ldm/kernels.
"""

import math
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from types import ModuleType

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from torch import Tensor, nn

BACKENDS = ("reference", "torch", "triton")
_backend = ContextVar("ldm.ops.backend", default="torch")
_queries = ContextVar("ldm.ops.queries", default=0)


@contextmanager
def backend(name: str) -> Generator[None]:
    """Choose the implementation of every operation inside the block; the previous one returns at its end.

    The choice holds in this thread and in this asyncio task. Other threads have their own, "torch" at first; a task
    starts with the choice of the code that made it.

    Gradients: the backward pass of an operation belongs to the implementation that ran forward, wherever `backward()`
    is called. Only checkpointing runs operations again, and it asks for the backend again. PyTorch does that for CPU
    tensors in the thread that called `backward()`, and for CUDA tensors in a thread of its own, which no block
    reaches. `keep_backend` makes both right.

    Raises ValueError for a name that is not in BACKENDS.
    """
    if name not in BACKENDS:
        raise ValueError(f"unknown backend {name!r}: choose one of {', '.join(BACKENDS)}")
    token = _backend.set(name)
    try:
        yield
    finally:
        _backend.reset(token)


def keep_backend() -> tuple[AbstractContextManager, AbstractContextManager]:
    """The contexts of a checkpoint that runs forward again on the backend that it ran on first, in any thread.

    torch.utils.checkpoint.checkpoint(block, x, use_reentrant=False, context_fn=ops.keep_backend)
    """
    return nullcontext(), KeptBackend(_backend.get())


class KeptBackend(AbstractContextManager):
    """`backend(name)` for several blocks in turn: each backward pass through a checkpoint opens it again."""

    def __init__(self, name: str):
        self.name = name

    def __enter__(self) -> None:
        self.block = backend(self.name)
        self.block.__enter__()

    def __exit__(self, *error) -> None:
        self.block.__exit__(*error)


@contextmanager
def attention_chunks(queries: int) -> Generator[None]:
    """Compute every attention inside the block for at most so many queries at a time: the same sums, to rounding.

    The scores of all queries and keys are n * m numbers for each head. PyTorch's fused attention never holds them; the
    reference and PyTorch's formula for what it cannot fuse (all of it on some devices) do, and hold a chunk of them
    here. The choice holds as that of `backend` does. Raises ValueError for less than one query.
    """
    if queries < 1:
        raise ValueError(f"chunks of {queries} queries: choose at least 1, such as 1024")
    token = _queries.set(queries)
    try:
        yield
    finally:
        _queries.reset(token)


def triton_kernels() -> ModuleType:
    """ldm.kernels. Imported with the first call, because triton is slow to import and missing on some machines."""
    from . import kernels

    return kernels


def attention(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> Tensor:
    """Softmax attention (arXiv 1706.03762): q (b heads n d), k and v (b heads m d) -> (b heads n d)."""
    if _backend.get() != "torch" or _queries.get():
        return chosen_attention(q, k, v, causal, _queries.get())
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal)


def chosen_attention(q: Tensor, k: Tensor, v: Tensor, causal: bool, queries: int) -> Tensor:
    """Attention by the backend that was chosen, for so many queries at a time, or for all if that is 0."""
    if queries and not causal:  # causal attention is that of the texts, whose 77 tokens need no chunks
        parts = [chosen_attention(part, k, v, causal, 0) for part in q.split(queries, dim=2)]
        return torch.cat(parts, dim=2)
    if _backend.get() == "reference":
        return attention_reference(q, k, v, causal)
    if _backend.get() == "triton":
        return triton_kernels().attention.attention(q, k, v, causal)
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal)


def attention_reference(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> Tensor:
    scores = einsum(q, k, "b heads n d, b heads m d -> b heads n m") / math.sqrt(q.shape[-1])
    if causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
    return einsum(scores.softmax(-1), v, "b heads n m, b heads m d -> b heads n d")


class Attend(nn.Module):
    """The one seam through which every attention of every network passes.

    q (b n heads*d), k and v (b m heads*d) -> (b n heads*d). It holds no parameters: replace it to change how
    attention is computed, hook it to see what it is given.
    """

    def __init__(self, heads: int, causal: bool = False):
        super().__init__()
        self.heads = heads
        self.causal = causal

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (rearrange(a, "b n (heads d) -> b heads n d", heads=self.heads) for a in (q, k, v))
        return rearrange(attention(q, k, v, self.causal), "b heads n d -> b n (heads d)")


def group_norm(x: Tensor, norm: nn.GroupNorm, silu: bool = False, shift: Tensor | None = None) -> Tensor:
    """Group normalisation (arXiv 1803.08494) of x (b c h w) with the parameters of `norm`, then SiLU if asked. shift
    (b c), such as the time embedding, is added to x first."""
    if _backend.get() == "reference":
        return group_norm_reference(x, norm, silu, shift)
    if _backend.get() == "triton":
        return triton_kernels().group_norm.group_norm(x, norm.weight, norm.bias, norm.num_groups, norm.eps, silu, shift)
    if shift is not None:
        x = x + rearrange(shift, "b c -> b c 1 1")
    x = norm(x)
    return F.silu(x) if silu else x


def group_norm_reference(x: Tensor, norm: nn.GroupNorm, silu: bool = False, shift: Tensor | None = None) -> Tensor:
    if shift is not None:
        x = x + rearrange(shift, "b c -> b c 1 1")
    groups = rearrange(x, "b (g c) h w -> b g (c h w)", g=norm.num_groups)
    mean = groups.mean(-1, keepdim=True)
    var = (groups - mean).square().mean(-1, keepdim=True)
    x = ((groups - mean) / (var + norm.eps).sqrt()).reshape(x.shape)
    x = x * rearrange(norm.weight, "c -> c 1 1") + rearrange(norm.bias, "c -> c 1 1")
    return x * x.sigmoid() if silu else x


def layer_norm(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    """Layer normalisation (arXiv 1607.06450) over the last axis with the parameters of `norm`."""
    if _backend.get() == "reference":
        return layer_norm_reference(x, norm)
    if _backend.get() == "triton":
        return triton_kernels().layer_norm.layer_norm(x, norm.weight, norm.bias, norm.eps)
    return norm(x)


def layer_norm_reference(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    var = (x - mean).square().mean(-1, keepdim=True)
    return (x - mean) / (var + norm.eps).sqrt() * norm.weight + norm.bias


def add_layer_norm(x: Tensor, residual: Tensor, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
    """x + residual, and the layer normalisation of that: one pass over memory where the backend can."""
    if _backend.get() == "triton":
        return triton_kernels().layer_norm.add_layer_norm(x, residual, norm.weight, norm.bias, norm.eps)
    x = x + residual
    return x, layer_norm(x, norm)


def geglu(x: Tensor) -> Tensor:
    """Gated GELU (arXiv 2002.05202): the first half of the last axis times gelu of the second, the erf form."""
    if _backend.get() == "reference":
        return geglu_reference(x)
    if _backend.get() == "triton":
        return triton_kernels().geglu.geglu(x)
    value, gate = x.chunk(2, dim=-1)
    return value * F.gelu(gate)


def geglu_reference(x: Tensor) -> Tensor:
    value, gate = x.chunk(2, dim=-1)
    return value * gate * 0.5 * (1 + torch.erf(gate / math.sqrt(2)))


def sinusoid(values: Tensor, width: int) -> Tensor:
    """Sinusoidal embedding (arXiv 1706.03762) of numbers (n): (n width) float32, cosines first, then sines."""
    half = width // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32, device=values.device) / half)
    angles = values.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def check_finite(x: Tensor, stage: str) -> None:
    """Raises FloatingPointError, which names the stage, if x holds NaN or infinity."""
    if not x.isfinite().all():
        raise FloatingPointError(f"{stage} produced NaN or infinity: try dtype float32 or bfloat16, or other weights")
