"""Every Triton kernel against the reference in float64, on a GPU or, without one, in Triton's interpreter.

The rule is FlashAttention's: the error of a result is at most twice that of plain PyTorch in the same precision, of a
gradient three times, plus two rounding units of the largest value, or six in float32.
"""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm import ops
from ldm.kernels import attention, attention_tiles, geglu, group_norm, hardware, layer_norm, pixels
from support import quick_interpreter

quick_interpreter.install()
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
TYPES = pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float16", "bfloat16"])


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def both(operation, inputs: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Results, and the gradients of all inputs for random gradients of the results."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    results = operation(*inputs)
    results = results if isinstance(results, tuple) else (results,)
    grads = [randn(*x.shape, seed=90 + i).to(DTYPES[1]).to(x) for i, x in enumerate(results)]  # exact in all but bf16
    grads = [g.bfloat16().to(g) for g in grads]
    return [x.detach() for x in results], list(torch.autograd.grad(results, inputs, grads))


def assert_follows_the_rule(kernel, plain, inputs: list[Tensor], dtype: torch.dtype) -> None:
    inputs = [x.to(DEVICE, dtype) for x in inputs]
    exact = both(plain, [x.double() for x in inputs])
    ours, theirs = both(kernel, inputs), both(plain, inputs)
    # In float32 PyTorch's own error on tensors this small differs twofold between instruction sets: measured for one
    # gradient 3.4e-7 without AVX and 5.5e-7 with AVX2, where ours is 1.5e-6 in both.
    units = 6 if dtype == torch.float32 else 2
    for times, a, b, truth in zip((2, 3), ours, theirs, exact):
        for i, (x, y, true) in enumerate(zip(a, b, truth, strict=True)):
            assert x.shape == true.shape and x.dtype == dtype
            error, allowed = (x - true).abs().max(), (y - true).abs().max()
            unit = torch.finfo(dtype).eps * true.abs().max()
            assert error <= times * allowed + units * unit, (["result", "gradient"][times - 2], i, error, allowed, unit)


# (images, heads, queries, keys, width): published heads, fewer tokens; blocks are 16 to 128 rows
PLAIN = [
    (1, 1, 40, 130, 40),
    (1, 2, 32, 64, 40),
    (3, 1, 17, 33, 40),  # SD 1.5, its finest level
    (1, 1, 144, 144, 64),
    (2, 1, 32, 128, 64),
    (1, 2, 7, 130, 64),  # SD 2, SDXL
    (1, 1, 70, 70, 80),
    (2, 1, 16, 65, 80),
    (1, 1, 64, 64, 160),
    (1, 1, 18, 140, 160),
    (1, 1, 17, 36, 512),
    (1, 1, 9, 20, 512),
    (1, 1, 1, 33, 512),  # the autoencoder
    (1, 2, 20, 70, 4),
    (2, 2, 24, 24, 8),
    (1, 1, 20, 140, 12),
    (1, 2, 30, 30, 16),
    (1, 1, 50, 50, 48),  # tiny ones
    (1, 1, 17, 30, 24),
    (1, 1, 20, 20, 96),
    (1, 1, 20, 20, 1),
]
PROMPTS = [
    (1, 1, 130, 77, 40),
    (1, 2, 64, 77, 64),
    (3, 1, 9, 77, 80),
    (1, 1, 33, 77, 160),
    (1, 1, 33, 154, 64),
    (1, 1, 20, 231, 40),
    (1, 1, 1, 77, 64),
    (2, 3, 20, 7, 16),
]
CAUSAL = [(1, 1, 77, 77, 64), (2, 2, 24, 24, 16), (1, 1, 150, 150, 64), (1, 1, 40, 100, 40)]


def qkv(b: int, heads: int, n: int, m: int, width: int, seed: int = 0) -> list[Tensor]:
    return [randn(b, heads, length, width, seed=seed + i) for i, length in enumerate((n, m, m))]


def plain(causal: bool):
    return lambda q, k, v: ops.attention_reference(q, k, v, causal)


def fused(causal: bool):
    return lambda q, k, v: attention.attention(q, k, v, causal)


@TYPES
@pytest.mark.parametrize("shape", PLAIN + PROMPTS, ids=str)
def test_attention(shape, dtype):
    assert_follows_the_rule(fused(False), plain(False), qkv(*shape), dtype)


@TYPES
@pytest.mark.parametrize("shape", CAUSAL, ids=str)
def test_causal_attention(shape, dtype):
    assert_follows_the_rule(fused(True), plain(True), qkv(*shape), dtype)


@TYPES
@pytest.mark.parametrize("keys", [77, 150])
def test_attention_with_scores_of_ten_thousand(keys, dtype):
    """One key wins everything; its neighbours overflow or vanish unless the largest score is subtracted first."""
    q, k, v = qkv(1, 1, 40, keys, 64, seed=5)
    q, k = 40 * q.sign(), 31.25 * k.sign()  # exact in every type
    k[:, :, 3], k[:, :, 70] = q[:, :, 5] / 40 * 31.25, -q[:, :, 5] / 40 * 31.25
    scores = (q @ k.transpose(-1, -2) / 8)[0, 0, 5]
    assert (scores.min(), scores.max()) == (-1e4, 1e4)
    scaled_first = lambda q, k, v: ((q / 8) @ k.transpose(-1, -2)).softmax(-1) @ v  # else float16 overflows
    assert_follows_the_rule(fused(False), scaled_first, [q, k, v], dtype)


def test_attention_to_one_key():
    """The output is its value, and how much it is liked does not matter: a gradient of zero, to rounding."""
    q, k, v = qkv(1, 1, 40, 1, 64)
    (out,), (grad_q, grad_k, grad_v) = both(fused(False), [x.to(DEVICE) for x in (q, k, v)])
    assert torch.equal(out, v.expand_as(out).to(out))
    assert max(grad_q.abs().max(), grad_k.abs().max()) < 2e-5 and grad_v.abs().max() > 1


@TYPES
@pytest.mark.parametrize("width", [40, 64])
def test_attention_of_values_around_a_hundred(width, dtype):
    q, k, v = qkv(1, 1, 40, 70, width, seed=6)
    assert_follows_the_rule(fused(False), plain(False), [q, k + 1, v + 100], dtype)


@TYPES
@pytest.mark.parametrize("width", [40, 64])
def test_attention_reads_a_packed_projection_and_writes_tokens(width, dtype):
    """Parts of one buffer are read where they lie, and what comes out needs no transpose: equal bits either way."""
    packed = randn(2, 50, 3, 2, width, seed=7).to(DEVICE, dtype)
    q, k, v = (packed[:, :, i].transpose(1, 2) for i in range(3))
    out = attention.attention(q, k, v)
    assert torch.equal(out, attention.attention(*(x.contiguous() for x in (q, k, v))))
    assert out.transpose(1, 2).is_contiguous()
    assert q.data_ptr() == packed.data_ptr() and not q.is_contiguous()


@TYPES
@pytest.mark.parametrize(
    "shape, causal", [((1, 2, 50, 77, 64), False), ((1, 1, 40, 150, 40), False), ((1, 1, 30, 30, 16), True)], ids=str
)
def test_log_sum_exp(shape, causal, dtype):
    q, k, v = (x.to(DEVICE, dtype) for x in qkv(*shape))
    scores = q.double() @ k.double().transpose(-1, -2) / math.sqrt(shape[-1])
    if causal:
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf)
    _, highest, total = attention.forward(q, k, v, causal)
    assert highest.dtype == total.dtype == torch.float32
    lse = (highest.double() + total.double().log2()) * math.log(2)
    assert (lse - scores.logsumexp(-1)).abs().max() < 2e-6  # a few units of float32: values are about 5


