"""The handle of a merge owns the base of one model, puts it back bit for bit, and refuses to lose what came after."""

import copy
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import weights
from ldm.adapters import lora
from ldm.adapters.deltas import Full
from ldm.model import Model
from support.numbers import randn

CROSS = "unet.mid_block.attentions.0.transformer_blocks.0.attn2"
FIRST, SECOND = f"{CROSS}.to_k.weight", f"{CROSS}.to_v.weight"


@pytest.fixture(scope="module")
def loaded() -> Model:
    return weights.load(weights.MINIATURE)


@pytest.fixture
def model(loaded) -> Model:
    return copy.deepcopy(loaded)


def changing(model: Model, *names: str, seed: int = 0) -> lora.Adapter:
    targets = lora.parameters(model)
    return lora.Adapter({name: Full(randn(*targets[name].shape, seed=seed).float()) for name in names})


def state(model: Model) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in lora.parameters(model).items()}


def assert_state(model: Model, expected: dict[str, torch.Tensor]) -> None:
    found = lora.parameters(model)
    assert found.keys() == expected.keys()
    for name, parameter in found.items():
        assert torch.equal(parameter, expected[name]), name


def test_undoing_puts_back_the_parameters_themselves(model):
    before, exact = lora.parameters(model), state(model)
    memory = {name: parameter.data_ptr() for name, parameter in before.items()}
    merged = lora.merge(model, [(changing(model, FIRST, SECOND), 0.8)])
    assert merged.model is model and merged.base == {FIRST: before[FIRST], SECOND: before[SECOND]}
    during = lora.parameters(model)
    assert list(during) == list(before)  # in the same order
    assert {name for name in during if not torch.equal(during[name], exact[name])} == {FIRST, SECOND}
    assert all(not vars(parameter) for parameter in [*during.values(), *before.values()])  # nothing hangs on them
    for _ in range(2):
        merged.undo()
        assert merged.base == {}
        assert_state(model, exact)
        for name, parameter in lora.parameters(model).items():
            assert parameter is before[name] and parameter.data_ptr() == memory[name]


def test_an_undone_handle_leaves_later_merges_alone(model):
    merged = lora.merge(model, [(changing(model, FIRST), 1.0)])
    merged.undo()
    lora.merge(model, [(changing(model, FIRST), 2.0)])
    during = state(model)
    merged.undo()
    assert_state(model, during)


def test_a_deep_copy_stays_merged(model):
    """Its weights are the merged ones and its own; the handle is of the model that was given to merge."""
    base = state(model)
    merged = lora.merge(model, [(changing(model, FIRST), 1.0)])
    during, twin = state(model), copy.deepcopy(model)
    merged.undo()
    assert_state(model, base)
    assert_state(twin, during)
    again = lora.merge(twin, [(changing(twin, FIRST, seed=1), 1.0)])
    assert_state(model, base)
    again.undo()
    assert_state(twin, during)


def test_two_models_do_not_meet(model):
    other = copy.deepcopy(model)
    base = state(model)
    first = lora.merge(model, [(changing(model, FIRST), 1.0)])
    during = state(model)
    second = lora.merge(other, [(changing(other, FIRST, seed=1), 1.0)])
    first.undo()
    assert_state(model, base)
    assert not torch.equal(lora.parameters(other)[FIRST], base[FIRST])
    second.undo()
    assert_state(other, base)
    assert not torch.equal(during[FIRST], base[FIRST])


def test_models_that_share_parameters(model, tmp_path):
    """A model with a new word shares the parameters of its tower with the old one, which keeps its base."""
    width = lora.networks(model)["text_encoder"].config.width
    save_file({"<new>": randn(1, width).float()}, tmp_path / "learned_embeds.safetensors")
    knowing = weights.add_embedding(model, tmp_path / "learned_embeds.safetensors")
    name = "text_encoder.text_model.encoder.layers.0.mlp.fc1.weight"
    assert lora.parameters(knowing)[name] is lora.parameters(model)[name]
    base = state(model)
    with lora.merged(knowing, [(changing(knowing, name), 1.0)]):
        assert not torch.equal(lora.parameters(knowing)[name], base[name])
        assert_state(model, base)
    assert lora.parameters(knowing)[name] is lora.parameters(model)[name]


