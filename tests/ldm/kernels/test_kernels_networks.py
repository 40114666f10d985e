"""Whole networks on the Triton kernels: compiled, checkpointed, hooked, and drawing the same pictures."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import weights
from ldm import ops, tasks
from ldm.clip import CLIPText
from ldm.unet import UNet
from ldm.vae import VAE
from support import quick_interpreter
from support.networks import CROSS_DOWN, CROSS_UP, DOWN, TINY_CLIPS, TINY_UNETS, TINY_VAES, UP, token_ids, unet_inputs
from support.numbers import randn, randomize, relative_l2
from support.tiny import tiny_sd, tiny_sdxl

quick_interpreter.install()
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def exact_convolutions(monkeypatch):
    """On a GPU convolutions round to tf32 unless told otherwise, and their gradients differ from call to call."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)


def network(kind: type, table: dict, name: str) -> nn.Module:
    return randomize(kind(table[name][0]).double(), seed=1).eval().to(DEVICE)


def to(inputs: dict, dtype: torch.dtype) -> dict:
    move = lambda a: a.to(DEVICE, dtype if a.is_floating_point() else a.dtype) if isinstance(a, Tensor) else a
    return {key: move(value) for key, value in inputs.items()}


def results(model: nn.Module, call, backend: str, dtype: torch.dtype) -> list[Tensor]:
    with torch.no_grad(), ops.backend(backend):
        return call(copy.deepcopy(model).to(dtype), dtype)


def assert_as_exact_as_pytorch(model: nn.Module, call, dtype: torch.dtype) -> None:
    """Relative L2 error against float64: at most twice that of PyTorch's operations in the same precision, plus two
    rounding units."""
    exact = results(model, call, "reference", torch.float64)
    found = (results(model, call, backend, dtype) for backend in ("triton", "torch"))
    for ours, theirs, true in zip(*found, exact):
        error, allowed = relative_l2(ours.double(), true), relative_l2(theirs.double(), true)
        assert error <= 2 * allowed + 2 * torch.finfo(dtype).eps, (error, allowed)


@pytest.mark.parametrize(
    "name, dtype", [("sd15", torch.float32), ("sdxl", torch.float16), ("miniature", torch.bfloat16)], ids=str
)
def test_unet(name, dtype):
    inputs = {key: value[:1] for key, value in unet_inputs(name, (8, 8))[0].items()}
    t = inputs.pop("t").float().to(DEVICE)
    call = lambda unet, dtype: [unet(t=t, **to(inputs, dtype))]
    assert_as_exact_as_pytorch(network(UNet, TINY_UNETS, name), call, dtype)


def test_vae():
    z, image = randn(1, 4, 2, 3).to(DEVICE), randn(1, 3, 24, 16).to(DEVICE)
    call = lambda vae, dtype: [vae.decode(z.to(dtype)), vae.encode(image.to(dtype)).mean]
    assert_as_exact_as_pytorch(network(VAE, TINY_VAES, "sd"), call, torch.float32)


def test_text_tower():
    ids = token_ids("l", 24).to(DEVICE)
    assert_as_exact_as_pytorch(network(CLIPText, TINY_CLIPS, "l"), lambda clip, dtype: [clip(ids).last], torch.float32)


def test_the_miniature_draws_the_same_picture():
    """One step and the decoder, without guidance; a step of the picture file is 8e-3 here."""
    model = weights.load(weights.MINIATURE, device=DEVICE)
    pictures = {}
    for backend in ("torch", "reference", "triton"):
        with ops.backend(backend):
            pictures[backend] = tasks.text_to_image(model, ["a red apple"], steps=1, guidance=1, seeds=[7])
    assert (pictures["reference"] - pictures["torch"]).abs().max() < 1e-4
    assert (pictures["triton"] - pictures["torch"]).abs().max() < 1e-4
    assert pictures["torch"].std() > 0.1


SMALL = dict(layers_per_block=1, block_out_channels=[32, 64])
SMALL_SD15 = SMALL | dict(down_block_types=[CROSS_DOWN, DOWN], up_block_types=[UP, CROSS_UP], attention_head_dim=[1, 2])
SMALL_SDXL = SMALL | dict(
    down_block_types=[DOWN, CROSS_DOWN],
    up_block_types=[CROSS_UP, UP],
    attention_head_dim=[4, 2],
    transformer_layers_per_block=[1, 2],
)


