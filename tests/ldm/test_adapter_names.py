"""Adapters in the names that other programs write: the same changes spelled in each way, against kohya's names, whose
values test_lora.py holds against diffusers; peft's own files against peft; and what is refused by name."""

import copy
import json
import random
import re
import resource
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_kohya
from peft import LoHaConfig, LoraConfig, get_peft_model, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file
from test_lora import (
    FAMILIES,
    GOOD,
    NONE,
    TARGETS,
    Q,
    assert_equal,
    full_size,
    kohya_key,
    outputs,
    random_factors,
    randomized,
    reference_outputs,
    refusal,
    sgm,
    shared_model,
    tiny_model,
    tiny_pipeline,
)
from torch import Tensor

from ldm.adapters import lora
from ldm.adapters.deltas import LoHa, LoRA
from ldm.model import Model
from support.networks import clip_pair, unet_pair
from support.numbers import randn, relative_error
from weights import describe_adapter
from weights.adapters import patterns
from weights.adapters.names import names_of, usual_name
from weights.adapters.read import load_adapter
from weights.adapters.write import save_adapter

ONETRAINER = {"unet": "unet", "text_encoder": "clip_l", "text_encoder_2": "clip_g"}  # SD 2's tower is clip_l, too
COMFYUI = {
    "sd15": {"unet": "diffusion_model", "text_encoder": "text_encoders.clip_l.transformer"},
    "sd2": {"unet": "diffusion_model", "text_encoder": "text_encoders.clip_h.transformer"},
    "sdxl": {
        "unet": "diffusion_model",
        "text_encoder": "text_encoders.clip_l.transformer",
        "text_encoder_2": "text_encoders.clip_g.transformer",
    },
}
KOHYA = {"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}
LEVELS = {"sd15": 4, "sd2": 4, "sdxl": 3}


def sgm_name(name: str, part: str, path: str) -> str:
    return sgm(path, LEVELS[name]) if part == "unet" else path


FORMS: dict[str, Callable[[str, str, str], str]] = {  # family, part, diffusers' path -> module
    "OneTrainer": lambda name, part, path: f"{ONETRAINER[part]}.{sgm_name(name, part, path)}",
    "ComfyUI": lambda name, part, path: f"{COMFYUI[name][part]}.{sgm_name(name, part, path)}",
    "ComfyUI, UNet in diffusers' names": lambda name, part, path: f"{COMFYUI[name][part]}.{path}",
    "single file": lambda name, part, path: (
        "model." * (part == "unet") + f"{COMFYUI[name][part]}.{sgm_name(name, part, path)}"
    ),
    "LyCORIS around all": lambda name, part, path: f"lycoris_{part}_{path}".replace(".", "_"),
    "kohya with dots": lambda name, part, path: f"{kohya_head(name, part)}_{path}",
    "kohya with dots, sgm": lambda name, part, path: f"{kohya_head(name, part)}.{sgm_name(name, part, path)}",
    "diffusers without text_model": lambda name, part, path: f"{part}.{path.removeprefix('text_model.')}",
    "sgm in diffusers' head": lambda name, part, path: f"{part}.{sgm_name(name, part, path)}",
    "peft around all": lambda name, part, path: f"base_model.model.{part}.{path}",
}


def kohya_head(name: str, part: str) -> str:
    return KOHYA[part] if name == "sdxl" else KOHYA[part].replace("1", "")


@pytest.fixture(scope="module")
def factors() -> Callable[[str], dict]:
    """Of a family, drawn once; layers of every kind in the UNet."""
    drawn: dict[str, dict] = {}

    def of(name: str) -> dict:
        if name not in drawn:
            drawn[name] = random_factors(tiny_pipeline(name), conv=True, every=4)
        return drawn[name]

    return of


def assert_same(found: lora.Adapter, expected: lora.Adapter) -> None:
    assert found.unmatched == () and found.deltas.keys() == expected.deltas.keys()
    for key, delta in expected.deltas.items():
        same = found.deltas[key]
        assert isinstance(same, LoRA) and same.scale == delta.scale
        assert torch.equal(same.up, delta.up) and torch.equal(same.down, delta.down)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("form", FORMS)
def test_forms_of_names(name, form, factors, tmp_path):
    """Each module with an alpha of its own, and kohya's or peft's name of its tensors."""
    model, kohya, other = shared_model(name), {}, {}
    for i, ((part, path), (down, up)) in enumerate(factors(name).items()):
        stems = kohya_key(part, path, len(model.texts), False), FORMS[form](name, part, path)
        endings = ("lora_down", "lora_up"), (("lora_A", "lora_B") if i % 2 else ("lora_down", "lora_up"))
        for tensors, stem, (a, b) in zip((kohya, other), stems, endings):
            tensors[f"{stem}.alpha"] = torch.tensor(1.0 + i % 3)
            tensors |= {f"{stem}.{a}.weight": down.contiguous(), f"{stem}.{b}.weight": up.contiguous()}
    save_file(kohya, tmp_path / "kohya.safetensors")
    save_file(other, tmp_path / "other.safetensors")
    expected = load_adapter(tmp_path / "kohya.safetensors", model)
    assert len(expected.deltas) == len(factors(name)) > 50
    assert_same(load_adapter(tmp_path / "other.safetensors", model), expected)
    assert len(describe_adapter(tmp_path / "other.safetensors").changes) == len(expected.deltas)


@pytest.mark.parametrize("part", ["unet", "text_encoder", "text_encoder_2"])
def test_lycoris_around_one_network(part, factors, tmp_path):
    """SimpleTuner writes so, and LyCORIS' wrapper: no name says whose it is, but those of a UNet can only be one's."""
    model, path = shared_model("sdxl"), tmp_path / "a.safetensors"
    tensors, expected = {}, {}
    for (place, module), (down, up) in factors("sdxl").items():
        if place == part:
            stem = f"lycoris_{module.replace('.', '_')}"
            tensors |= {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}
            expected[f"{part}.{module}.weight"] = down
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path)
    if part == "unet":
        found = load_adapter(path, model).deltas
    else:
        assert re.search("could be of text_encoder.* or text_encoder_2.*: choose one as part$", refusal(path, model))
        found = load_adapter(path, model, part).deltas
    assert found.keys() == expected.keys() and all(torch.equal(found[key].down, expected[key]) for key in expected)