def test_merges_stack_and_are_undone_in_reverse_order(model):
    base = state(model)
    first = lora.merge(model, [(changing(model, FIRST), 1.0)])
    during = state(model)
    second = lora.merge(model, [(changing(model, FIRST, SECOND, seed=1), 1.0)])
    on_top = state(model)
    with pytest.raises(RuntimeError, match=f"^{FIRST} was replaced after this merge: undo later merges first[^\n]*$"):
        first.undo()
    assert_state(model, on_top)  # the refusal changed nothing
    second.undo()
    assert_state(model, during)
    first.undo()
    assert_state(model, base)


def test_the_wrong_order_is_noticed_after_a_move(model):
    base = state(model)
    first = lora.merge(model, [(changing(model, FIRST), 1.0)])
    second = lora.merge(model, [(changing(model, FIRST, seed=1), 1.0)])
    model.unet.half()
    with pytest.raises(RuntimeError, match="was replaced after this merge"):
        first.undo()
    second.undo()
    first.undo()
    assert torch.equal(lora.parameters(model)[FIRST], base[FIRST].half())


def test_merges_of_different_weights_are_undone_in_any_order(model):
    base = state(model)
    first = lora.merge(model, [(changing(model, FIRST), 1.0)])
    second = lora.merge(model, [(changing(model, SECOND), 1.0)])
    first.undo()
    second.undo()
    assert_state(model, base)


def test_the_base_follows_the_model(model):
    """To another dtype; and after a way there and back it has lost nothing, since it did not go along."""
    base = state(model)
    with lora.merged(model, [(changing(model, FIRST), 1.0)]):
        model.unet.half()
        model.unet.float()
        rounded = lora.parameters(model)[SECOND].detach().clone()
    assert torch.equal(lora.parameters(model)[FIRST], base[FIRST])
    assert torch.equal(lora.parameters(model)[SECOND], rounded)  # of no merge: it went along
    with lora.merged(model, [(changing(model, FIRST), 1.0)]):
        model.unet.to(torch.bfloat16, memory_format=torch.channels_last)
    assert torch.equal(lora.parameters(model)[FIRST], base[FIRST].bfloat16())


@pytest.mark.gpu
def test_the_base_follows_the_model_to_a_gpu(model):
    base = state(model)
    with lora.merged(model, [(changing(model, FIRST), 1.0)]):
        model.unet.cuda()
    found = lora.parameters(model)[FIRST]
    assert found.is_cuda and torch.equal(found.cpu(), base[FIRST])


def step(model: Model) -> None:
    weight = lora.parameters(model)[FIRST].requires_grad_()
    weight.sum().backward()
    torch.optim.SGD([weight], lr=1.0).step()


def assign(model: Model) -> None:
    model.unet.load_state_dict({key: tensor.clone() for key, tensor in model.unet.state_dict().items()}, assign=True)


def replace_layer(model: Model) -> None:
    old = model.unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_k
    model.unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_k = copy.deepcopy(old)


@torch.no_grad()
def change_in_place(model: Model) -> None:
    lora.parameters(model)[FIRST].add_(1)


CHANGES = {
    "optimizer": (step, "changed in place"),
    "load_state_dict": (lambda model: model.unet.load_state_dict(model.unet.state_dict()), "changed in place"),
    "assignment": (assign, "replaced"),
    "another layer": (replace_layer, "replaced"),
    "in place": (change_in_place, "changed in place"),
}