def test_attention_gives_the_same_bits_every_time():
    """With 150 queries and 77 keys, several programs sum for the same keys."""
    inputs = [x.to(DEVICE, torch.float16) for x in qkv(1, 1, 150, 77, 64)]
    first, second = both(fused(False), inputs), both(fused(False), inputs)
    assert all(torch.equal(a, b) for a, b in zip(itertools.chain(*first), itertools.chain(*second)))


@pytest.mark.parametrize("width", range(1, 161))
def test_blocks_cover_every_head(width):
    main, tail = attention_tiles.columns_in_blocks(width)
    assert main + tail >= width > (main if tail else 0)
    assert all(x in (0, 16, 32, 64, 128, 256) for x in (main, tail))


def test_published_heads_are_not_padded_to_the_next_power():
    pairs = {width: attention_tiles.columns_in_blocks(width) for width in (40, 64, 80, 160, 512)}
    assert pairs == {40: (32, 16), 64: (64, 0), 80: (64, 16), 160: (128, 32), 512: (512, 0)}


# (images, channels, height, width, groups): published channels per group, smaller pictures
PICTURES = [
    (1, 32, 12, 12, 8),
    (2, 40, 9, 7, 4),
    (1, 4, 36, 36, 2),
    (2, 64, 5, 3, 2),
    (3, 30, 4, 4, 1),
    (1, 80, 8, 8, 1),
    (1, 64, 1, 1, 4),
    (2, 6, 8, 9, 3),
]


