"""Every network equals its reference in diffusers or transformers, by value, on tiny random weights.

Errors measured here in float64 are below 1e-14. The slightest mistake in arithmetic, an epsilon of 1e-5 for 1e-6, costs
1e-7 and more: 1e-12 lies between the two, with room for other machines. In float32 each side differs from the float64
result by up to 1e-6 of relative L2, and in the VAE's decoder, diffusers' too, by up to 2e-6: twice that is the bound.
"""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm import clip, ops, unet, vae
from ldm.config import CLIPS, UNETS
from support.networks import TINY_CLIPS, TINY_UNETS, TINY_VAES, clip_pair, token_ids, unet_inputs, unet_pair, vae_pair
from support.numbers import as_float, randn, relative_error, relative_l2, to_float

EXACT = 1e-12
FLOAT32 = 2e-6
BACKENDS = ("torch", "reference")
TIMES = {"int": 981, "float": 17.25, "negative": -1.5537, "tensor": torch.tensor(500), "one": torch.tensor([500.5])}


@torch.no_grad()
def unet_errors(pair: tuple, inputs: tuple[dict, dict], error: Callable = relative_error) -> dict[str, float]:
    ours, reference = pair
    return {"output": error(ours(**inputs[0]), reference(**inputs[1]).sample)}


@torch.no_grad()
def vae_errors(pair: tuple, image: Tensor, error: Callable = relative_error) -> dict[str, float]:
    ours, reference = pair
    found, expected = ours.encode(image), reference.encode(image).latent_dist
    noise = torch.randn(found.mean.shape, generator=torch.Generator().manual_seed(9), dtype=image.dtype)
    z = expected.mode()
    return {
        "mean": error(found.mean, expected.mean),
        "logvar": error(found.logvar, expected.logvar),
        "mode": error(found.mode(), z),
        "decoded": error(ours.decode(z), reference.decode(z).sample),
        "sample": error(found.sample(noise), expected.sample(torch.Generator().manual_seed(9))),
    }


@torch.no_grad()
def clip_errors(pair: tuple, ids: Tensor, error: Callable = relative_error) -> dict[str, float]:
    ours, reference = pair
    found, expected = ours(ids), reference(ids, output_hidden_states=True)
    pooled = expected.text_embeds if ours.config.projection else expected.pooler_output
    errors = {"last": error(found.last, expected.last_hidden_state), "pooled": error(found.pooled, pooled)}
    hidden = zip(found.hidden, expected.hidden_states, strict=True)
    return errors | {f"hidden {i}": error(a, b) for i, (a, b) in enumerate(hidden)}


def assert_below(limit: float, errors: dict[str, float]) -> None:
    assert all(value <= limit for value in errors.values()), errors


def test_every_family_has_a_tiny_network():
    assert UNETS.keys() <= TINY_UNETS.keys()
    assert CLIPS.keys() == TINY_CLIPS.keys()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [(16, 24), (9, 13)], ids=["16x24", "9x13"])  # 9x13: the way down rounds up
@pytest.mark.parametrize("name", TINY_UNETS)
def test_unet(name, size, backend):
    with ops.backend(backend):
        assert_below(EXACT, unet_errors(unet_pair(name), unet_inputs(name, size)))


@pytest.mark.parametrize("t", TIMES.values(), ids=TIMES)
def test_unet_takes_any_time(t):
    assert_below(EXACT, unet_errors(unet_pair("sd15"), unet_inputs("sd15", t=t)))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", TINY_UNETS)
def test_unet_in_float32(name, backend):
    inputs = tuple(map(to_float, unet_inputs(name)))
    with ops.backend(backend):
        assert_below(FLOAT32, unet_errors(as_float(unet_pair(name)), inputs, relative_l2))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", TINY_VAES)
def test_vae(name, backend):
    with ops.backend(backend):
        assert_below(EXACT, vae_errors(vae_pair(name), randn(2, 3, 40, 24)))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", TINY_VAES)
def test_vae_in_float32(name, backend):
    with ops.backend(backend):
        limit = FLOAT32 if backend == "torch" else 2 * FLOAT32  # the reference rounds more often
        assert_below(limit, vae_errors(as_float(vae_pair(name)), randn(2, 3, 40, 24).float(), relative_l2))


@torch.no_grad()
def test_vae_clamps_the_log_variance():
    ours, reference = copy.deepcopy(vae_pair("sd"))
    for network in (ours, reference):
        network.quant_conv.bias[4:6] = torch.tensor([-60.0, 60.0])
    image = randn(2, 3, 40, 24)
    found = ours.encode(image).logvar
    assert (found.min(), found.max()) == (-30, 20)
    assert relative_error(found, reference.encode(image).latent_dist.logvar) <= EXACT


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("length", [77, 24])
@pytest.mark.parametrize("name", TINY_CLIPS)
def test_clip(name, length, backend):
    with ops.backend(backend):
        assert_below(EXACT, clip_errors(clip_pair(name), token_ids(name, length)))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", TINY_CLIPS)