@pytest.mark.parametrize("name", ["sd15", "sd2", "sdxl", "sdxl_refiner"])
def test_names_of_other_programs_have_one_meaning(name):
    """In networks of published size no two modules have one name, in ComfyUI's form, OneTrainer's or LyCORIS'."""
    model = full_size(name)
    table = names_of(model, None)
    heads = {"unet": ("diffusion_model", "unet"), "text_encoder": ("clip_l",), "text_encoder_2": ("clip_g",)}
    for part, network in lora.networks(model).items():
        for path, module in network.named_modules():
            if isinstance(module, torch.nn.Linear | torch.nn.Conv2d | torch.nn.GroupNorm | torch.nn.LayerNorm):
                for head in heads[part]:
                    assert table[usual_name(f"{head}.{path}")] == [f"{part}.{path}"]
                assert table[f"lycoris_{part}_{path.replace('.', '_')}"] == [f"{part}.{path}"]


def test_what_comfyui_extracts(tmp_path):
    """LoraSave: full differences of weights, norms, biases and tables. Nothing reads its projection of CLIP-L."""
    model = tiny_model("sdxl")
    before = {key: parameter.clone() for key, parameter in lora.parameters(model).items()}
    clip_l, clip_g = (f"text_encoders.clip_{letter}.transformer" for letter in "lg")
    places = {
        "diffusion_model.out.0.diff": "unet.conv_norm_out.weight",
        "diffusion_model.out.0.diff_b": "unet.conv_norm_out.bias",
        "diffusion_model.out.2.diff": "unet.conv_out.weight",
        "diffusion_model.out.2.bias.diff": "unet.conv_out.bias",
        "diffusion_model.label_emb.0.2.diff_b": "unet.add_embedding.linear_2.bias",
        f"{clip_l}.text_model.final_layer_norm.diff": "text_encoder.text_model.final_layer_norm.weight",
        f"{clip_l}.text_model.final_layer_norm.diff_b": "text_encoder.text_model.final_layer_norm.bias",
        f"{clip_g}.text_projection.diff": "text_encoder_2.text_projection.weight",
    }
    table = "text_model.embeddings.token_embedding"
    places[f"{clip_g}.{table}.diff"] = f"text_encoder_2.{table}.weight"
    tensors = {key: randn(*before[place].shape, seed=i) for i, (key, place) in enumerate(places.items())}
    projection = f"{clip_l}.text_projection"
    extra = {f"{projection}.lora_up.weight": randn(32, 2), f"{projection}.lora_down.weight": randn(2, 32)}
    save_file(tensors | extra, tmp_path / "a.safetensors")
    adapter = load_adapter(tmp_path / "a.safetensors", model)
    assert set(adapter.unmatched) == extra.keys()
    lora.merge(model, [(adapter, -0.5)])
    after = lora.parameters(model)
    for key, place in places.items():
        assert torch.equal(after[place], before[place] - 0.5 * tensors[key]), key
    assert sum(not torch.equal(after[key], before[key]) for key in before) == len(places)