def picture_parameters(b: int, c: int, h: int, w: int, channels_last: bool, offset: float) -> list[Tensor]:
    x = randn(b, c, h, w, seed=1) * (1 + torch.arange(c)[:, None, None] % 3) + offset
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    return [x, 1 + 0.3 * randn(c, seed=2), randn(c, seed=3), randn(b, c, seed=4)]


def plain_group_norm(groups: int, silu: bool):
    """On contiguous pictures: PyTorch's own channels-last one loses digits on a CPU where the mean is large."""

    def operation(x, weight, bias, shift=None):
        x = x.contiguous() if shift is None else x.contiguous() + shift[:, :, None, None]
        x = F.group_norm(x, groups, weight, bias, 1e-5)
        return F.silu(x) if silu else x

    return operation


@TYPES
@pytest.mark.parametrize("channels_last", [False, True], ids=["pixels", "channels"])
@pytest.mark.parametrize("shape", PICTURES, ids=str)
def test_group_norm_and_silu(shape, channels_last, dtype):
    *size, groups = shape
    inputs = picture_parameters(*size, channels_last, offset=1)[:3]
    kernel = lambda x, weight, bias: group_norm.group_norm(x, weight, bias, groups, 1e-5, silu=True)
    assert_follows_the_rule(kernel, plain_group_norm(groups, True), inputs, dtype)


@TYPES
@pytest.mark.parametrize("channels_last", [False, True], ids=["pixels", "channels"])
@pytest.mark.parametrize("silu", [False, True], ids=["", "silu"])
def test_group_norm_of_a_sum(silu, channels_last, dtype):
    inputs = picture_parameters(2, 40, 9, 7, channels_last, offset=0)
    kernel = lambda x, weight, bias, shift: group_norm.group_norm(x, weight, bias, 4, 1e-5, silu, shift)
    assert_follows_the_rule(kernel, plain_group_norm(4, silu), inputs, dtype)


@TYPES
@pytest.mark.parametrize("channels_last", [False, True], ids=["pixels", "channels"])
def test_group_norm_around_a_hundred(channels_last, dtype):
    """E[x^2] - E[x]^2 would have an error of 4e-3 here, in float32."""
    inputs = picture_parameters(1, 16, 24, 24, channels_last, offset=100)[:3]
    kernel = lambda x, weight, bias: group_norm.group_norm(x, weight, bias, 4, 1e-5)
    assert_follows_the_rule(kernel, plain_group_norm(4, False), inputs, dtype)
    if dtype == torch.float32:
        x = inputs[0].to(DEVICE)
        exact = plain_group_norm(4, False)(*(a.to(DEVICE).double() for a in inputs))
        assert (kernel(*(a.to(DEVICE) for a in inputs)) - exact).abs().max() < 2e-5  # x itself is rounded by 4e-6
        assert kernel(*(a.to(DEVICE) for a in inputs)).stride() == x.stride()


def test_statistics_do_not_depend_on_how_pixels_are_split(monkeypatch):
    x, weight, bias, shift = (a.to(DEVICE) for a in picture_parameters(1, 8, 64, 64, False, offset=100))
    found = []
    for programs in (1, 8, 64):
        monkeypatch.setattr(pixels, "PROGRAMS_PER_PROCESSOR", programs)
        found.append(group_norm.statistics(x, shift, 2, 1e-5))
    groups = (x.double() + shift.double()[:, :, None, None]).reshape(1, 2, -1)
    for mean, rstd in found:
        assert (mean - groups.mean(-1)).abs().max() < 2e-5
        assert (rstd * (groups.var(-1, correction=0) + 1e-5).sqrt() - 1).abs().max() < 1e-6


