"""What watching a network records, that it changes no bit and leaves nothing behind, and what it refuses."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import weights
from ldm import hooks, ops, tasks
from ldm.adapters import lora
from ldm.clip import CLIPText
from ldm.config import CLIPS, UNETS, VAES
from ldm.hooks import attention_maps, watch
from ldm.model import Model
from ldm.unet import UNet
from ldm.vae import VAE
from support.numbers import randn, randomize

CROSS = "mid_block.attentions.0.transformer_blocks.0.attn2"
SIZES = dict(channels=(32, 64), heads=(2, 4), depth=(1, 2), mid_depth=1, context_dim=24, layers=1, groups=8)
X, T, CONTEXT = randn(2, 4, 8, 6).float(), 500.0, randn(2, 7, 24, seed=1).float()


@pytest.fixture(scope="module")
def unet() -> UNet:
    return randomize(UNet(replace(UNETS["sd15"], **SIZES)), seed=0).eval()


@pytest.fixture(scope="module")
def text() -> CLIPText:
    config = replace(CLIPS["l"], layers=2, width=32, heads=4, hidden=64, vocab=50000)
    return randomize(CLIPText(config), seed=1).eval()


@pytest.fixture(scope="module")
def miniature() -> Model:
    return weights.load(weights.MINIATURE)


@torch.no_grad()
def run(unet: nn.Module) -> Tensor:
    return unet(X, T, CONTEXT)


TOKENS = torch.tensor([[49406, 320, 736, 4558, 49407, 49407], [49406, 1125, 539, 49407, 49407, 49407]])
HOOKS = [name for name in vars(nn.Module()) if "hook" in name]


def left_behind(network: nn.Module) -> list[str]:
    """The kinds of hooks that any module has."""
    return [name for module in network.modules() for name in HOOKS if getattr(module, name)]


def test_the_kinds_of_hooks_are_known():
    assert "_forward_hooks" in HOOKS and "_forward_hooks_with_kwargs" in HOOKS and len(HOOKS) > 6


def test_inputs_and_outputs_of_every_call(unet):
    """By the names of the arguments, also of those given by keyword; equal to what the layer makes of them."""
    with watch(unet, ["*.attn2.attend", "*.upsamplers.0"]) as found:
        run(unet)
        run(unet)
    assert len(found) == (1 + 2) + 1 + 2 * (1 + 2) + 1  # attention down, mid and up; one upsampler
    for path, calls in found.items():
        first, second = calls
        layer = unet.get_submodule(path)
        names = ["x", "like"] if "upsamplers" in path else ["q", "k", "v"]
        for call in calls:
            assert list(call.inputs) == names
            with torch.no_grad():
                assert torch.equal(call.output, layer(**call.inputs))
        assert torch.equal(first.output, second.output)
    call = found[f"{CROSS}.attend"][0]
    assert call.inputs["q"].shape == (2, 12, 64) and call.inputs["k"].shape == (2, 7, 64)


def test_what_is_kept_by_default_is_a_copy_without_gradients(unet):
    """Also inside tuples and lists, which blocks return, and dataclasses, which text towers return."""
    x = X.clone().requires_grad_()
    with watch(unet, ["conv_in", "down_blocks.0"]) as found:
        unet(x, T, CONTEXT).sum().backward()
    (call,) = found["conv_in"]
    assert not call.inputs["input"].requires_grad and torch.equal(call.inputs["input"], X)
    with torch.no_grad():
        x.zero_()  # the memory of the input changes, the copy does not
    assert torch.equal(call.inputs["input"], X)
    ((coarse, skips),) = (call.output for call in found["down_blocks.0"])
    assert isinstance(skips, list) and not coarse.requires_grad and not any(skip.requires_grad for skip in skips)


def test_a_network_can_be_watched_as_a_whole(text):
    with watch(text, "") as found, torch.no_grad():
        features = text(TOKENS)
    (call,) = found[""]
    assert torch.equal(call.inputs["ids"], TOKENS) and torch.equal(call.output.pooled, features.pooled)
    assert call.output.pooled.data_ptr() != features.pooled.data_ptr() and len(call.output.hidden) == 3


def test_keep_chooses_what_is_stored(unet):
    def keep(path: str, inputs: dict, output: Tensor) -> float | None:
        assert isinstance(inputs["input"], Tensor) and not path.startswith("up")
        return output.std().item() if path == "mid_block.resnets.0.conv1" else None

    with watch(unet, "mid_block.resnets.*.conv?", keep) as found:
        run(unet)
    (value,) = found.pop("mid_block.resnets.0.conv1")
    assert value > 0 and found == {f"mid_block.resnets.{name}": [] for name in ("0.conv2", "1.conv1", "1.conv2")}


def test_keep_may_hold_on_to_gradients(unet):
    """Saliency of the prompt: the gradient of a hidden layer with respect to the text."""
    context = CONTEXT.clone().requires_grad_()
    with watch(unet, CROSS, lambda path, inputs, output: output) as found:
        unet(X, T, context)
    (hidden,) = found[CROSS]
    (gradient,) = torch.autograd.grad(hidden.square().sum(), context)
    assert gradient.abs().max() > 0


@pytest.mark.parametrize("way", ["watch", "attention_maps"])
def test_nothing_is_changed_and_nothing_stays(unet, way):
    """The same bits with and without, and no hook of any kind, also after an error in the block."""
    before = run(unet)
    opened = {"watch": lambda: watch(unet, "*"), "attention_maps": lambda: attention_maps(unet)}[way]
    with opened():
        assert left_behind(unet)
        assert torch.equal(run(unet), before)
    assert not left_behind(unet)
    with pytest.raises(KeyError), opened():
        run(unet)
        raise KeyError
    assert not left_behind(unet)
    with pytest.raises(ZeroDivisionError), opened():
        raise ZeroDivisionError  # before any call: the error itself arrives, not that nothing was called
    assert not left_behind(unet)
    assert torch.equal(run(unet), before)


def test_an_error_in_keep_leaves_nothing(unet):
    with pytest.raises(ZeroDivisionError), watch(unet, "conv_in", lambda path, inputs, output: 1 / 0):
        run(unet)
    assert not left_behind(unet)


def test_hooks_of_others_stay(unet):
    """A hook that was there before, and an adapter's: each is still there, and watching sees what they made."""
    handle = unet.conv_in.register_forward_hook(lambda module, inputs, output: output + 1)
    with watch(unet, "conv_in") as found:
        run(unet)
    (call,) = found["conv_in"]
    with torch.no_grad():
        assert torch.equal(call.output, unet.conv_in(X))  # with the 1
    assert left_behind(unet) == ["_forward_hooks"]
    handle.remove()
    with torch.no_grad():
        assert torch.equal(call.output, unet.conv_in(X) + 1)