def test_a_weight_that_is_set(tmp_path):
    """ComfyUI's set_weight: strength 1 goes to it, strength 0 stays."""
    model, stem = tiny_model("sd15"), "diffusion_model.middle_block.1.proj_in"
    layer = model.unet.mid_block.attentions[0].proj_in
    base, new = layer.weight.detach().clone(), randn(*layer.weight.shape, seed=5)
    save_file({f"{stem}.set_weight": new}, tmp_path / "a.safetensors")
    adapter = load_adapter(tmp_path / "a.safetensors", model)
    for strength, expected in ((1.0, new), (0.25, 0.75 * base + 0.25 * new), (0.0, base)):
        with lora.merged(model, [(adapter, strength)]):
            assert relative_error(layer.weight, expected) < 1e-15
            assert torch.equal(layer.weight, base) == (strength == 0)
    save_adapter(adapter, tmp_path / "b.safetensors", model, "kohya")
    assert torch.equal(next(iter(load_adapter(tmp_path / "b.safetensors", model).deltas.values())).weight, new)
    save_file({f"{stem}.set_weight": new[:5]}, tmp_path / "c.safetensors")
    assert "makes a change of the shape (5, " in refusal(tmp_path / "c.safetensors", model)


PATTERNS = {
    "rank_pattern": {r"down_blocks\.\d+\..*attn[12]\.to_q": 2, "(conv1|conv_in)": 3, r"^up_blocks\.[0-1]\.\w+\.0.*": 5},
    "alpha_pattern": {r".*\.(?:to_k|to_out\.0)": 3.0, "(?!.*attn1).*to_q": 1.5, "mid_block.*": 7},
}