@pytest.mark.parametrize(
    "builder, unet, guidance", [(tiny_sd, SMALL_SD15, 3), (tiny_sdxl, SMALL_SDXL, 1)], ids=["sd15", "sdxl"]
)
def test_tiny_pipelines_draw_the_same_pictures(builder, unet, guidance, tmp_path):
    """Prompt, two steps and decoder; a step of the picture file is 8e-3 here."""
    builder(tmp_path, unet=unet, vae=dict(layers_per_block=1), text=dict(num_hidden_layers=2))
    model = weights.load(tmp_path, device=DEVICE)
    pictures = {}
    for backend in ("torch", "reference", "triton"):
        with ops.backend(backend):
            pictures[backend] = tasks.text_to_image(model, "a red fox", height=32, width=32, steps=2, guidance=guidance)
    assert (pictures["reference"] - pictures["torch"]).abs().max() < 1e-4
    assert (pictures["triton"] - pictures["torch"]).abs().max() < 1e-4
    assert pictures["torch"].std() > 0.1


def block() -> tuple[nn.Module, Tensor, Callable]:
    """One level of the miniature's UNet, a resnet and self- and cross-attention; its input, and a call of it."""
    level = network(UNet, TINY_UNETS, "miniature").down_blocks[0].float()
    x, emb, context = (
        randn(*shape, seed=i).float().to(DEVICE) for i, shape in enumerate([(1, 32, 8, 8), (1, 128), (1, 7, 40)])
    )
    return level, x, lambda x: level(x, emb, context)[0]


def gradients(run, level: nn.Module, x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    return list(torch.autograd.grad(run(x).square().sum(), [x, *level.parameters()]))


def test_compiled_as_one_graph():
    """fullgraph: nothing falls back to Python. The backend runs what was traced, forward and backward."""
    level, x, run = block()
    with ops.backend("triton"):
        compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
        assert (compiled(x) - run(x)).abs().max() < 1e-5
        for a, b in zip(gradients(compiled, level, x), gradients(run, level, x)):
            assert relative_l2(a, b) < 1e-5


@pytest.mark.gpu
def test_in_a_cuda_graph():
    """Replayed on new input, it gives the bits of an ordinary call: nothing waits for the host, or is chosen there."""
    _, x, run = block()
    with torch.no_grad(), ops.backend("triton"):
        run(x)  # compiles
        graph, held = torch.cuda.CUDAGraph(), x.clone()
        with torch.cuda.graph(graph):
            out = run(held)
        held.copy_(x + 1)
        graph.replay()
        assert torch.equal(out, run(x + 1))


def test_checkpointing_computes_the_same_again():
    level, x, run = block()
    with ops.backend("triton"):
        again = lambda x: checkpoint(run, x, use_reentrant=False, context_fn=ops.keep_backend)
        assert all(torch.equal(a, b) for a, b in zip(gradients(again, level, x), gradients(run, level, x)))
        out = checkpoint(run, x.requires_grad_(), use_reentrant=False).sum()
    with pytest.raises(torch.utils.checkpoint.CheckpointError):  # outside, it would compute with another backend
        out.backward()


def test_hooks_see_what_attention_is_given():
    level, x, run = block()
    attend = level.attentions[0].transformer_blocks[0].attn2.attend
    seen = []
    handle = attend.register_forward_hook(lambda module, inputs, output: seen.append((*inputs, output)))
    with torch.no_grad(), ops.backend("triton"):
        run(x)
    handle.remove()
    ((q, k, v, out),) = seen
    with ops.backend("reference"):
        assert (out - attend(q, k, v)).abs().max() < 1e-6
    assert q.shape == (1, 64, 32) and k.shape == (1, 7, 32)


def test_gradients_of_a_level_against_pytorch():
    level, x, run = block()
    found = {}
    for name in ("torch", "triton"):
        with ops.backend(name):
            found[name] = gradients(run, level, x)
    assert max(relative_l2(a, b) for a, b in zip(found["triton"], found["torch"])) < 1e-5


def test_the_backend_is_chosen_by_name_and_restored():
    with pytest.raises(ValueError, match="unknown backend 'cuda': choose one of reference, torch, triton"):
        with ops.backend("cuda"):
            pass
    with ops.backend("triton"), pytest.raises(ValueError, match="triton geglu: x is torch.float64"):
        ops.geglu(torch.ones(2, 4, dtype=torch.float64, device=DEVICE))
    assert torch.equal(ops.geglu(torch.ones(2, 4, dtype=torch.float64)), ops.geglu(torch.ones(2, 4).double()))
