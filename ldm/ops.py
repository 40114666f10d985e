"""The few numerical operations of the networks: a readable reference, PyTorch's fast version, and our Triton kernel.

Letters: b batch, n image or text tokens, m keys, d width of one head, c channels.
`with ops.backend("reference"): ...` runs every network in the block through the reference, "triton" through the kernels
of ldm/kernels. Gradients are taken inside the block too: checkpointing computes parts of the forward pass again.
"""

import math
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from torch import Tensor, nn

BACKENDS = ("reference", "torch", "triton")
_backend = "torch"


@contextmanager
def backend(name: str):
    """Choose the implementation of every operation inside the block; the previous one returns at its end.

    Raises ValueError for a name that is not in BACKENDS.
    """
    global _backend
    if name not in BACKENDS:
        raise ValueError(f"unknown backend {name!r}: choose one of {', '.join(BACKENDS)}")
    previous, _backend = _backend, name
    try:
        yield
    finally:
        _backend = previous


def attention(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> Tensor:
    """Softmax attention (arXiv 1706.03762): q (b heads n d), k and v (b heads m d) -> (b heads n d)."""
    if _backend == "reference":
        return attention_reference(q, k, v, causal)
    if _backend == "triton":
        from .kernels.attention import attention as fused

        return fused(q, k, v, causal)
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
        self.heads, self.causal = heads, causal

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (rearrange(a, "b n (heads d) -> b heads n d", heads=self.heads) for a in (q, k, v))
        return rearrange(attention(q, k, v, self.causal), "b heads n d -> b n (heads d)")


def group_norm(x: Tensor, norm: nn.GroupNorm, silu: bool = False, shift: Tensor | None = None) -> Tensor:
    """Group normalisation (arXiv 1803.08494) of x (b c h w) with the parameters of `norm`, then SiLU if asked.

    shift (b c), such as the time embedding, is added to x first.
    """
    if _backend == "triton":
        from .kernels.group_norm import group_norm as fused

        return fused(x, norm.weight, norm.bias, norm.num_groups, norm.eps, silu, shift)
    if shift is not None:
        x = x + rearrange(shift, "b c -> b c 1 1")
    if _backend == "reference":
        x = group_norm_reference(x, norm)
        return x * x.sigmoid() if silu else x
    x = norm(x)
    return F.silu(x) if silu else x


def group_norm_reference(x: Tensor, norm: nn.GroupNorm) -> Tensor:
    groups = rearrange(x, "b (g c) h w -> b g (c h w)", g=norm.num_groups)
    mean = groups.mean(-1, keepdim=True)
    var = (groups - mean).square().mean(-1, keepdim=True)
    groups = (groups - mean) / (var + norm.eps).sqrt()
    x = groups.reshape(x.shape)
    return x * rearrange(norm.weight, "c -> c 1 1") + rearrange(norm.bias, "c -> c 1 1")


def layer_norm(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    """Layer normalisation (arXiv 1607.06450) over the last axis with the parameters of `norm`."""
    if _backend == "reference":
        mean = x.mean(-1, keepdim=True)
        var = (x - mean).square().mean(-1, keepdim=True)
        return (x - mean) / (var + norm.eps).sqrt() * norm.weight + norm.bias
    if _backend == "triton":
        from .kernels.layer_norm import layer_norm as fused

        return fused(x, norm.weight, norm.bias, norm.eps)
    return norm(x)


def add_layer_norm(x: Tensor, residual: Tensor, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
    """x + residual, and the layer normalisation of that: one pass over memory where the backend can."""
    if _backend == "triton":
        from .kernels.layer_norm import add_layer_norm as fused

        return fused(x, residual, norm.weight, norm.bias, norm.eps)
    x = x + residual
    return x, layer_norm(x, norm)


def geglu(x: Tensor) -> Tensor:
    """Gated GELU (arXiv 2002.05202): the first half of the last axis times gelu of the second, the erf form."""
    if _backend == "triton":
        from .kernels.geglu import geglu as fused

        return fused(x)
    value, gate = x.chunk(2, dim=-1)
    if _backend == "reference":
        return value * gate * 0.5 * (1 + torch.erf(gate / math.sqrt(2)))
    return value * F.gelu(gate)


def sinusoid(values: Tensor, width: int) -> Tensor:
    """Sinusoidal embedding (arXiv 1706.03762) of numbers (n): (n width) float32, cosines first, then sines."""
    half = width // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32, device=values.device) / half)
    angles = values.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)