ROWS = [(2, 5, 320), (3, 7, 40), (1, 1280), (9, 640), (2, 7, 768), (1, 1, 16), (9, 1), (5, 100)]


@TYPES
@pytest.mark.parametrize("offset", [0, 100])
@pytest.mark.parametrize("shape", ROWS, ids=str)
def test_layer_norm(shape, offset, dtype):
    d = shape[-1]
    inputs = [randn(*shape, seed=1) + offset, 1 + 0.3 * randn(d, seed=2), randn(d, seed=3)]
    kernel = lambda x, weight, bias: layer_norm.layer_norm(x, weight, bias, 1e-5)
    assert_follows_the_rule(kernel, lambda x, weight, bias: F.layer_norm(x, (d,), weight, bias, 1e-5), inputs, dtype)


@TYPES
@pytest.mark.parametrize("shape", ROWS, ids=str)
def test_add_and_layer_norm(shape, dtype):
    d = shape[-1]
    inputs = [randn(*shape, seed=1), randn(*shape, seed=2), 1 + 0.3 * randn(d, seed=3), randn(d, seed=4)]
    plain = lambda x, y, weight, bias: (x + y, F.layer_norm(x + y, (d,), weight, bias, 1e-5))
    kernel = lambda x, y, weight, bias: layer_norm.add_layer_norm(x, y, weight, bias, 1e-5)
    assert_follows_the_rule(kernel, plain, inputs, dtype)


def plain_geglu(x: Tensor, bias: Tensor | None = None) -> Tensor:
    value, gate = (x if bias is None else x + bias).chunk(2, dim=-1)
    return value * F.gelu(gate)


@TYPES
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("shape", [(2, 5, 640), (3, 7, 40), (40, 514), (1, 2), (2, 1, 32)], ids=str)
def test_geglu(shape, bias, dtype):
    inputs = [3 * randn(*shape, seed=1)] + [randn(shape[-1], seed=2)] * bias
    assert_follows_the_rule(geglu.geglu, plain_geglu, inputs, dtype)


def test_geglu_is_the_erf_form():
    x = torch.linspace(-4, 4, 33)
    x = torch.stack([torch.ones(33), x], dim=1).to(DEVICE)
    exact = x[:, 1].double() * (1 + torch.erf(x[:, 1].double() / math.sqrt(2))) / 2
    assert (geglu.geglu(x)[:, 0] - exact).abs().max() < 1e-6
    assert (F.gelu(x[:, 1], approximate="tanh") - exact).abs().max() > 1e-4


def parameters(*shapes: tuple[int, ...]) -> list[Tensor]:
    return [randn(*shape, seed=i).to(DEVICE).requires_grad_() for i, shape in enumerate(shapes)]


def operations() -> dict[str, tuple]:
    q, k, v = parameters(*[(1, 2, 20, 16)] * 3)
    x, weight, bias, shift = parameters((2, 8, 5, 3), (8,), (8,), (2, 8))
    rows, residual, w, b = parameters((4, 8), (4, 8), (8,), (8,))
    wide, wide_bias = parameters((4, 16), (16,))
    return {
        "attention": (attention.forward, (q, k, v, False)),
        "causal": (attention.forward, (q, k, v, True)),
        "group_norm": (group_norm.forward, (x, weight, bias, None, 2, 1e-5, True)),
        "shift": (group_norm.forward, (x, weight, bias, shift, 2, 1e-5, True)),
        "layer_norm": (layer_norm.forward, (rows, None, w, b, 1e-5)),
        "add": (layer_norm.forward, (rows, residual, w, b, 1e-5)),
        "geglu": (geglu.forward, (wide, None)),
        "bias": (geglu.forward, (wide, wide_bias)),
    }


@pytest.mark.parametrize("name", operations())
def test_operations_are_registered_as_pytorch_wants_them(name):
    operation, arguments = operations()[name]
    assert set(torch.library.opcheck(operation, arguments).values()) == {"SUCCESS"}


def test_group_norm_takes_the_gradient_of_a_sum():
    """Expanded from one number, it has no memory of its own to walk over."""
    x, weight, bias, _ = (a.to(DEVICE) for a in picture_parameters(2, 8, 5, 3, True, offset=0))
    x.requires_grad_()
    ours = torch.autograd.grad(group_norm.group_norm(x, weight, bias, 2, 1e-5, silu=True).sum(), x)[0]
    theirs = torch.autograd.grad(plain_group_norm(2, True)(x, weight, bias).sum(), x)[0]
    assert (ours - theirs).abs().max() < 1e-5