@pytest.mark.parametrize("adapter, dora", [("default", False), ("default_0", True), ("my-style", False)])
def test_networks_that_peft_saves_whole(adapter, dora, tmp_path):
    """state_dict of a PeftModel: the adapter's name is inside the keys. Ranks and alphas by regular expressions."""
    name, strength = "sd15", 0.5
    config = LoraConfig(r=4, lora_alpha=6, target_modules=TARGETS[0], use_dora=dora, **PATTERNS)
    unet = get_peft_model(copy.deepcopy(unet_pair(name)[1]), config, adapter_name=adapter)
    randomized(unet, seed=1)
    tensors = {key: tensor for key, tensor in unet.state_dict().items() if "lora_" in key}
    assert all(f".{adapter}" in key for key in tensors)
    assert {len(tensor) for key, tensor in tensors.items() if "lora_A" in key} == {2, 3, 4, 5}
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, tmp_path / "adapter_model.safetensors")
    config.save_pretrained(tmp_path)
    for module in unet.modules():
        if isinstance(module, BaseTunerLayer):
            module.scale_layer(strength)
    model = shared_model(name)
    reference = reference_outputs(name, StableDiffusionPipeline(unet=unet, text_encoder=clip_pair("l")[1], **NONE))
    found = load_adapter(tmp_path, model)
    with lora.merged(model, [(found, strength)]):
        assert_equal(name, outputs(name, model), reference, "unet")
    if adapter == "default":  # without peft's head, and the configuration still counts
        bare = {key.removeprefix("base_model.model."): tensor.clone() for key, tensor in tensors.items()}
        save_file(bare, tmp_path / "adapter_model.safetensors")
        again = load_adapter(tmp_path, model).deltas
        for key, delta in found.deltas.items():
            assert torch.equal(again[key].value(randn(1)), delta.value(randn(1)))
        (tmp_path / "adapter_config.json").unlink()
        assert {delta.scale for delta in load_adapter(tmp_path, model).deltas.values()} == {1}


def test_names_of_adapters_inside_other_kinds(tmp_path):
    model = shared_model("sd15")
    unet = get_peft_model(copy.deepcopy(unet_pair("sd15")[1]), LoHaConfig(r=2, alpha=3, target_modules=["to_q"]))
    tensors = {key: tensor for key, tensor in randomized(unet, seed=2).state_dict().items() if "hada" in key}
    assert any(key.endswith(".hada_w1_a.default") for key in tensors)
    save_file(tensors, tmp_path / "a.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LOHA", "r": 2, "alpha": 3}))
    deltas = load_adapter(tmp_path / "a.safetensors", model).deltas
    assert deltas and all(isinstance(delta, LoHa) and delta.scale == 1.5 for delta in deltas.values())


def test_several_adapters_in_one_file(tmp_path):
    """peft keeps them side by side in a network."""
    unet = get_peft_model(copy.deepcopy(unet_pair("sd15")[1]), LoraConfig(r=2, target_modules=["to_q"]))
    unet.add_adapter("style", LoraConfig(r=3, target_modules=["to_k", "to_q"]))
    tensors = {key: tensor.contiguous() for key, tensor in unet.state_dict().items() if "lora_" in key}
    save_file(tensors, tmp_path / "a.safetensors")
    assert refusal(tmp_path / "a.safetensors", shared_model("sd15")).endswith(
        "holds several adapters, 'default', 'style': save each in a file of its own"
    )


def pair(stem: str) -> dict[str, Tensor]:
    return {f"{stem}.lora_down.weight": torch.ones(2, 4), f"{stem}.lora_up.weight": torch.ones(4, 2)}


OTHERS = {
    "Flux, kohya": ("lora_unet_double_blocks_0_img_attn_proj", "a transformer such as Flux"),
    "Flux, diffusers": ("transformer.single_transformer_blocks.0.attn.to_q", "a transformer such as Flux"),
    "Flux, ComfyUI": ("diffusion_model.single_blocks.7.linear1", "a transformer such as Flux"),
    "Flux, LyCORIS": ("lycoris_single_transformer_blocks_0_attn_to_q", "a transformer such as Flux"),
    "SD 3, kohya": ("lora_unet_joint_blocks_0_context_block_attn_qkv", "SD 3"),
    "SD 3, diffusers": ("transformer.transformer_blocks.0.attn.to_q", "a transformer such as Flux or SD 3"),
    "SD 3, OneTrainer": ("lora_transformer_transformer_blocks_0_attn_to_q", "a transformer such as Flux or SD 3"),
    "peft": ("base_model.model.transformer.transformer_blocks.0.attn.to_q", "a transformer such as Flux or SD 3"),
    "T5": ("lora_te3_encoder_block_0_layer_0_SelfAttention_q", "SD 3 or Flux"),
    "Cascade": ("lora_prior_unet_down_blocks_0_1_attention_attn_to_q", "Stable Cascade"),
    "Cascade's text": ("lora_prior_te_text_model_encoder_layers_0_mlp_fc1", "Stable Cascade"),
    "Wan": ("diffusion_model.blocks.0.self_attn.q", "a transformer such as Wan or Lumina"),
    "AnimateDiff": ("down_blocks.0.motion_modules.0.transformer_blocks.0.attn1.to_q", "AnimateDiff"),
    "LLLite": ("lllite_unet_down_blocks_1_attentions_0", "ControlNet-LLLite"),
}