def test_watches_nest(unet):
    with watch(unet, "conv_in") as outer, watch(unet, "conv_*") as inner:
        run(unet)
    assert list(outer) == ["conv_in"] and sorted(inner) == ["conv_in", "conv_norm_out", "conv_out"]
    assert torch.equal(outer["conv_in"][0].output, inner["conv_in"][0].output)
    assert inner["conv_norm_out"][0].output.shape == X.shape[:1] + (32,) + X.shape[2:]


@pytest.mark.parametrize(
    "pattern, near",
    [
        ("*.attn3.attend", "attn2.attend"),
        ("mid_block.attentions.0.transformer_block.0.attn2", "mid_block.attentions.0.transformer_blocks.0.attn2"),
        ("conv_inn", "conv_in"),
        ("down_blocks.9.*", "down_blocks"),
    ],
)
def test_a_pattern_without_a_layer_names_near_ones(unet, pattern, near):
    with pytest.raises(ValueError) as error, watch(unet, ["*.attn2", pattern]):
        pass
    assert str(error.value).startswith(f"no layer has a path like {pattern!r}; near it are ")
    assert near in str(error.value).partition("near it are ")[2] and "\n" not in str(error.value)
    assert not left_behind(unet)
    with pytest.raises(ValueError, match="no layer is named"), watch(unet, []):
        pass


