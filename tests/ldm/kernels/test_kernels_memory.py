"""Where the Triton kernels read and write: nothing beyond their tensors, far strides, moved memory, the right GPU."""

import contextlib
import subprocess
import sys

import numpy as np
import pytest
import torch
import triton
from test_kernels import DEVICE, half, operations, parameters, picture_parameters, qkv, randn
from torch import Tensor

from ldm.kernels import attention, geglu, group_norm, group_norm_gradients, hardware, pixels
from support.paths import ROOT

NAN = float("nan")


@pytest.mark.parametrize(
    "shape, causal",
    [
        ((1, 2, 50, 77, 40), False),
        ((1, 1, 50, 150, 64), False),
        ((2, 1, 50, 50, 16), True),
        ((1, 1, 20, 33, 512), False),
    ],
    ids=str,
)
def test_attention_touches_nothing_around_its_inputs(shape, causal):
    """Whatever follows in memory, after the last column, head or token, is NaN, and would spread to all results."""
    inside = []
    for x in qkv(*shape):
        b, heads, length, width = x.shape
        around = torch.full((b, length + 3, heads, width + 3), NAN, device=DEVICE, dtype=torch.float16)
        inside.append(around[:, :length, :, :width].transpose(1, 2).copy_(x).requires_grad_())
    out = attention.attention(*inside, causal)
    grads = torch.autograd.grad(out, inside, randn(*out.shape, seed=9).to(out))
    assert not any(x.isnan().any() for x in (out, *grads))


@pytest.mark.skipif(not hardware.INTERPRETED, reason="only the interpreter tells which addresses a kernel reads")
@pytest.mark.parametrize("keys", [77, 150])
def test_attention_reads_its_inputs_and_no_more(keys, monkeypatch):
    """Also what a mask hides from the results: of the memory around q, k and v, exactly their numbers are read."""
    builder, read = triton.runtime.interpreter.InterpreterBuilder, []
    masked_load = builder.create_masked_load

    def load(self, pointers, mask, *others):
        read.append(pointers.data[mask.data].ravel())
        return masked_load(self, pointers, mask, *others)

    monkeypatch.setattr(builder, "create_masked_load", load)
    inputs = [x.half().requires_grad_() for x in qkv(1, 1, 20, keys, 40)]
    around = [torch.zeros(1, 1, x.shape[2] + 64, 64, dtype=torch.float16) for x in inputs]
    inside = [a[:, :, : x.shape[2], :40].copy_(x).requires_grad_() for a, x in zip(around, inputs)]
    attention.attention(*inside).sum().backward()
    read = np.concatenate(read)
    for buffer, x in zip(around, inside):
        first, rows, columns = x.data_ptr(), np.arange(x.shape[2]), np.arange(40)
        here = np.unique(read[(read >= first) & (read < first + 2 * buffer.numel())])
        assert np.array_equal(here, (first + 2 * (rows[:, None] * 64 + columns)).ravel())


def test_attention_survives_saved_tensors_that_were_moved():
    """Packed by a hook, as `save_on_cpu(pin_memory=True)` does, they come back in another order: equal bits anyway."""
    inputs = [x.to(DEVICE).requires_grad_() for x in qkv(1, 2, 20, 20, 16)]
    out = attention.attention(*inputs)
    pack = lambda x: x.detach().clone(memory_format=torch.contiguous_format)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        moved = attention.attention(*inputs)
    grads = [torch.autograd.grad(x, inputs, torch.ones_like(x)) for x in (out, moved)]
    assert all(torch.equal(a, b) for a, b in zip(*grads)) and grads[0][2].abs().max() > 0.5


FAR = """
import sys
import torch
sys.path.insert(0, "tests")
from support import quick_interpreter
from ldm import ops
from ldm.kernels import attention
quick_interpreter.install()
device = "cuda" if torch.cuda.is_available() else "cpu"
memory = torch.empty(2**31 + 256, dtype=torch.float16, device=device)
far = memory.as_strided((1, 3, 16, 16), (2**31, 2**30, 16, 1)).copy_(torch.randn(1, 3, 16, 16))
few, many = (torch.randn(1, 3, m, 16, device=device).half() for m in (16, 200))
for inputs in (far, few, few), (far, many, many), (few, far, far):
    inputs = [x.detach().requires_grad_() for x in inputs]
    near = [x.detach().float().contiguous().requires_grad_() for x in inputs]
    out, exact = attention.attention(*inputs), ops.attention_reference(*near)
    grads = torch.autograd.grad(out.sum(), inputs), torch.autograd.grad(exact.sum(), near)
    print(max((a.float() - b).abs().max().item() for a, b in zip((out, *grads[0]), (exact, *grads[1]))))
"""


def test_attention_of_heads_that_lie_far_apart():
    """The third head starts 2**31 elements after the first, in 4 GB of memory of which little is touched: through the
    short kernel, the long one, and with far keys. In a process of its own, for a wrong address ends it."""
    run = subprocess.run([sys.executable, "-c", FAR], cwd=ROOT, text=True, capture_output=True)
    assert run.returncode == 0, run.stderr
    errors = [float(line) for line in run.stdout.split()]
    assert len(errors) == 3 and max(errors) < 1e-2  # float16: values and gradients are at most 10