def test_clip_in_float32(name, backend):
    with ops.backend(backend):
        assert_below(FLOAT32, clip_errors(as_float(clip_pair(name)), token_ids(name), relative_l2))


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_unet_gradients(name):
    """Of the input and of every weight; none is zero, or parity would not depend on that number."""
    ours, reference = unet_pair(name)
    inputs, expected_inputs = unet_inputs(name)
    inputs["x"].requires_grad_()  # the same tensor on both sides
    weight = randn(2, 4, 16, 24, seed=10)
    names = [key for key, _ in ours.named_parameters()]
    expected_weights = dict(reference.named_parameters())
    found = torch.autograd.grad((ours(**inputs) * weight).sum(), [inputs["x"], *ours.parameters()])
    expected = torch.autograd.grad(
        (reference(**expected_inputs).sample * weight).sum(), [inputs["x"], *(expected_weights[key] for key in names)]
    )
    # sums over pixels and tokens cancel, so errors are a little larger than those of the output
    assert_below(1e-11, {key: relative_error(a, b) for key, a, b in zip(["x", *names], found, expected)})
    assert all(gradient.all() for gradient in expected)


def refuse(*args, **kwargs):
    raise AssertionError("the reference backend called a fused operation of PyTorch")


@pytest.mark.parametrize("name", ["scaled_dot_product_attention", "group_norm", "layer_norm", "gelu"])
def test_reference_backend_uses_none_of_the_fused_operations(name, monkeypatch):
    network, (inputs, _) = unet_pair("sd15")[0], unet_inputs("sd15")
    monkeypatch.setattr(F, name, refuse)
    with torch.no_grad():
        with ops.backend("reference"):
            network(**inputs)
        with ops.backend("torch"), pytest.raises(AssertionError, match="fused"):
            network(**inputs)


def parts(network: nn.Module, kind: type) -> list[nn.Module]:
    return [part for part in network.modules() if isinstance(part, kind)]


def epsilon_of_transformers(network, patch):
    for part in parts(network, unet.Transformer):
        part.norm.eps = 1e-5


def epsilon_of_resnets(network, patch):
    for part in parts(network, unet.Resnet):
        part.norm1.eps = 1e-6


def norms_swapped(network, patch):
    block = parts(network, unet.TransformerBlock)[0]
    block.norm1, block.norm2 = block.norm2, block.norm1


def sines_first(network, patch):
    sinusoid = ops.sinusoid
    patch.setattr(ops, "sinusoid", lambda values, width: sinusoid(values, width).roll(width // 2, dims=-1))


def geglu_halves_swapped(network, patch):
    geglu = ops.geglu
    patch.setattr(ops, "geglu", lambda x: geglu(x.roll(x.shape[-1] // 2, dims=-1)))


def geglu_by_tanh(network, patch):
    def tanh_geglu(x):  # F.gelu itself is the reference's too
        value, gate = x.chunk(2, dim=-1)
        return value * F.gelu(gate, approximate="tanh")

    patch.setattr(ops, "geglu", tanh_geglu)


def heads_of_one_attention(network, patch):
    network.mid_block.attentions[0].transformer_blocks[0].attn2.attend.heads = 2


def padding_on_all_sides(network, patch):
    patch.setattr(vae.Downsample, "forward", lambda self, x: F.conv2d(x, self.conv.weight, self.conv.bias, 2, 1))


def epsilon_of_vae(network, patch):
    network.encoder.mid_block.attentions[0].group_norm.eps = 1e-5


def other_gelu(network, patch):
    for part in parts(network, clip.MLP):
        part.activation = F.gelu if part.activation is clip.quick_gelu else clip.quick_gelu


def not_causal(network, patch):
    network.text_model.encoder.layers[-1].self_attn.attend.causal = False


FAULTS = {
    "unet": [
        epsilon_of_transformers,
        epsilon_of_resnets,
        norms_swapped,
        sines_first,
        geglu_halves_swapped,
        geglu_by_tanh,
        heads_of_one_attention,
    ],
    "vae": [padding_on_all_sides, epsilon_of_vae],
    "clip": [other_gelu, not_causal],
}
CASES = {
    "unet": (unet_errors, unet_pair, "sd15", lambda: unet_inputs("sd15")),
    "vae": (vae_errors, vae_pair, "sd", lambda: randn(2, 3, 40, 24)),
    "clip": (clip_errors, clip_pair, "l", lambda: token_ids("l")),
}


@pytest.mark.parametrize("kind, plant", [(kind, plant) for kind, plants in FAULTS.items() for plant in plants])
def test_parity_notices_planted_faults(kind, plant, monkeypatch):
    errors, pair, name, inputs = CASES[kind]
    (ours, reference), inputs = pair(name), inputs()
    ours = copy.deepcopy(ours)
    assert_below(EXACT, errors((ours, reference), inputs))
    plant(ours, monkeypatch)
    assert max(errors((ours, reference), inputs).values()) > 1e4 * EXACT
