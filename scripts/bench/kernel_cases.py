"""What `time_kernels.py` times: published shapes, and for each our Triton kernel beside PyTorch's own ways.

Every contender of a case takes the same inputs and returns the same results, one tensor or several.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ldm.kernels import attention, geglu, group_norm, layer_norm

BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
FIRST = (
    "SDXL: 2x10x4096, 4096",
    "SD 1.5: 2x8x4096, 4096",
    "SDXL: 2x10x4096, 77",
    "SD 1.5: 2x8x4096, 77",
    "VAE: 1x1x16384",
    "VAE: 1x128x1024x1024",
    "VAE: 1x256x1024x1024",
    "VAE: 1x512x512x512",
    "SDXL: 2x20x1024, 1024",
)


@dataclass(frozen=True)
class Case:
    """work: FLOP, or bytes that must be moved."""

    name: str
    contenders: dict[str, Callable]
    inputs: list[tuple[int, ...]]  # shapes
    work: float
    backward_work: float
    unit: str  # TFLOP/s or GB/s
    layout: Callable = lambda x: x  # memory layout of the first input

    @property
    def exact(self) -> Callable:
        """A contender that is right in float32."""
        return self.contenders.get("native") or self.contenders["math"]


def merge_heads(out: Tensor) -> Tensor:
    """(b heads n d) -> (b n heads*d), the input of the next layer: a copy if the kernel wrote another order."""
    return out.transpose(1, 2).flatten(2)


def make_attention_case(name: str, b: int, heads: int, n: int, m: int, d: int, causal: bool = False) -> Case:
    """n queries and m keys of width d; the layout of the inputs is that of the networks, (b n heads d)."""

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return merge_heads(attention.attention(q, k, v, causal))

    def default(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return merge_heads(F.scaled_dot_product_attention(q, k, v, is_causal=causal))

    def with_backend(backend: SDPBackend) -> Callable:
        def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            with sdpa_kernel(backend):
                return default(q, k, v)

        return call

    contenders = {"ours": ours, "default": default}
    for key, backend in BACKENDS.items():
        contenders[key] = with_backend(backend)
    flop = 4 * b * heads * n * m * d  # two matrix products
    if causal:
        flop /= 2
    return Case(
        f"attention, {name}: {b}x{heads}x{n}, {m} keys, head {d}",
        contenders,
        [(b, n, heads, d), (b, m, heads, d), (b, m, heads, d)],
        flop,
        2.5 * flop,
        "TFLOP/s",
    )


def make_group_norm_case(name: str, b: int, c: int, size: int, channels_last: bool, shift: bool = False) -> Case:
    """Pictures (b c size size). shift: a number for each channel is added first, as the UNet adds its time."""

    def native(x: Tensor, weight: Tensor, bias: Tensor, shift: Tensor | None = None) -> Tensor:
        if shift is not None:
            x = x + shift[:, :, None, None]
        return F.silu(F.group_norm(x, 32, weight, bias, 1e-5))

    def ours(x: Tensor, weight: Tensor, bias: Tensor, shift: Tensor | None = None) -> Tensor:
        return group_norm.group_norm(x, weight, bias, 32, 1e-5, True, shift)

    inputs = [(b, c, size, size), (c,), (c,)]
    if shift:
        inputs.append((b, c))
    summed = " of a sum" if shift else ""
    order = "channels-last" if channels_last else "contiguous"
    traffic = b * c * size * size * 2  # bytes of 16-bit numbers: read twice, written once
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return Case(
        f"GroupNorm + SiLU{summed}, {name}: {b}x{c}x{size}x{size}, {order}",
        {"ours": ours, "native": native},
        inputs,
        3 * traffic,
        5 * traffic,
        "GB/s",
        lambda x: x.contiguous(memory_format=layout),
    )


def make_layer_norm_case(r: int, d: int) -> Case:
    """r rows of width d. The sum is a result, too: two tensors come in and two go out, forward and backward."""

    def native(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        total = x + y
        return total, F.layer_norm(total, (d,), weight, bias)

    def ours(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        return layer_norm.add_layer_norm(x, y, weight, bias, 1e-5)

    traffic = 4 * r * d * 2
    return Case(
        f"add, LayerNorm: {r}x{d}",
        {"ours": ours, "native": native},
        [(r, d), (r, d), (d,), (d,)],
        traffic,
        traffic,
        "GB/s",
    )


def make_geglu_case(r: int, d: int, bias: bool = False) -> Case:
    """As in the networks, whose projection adds its own bias; adding it in the kernel is an experiment."""

    def native(x: Tensor, bias: Tensor | None = None) -> Tensor:
        if bias is not None:
            x = x + bias
        value, gate = x.chunk(2, dim=-1)
        return value * F.gelu(gate)

    name = f"GEGLU: {r}x{d}"
    inputs: list[tuple[int, ...]] = [(r, 2 * d)]
    if bias:
        name = f"fusion experiment: bias, {name}"
        inputs.append((2 * d,))
    traffic = 2 * r * d  # bytes of 16-bit numbers
    return Case(name, {"ours": geglu.geglu, "native": native}, inputs, 3 * traffic, 5 * traffic, "GB/s")


ATTENDS = (  # heads, tokens and width of a head in self-attention; prompts have 77 tokens
    ("SD 1.5", 8, 4096, 40),
    ("SD 1.5", 8, 1024, 80),
    ("SD 1.5", 8, 256, 160),
    ("SD 1.5", 8, 64, 160),
    ("SD 2.1", 5, 9216, 64),
    ("SD 2.1", 10, 2304, 64),
    ("SD 2.1", 20, 576, 64),
    ("SD 2.1", 20, 144, 64),
    ("SDXL", 10, 4096, 64),
    ("SDXL", 20, 1024, 64),
)


def cases() -> list[Case]:
    """Shapes of SD 1.5 at 512, SD 2.1 at 768 and SDXL at 1024 pixels, with guidance: batch 2; the VAE's: batch 1.
    The most important come first."""
    found = list_attention_cases() + list_group_norm_cases(True) + list_group_norm_cases(False)
    for r, d in ((8192, 320), (18432, 320), (8192, 640), (2048, 1280), (154, 768)):
        found.append(make_layer_norm_case(r, d))
    for r, d in ((8192, 1280), (18432, 1280), (8192, 2560), (2048, 5120)):
        found.append(make_geglu_case(r, d))
    found.append(make_geglu_case(8192, 2560, bias=True))
    return sorted(found, key=rank)


def list_attention_cases() -> list[Case]:
    found = []
    for name, heads, n, d in ATTENDS:
        for m in (n, 77):
            found.append(make_attention_case(name, 2, heads, n, m, d))
    for n in (4096, 9216, 16384):
        found.append(make_attention_case("VAE", 1, 1, n, n, 512))
    for heads in (12, 16, 20):
        found.append(make_attention_case("text tower", 2, heads, 77, 77, 64, causal=True))
    return found


def list_group_norm_cases(channels_last: bool) -> list[Case]:
    found = []
    for c, size in ((512, 128), (512, 256), (512, 512), (256, 1024), (128, 1024)):
        found.append(make_group_norm_case("VAE", 1, c, size, channels_last))
    for c, size in ((320, 128), (640, 64), (1280, 32), (320, 64), (1280, 8)):
        for shift in (False, True):
            found.append(make_group_norm_case("UNet", 2, c, size, channels_last, shift))
    for c, size in ((960, 128), (2560, 32)):
        found.append(make_group_norm_case("UNet", 2, c, size, channels_last))
    return found


def rank(case: Case) -> int:
    """Its place in FIRST; all others come after."""
    for i, part in enumerate(FIRST):
        if part in case.name:
            return i
    return len(FIRST)


def shrink(case: Case) -> Case:
    """At most 24 tokens, rows or prompt words, two heads, 64 channels of 5 x 5 pixels: for a machine without a GPU."""
    if "GroupNorm" in case.name:
        limits = {4: (2, 64, 5, 5), 2: (2, 64), 1: (64,)}
    else:
        limits = {4: (1, 24, 2, 512), 2: (24, 20480), 1: (20480,)}
    inputs = [tuple(map(min, shape, limits[len(shape)])) for shape in case.inputs]
    contenders = {name: call for name, call in case.contenders.items() if name in ("ours", "native", "math")}
    return replace(case, inputs=inputs, contenders=contenders, work=0, backward_work=0)