def test_pictures_that_32_bits_cannot_count_are_found():
    at = lambda *strides: torch.empty_strided((2, 3, 8, 8), strides, device="meta")
    assert pixels.countable(at(2**40, 2**30 - 40, 8, 1))  # images may lie as far apart as they like
    assert not pixels.countable(at(2**40, 2**30, 8, 1))
    assert not pixels.countable(torch.empty(1, 2**11, 2**10, 2**10, device="meta"))
    expanded = torch.empty(1, 1, 1, 1, device="meta").expand(1, 2**11, 2**10, 2**10)
    assert not pixels.countable(expanded)  # it spans one element, the result all of them


def test_group_norm_copies_a_gradient_that_32_bits_cannot_count(monkeypatch):
    x, weight, bias, shift = (a.to(DEVICE) for a in picture_parameters(1, 8, 5, 3, False, offset=0))
    mean, rstd = group_norm.statistics(x, shift, 2, 1e-5)
    call = lambda grad: group_norm_gradients.gradients(grad, x, weight, bias, shift, mean, rstd, True)
    grad = randn(1, 8, 5, 3, seed=9).to(DEVICE).contiguous(memory_format=torch.channels_last)
    expected = call(grad)
    monkeypatch.setattr(group_norm_gradients, "countable", lambda x: False)
    seen = []
    monkeypatch.setattr(
        group_norm_gradients, "pixel_strides", lambda x: seen.append(x.stride()) or pixels.pixel_strides(x)
    )
    assert all((a - b).abs().max() < 1e-6 for a, b in zip(call(grad), expected))
    assert seen[-2:] == [x.stride()] * 2  # of the copy and of the result


def test_rows_are_aligned_to_what_divides_all_that_moves_them():
    assert hardware.alignment(half(1, 1, 4, 20), width=20) == 4  # 8 bytes: the result has heads side by side
    assert hardware.alignment(half(1, 1, 4, 64), width=64) == 8  # 16 bytes, the widest load
    assert hardware.alignment(half(1, 1, 4, 64).float(), width=64) == 4
    assert hardware.alignment(half(1, 1, 4, 64), half(1, 1, 4, 65)[..., :64], width=64) == 1
    assert hardware.alignment(half(1, 2, 4, 64), width=36) == 4  # not by the strides of q alone


@pytest.mark.parametrize("name", operations())
def test_kernels_are_launched_on_the_gpu_of_their_input(name, monkeypatch):
    operation, arguments = operations()[name]
    guarded, launches = [], []

    @contextlib.contextmanager
    def device_of(tensor: Tensor):
        guarded.append(tensor)
        yield
        guarded.pop()

    kernel = type(geglu.geglu_kernel)
    run = kernel.run

    def launch(self, *args, **options):
        if any(isinstance(arg, Tensor) for arg in args):  # the interpreter calls functions of a kernel alike
            launches.append([x.shape for x in guarded])
        return run(self, *args, **options)

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    monkeypatch.setattr(kernel, "run", launch)
    inputs = [x for x in arguments if isinstance(x, Tensor)]
    results = operation(*arguments)
    forward = len(launches)
    results = [results] if isinstance(results, Tensor) else results
    torch.autograd.grad([x.sum() for x in results if x.requires_grad], inputs)
    assert len(launches) > forward > 0 and launches == [[inputs[0].shape]] * len(launches)


@pytest.mark.parametrize(
    "architecture, wanted",
    [
        ("sm_75", False),
        ("sm_80", True),
        ("sm_89", True),
        ("sm_120", True),
        ("gfx942", True),
        ("gfx90a", False),
        ("gfx1100", False),
    ],
)
def test_gpus_without_tiles_are_refused_by_name(architecture, wanted, monkeypatch):
    monkeypatch.setattr(hardware, "gpu", lambda device: (architecture, 4))
    with (
        contextlib.nullcontext()
        if wanted
        else pytest.raises(ValueError, match=f"triton geglu: {architecture} is not served; sm_80 and newer, gfx942 are")
    ):
        assert geglu.geglu(torch.ones(1, 4, device=DEVICE)).shape == (1, 2)


def test_gradients_that_do_not_fit_are_refused_by_name(monkeypatch):
    monkeypatch.setattr(hardware, "gpu", lambda device: ("sm_89", 4))
    q, k, v = parameters(*[(1, 1, 4, 512)] * 3)
    out = attention.attention(q, k, v)
    with pytest.raises(ValueError, match="float32 gradients of a 512-wide head do not fit .* of sm_89"):
        out.sum().backward()


def test_small_pictures_make_work_for_every_processor():
    block = pixels.blocks((1280 * 64, 64, 1), 64)
    assert 2 * 1280 // block["BLOCK_C"] >= 132  # two pictures of 1280 x 8 x 8 on an H100