@pytest.mark.parametrize("moved", [False, True], ids=["", "moved"])
@pytest.mark.parametrize("change", CHANGES)
def test_what_happened_to_a_merged_weight_is_not_lost(change, moved, model):
    """undo refuses, changes nothing, and the base is still at hand."""
    act, said = CHANGES[change]
    exact = state(model)
    merged = lora.merge(model, [(changing(model, FIRST, SECOND), 1.0)])
    if moved:
        model.unet.double()
    act(model)
    during = state(model)
    with pytest.raises(RuntimeError, match=f"^unet[^\n]*_[kv].weight was {said} after this merge[^\n]*$"):
        merged.undo()
    assert_state(model, during)
    assert torch.equal(merged.base[FIRST], exact[FIRST]) and torch.equal(merged.base[SECOND], exact[SECOND])


def test_what_cannot_be_noticed(model):
    """A change of `.data` leaves no mark that a move would not leave; the base returns."""
    base = state(model)
    with lora.merged(model, [(changing(model, FIRST), 1.0)]):
        lora.parameters(model)[FIRST].data.add_(1)
        lora.parameters(model)[FIRST].data = randn(*base[FIRST].shape).float()
    assert_state(model, base)


def test_errors_inside_a_block(model):
    base = state(model)
    with pytest.raises(KeyError), lora.merged(model, [(changing(model, FIRST), 1.0)]) as merged:
        assert not torch.equal(lora.parameters(model)[FIRST], base[FIRST])
        raise KeyError
    assert_state(model, base)
    with lora.merged(model, [(changing(model, FIRST), 1.0)]) as merged:
        merged.undo()  # earlier than the block would
        assert_state(model, base)
    assert_state(model, base)


def test_an_adapter_of_another_model_changes_nothing(model):
    """Neither the base nor what is merged, which can still be undone."""
    base, wrong = state(model), lora.Adapter({FIRST: Full(randn(3, 3))}, "wrong.safetensors")
    merged = lora.merge(model, [(changing(model, FIRST), 1.0)])
    during = state(model)
    for adapters in ([(wrong, 1.0)], [(changing(model, SECOND), 1.0), (wrong, 1.0)]):
        with pytest.raises(ValueError, match="the adapter wrong.safetensors is of another model"):
            lora.merge(model, adapters)
        assert_state(model, during)
    merged.undo()
    assert_state(model, base)


def test_in_inference_mode(model):
    """Drawing happens there, and PyTorch counts no changes of the tensors that are made there."""
    base = state(model)
    with torch.inference_mode():
        merged = lora.merge(model, [(changing(model, FIRST), 1.0)])
        model.unet.half()
        merged.undo()
    found = lora.parameters(model)[FIRST]
    assert torch.equal(found, base[FIRST].half()) and not found.is_inference()
    with lora.merged(model, [(changing(model, FIRST), 1.0)]):
        assert not lora.parameters(model)[FIRST].is_inference()


def test_gradients_are_asked_for_as_before(model):
    """Frozen weights stay frozen, and freezing while merged lasts."""
    model.unet.requires_grad_(False)
    with lora.merged(model, [(changing(model, FIRST), 1.0)]):
        assert not lora.parameters(model)[FIRST].requires_grad
        model.unet.requires_grad_(True)
    assert lora.parameters(model)[FIRST].requires_grad and lora.parameters(model)[FIRST].is_leaf


def test_the_handle_says_whose_it_is(model):
    named = replace(model, source="some/model")
    assert repr(lora.merge(named, [(changing(named, FIRST), 1.0)])) == "Merged(1 weights of some/model)"


def test_a_layer_keeps_its_hooks(model):
    """And its other parameters; only the weight changes."""
    layer = model.unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_k
    seen = []
    handle = layer.register_forward_hook(lambda *arguments: seen.append(1))
    with lora.merged(model, [(changing(model, FIRST), 1.0)]):
        layer(randn(1, 2, layer.in_features).float())
    handle.remove()
    assert seen == [1] and isinstance(layer.weight, nn.Parameter) and layer.bias is None