def test_the_memory_is_bounded(unet):
    """The error names the layer; what was kept before it remains, within the limit."""
    size = 2 * 32 * 8 * 6 * 4  # bytes of what conv_in returns
    take = lambda path, inputs, output: {"output": [output.clone()]}
    with pytest.raises(MemoryError) as error, watch(unet, ["conv_in", "conv_out"], take, limit=size) as found:
        run(unet)
    assert str(error.value) == (
        "what is kept of conv_out would bring the record to 0.0 MB, more than its limit of 0.0 MB: "
        "choose fewer layers, or a `keep` that returns less, or raise the limit"
    )
    assert len(found["conv_in"]) == 1 and found["conv_out"] == [] and not left_behind(unet)
    with watch(unet, ["conv_in", "conv_out"], take, limit=size + 2 * 4 * 8 * 6 * 4):
        run(unet)


def test_a_view_counts_as_what_it_holds(unet):
    corner = lambda path, inputs, output: output[..., :1]
    with pytest.raises(MemoryError), watch(unet, "conv_in", corner, limit=2 * 32 * 8 * 6 * 4 - 1):
        run(unet)


COMPILED = "the network is compiled.*: compiled code passes hooks over. Use a network that is not compiled"
HIDDEN = randn(2, 6, 32).float()


@pytest.fixture
def layer(text) -> nn.Module:
    """One layer of a text tower, which compiles in a second."""
    torch.compiler.reset()
    return copy.deepcopy(text.text_model.encoder.layers[0]).requires_grad_(False)


def wrapped(layer: nn.Module) -> nn.Module:
    return torch.compile(layer, backend="eager")


def in_place(layer: nn.Module) -> nn.Module:
    layer.compile(backend="eager")
    return layer


def part_in_place(layer: nn.Module) -> nn.Module:
    layer.self_attn.compile(backend="eager")
    return layer


def part_wrapped(layer: nn.Module) -> nn.Module:
    layer.self_attn = torch.compile(layer.self_attn, backend="eager")
    return layer


@pytest.mark.parametrize("compile", [wrapped, in_place, part_in_place, part_wrapped])
def test_a_compiled_network_passes_hooks_over_and_is_refused(layer, compile):
    """First that it does: a bare hook sees nothing of code that ran before. Hence the refusal, in one line."""
    expected = layer(HIDDEN)
    compiled, seen = compile(layer), []
    assert torch.allclose(compiled(HIDDEN), expected, atol=1e-6)
    (path,) = [path for path, _ in compiled.named_modules() if path.endswith(".attend")]
    handle = compiled.get_submodule(path).register_forward_hook(lambda *arguments: seen.append(1))
    compiled(HIDDEN)
    handle.remove()
    assert not seen
    for opened in (watch(compiled, "*.attend"), attention_maps(compiled, "self_attn")):
        with pytest.raises(RuntimeError, match=COMPILED) as error, opened:
            pass
        assert "\n" not in str(error.value)
    assert not left_behind(compiled)


def test_what_is_compiled_around_the_network_is_noticed_at_the_end(layer):
    """From the network itself it cannot be seen, but nothing was recorded."""
    around = torch.compile(layer, backend="eager")
    around(HIDDEN)
    with pytest.raises(RuntimeError, match="no watched layer was called, such as mlp.fc1: run the network itself"):
        with watch(layer, "mlp.*"):
            around(HIDDEN)
    with watch(layer, "mlp.*") as found:
        layer(HIDDEN)
    assert len(found["mlp.fc1"]) == 1


def test_code_that_is_compiled_inside_the_block_keeps_no_hook(layer):
    around = torch.compile(layer, backend="eager")
    with watch(layer, "mlp.fc1", lambda path, inputs, output: 1) as found:
        around(HIDDEN)
        around(HIDDEN)
    assert found["mlp.fc1"] == [1, 1]
    around(HIDDEN)
    assert found["mlp.fc1"] == [1, 1]


def softmax_by_hand(call: hooks.Call, heads: int, causal: bool = False) -> Tensor:
    """Row by row, with the definition of a softmax and no more."""
    q, k = call.inputs["q"].double(), call.inputs["k"].double()
    (b, n, width), m = q.shape, k.shape[1]
    d = width // heads
    found = torch.zeros(b, heads, n, m, dtype=torch.float64)
    for picture in range(b):
        for head in range(heads):
            columns = slice(head * d, (head + 1) * d)
            for i in range(n):
                visible = i + 1 if causal else m
                scores = k[picture, :visible, columns] @ q[picture, i, columns] / math.sqrt(d)
                powers = torch.exp(scores)
                found[picture, head, i, :visible] = powers / powers.sum()
    return found