@pytest.fixture(scope="module")
def with_square_layer() -> Model:
    """SDXL whose first text layer fits the files below."""
    model = tiny_model("sdxl")
    model.texts["text_encoder"].text_model.encoder.layers[0].mlp.fc1 = torch.nn.Linear(4, 4)
    return model


@pytest.mark.parametrize("kind", OTHERS)
def test_adapters_of_other_families(kind, with_square_layer, tmp_path):
    """By name; where a text tower's part would fit, partial does not take it."""
    stem, title = OTHERS[kind]
    path = tmp_path / "a.safetensors"
    tensors = pair(stem) | {f"{stem}.alpha": torch.ones(())}
    save_file(tensors, path)
    assert refusal(path, with_square_layer).endswith(f"; it is an adapter for {title}")
    save_file(tensors | pair("lora_te1_text_model_encoder_layers_0_mlp_fc1"), path)
    assert f" is an adapter for {title}: " in refusal(path, with_square_layer, partial=True)
    assert f" is an adapter for {title}: " in refusal(path, with_square_layer)


def test_what_diffusers_converts_to_kohya(tmp_path):
    """It calls the only tower of SD 1 the first one, and leaves a dot before the magnitudes of DoRA."""
    pipeline, found = tiny_pipeline("sd15"), {}
    for part, target in (("unet", "to_q"), ("text_encoder", "q_proj")):
        network = getattr(pipeline, part)
        config = LoraConfig(r=2, lora_alpha=2, use_dora=True, target_modules=[target], init_lora_weights=False)
        network.add_adapter(config)
        found |= {f"{part}.{key}": tensor for key, tensor in get_peft_model_state_dict(network).items()}
    kohya = {key: tensor.contiguous() for key, tensor in convert_state_dict_to_kohya(found).items()}
    save_file(kohya, tmp_path / "kohya.safetensors")
    adapter = load_adapter(tmp_path / "kohya.safetensors", shared_model("sd15"))
    assert len(adapter.deltas) == len(found) / 3 and adapter.unmatched == ()
    with lora.merged(shared_model("sd15"), [(adapter, 1.0)]):
        assert_equal("sd15", outputs("sd15", shared_model("sd15")), reference_outputs("sd15", pipeline))


def test_the_first_tower_of_two_is_not_the_only_one(tmp_path):
    """Where the file has a second one: SDXL's first tower has the shapes of SD 1's."""
    key = Q.replace(".", "_").replace("unet_", "lora_unet_", 1)
    first, second = (f"lora_te{i}_text_model_encoder_layers_0_mlp_fc1" for i in (1, 2))
    unet = {f"{key}.lora_down.weight": GOOD[f"{Q}.lora_A.weight"], f"{key}.lora_up.weight": GOOD[f"{Q}.lora_B.weight"]}
    save_file(unet | pair(first) | pair(second), tmp_path / "a.safetensors")
    assert "4 tensors have no place" in refusal(tmp_path / "a.safetensors", shared_model("sd15"))


WRAPPERS = ["unet._orig_mod.", "_orig_mod.", "module.", "base_model.model._orig_mod.", "lora_unet__orig_mod_"]


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_networks_that_were_wrapped_when_they_were_saved(wrapper, tmp_path):
    """By torch.compile, by a trainer on many GPUs."""
    save_file(GOOD, tmp_path / "plain.safetensors")
    expected = load_adapter(tmp_path / "plain.safetensors", shared_model("sd15"))
    wrapped = {key.replace("unet.", wrapper): tensor for key, tensor in GOOD.items()}
    wrapped[f"{Q}.alpha".replace("unet.", wrapper)] = torch.tensor(2.0)
    save_file(wrapped, tmp_path / "a.safetensors")
    found = load_adapter(tmp_path / "a.safetensors", shared_model("sd15"))
    assert found.deltas.keys() == expected.deltas.keys() and found.unmatched == ()