def half(*shape: int) -> Tensor:
    return torch.ones(shape, device=DEVICE, dtype=torch.float16)


@ops.backend("triton")
def of_module(operation, x: Tensor, norm: nn.Module) -> Tensor:
    return operation(x, norm.to(x))


REFUSED = {
    "q is torch.float64": lambda: attention.attention(*[half(1, 1, 4, 8).double()] * 3),
    "k is torch.float32, but q is torch.float16": lambda: attention.attention(
        half(1, 1, 4, 8), half(1, 1, 4, 8).float(), half(1, 1, 4, 8).float()
    ),
    "heads are 161 wide": lambda: attention.attention(*[half(1, 1, 4, 161)] * 3),
    "the last not 1": lambda: attention.attention(*[half(1, 1, 8, 4).transpose(2, 3)] * 3),
    "do not agree": lambda: attention.attention(half(1, 2, 4, 8), half(1, 1, 4, 8), half(1, 1, 4, 8)),
    "k is empty": lambda: attention.attention(half(1, 1, 4, 8), half(1, 1, 0, 8), half(1, 1, 0, 8)),
    "q has shape": lambda: attention.attention(*[half(4, 8)] * 3),
    "x has strides": lambda: group_norm.group_norm(half(1, 4, 8, 8)[:, :, ::2, ::2], half(4), half(4), 2, 1e-5),
    "row after row": lambda: group_norm.group_norm(half(1, 4, 8, 8)[..., :4], half(4), half(4), 2, 1e-5),
    "6 channels do not make 4 groups": lambda: group_norm.group_norm(half(1, 6, 2, 2), half(6), half(6), 4, 1e-5),
    "4 channels do not make 0 groups": lambda: group_norm.group_norm(half(1, 4, 2, 2), half(4), half(4), 0, 1e-5),
    "group_norm: the norm has no weight": lambda: of_module(
        ops.group_norm, half(1, 4, 2, 2), nn.GroupNorm(2, 4, affine=False)
    ),
    "layer_norm: the norm has no bias": lambda: of_module(ops.layer_norm, half(2, 4), nn.LayerNorm(4, bias=False)),
    "weight must be contiguous, of shape": lambda: group_norm.group_norm(half(1, 4, 2, 2), half(3), half(4), 2, 1e-5),
    "shift must be contiguous, of shape": lambda: group_norm.group_norm(
        half(1, 4, 2, 2), half(4), half(4), 2, 1e-5, shift=half(2, 4)
    ),
    "x is not contiguous": lambda: layer_norm.layer_norm(half(4, 8).T, half(4), half(4), 1e-5),
    "rows are 8193 wide": lambda: layer_norm.layer_norm(half(1, 8193), half(8193), half(8193), 1e-5),
    "residual must be": lambda: layer_norm.add_layer_norm(half(2, 8), half(3, 8), half(8), half(8), 1e-5),
    "has no two halves": lambda: geglu.geglu(half(2, 7)),
    "bias must be": lambda: geglu.geglu(half(2, 8), half(4)),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_a_kernel_cannot_do_is_refused_by_name(message):
    with pytest.raises(ValueError, match=message) as error:
        REFUSED[message]()
    assert "\n" not in str(error.value) and str(error.value).startswith("triton ")


def test_tensors_on_the_cpu_are_refused_outside_of_the_interpreter(monkeypatch):
    monkeypatch.setattr(hardware, "INTERPRETED", False)
    with pytest.raises(ValueError, match="x is on the CPU; move it to a GPU, or set TRITON_INTERPRET=1"):
        geglu.geglu(torch.ones(2, 4))


def test_norm_modules_and_kernels_share_their_parameters():
    """The operations of ops take them from modules of PyTorch: the epsilon, too."""
    x = randn(1, 8, 4, 4, seed=1).to(DEVICE) * 1e-2
    norm = nn.GroupNorm(2, 8, eps=1e-3).to(DEVICE)
    with ops.backend("triton"):
        found = ops.group_norm(x, norm, silu=True)
    assert (found - F.silu(norm(x))).abs().max() < 1e-6