def reference_weights(call: hooks.Call, attend: ops.Attend) -> Tensor:
    """Attention to the rows of a unit matrix gives the weights."""
    q, k = (call.inputs[name].double().unflatten(-1, (attend.heads, -1)).transpose(1, 2) for name in ("q", "k"))
    unit = torch.eye(k.shape[2], dtype=torch.float64).expand(*k.shape[:2], -1, -1)
    return ops.attention_reference(q, k, unit, attend.causal)


def test_attention_maps_are_the_softmax(unet):
    with watch(unet, "*.attn?.attend") as found, attention_maps(unet, ["*.attn1", "*.attn2"]) as maps:
        run(unet)
    assert len(maps) == 2 * 10 and {f"{path}.attend" for path in maps} == set(found)
    for path, (weights_found,) in maps.items():
        attend, (call,) = unet.get_submodule(f"{path}.attend"), found[f"{path}.attend"]
        n = call.inputs["q"].shape[1]
        assert weights_found.dtype == torch.float32
        assert weights_found.shape == (2, attend.heads, n, 7 if "attn2" in path else n)
        assert (weights_found - softmax_by_hand(call, attend.heads)).abs().max() < 1e-6  # of float32, numbers up to 1
        assert (weights_found - reference_weights(call, attend)).abs().max() < 1e-6
        assert (weights_found.sum(-1) - 1).abs().max() < 1e-6
        assert weights_found.std() > 0.01  # not uniform, which would hide mistakes


def test_maps_of_a_text_tower_see_no_later_token(text):
    with watch(text, "*.attend") as found, attention_maps(text, "*.self_attn") as maps, torch.no_grad():
        text(TOKENS)
    assert len(maps) == 2
    for path, (weights_found,) in maps.items():
        (call,) = found[f"{path}.attend"]
        assert weights_found.shape == (2, 4, 6, 6)
        assert (weights_found - softmax_by_hand(call, 4, causal=True)).abs().max() < 1e-6
        assert not weights_found.triu(1).any() and (weights_found.sum(-1) - 1).abs().max() < 1e-6


def test_maps_of_an_autoencoder():
    vae = randomize(VAE(replace(VAES["sd"], channels=(8, 16), groups=4)), seed=2).double()
    with watch(vae, "*.attend") as found, attention_maps(vae, "encoder.*.attentions.0") as maps, torch.no_grad():
        vae.encode(randn(1, 3, 10, 8))
    (path,) = maps
    (call,) = found[f"{path}.attend"]
    assert maps[path][0].dtype == torch.float64
    assert (maps[path][0] - softmax_by_hand(call, 1)).abs().max() < 1e-14


@pytest.mark.parametrize("layer", ["attn1", "attn2"])
@pytest.mark.parametrize("causal", [False, True])
def test_rows_in_blocks(unet, monkeypatch, layer, causal):
    """However many scores are computed at a time, down to one row; also where later keys are hidden."""
    network = copy.deepcopy(unet)
    for module in network.modules():
        if isinstance(module, ops.Attend):
            module.causal = causal
    maps = []
    for scores in (2**24, 1000, 1):
        monkeypatch.setattr(hooks, "SCORES", scores)
        with attention_maps(network, f"*.{layer}") as found:
            run(network)
        maps.append(found)
    for path, (whole,) in maps[0].items():
        for other in maps[1:]:
            assert (other[path][0] - whole).abs().max() < 1e-6, path  # products of other sizes round otherwise


def test_chosen_heads_and_tokens(unet):
    """In the order given; the softmax is taken over all keys all the same."""
    with attention_maps(unet, CROSS) as whole, attention_maps(unet, CROSS, heads=[3, 1], tokens=[5, 0, 2]) as some:
        run(unet)
    assert torch.allclose(some[CROSS][0], whole[CROSS][0][:, [3, 1]][..., [5, 0, 2]], atol=1e-7)
    assert some[CROSS][0].shape == (2, 2, 12, 3)


def test_maps_of_half_precision_are_float32(unet):
    network = copy.deepcopy(unet).bfloat16()
    with watch(network, f"{CROSS}.attend") as found, attention_maps(network, CROSS) as maps, torch.no_grad():
        network(X.bfloat16(), T, CONTEXT.bfloat16())
    (map,), (call,) = maps[CROSS], found[f"{CROSS}.attend"]
    assert map.dtype == torch.float32 and (map - softmax_by_hand(call, 4)).abs().max() < 1e-6