def test_words_beside_an_adapter(tmp_path):
    """The LoRA loads, and says that there are words; a word may hold dots, or an adapter's ending."""
    path, model = tmp_path / "a.safetensors", shared_model("sd15")
    words = {"bundle_emb.my.cat.clip_l": torch.ones(2, 32), "bundle_emb.alpha.alpha": torch.ones(1, 32)}
    save_file(GOOD | words, path)
    with pytest.warns(UserWarning, match="also holds the words 'alpha', 'my.cat': add_embedding .* makes"):
        adapter = load_adapter(path, model)
    assert list(adapter.deltas) == [f"{Q}.weight"] and adapter.words == ("alpha", "my.cat") and adapter.unmatched == ()
    assert describe_adapter(path).words == ("alpha", "my.cat") and describe_adapter(path).unknown == ()


def test_regular_expressions_mean_what_they_mean_to_python():
    """Whatever both accept; what Python accepts and we do not is refused."""
    rng = random.Random(0)
    pieces = [*"ab._0()|*+?^$", r"\.", "[ab]", "[^a.]", "[a-c0-9_]", r"\d", r"\w", r"\S", "(?:", "(?=", "(?!"]
    pieces += ["{2}", "{1,2}", "{,2}", "{1,}", "*?"]
    compared = matched = 0
    for _ in range(6000):
        pattern = "".join(rng.choices(pieces, k=rng.randint(1, 8)))
        try:
            theirs = re.compile(rf"(.*\.)?({pattern})$")
            ours = patterns.parse(pattern)
        except (re.error, ValueError):
            continue
        for _ in range(3):
            text = "".join(rng.choices("ab._0", k=rng.randint(0, 7)))
            expected = bool(theirs.match(text))
            assert patterns.fits_end(ours, text) == expected, (pattern, text)
            compared += 1
            matched += expected
    assert compared > 4000 and matched > 400


def test_no_pattern_takes_long():
    """Each of these would keep Python's own matcher busy for years: all in two seconds of processor time, alone."""
    bombs = ["(a+)+b", "(a|a)*" * 90 + "b", "((((a{1,}){5,}){5,}){5,}){5,}b", "(.*)" * 240 + "b", "((a?){999}){999}b"]
    bombs += ["(" * 19 + "a*" + ")*" * 19 + "b", "(?=(a*)*b)" * 90, "((a*){9999}){9999}b", "(a|aa)+$b" * 100]
    code = (
        "import runpy, json, sys; room = runpy.run_path(sys.argv[1]);"
        "print([room['fits_end'](room['parse'](bomb), 'a' * 500) for bomb in json.loads(sys.argv[2])])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, patterns.__file__, json.dumps(bombs)],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, (2, 2)),
    )
    assert run.returncode == 0 and run.stdout.strip() == str([False] * len(bombs)), run.stderr[-300:]


@pytest.mark.parametrize(
    "pattern, reason",
    [
        ("(a", r"a \) is missing"),
        ("a)", r"it has a \) too many"),
        ("*a", r"its \* repeats nothing"),
        ("a**", r"its \* repeats nothing"),
        ("a{x}", "its braces hold no counts"),
        ("[a", "it is not complete"),
        ("[b-a]", "b-a is no range"),
        (r"(a)\1", r"\\1 is not followed here"),
        ("(?<=a)b", r"\(\?< is not followed here"),
        ("(?=(?=a))", "inside of"),
        ("(" * 30 + ")" * 30, "more than 20 groups in groups"),
        ("a" * 1001, "longer than 1000 characters"),
    ],
)
def test_patterns_that_are_refused(pattern, reason):
    with pytest.raises(ValueError, match=reason):
        patterns.parse(pattern)
