"""The choice of a backend: it holds for a thread and for an asyncio task, and returns at the end of its block."""

import asyncio
import functools
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointError, checkpoint

from ldm import ops
from support.numbers import randn
from support.paths import ROOT

Q, K, V = (randn(2, 3, n, 4, seed=n) for n in (5, 7, 7))


@pytest.fixture(autouse=True)
def answers(monkeypatch):
    """Attention says which implementation ran: the reference and the kernel give their names, the third PyTorch's."""
    monkeypatch.setattr(ops, "attention_reference", lambda *inputs: "reference")
    monkeypatch.setattr(ops, "triton_kernels", lambda: Kernels)
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *inputs, is_causal: "torch")


class Kernels:
    class attention:
        attention = staticmethod(lambda *inputs: "triton")


def implementation() -> str:
    return ops.attention(Q, K, V)


def test_the_previous_backend_returns():
    assert implementation() == "torch"
    with ops.backend("reference"):
        assert implementation() == "reference"
        with ops.backend("triton"):
            assert implementation() == "triton"
            with ops.backend("torch"):
                assert implementation() == "torch"
            assert implementation() == "triton"
        assert implementation() == "reference"
    assert implementation() == "torch"


def test_the_previous_backend_returns_after_an_error():
    with ops.backend("reference"):
        with pytest.raises(KeyError), ops.backend("triton"):
            raise KeyError
        assert implementation() == "reference"
        with pytest.raises(ValueError, match="^unknown backend 'cuda': choose one of reference, torch, triton$"):
            with ops.backend("cuda"):
                pass
        assert implementation() == "reference"
    assert implementation() == "torch"


def test_a_function_can_be_decorated():
    assert ops.backend("reference")(implementation)() == "reference"
    assert implementation() == "torch"


def test_each_thread_has_its_own_backend():
    """All are inside their blocks at once, and a thread that chooses nothing computes as PyTorch does."""
    inside = threading.Barrier(4, timeout=60)

    def run(name: str | None) -> list[str]:
        if name is None:
            inside.wait()
            found = [implementation()]
            inside.wait()
            return found
        with ops.backend(name):
            inside.wait()
            found = [implementation()]
            inside.wait()
        return [*found, implementation()]

    with ops.backend("reference"), ThreadPoolExecutor(4) as pool:
        found = list(pool.map(run, ["reference", "triton", "torch", None]))
        assert implementation() == "reference"
    assert found == [["reference", "torch"], ["triton", "torch"], ["torch", "torch"], ["torch"]]


def test_each_asyncio_task_has_its_own_backend():
    """Two tasks of one thread take turns; a task without a choice starts with that of the code that made it."""

    async def run(name: str, other: asyncio.Barrier) -> list[str]:
        found = [implementation()]
        with ops.backend(name):
            for _ in range(3):
                await other.wait()
                found.append(implementation())
        return [*found, implementation()]

    async def both() -> list[list[str]]:
        other = asyncio.Barrier(2)
        with ops.backend("triton"):
            tasks = [asyncio.create_task(run(name, other)) for name in ("reference", "torch")]
        found = await asyncio.gather(*tasks)
        return [*found, [implementation()]]

    first, second, outside = asyncio.run(both())
    assert first == ["triton", *["reference"] * 3, "triton"]
    assert second == ["triton", *["torch"] * 3, "triton"]
    assert outside == ["torch"]


def test_checkpoints_keep_the_backend_in_any_thread(monkeypatch):
    """PyTorch's own threads, which run backward on a GPU, know nothing of the block; here a thread of ours does not."""
    monkeypatch.undo()
    norm, found = nn.LayerNorm(4).double(), []

    def run(x: Tensor) -> Tensor:
        found.append(ops._backend.get())
        return ops.layer_norm(x, norm)

    def gradients(**options) -> tuple[Tensor, Tensor]:
        """Of the weight, taken twice, in another thread and outside the block."""
        with ops.backend("reference"):
            out = checkpoint(run, randn(2, 4).requires_grad_(), use_reentrant=False, **options).square().sum()
        backward = functools.partial(torch.autograd.grad, out, norm.weight, retain_graph=True)
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(backward).result()[0], pool.submit(backward).result()[0]

    once, twice = gradients(context_fn=ops.keep_backend)
    assert found == ["reference"] * 3
    with ops.backend("reference"):
        (expected,) = torch.autograd.grad(ops.layer_norm(randn(2, 4), norm).square().sum(), norm.weight)
    assert torch.equal(once, expected) and torch.equal(twice, expected)

    with pytest.raises(CheckpointError):  # what it would compute there is not what it saved
        gradients()
    assert found[-1] == "torch"


def test_importing_reads_no_backend_and_no_triton():
    code = "import sys, ldm.ops, ldm.unet; assert not {'triton', 'ldm.kernels'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