def test_maps_are_the_same_on_every_backend(unet):
    maps = {}
    for name in ("torch", "reference"):
        with ops.backend(name), attention_maps(unet, CROSS) as found:
            run(unet)
        maps[name] = found[CROSS][0]
    assert (maps["torch"] - maps["reference"]).abs().max() < 1e-5


def test_a_map_that_is_too_large_is_not_computed(unet, monkeypatch):
    size = 2 * 4 * 12 * 7 * 4
    with attention_maps(unet, CROSS, limit=size):
        run(unet)
    with pytest.raises(MemoryError, match="choose fewer layers, heads or tokens"):
        with attention_maps(unet, CROSS, limit=2 * size) as maps:  # the third does not fit
            for _ in range(3):
                run(unet)
    assert len(maps[CROSS]) == 2
    monkeypatch.setattr(hooks, "attention_map", lambda *arguments: pytest.fail("it was computed"))
    with pytest.raises(MemoryError, match=f"^what is kept of {CROSS}.attend would [^\n]*$"):
        with attention_maps(unet, CROSS, limit=size - 1):
            run(unet)
    assert not left_behind(unet)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(heads=[4]), f"{CROSS}.attend has 4 heads, numbered from 0: it has no head 4"),
        (dict(heads=[-1]), f"{CROSS}.attend has 4 heads, numbered from 0: it has no head -1"),
        (dict(tokens=[0, 7]), f"{CROSS}.attend has 7 tokens, numbered from 0: it has no token 7"),
        (dict(heads=[]), f"no head of {CROSS}.attend is chosen"),
        (dict(layers="*.attn3"), "no layer has a path like '*.attn3.attend'; near it are "),
    ],
)
def test_heads_and_tokens_that_are_not_there(unet, options, message):
    with pytest.raises(ValueError) as error, attention_maps(unet, **{"layers": CROSS} | options):
        run(unet)
    assert str(error.value).startswith(message) and not left_behind(unet)


def test_attention_that_was_replaced_is_unknown(unet):
    network = copy.deepcopy(unet)
    network.mid_block.attentions[0].transformer_blocks[0].attn2.attend = nn.Identity()
    with pytest.raises(ValueError, match=f"{CROSS}.attend is Identity, not ldm.ops.Attend"):
        with attention_maps(network, "*.attn2"):
            pass


def test_drawing_a_picture(miniature):
    """One entry for each step; where the words of a prompt stand, its picture is the same as ever."""
    draw = lambda: tasks.text_to_image(miniature, ["a red apple"], steps=3, seeds=[0], decode=False)
    before = draw()
    with attention_maps(miniature.unet, tokens=[2, 3]) as maps, watch(miniature.unet, "conv_in") as found:
        after = draw()
    assert torch.equal(before, after)
    assert all(len(entries) == 3 for entries in [*maps.values(), *found.values()])
    assert all(map.shape[-1] == 2 and 0 <= map.min() and map.max() <= 1 for entries in maps.values() for map in entries)


def test_an_adapter_and_a_watch_together(miniature):
    """Inside `attached` the layer's output is the changed one; the order of the blocks decides what is seen."""
    adapter = lora.new(miniature, f"unet.{CROSS}.to_k", rank=2)
    for delta in adapter.deltas.values():
        delta.up.fill_(0.1)
    layer = miniature.unet.get_submodule(f"{CROSS}.to_k")
    x = randn(1, 5, layer.in_features).float()
    with torch.no_grad():
        plain = layer(x)
        with lora.attached(miniature, [(adapter, 1.0)]), watch(miniature.unet, f"{CROSS}.to_k") as after:
            changed = layer(x)
        with watch(miniature.unet, f"{CROSS}.to_k") as before, lora.attached(miniature, [(adapter, 1.0)]):
            layer(x)
    assert torch.equal(after[f"{CROSS}.to_k"][0].output, changed) and not torch.equal(plain, changed)
    assert torch.equal(before[f"{CROSS}.to_k"][0].output, plain)
    assert not left_behind(miniature.unet)
