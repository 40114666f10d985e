"""Adapters against diffusers and peft by value, in every layout of files; exact unmerging; what files can do wrong."""

import copy
import functools
import json
import math
import random
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from peft import LoHaConfig, LoKrConfig, LoraConfig, get_peft_model, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ldm.adapters import lora
from ldm.adapters.deltas import DoRA, Full, LoHa, LoKr, LoRA, Product
from ldm.clip import CLIPText
from ldm.config import CLIPS, MODELS, UNETS, UNetConfig
from ldm.model import Model
from ldm.unet import UNet
from support.networks import clip_pair, token_ids, unet_inputs, unet_pair
from support.numbers import randn, relative_error, relative_l2
from weights import CheckpointError
from weights.adapters.kinds import FIELDS
from weights.adapters.names import names_of
from weights.adapters.peft_tables import by_pattern
from weights.adapters.read import load_adapter
from weights.adapters.write import save_adapter
from weights.disk.settings import Settings

CLOSE = 1e-12  # of float64: networks of some twenty layers; measured 1e-14
NONE = dict.fromkeys(("vae", "tokenizer", "scheduler", "safety_checker", "feature_extractor"))
FAMILIES = {"sd15": ("l",), "sd2": ("h",), "sdxl": ("l", "bigg")}  # UNet in helpers -> towers


def tiny_model(name: str) -> Model:
    """Float64. The networks need not fit each other: each is compared by itself."""
    unet, texts = unet_pair(name)[0], [clip_pair(tower)[0] for tower in FAMILIES[name]]
    facts = replace(MODELS[name], unet=unet.config, texts=tuple(text.config for text in texts))
    towers = dict(zip(facts.family.towers, copy.deepcopy(texts)))
    return Model(copy.deepcopy(unet), None, towers, None, facts)


def tiny_pipeline(name: str) -> StableDiffusionPipeline | StableDiffusionXLPipeline:
    """The same weights in diffusers."""
    unet, texts = unet_pair(name)[1], [clip_pair(tower)[1] for tower in FAMILIES[name]]
    parts = dict(zip(("text_encoder", "text_encoder_2"), texts))
    parts = {part: copy.deepcopy(network) for part, network in {"unet": unet, **parts}.items()}
    if len(texts) > 1:
        return StableDiffusionXLPipeline(
            **parts, **dict.fromkeys(("vae", "tokenizer", "tokenizer_2", "scheduler")), add_watermarker=False
        )
    return StableDiffusionPipeline(**parts, **NONE)


SIZES = {"sd15": (16, 16), "sd2": (16, 16), "sdxl": (8, 8)}  # 2 x 2 pixels are left on the coarsest level


def micro_model() -> Model:
    unet = UNetConfig(
        in_channels=4,
        channels=(8,),
        heads=(2,),
        depth=(1,),
        mid_depth=1,
        context_dim=8,
        layers=1,
        groups=4,
        linear_projection=False,
    )
    text = replace(CLIPS["l"], layers=1, width=8, heads=2, hidden=8, vocab=8)
    return Model(
        UNet(unet), None, {"text_encoder": CLIPText(text)}, None, replace(MODELS["sd15"], unet=unet, texts=(text,))
    )


@torch.no_grad()
def outputs(name: str, model: Model) -> dict[str, Tensor]:
    """Of every network; the keys begin with its part."""
    found = {"unet": model.unet(**{key: value[:1] for key, value in unet_inputs(name, SIZES[name])[0].items()})}
    for part, tower, text in zip(("text_encoder", "text_encoder_2"), FAMILIES[name], model.texts.values()):
        features = text(token_ids(tower)[1:2])
        found |= {
            f"{part}.last": features.last,
            f"{part}.hidden": features.hidden[-2],
            f"{part}.pooled": features.pooled,
        }
    return found


@torch.no_grad()
def reference_outputs(name: str, pipeline) -> dict[str, Tensor]:
    inputs = unet_inputs(name, SIZES[name])[1]
    added = {key: value[:1] for key, value in inputs.pop("added_cond_kwargs", {}).items()}
    inputs = {key: value[:1] for key, value in inputs.items()}
    found = {"unet": pipeline.unet(**inputs, added_cond_kwargs=added).sample}
    for part, tower in zip(("text_encoder", "text_encoder_2"), FAMILIES[name]):
        features = getattr(pipeline, part)(token_ids(tower)[1:2], output_hidden_states=True)
        pooled = features.text_embeds if tower == "bigg" else features.pooler_output
        found |= {
            f"{part}.last": features.last_hidden_state,
            f"{part}.hidden": features.hidden_states[-2],
            f"{part}.pooled": pooled,
        }
    return found


@functools.cache
def plain_outputs(name: str) -> dict[str, Tensor]:
    return outputs(name, tiny_model(name))


def assert_equal(name: str, ours: dict, reference: dict, part: str = "", limit: float = CLOSE) -> None:
    """To the reference, and not to what the networks give without the adapter."""
    assert ours.keys() == reference.keys()
    for key in [key for key in ours if key.startswith(part)]:
        assert relative_error(ours[key], reference[key]) < limit, key
        assert relative_l2(ours[key], plain_outputs(name)[key]) > 0.01, key


def assert_plain(name: str, model: Model) -> None:
    for key, tensor in outputs(name, model).items():
        assert torch.equal(tensor, plain_outputs(name)[key]), key


def modules(pipeline, conv: bool) -> dict[tuple[str, str], nn.Module]:
    """Part and path of what trainers adapt: all linear layers of transformers, or all of the network with conv."""
    found = {}
    for part in ("unet", "text_encoder", "text_encoder_2"):
        for path, module in (getattr(pipeline, part, None) or nn.Module()).named_modules():
            wanted = conv or "attentions" in path or "self_attn" in path or "mlp" in path
            if isinstance(module, nn.Linear | nn.Conv2d) and wanted:
                if part != "unet" and not path.startswith("text_"):
                    path = "text_model." + path  # the name in files; transformers 5.6 dropped it
                found[part, path] = module
    return found


def random_factors(pipeline, conv: bool = False, every: int = 1) -> dict[tuple[str, str], tuple[Tensor, Tensor]]:
    """(part, path) -> down and up, in float64, of various ranks, for every n-th module of the UNet and all of the
    texts: there transformers would put a random LoRA wherever a path ends like one that has one."""
    generator, found = torch.Generator().manual_seed(every), {}
    for i, (place, module) in enumerate(modules(pipeline, conv).items()):
        if place[0] == "unet" and i % every:
            continue
        outputs, inputs, *kernel = module.weight.shape
        rank = 2 + i % 3
        down, up = (
            torch.randn(shape, generator=generator, dtype=torch.float64)
            for shape in ((rank, inputs, *kernel), (outputs, rank, *[1] * len(kernel)))
        )
        found[place] = down / down[0].numel() ** 0.5, up / rank**0.5 / 3
    return found


def sgm(path: str, levels: int) -> str:
    """facts of the sgm layout, restated: three blocks per level, numbered through; for SDXL and SD alike."""
    head, *rest = path.split(".")
    tails = {
        "conv1": "in_layers.2",
        "conv2": "out_layers.3",
        "time_emb_proj": "emb_layers.1",
        "conv_shortcut": "skip_connection",
    }
    whole = {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "add_embedding.linear_1": "label_emb.0.0",
        "add_embedding.linear_2": "label_emb.0.2",
        "conv_in": "input_blocks.0.0",
        "conv_out": "out.2",
    }
    if path in whole:
        return whole[path]
    if head == "mid_block":
        kind, i, *tail = rest
        number = {"resnets0": 0, "attentions0": 1, "resnets1": 2}[kind + i]
        return ".".join([f"middle_block.{number}", *[tails.get(part, part) for part in tail]])
    level, kind, i, *tail = rest
    tail = [tails.get(part, part) for part in tail]
    down = head == "down_blocks"
    if kind == "downsamplers":
        return f"input_blocks.{3 * int(level) + 3}.0.op"
    if kind == "upsamplers":
        with_attention = int(level) < 2 if levels == 3 else int(level) > 0
        return f"output_blocks.{3 * int(level) + 2}.{2 if with_attention else 1}.conv"
    n = 3 * int(level) + int(i) + down
    return ".".join([f"{'input' if down else 'output'}_blocks.{n}", "01"[kind == "attentions"], *tail])


def kohya_key(part: str, path: str, towers: int, in_sgm: bool) -> str:
    head = {"unet": "lora_unet", "text_encoder": "lora_te1" if towers > 1 else "lora_te", "text_encoder_2": "lora_te2"}
    path = sgm(path, levels=3) if in_sgm and part == "unet" else path
    return f"{head[part]}_{path.replace('.', '_')}"


def spelled(layout: str, factors: dict, towers: int, alpha: float = 3.0) -> dict[str, Tensor]:
    """The tensors of a file. kohya's have an alpha; the others stand for alpha = rank."""
    tensors = {}
    for (part, path), (down, up) in factors.items():
        match layout:
            case "kohya" | "kohya_sgm":
                stem, a, b = kohya_key(part, path, towers, layout == "kohya_sgm"), "lora_down", "lora_up"
                tensors[f"{stem}.alpha"] = torch.tensor(alpha)
            case "peft":
                stem, a, b = f"{part}.{path}", "lora_A", "lora_B"
            case "older" if part == "unet":
                stem, a, b = f"{part}.{path}", "lora.down", "lora.up"
            case "older":
                stem, a, b = f"{part}.{path}", "lora_linear_layer.down", "lora_linear_layer.up"
            case "oldest":
                *block, last = path.removesuffix(".0").split(".")
                last = last.replace("_proj", "") if part != "unet" else last.removeprefix("to_")
                stem = f"{part}.{'.'.join(block)}{'.processor' * (part == 'unet')}.to_{last}_lora"
                tensors |= {f"{stem}.down.weight": down, f"{stem}.up.weight": up}
                continue
        tensors |= {f"{stem}.{a}.weight": down, f"{stem}.{b}.weight": up}
    return {key: tensor.contiguous() for key, tensor in tensors.items()}


def attention_only(factors: dict) -> dict:
    return {
        (part, path): pair
        for (part, path), pair in factors.items()
        if ".attn" in path and ".ff." not in path or "self_attn" in path
    }


@pytest.mark.parametrize(
    "name, layout, conv",
    [
        ("sd15", "kohya", True),
        ("sd15", "older", False),
        ("sd15", "oldest", False),
        ("sd2", "kohya", False),
        ("sdxl", "kohya_sgm", True),
    ],
)
def test_layouts_of_lora(name, layout, conv, tmp_path):
    """Two adapters, which meet in some layers of the UNet, with their strengths; merged, then attached."""
    pipeline, model, strengths = tiny_pipeline(name), tiny_model(name), (0.7, -0.4)
    adapters, path = [], tmp_path / "adapter.safetensors"
    drawn = [random_factors(pipeline, conv, every) for every in (3, 4)]
    for number, factors in enumerate(drawn):
        factors = attention_only(factors) if layout == "oldest" else factors
        save_file(spelled(layout, factors, len(model.texts)), path)
        pipeline.load_lora_weights(tmp_path, weight_name=path.name, adapter_name=f"adapter{number}")
        adapters.append(load_adapter(path, model))
        assert len(adapters[-1].deltas) == len(factors) and adapters[-1].unmatched == ()
        path.unlink()
    pipeline.set_adapters(["adapter0", "adapter1"], adapter_weights=list(strengths))
    reference = reference_outputs(name, pipeline)
    for way in (lora.merged, lora.attached):
        with way(model, list(zip(adapters, strengths))):
            assert_equal(name, outputs(name, model), reference)
    assert_plain(name, model)


def test_layouts_that_say_the_same(tmp_path):
    """One set of factors, of SDXL, in every layout: with alpha = rank they have one scale in all. The first files had
    no "unet." in their names."""
    model, path = tiny_model("sdxl"), tmp_path / "a.safetensors"
    factors = attention_only(random_factors(tiny_pipeline("sdxl"), every=3))
    files = {layout: spelled(layout, factors, 2) for layout in ("peft", "kohya", "kohya_sgm", "older", "oldest")}
    for tensors in files.values():
        for key in tensors:
            if key.endswith(".alpha"):
                tensors[key] = torch.tensor(len(tensors[key.replace("alpha", "lora_down.weight")]))
    files["bare"] = {key.removeprefix("unet."): tensor for key, tensor in files["oldest"].items()}
    found = {}
    for layout, tensors in files.items():
        save_file(tensors, path)
        found[layout] = load_adapter(path, model).deltas
    for deltas in found.values():
        assert deltas.keys() == {f"{part}.{path}.weight" for part, path in factors}
        for key, delta in deltas.items():
            same = found["peft"][key]
            assert delta.scale == 1 and torch.equal(delta.up, same.up) and torch.equal(delta.down, same.down)


def test_alpha_of_each_module(tmp_path):
    """diffusers drops the alphas of attention and texts unless all are equal, so they are put into its layers here.
    Some modules have none: scale 1; trainers write whole numbers too."""
    name = "sd2"
    pipeline, model = tiny_pipeline(name), tiny_model(name)
    factors = random_factors(pipeline, every=4)
    pipeline.load_lora_weights(spelled("peft", factors, 1), adapter_name="a")
    tensors = spelled("kohya", factors, 1)
    for i, ((part, path), (down, _)) in enumerate(factors.items()):
        key, alpha = kohya_key(part, path, 1, False) + ".alpha", 1 + i % 5
        tensors[key] = torch.tensor(alpha) if i % 3 else torch.tensor([alpha / 2], dtype=torch.float16)
        scale = (alpha if i % 3 else alpha / 2) / len(down)
        if i % 7 == 0:
            scale = 1.0
            del tensors[key]
        getattr(pipeline, part).get_submodule(path.removeprefix("text_model.")).scaling["a"] = scale
    save_file(tensors, tmp_path / "a.safetensors")
    with lora.merged(model, [(load_adapter(tmp_path / "a.safetensors", model), 1)]):
        assert_equal(name, outputs(name, model), reference_outputs(name, pipeline))


CONFIGS = {
    "scale": dict(
        r=4,
        lora_alpha=6,
        alpha_pattern={"to_q": 1, "^mid_block.attentions.0.proj_in": 9},
        rank_pattern={"attn2.to_k": 2, "conv1": 3},
    ),
    "rslora": dict(r=4, lora_alpha=2, use_rslora=True),
    "dora": dict(r=3, lora_alpha=5, use_dora=True),
    "bias": dict(r=2, lora_alpha=3, lora_bias=True),
}
WITH_BIAS = ["to_out.0", "ff.net.2", "proj_in", "conv1", "conv_in", "downsamplers.0.conv"]
TARGETS = [WITH_BIAS + ["to_q", "to_k"], WITH_BIAS]  # peft cannot merge a bias where there is none


def randomized(network: nn.Module, seed: int, adapter: str = "") -> nn.Module:
    """Every tensor of an adapter that peft put into a network; magnitudes stay near the norms that they are."""
    generator = torch.Generator().manual_seed(seed)
    for key, parameter in network.named_parameters():
        if any(word in key for word in ("lora_", "hada_", "lokr_")) and adapter in key:
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            with torch.no_grad():
                parameter.copy_(parameter * (1 + 0.2 * noise) if "magnitude" in key else 0.4 * noise)
    return network


@pytest.mark.parametrize("kind", CONFIGS)
def test_files_that_diffusers_and_peft_save(kind, tmp_path):
    """As diffusers' training scripts do, with peft's configuration in the metadata; two of them with strengths. DoRA of
    two adapters is no sum: peft's forward defines it."""
    name, strengths = "sd15", (0.6, 1.3)
    pipeline, model, adapters = tiny_pipeline(name), tiny_model(name), []
    for number in range(2):
        text_config = {key: value for key, value in CONFIGS[kind].items() if not key.endswith("pattern")}
        configs = {
            "unet": LoraConfig(**CONFIGS[kind], target_modules=TARGETS[kind == "bias"]),
            "text_encoder": LoraConfig(**text_config, target_modules=["k_proj", "fc1"]),
        }
        saved = {}
        for part, config in configs.items():
            network = getattr(pipeline, part)
            network.add_adapter(config, adapter_name=f"adapter{number}")
            randomized(network, number, f"adapter{number}")
            saved[f"{part}_lora_layers"] = get_peft_model_state_dict(network, adapter_name=f"adapter{number}")
            saved[f"{part}_lora_adapter_metadata"] = config.to_dict()
        pipeline.save_lora_weights(tmp_path / str(number), **saved)
        adapters.append(load_adapter(tmp_path / str(number), model))
    pipeline.set_adapters(["adapter0", "adapter1"], adapter_weights=list(strengths))
    with lora.merged(model, list(zip(adapters, strengths))):
        assert_equal(name, outputs(name, model), reference_outputs(name, pipeline))


def test_names_in_configurations_mean_what_they_mean_to_peft():
    patterns = {"^proj_in": 1, "to_q": 2, "attn1.to_k": 3, "o_v": 4, "^mid.to_q": 5, "to_out.0$": 6}
    config = Settings("config", {"alpha_pattern": patterns})
    for path in (
        "proj_in",
        "mid.proj_in",
        "to_q",
        "mid.to_q",
        "up.to_qq",
        "up.attn1.to_k",
        "up.attn2.to_k",
        "up.to_v",
        "up.to_out.0",
        "up.to_out.00",
        "to_out",
    ):
        assert by_pattern(config, "alpha_pattern", path, 9) == patterns.get(get_pattern_key(patterns, path), 9), path


@pytest.mark.parametrize(
    "config",
    [
        LoHaConfig(r=2, alpha=1, use_effective_conv2d=True, target_modules=TARGETS[0], alpha_pattern={"to_q": 4}),
        LoKrConfig(r=2, alpha=5, target_modules=TARGETS[0]),
        LoKrConfig(r=2, alpha=3, use_effective_conv2d=True, decompose_both=True, target_modules=TARGETS[0]),
        LoKrConfig(r=64, alpha=16, target_modules=TARGETS[0]),  # larger than the factors: not factored
        LoraConfig(r=3, lora_alpha=2, target_modules=TARGETS[0], rank_pattern={"proj_in": 5}),
    ],
    ids=["loha-tucker", "lokr", "lokr-tucker", "lokr-full", "lora"],
)
def test_folders_that_peft_saves(config, tmp_path):
    """adapter_config.json holds the scale; for LoHa peft rounds it to float32, so it is a short one here. The same
    tensors under LyCORIS' names, with alpha, mean the same."""
    name, strength = "sd15", 0.5
    model = tiny_model(name)
    unet = randomized(get_peft_model(copy.deepcopy(unet_pair(name)[1]), copy.deepcopy(config)), seed=1)
    unet.save_pretrained(tmp_path)
    for module in unet.modules():
        if isinstance(module, BaseTunerLayer):
            module.scale_layer(strength)
    pipeline = StableDiffusionPipeline(unet=unet, text_encoder=clip_pair("l")[1], **NONE)
    reference = reference_outputs(name, pipeline)
    adapter = load_adapter(tmp_path, model)
    with lora.merged(model, [(adapter, strength)]):
        assert_equal(name, outputs(name, model), reference, "unet")

    tensors = {}
    for key, tensor in load_file(tmp_path / "adapter_model.safetensors").items():
        path, field = re.fullmatch(r"base_model\.model\.(.*?)\.((?:lora|hada|lokr)_.*)", key).groups()
        stem = kohya_key("unet", path, 1, False)
        tensors[f"{stem}.{field.replace('lora_A', 'lora_down').replace('lora_B', 'lora_up')}"] = tensor
        tensors[f"{stem}.alpha"] = torch.tensor(
            4
            if "to_q" in path and "4" in str(config.alpha_pattern)
            else getattr(config, "alpha", None) or config.lora_alpha
        )
    save_file(tensors, tmp_path / "lycoris.safetensors")
    again, like = load_adapter(tmp_path / "lycoris.safetensors", model), randn(1)
    assert again.deltas.keys() == adapter.deltas.keys()
    for key, delta in adapter.deltas.items():
        scale = config.alpha / config.r if isinstance(delta, LoKr) and delta.rank is None else 1
        assert torch.equal(delta.value(like), scale * again.deltas[key].value(like))  # LyCORIS does not scale it


def test_kinds_of_lycoris_by_their_formulas(tmp_path):
    """What peft has not: Tucker's LoCon, as the three convolutions that it stands for; magnitudes of the inputs; LoKr
    that is not factored, which no alpha scales; full differences of weights, biases and norms."""
    model, x = tiny_model("sd15"), randn(1, 32, 6, 7, seed=3)
    conv, linear, norm = (
        f"down_blocks.0.{path}"
        for path in ("resnets.0.conv1", "attentions.0.transformer_blocks.0.attn1.to_q", "resnets.0.norm2")
    )
    stems = [kohya_key("unet", path, 1, False) for path in (conv, linear, norm)]
    down, core, up = randn(3, 32, 1, 1, seed=4), randn(3, 3, 3, 3, seed=5), randn(32, 3, 1, 1, seed=6)
    scale, bias, w1, w2 = randn(32, seed=7), randn(32, seed=8), randn(4, 8, seed=9), randn(8, 4, seed=10)
    magnitude = randn(1, 32, seed=11).abs() + 1
    before = {key: parameter.clone() for key, parameter in lora.parameters(model).items()}
    fields = [
        {
            "lora_down.weight": down,
            "lora_mid.weight": core,
            "lora_up.weight": up,
            "alpha": torch.tensor(6.0),
            "diff_b": bias,
        },
        {"lokr_w1": w1, "lokr_w2": w2, "alpha": torch.tensor(3.0), "dora_scale": magnitude},
        {"w_norm": scale, "b_norm": bias.clone()},
    ]
    save_file(
        {f"{stem}.{field}": tensor for stem, group in zip(stems, fields) for field, tensor in group.items()},
        tmp_path / "a.safetensors",
    )
    lora.merge(model, [(load_adapter(tmp_path / "a.safetensors", model), 0.5)])
    after = lora.parameters(model)
    change = after[f"unet.{conv}.weight"] - before[f"unet.{conv}.weight"]
    three = F.conv2d(F.conv2d(F.conv2d(x, down), core, padding=1), up)
    assert relative_error(F.conv2d(x, change, padding=1), 0.5 * (6 / 3) * three) < 1e-12
    for key, difference in ((f"{conv}.bias", bias), (f"{norm}.weight", scale), (f"{norm}.bias", bias)):
        assert torch.equal(after[f"unet.{key}"], before[f"unet.{key}"] + 0.5 * difference)
    base = before[f"unet.{linear}.weight"]
    moved = base + torch.kron(w1, w2)
    lengths = torch.stack([column.square().sum().sqrt() for column in moved.T])
    half = base + 0.5 * (moved / lengths * magnitude - base)
    assert relative_error(after[f"unet.{linear}.weight"], half) < 1e-14


@pytest.mark.parametrize("name", ["sd15", "sd2"])
@pytest.mark.parametrize("kernel", [(), (1, 1)])
def test_kernels_1x1_may_be_left_out(name, kernel, tmp_path):
    """proj_in is a convolution in SD 1 and a linear layer in SD 2; files of either sort fit both."""
    model, stem = tiny_model(name), "lora_unet_mid_block_attentions_0_proj_in"
    down, up, magnitude = randn(3, 96, seed=1), randn(96, 3, seed=2), randn(96, 1, seed=3).abs() + 1
    files = {
        f"{stem}.lora_down.weight": down.reshape(3, 96, *kernel),
        f"{stem}.lora_up.weight": up.reshape(96, 3, *kernel),
    }
    save_file(files, tmp_path / "a.safetensors")
    layer = model.unet.mid_block.attentions[0].proj_in
    base, adapter = layer.weight.detach().clone(), load_adapter(tmp_path / "a.safetensors", model)
    with lora.attached(model, [(adapter, 0.3)]):
        beside = outputs(name, model)["unet"]
    with lora.merged(model, [(adapter, 0.3)]):
        assert relative_error(layer.weight, base + 0.3 * (up @ down).reshape(base.shape)) < 1e-15
        assert relative_error(outputs(name, model)["unet"], beside) < CLOSE
    save_file(files | {f"{stem}.dora_scale": magnitude.reshape(96, 1, *kernel)}, tmp_path / "b.safetensors")
    with lora.merged(model, [(load_adapter(tmp_path / "b.safetensors", model), 0.3)]):
        moved = base.flatten(1) + up @ down
        lengths = torch.stack([row.square().sum().sqrt() for row in moved])
        expected = base.flatten(1) + 0.3 * (moved / lengths[:, None] * magnitude - base.flatten(1))
        assert relative_error(layer.weight.flatten(1), expected) < 1e-14


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_unmerging_is_exact(dtype, tmp_path):
    """The base comes back bit for bit, in the memory where it lay; and merging starts from the base each time."""
    model = tiny_model("sd15")
    for network in lora.networks(model).values():
        network.to(dtype)
    targets = lora.parameters(model)
    base = {key: (parameter.data_ptr(), parameter.detach().clone()) for key, parameter in targets.items()}
    adapters = [
        lora.Adapter(
            {
                name: LoRA(randn(o, 3, seed=seed), randn(3, *i, seed=9))
                for name, (o, *i) in ((f"unet.{path}", model.unet.get_parameter(path).shape) for path in paths)
            }
        )
        for seed, paths in (
            (1, ["conv_in.weight", "mid_block.attentions.0.proj_in.weight"]),
            (2, ["conv_in.weight", "conv_out.weight"]),
        )
    ]
    lora.merge(model, [(adapters[0], 3.0), (adapters[1], 1.0)]).undo()
    merged = lora.merge(model, [(adapters[0], -0.7), (adapters[1], 0.3)])
    changed = {key for key, parameter in lora.parameters(model).items() if not torch.equal(parameter, base[key][1])}
    assert changed == adapters[0].deltas.keys() | adapters[1].deltas.keys()
    exact = base["unet.conv_in.weight"][1].float()
    for adapter, strength in zip(adapters, (-0.7, 0.3)):
        exact = exact + strength * adapter.deltas["unet.conv_in.weight"].value(exact)
    assert torch.equal(model.unet.conv_in.weight, exact.to(dtype))  # rounded once

    with lora.merged(model, [(adapters[0], 1.0)]):  # on top of what is merged
        assert not torch.equal(model.unet.conv_in.weight, exact.to(dtype))
    assert torch.equal(model.unet.conv_in.weight, exact.to(dtype))
    other = lora.Adapter({"unet.conv_in.weight": LoRA(randn(5, 3), randn(3, 7))}, "other.safetensors")
    for wrong in (other, lora.Adapter({"unet.conv.weight": Full(randn(1))})):
        with pytest.raises(ValueError, match="^the adapter .* is of another model: it changes unet.conv[^\n]*$"):
            lora.merge(model, [(adapters[0], 1.0), (wrong, 1.0)])
    assert torch.equal(model.unet.conv_in.weight, exact.to(dtype))  # an error changes nothing
    merged.undo()
    merged.undo()
    with pytest.raises(KeyError), lora.merged(model, [(adapters[0], 1.0)]):
        assert not torch.equal(model.unet.conv_in.weight, base["unet.conv_in.weight"][1])
        raise KeyError
    for key, parameter in lora.parameters(model).items():
        assert parameter.data_ptr() == base[key][0] and torch.equal(parameter, base[key][1])


def test_unmerging_follows_the_model():
    """Moved to another dtype while merged, it comes back in that dtype."""
    model = tiny_model("sd15")
    base = model.unet.conv_in.weight.detach().clone()
    adapter = lora.Adapter({"unet.conv_in.weight": LoRA(randn(32, 3), randn(3, 4, 3, 3))})
    merged = lora.merge(model, [(adapter, 1.0)])
    model.unet.half()
    merged.undo()
    assert torch.equal(model.unet.conv_in.weight, base.half())


def test_a_new_adapter():
    """It changes nothing until its factors do, and starts as PyTorch's layers do."""
    model = tiny_model("sd15")
    adapter = lora.new(model, "unet.*", rank=3, alpha=2)
    assert len(adapter.deltas) == 278 + 4  # LoCon's set; conv_in, conv_out and the time embedding
    with lora.attached(model, [(adapter, 1.0)]):
        assert_plain("sd15", model)
    assert lora.new(model, "unet.*.attn?.to_[qkv]", 1).deltas.keys() == {
        key for key in adapter.deltas if re.search(r"to_[qkv]", key)
    }
    for name, delta in adapter.deltas.items():
        bound = delta.down[0].numel() ** -0.5
        assert delta.shape == model.unet.get_parameter(name.removeprefix("unet.")).shape and delta.scale == 2 / 3
        assert delta.down.abs().max() < bound and relative_error(delta.down.std(), torch.tensor(bound / 3**0.5)) < 0.3
    with pytest.raises(ValueError, match="no linear or convolutional layer has a path like 'unet.nothing'"):
        lora.new(model, "unet.nothing", 1)


def test_gradients_of_attached_factors(tmp_path):
    """As in peft, through layers of every kind; the base gets none."""
    name = "sd15"
    model, pipeline = tiny_model(name), tiny_pipeline(name)
    factors = random_factors(pipeline, conv=True, every=7)
    factors = {place: pair for place, pair in factors.items() if place[0] == "unet"}
    save_file(spelled("peft", factors, 1), tmp_path / "a.safetensors")
    pipeline.load_lora_weights(tmp_path, weight_name="a.safetensors")
    inputs = [{key: value[:1] for key, value in part.items()} for part in unet_inputs(name, SIZES[name])]
    theirs = {key: parameter for key, parameter in pipeline.unet.named_parameters() if "lora_" in key}
    pipeline.unet.requires_grad_(False)
    for parameter in theirs.values():
        parameter.requires_grad_()
    pipeline.unet(**inputs[1]).sample.square().sum().backward()

    adapter = load_adapter(tmp_path / "a.safetensors", model)
    model.unet.requires_grad_(False)
    for delta in adapter.deltas.values():
        delta.down.requires_grad_()
        delta.up.requires_grad_()
    with lora.attached(model, [(adapter, 1.0)]):
        model.unet(**inputs[0]).square().sum().backward()
    for path, delta in adapter.deltas.items():
        stem = path.removeprefix("unet.").removesuffix(".weight")
        for factor, letter in ((delta.down, "A"), (delta.up, "B")):
            expected = theirs[f"{stem}.lora_{letter}.default_0.weight"].grad
            assert relative_error(factor.grad, expected.reshape(factor.shape)) < CLOSE, path


def test_what_attaching_refuses():
    model, change = tiny_model("sd15"), Full(randn(32))
    with pytest.raises(ValueError, match="the change of unet.conv_in.bias is no LoRA of a layer: merge it"):
        with lora.attached(model, [(lora.Adapter({"unet.conv_in.bias": change}), 1.0)]):
            pass
    model.texts["text_encoder"].compile(backend="eager")
    with pytest.raises(RuntimeError, match="compiled"), lora.attached(model, []):
        pass


def test_merging_into_a_compiled_network():
    """The compiled code reads the new weights, and the old ones afterwards."""
    model, ids = tiny_model("sd15"), token_ids("l")[1:2]
    adapter = lora.new(model, "text_encoder.*.fc1", rank=2)
    for delta in adapter.deltas.values():
        delta.up.fill_(1)
    expected, compiled = [], torch.compile(model.texts["text_encoder"], backend="eager")
    for network in (model.texts["text_encoder"], compiled):
        found = [network(ids).last]
        with lora.merged(model, [(adapter, 1.0)]):
            found.append(network(ids).last)
        expected.append(found + [network(ids).last])
    for ours, eager in zip(expected[1], expected[0]):
        assert relative_error(ours, eager) < 1e-13
    assert relative_l2(expected[1][1], expected[1][0]) > 0.01


@pytest.mark.parametrize(
    "name, layout", [("sd15", "kohya"), ("sd15", "diffusers"), ("sdxl", "kohya"), ("sdxl", "diffusers")]
)
def test_diffusers_reads_what_is_saved(name, layout, tmp_path):
    """SDXL's in kohya's form has sgm's names. Scales differ by layer in the form that diffusers reads them in."""
    model, pipeline = tiny_model(name), tiny_pipeline(name)
    deltas = {}
    for i, ((part, path), (down, up)) in enumerate(random_factors(pipeline, conv=True, every=5).items()):
        scale = 2.5 / len(down) if layout == "kohya" else 0.5 + i % 3
        deltas[f"{part}.{path}.weight"] = LoRA(up.flatten(1), down, scale=scale)
    save_adapter(lora.Adapter(deltas, metadata={"ss_tag": "fox"}), tmp_path / "a.safetensors", model, layout)
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]
    again = load_adapter(tmp_path / "a.safetensors", model)
    assert again.deltas.keys() == deltas.keys() and again.metadata["ss_tag"] == "fox"
    for key, delta in deltas.items():
        same = again.deltas[key]
        assert torch.equal(delta.up, same.up) and torch.equal(delta.down, same.down.reshape(delta.down.shape))
        assert math.isclose(delta.scale, same.scale, rel_tol=1e-15)
    if layout == "kohya":
        assert ("lora_unet_input_blocks_0_0.alpha" in load_file(tmp_path / "a.safetensors")) == (name == "sdxl")
    pipeline.load_lora_weights(tmp_path, weight_name="a.safetensors")
    with lora.merged(model, [(again, 1.0)]):
        assert_equal(name, outputs(name, model), reference_outputs(name, pipeline))


def test_every_kind_survives_saving(tmp_path):
    """For a layer that is a 1x1 convolution, a convolution, and a norm."""
    model, o, i = micro_model(), 8, 8
    lokr = [(Full(randn(4, 2)), Product(randn(2, 2), randn(2, 4))), (Full(randn(4, 2)), Full(randn(2, 4)))]
    linear = [
        LoRA(randn(o, 3), randn(3, i), scale=0.25),
        LoHa(*[Product(randn(o, 3), randn(3, i))] * 2, 0.5),
        *[LoKr(*parts, scale=3.0) for parts in lokr],
        Full(randn(o, i)),
    ]
    linear += [DoRA(delta, randn(o, 1) + 5) for delta in linear] + [DoRA(linear[0], randn(1, i) + 5)]
    conv = [
        LoRA(randn(8, 2), randn(2, 4, 3, 3)),
        LoRA(randn(8, 2), randn(2, 4), randn(2, 2, 3, 3), scale=2.0),
        LoHa(*[Product(randn(8, 2), randn(2, 4), randn(2, 2, 3, 3))] * 2),
        DoRA(Full(randn(8, 4, 3, 3)), randn(1, 4)),
        LoKr(Full(randn(4, 2)), Product(randn(2, 2), randn(2, 2), randn(2, 2, 3, 3))),
    ]
    norm = {f"unet.conv_norm_out.{kind}": Full(randn(8)) for kind in ("weight", "bias")}
    adapters = [{"unet.mid_block.attentions.0.proj_in.weight": delta} for delta in linear]
    adapters += [{"unet.conv_in.weight": delta, "unet.conv_in.bias": Full(randn(8))} for delta in conv] + [norm]
    like = randn(1)
    for number, deltas in enumerate(adapters):
        path = tmp_path / f"{number}.safetensors"
        save_adapter(lora.Adapter(deltas), path, model, "kohya")
        again = load_adapter(path, model).deltas
        assert again.keys() == deltas.keys()
        for key, delta in deltas.items():
            value, same = delta.value(like), again[key].value(like).reshape(delta.shape)
            assert type(again[key]) is type(delta) and relative_error(same, value) < 1e-15
            if isinstance(delta, DoRA):
                assert torch.equal(again[key].magnitude, delta.magnitude)
        save_adapter(load_adapter(path, model), tmp_path / "again" / path.name, model, "kohya")
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()
        if number in (0, len(linear) // 2):
            save_adapter(lora.Adapter(deltas), tmp_path / "diffusers" / path.name, model, "diffusers")
            again = load_adapter(tmp_path / "diffusers" / path.name, model).deltas
            assert all(
                torch.equal(again[key].value(like).reshape(delta.shape), delta.value(like))
                for key, delta in deltas.items()
            )
        else:
            with pytest.raises(CheckpointError, match="^diffusers' layout cannot hold [^\n]*: save it in kohya's$"):
                save_adapter(lora.Adapter(deltas), tmp_path / "diffusers" / path.name, model, "diffusers")
    with pytest.raises(CheckpointError, match="exists already"):
        save_adapter(lora.Adapter(norm), path, model, "kohya")
    with pytest.raises(ValueError, match="unknown layout 'peft': choose one of diffusers, kohya"):
        save_adapter(lora.Adapter(norm), tmp_path / "new.safetensors", model, "peft")


def full_size(name: str) -> Model:
    """The published shapes, without memory."""
    facts = MODELS[name]
    with torch.device("meta"):
        return Model(UNet(facts.unet), None, dict(zip(facts.family.towers, map(CLIPText, facts.texts))), None, facts)


@pytest.mark.parametrize(
    "name, unet, conv, texts",
    [("sd15", 192, 278, 72), ("sd2", 192, 278, 138), ("sdxl", 722, 788, 72 + 192), ("sdxl_refiner", 462, 548, 192)],
)
def test_published_numbers_of_modules(name, unet, conv, texts):
    """kohya's trainers write so many modules (facts; the refiner's are counted). The names of all modules of a model,
    in all layouts, are different, but for paths of two text towers that do not say whose they are."""
    model = full_size(name)
    table = names_of(model, None)
    clear = {alias for alias, homes in table.items() if len(homes) == 1}
    for alias in table.keys() - clear:
        part, _, path = table[alias][0].partition(".")
        assert table[alias] == [f"text_encoder.{path}", f"text_encoder_2.{path}"]
    assert bool(table.keys() - clear) == (name == "sdxl")
    layers = lora.layers(model)
    assert {table[alias][0] for alias in clear} >= layers.keys()
    sizes = {
        head: len({table[alias][0] for alias in clear if alias.startswith(head) and table[alias][0] in layers})
        for head in ("lora_unet_", "lora_te")
    }
    whole = 4 + 2 * (model.unet.config.vector_dim > 0)  # conv_in, conv_out and the embeddings, which few train
    assert sizes == {"lora_unet_": conv + whole, "lora_te": texts + (name != "sd15" and name != "sd2")}
    assert len({home for home in layers if ".attentions." in home}) == unet
    key = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"
    assert table[key] == ["unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"]


Q = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"  # (96 96) in the tiny SD 1.5
UP, DOWN = f"{Q}.lora_B.weight", f"{Q}.lora_A.weight"
GOOD = {DOWN: torch.ones(2, 96), UP: torch.ones(96, 2)}
K = Q.replace("attn1.to_q", "attn2.to_k")
PEFT = {key.replace("unet.", "base_model.model."): tensor for key, tensor in GOOD.items()}
FAULTS = {  # tensors, adapter_config.json -> what the error says
    "nothing matches": (
        {
            "lora_unet_double_blocks_0.lora_up.weight": torch.ones(4, 2),
            "lora_unet_double_blocks_0.lora_down.weight": torch.ones(2, 4),
        },
        None,
        "holds nothing for this model: none of its 2 tensors has a place there, 'lora_unet_double_bl",
    ),
    "empty": ({}, None, "none of its 0 tensors"),
    "embedding": ({"<x>": torch.ones(1, 96)}, None, "; it is a textual inversion: weights.add_embedding adds it"),
    "VAE": ({"decoder.conv_norm_out.weight": torch.ones(96)}, None, "; it holds a VAE and no adapter"),
    "one too many": (
        GOOD | {"unet.conv_last.lora_A.weight": torch.ones(2, 4), "unet.conv_last.lora_B.weight": torch.ones(4, 2)},
        None,
        "2 tensors have no place in the model, 'unet.conv_last.lora_A.weight', 'unet.conv_last.lora_B",
    ),
    "unknown ending": (GOOD | {f"{Q}.weight": torch.ones(96, 96)}, None, "1 tensors have no place in the model"),
    "other family": (
        GOOD | {f"{K}.lora_A.weight": torch.ones(2, 2048), f"{K}.lora_B.weight": torch.ones(96, 2)},
        None,
        "for another family: it reads text of width 2048 .SDXL., and the model's is 40",
    ),
    "other shape": (
        {DOWN: torch.ones(2, 64), UP: torch.ones(96, 2)},
        None,
        r"attn1.to_q.lora_A.weight' makes a change of the shape \(96, 64\), and .* is \(96, 96\)$",
    ),
    "half": ({DOWN: torch.ones(2, 96)}, None, "to_q.lora_A.weight': up is missing"),
    "other half": ({UP: torch.ones(96, 2)}, None, "to_q.lora_B.weight': down is missing"),
    "no common rank": ({DOWN: torch.ones(2, 96), UP: torch.ones(96, 3)}, None, "have no common rank"),
    "rank 0": ({DOWN: torch.ones(0, 96), UP: torch.ones(96, 0)}, None, "are no matrices or kernels"),
    "vectors": ({DOWN: torch.ones(96), UP: torch.ones(96)}, None, "are no matrices or kernels"),
    "numbers": ({DOWN: torch.ones(()), UP: torch.ones(())}, None, "are no matrices or kernels"),
    "two names": (GOOD | {f"{Q}.lora.down.weight": torch.ones(2, 96)}, None, "are two names of one tensor"),
    "two layouts": (
        GOOD
        | {
            f"lora_unet_{Q[5:].replace('.', '_')}.{name}.weight": torch.ones(shape)
            for name, shape in (("lora_down", (2, 96)), ("lora_up", (96, 2)))
        },
        None,
        "which another key of the file changes too",
    ),
    "NaN": (GOOD | {DOWN: torch.full((2, 96), math.nan)}, None, "holds NaN or infinity: the file is damaged"),
    "whole numbers": (GOOD | {DOWN: torch.ones(2, 96, dtype=torch.int64)}, None, "is of type I64: only F64"),
    "two alphas": (GOOD | {f"{Q}.alpha": torch.ones(2)}, None, "alpha must be one number"),
    "alpha alone": ({f"{Q}.alpha": torch.ones(())}, None, "up is missing"),
    "mixed kinds": (GOOD | {f"{Q}.hada_w1_a": torch.ones(96, 2)}, None, "hada_w1_b is missing"),
    "core of a matrix": (GOOD | {f"{Q}.lora_mid.weight": torch.ones(2, 2, 3, 3)}, None, r"\(96, 96, 3, 3\)"),
    "diff and LoRA": (GOOD | {f"{Q}.diff": torch.ones(96, 96)}, None, "down, up cannot stand with diff"),
    "LoHa of two shapes": (
        {
            f"{Q}.hada_w{n}_{x}": torch.ones(shape)
            for n, x, shape in ((1, "a", (96, 2)), (1, "b", (2, 96)), (2, "a", (96, 2)), (2, "b", (2, 95)))
        },
        None,
        "cannot be multiplied",
    ),
    "half of a LoKr": ({f"{Q}.lokr_w1": torch.ones(8, 8)}, None, "lokr_w2_a is missing"),
    "LoKr of a vector": ({f"{Q}.lokr_w1": torch.ones(8), f"{Q}.lokr_w2": torch.ones(8, 8)}, None, "are no matrices"),
    "magnitudes": (GOOD | {f"{Q}.lora_magnitude_vector": torch.ones(95)}, None, r"with magnitudes \(95, 1\)"),
    "magnitudes in two axes": (GOOD | {f"{Q}.dora_scale": torch.ones(96, 96)}, None, "neither of the outputs nor"),
    "two magnitudes": (
        GOOD | {f"{Q}.lora_magnitude_vector": torch.ones(96), f"{Q}.dora_scale": torch.ones(96, 1)},
        None,
        "dora_scale cannot stand with down, magnitude, up",
    ),
    "two biases": (
        {key.replace("to_q", "to_out.0"): tensor for key, tensor in GOOD.items()}
        | {f"{Q.replace('to_q', 'to_out.0')}.{ending}": torch.ones(96) for ending in ("diff_b", "lora_B.bias")},
        None,
        "up_bias cannot stand with bias, down, up",
    ),
    "no bias": (GOOD | {f"{Q}.diff_b": torch.ones(96)}, None, "to_q.bias, which the model does not have"),
    "GLoRA": ({f"{Q}.a1.weight": torch.ones(2, 2)}, None, "a2 is missing"),
    "OFT": ({f"{Q}.oft_blocks": torch.ones(2, 2)}, None, r"blocks of the shape \(2, 2\) are no square matrices"),
    "IA3": ({f"{Q}.weight": torch.ones(95), f"{Q}.on_input": torch.ones(1)}, None, r"change of the shape \(95,\)"),
    "T-LoRA": (GOOD | {f"{Q}.lambda_layer": torch.ones(2)}, None, "T-LoRA is not implemented; LoRA, LoHa, LoKr, DoRA"),
    "no config": (PEFT, None, "adapter_config.json is missing"),
    "rank of the config": (PEFT, {"r": 4}, "r is 4: a rank of 4 is configured for mid_block.*, and 2 is in the file"),
    "pattern": (PEFT, {"r": 2, "alpha_pattern": {"to_(q|k": 3}}, "cannot be followed, a . is missing"),
    "long pattern": (PEFT, {"r": 2, "alpha_pattern": {"a|" * 500: 3}}, "of more than 1000 characters are not followed"),
    "many patterns": (
        PEFT,
        {"r": 2, "alpha_pattern": {f"x{i}": 1 for i in range(5001)}},
        "an object from names to numbers is expected, with at most 5000 of them",
    ),
    "patterns": (PEFT, {"r": 2, "alpha_pattern": {"to_q": "3"}}, "an object from names to numbers is expected"),
    "PiSSA": (PEFT, {"r": 2, "init_lora_weights": "pissa"}, "init_lora_weights is 'pissa': only True or False or"),
    "kind of peft": (PEFT, {"peft_type": "VERA"}, "only 'LORA' or 'LOHA' or 'LOKR' or 'IA3' or 'OFT'"),
}


@functools.cache
def shared_model(name: str) -> Model:
    return tiny_model(name)


def refusal(path: Path, model: Model, **options) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_adapter(path, model, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_files(fault, tmp_path):
    tensors, config, message = FAULTS[fault]
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    if config is not None:
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    found = refusal(tmp_path, shared_model("sd15"))
    assert found.startswith(str(tmp_path)) and re.search(message, found)


def test_keys_without_a_place(tmp_path):
    """All are named in the error's notes, or listed if they are allowed; some place there must be."""
    path, model = tmp_path / "a.safetensors", shared_model("sd15")
    extra = {f"unet.extra.{i}.lora_{x}.weight": torch.ones(2, 2) for i in range(9) for x in "AB"} | {"x": torch.ones(1)}
    save_file(GOOD | extra, path)
    assert refusal(path, model).endswith(" and 16 more: partial=True (txt2img: --partial-lora) leaves them out")
    with pytest.raises(CheckpointError) as caught:
        load_adapter(path, model)
    assert set(caught.value.__notes__[0].split("\n")) == extra.keys()
    adapter = load_adapter(path, model, partial=True)
    assert set(adapter.unmatched) == extra.keys() and list(adapter.deltas) == [f"{Q}.weight"]
    assert "none of its 21 tensors" in refusal(path, model, part="text_encoder", partial=True)


def test_families_of_equal_shapes(tmp_path):
    """SDXL's first text tower has the shapes of SD 1.5's; kohya's names tell them apart. SDXL's UNet does not fit."""
    files = {}
    for name in ("sd15", "sdxl"):
        towers = len(FAMILIES[name])
        factors = random_factors(tiny_pipeline(name))
        for part in ("unet", "text_encoder"):
            chosen = {place: pair for place, pair in factors.items() if place[0] == part}
            files[name, part] = tmp_path / f"{name}.{part}.safetensors"
            save_file(spelled("kohya_sgm" if towers > 1 else "kohya", chosen, towers), files[name, part])
    for name, other in (("sd15", "sdxl"), ("sdxl", "sd15")):
        assert "holds nothing for this model" in refusal(files[name, "text_encoder"], shared_model(other))
    with torch.device("meta"):
        wide = UNet(replace(UNETS["sd15"], channels=(32, 64, 96, 96), groups=16))
    assert refusal(files["sdxl", "unet"], replace(shared_model("sd15"), unet=wide)).endswith(
        "is an adapter for another family: it reads text of width 40, and the model's is 768 (SD 1)"
    )


def test_names_that_do_not_say_whose_they_are(tmp_path):
    """peft's of one text tower."""
    path, model = tmp_path / "adapter_model.safetensors", shared_model("sdxl")
    key = "base_model.model.text_model.encoder.layers.0.self_attn.q_proj"
    save_file({f"{key}.lora_A.weight": torch.ones(2, 40), f"{key}.lora_B.weight": torch.ones(40, 2)}, path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 3}))
    assert re.search("could be of text_encoder.* or text_encoder_2.*: choose one as part$", refusal(path, model))
    (delta,) = load_adapter(path, model, part="text_encoder_2").deltas.values()
    assert delta.scale == 1.5
    assert re.search(r"\(40, 40\), and text_encoder.* is \(32, 32\)$", refusal(path, model, part="text_encoder"))


def test_what_is_no_adapter(tmp_path):
    model = shared_model("sd15")
    assert refusal(tmp_path / "a.safetensors", model).endswith("is missing: download it again")
    assert refusal(tmp_path, model).endswith("holds no adapter: it has nothing")
    torch.save(GOOD, tmp_path / "a.safetensors")
    assert refusal(tmp_path, model).endswith("never read here: convert it to safetensors")
    (tmp_path / "b.safetensors").touch()
    assert refusal(tmp_path, model).endswith("holds several adapters: choose one of 'a.safetensors', 'b.safetensors'")
    save_file(GOOD, tmp_path / "pytorch_lora_weights.safetensors", {"lora_adapter_metadata": "[1"})
    assert "lora_adapter_metadata is not valid JSON" in refusal(tmp_path, model)


def test_damaged_files_are_read_or_refused(tmp_path):
    """Good files with some keys lost, renamed, doubled or of another shape, and random configurations: never another
    error than CheckpointError, and what is read can be merged."""
    rng, outcomes, path, model = random.Random(0), Counter(), tmp_path / "a.safetensors", micro_model()
    square = [
        LoRA(randn(8, 2), randn(2, 8)),
        DoRA(LoRA(randn(8, 2), randn(2, 8)), randn(8, 1)),
        Full(randn(8, 8)),
        LoHa(*[Product(randn(8, 2), randn(2, 8))] * 2),
        LoKr(Full(randn(2, 4)), Product(randn(4, 1), randn(1, 2))),
    ]
    shapes = [(), (1,), (8,), (2, 8), (8, 2), (8, 8), (2, 8, 1, 1), (2, 8, 3, 3), (2, 2, 3, 3), (0, 8), (2, 8, 3)]
    values = [1, 2, 0, -1, 0.5, None, "2", [], {}, {"to_q": 2}, {"": 1}, {"^x": "y"}, True, 1e308, math.nan]
    names = [name for name, parameter in lora.parameters(model).items() if parameter.shape == (8, 8)]
    for _ in range(300):
        adapter = lora.Adapter({name: rng.choice(square) for name in rng.sample(names, k=2)})
        for old in tmp_path.iterdir():
            old.unlink()
        save_adapter(adapter, path, model, "kohya")
        tensors = load_file(path)
        for key in rng.sample(list(tensors), k=rng.choice([0, 0, 1, 2])):
            tensor = tensors.pop(key)
            stem, _, ending = key.partition(".")
            match rng.randrange(5):
                case 0:
                    tensors[f"{stem}.{rng.choice(list(FIELDS))}"] = tensor
                case 1:
                    tensors[key] = torch.ones(rng.choice(shapes), dtype=rng.choice([torch.float16, torch.int64]))
                case 2:
                    tensors |= {key: tensor, f"{stem}.{rng.choice(list(FIELDS))}": tensor.clone()}
                case 3:
                    tensors[f"{rng.choice(['', 'unet.', 'lora_unet_', stem[:-1]])}.{ending}"] = tensor
        config = {
            f"{rng.choice(['unet.', 'text_encoder.', ''])}{key}": rng.choice(values)
            for key in ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "peft_type")
        }
        save_file(tensors, path, {"lora_adapter_metadata": json.dumps(config)} if rng.random() < 0.3 else None)
        try:
            lora.merge(model, [(load_adapter(path, model, partial=rng.random() < 0.3), 1.0)]).undo()
            outcomes["read"] += 1
        except CheckpointError as error:
            assert "\n" not in str(error)
            outcomes["refused"] += 1
    assert outcomes["read"] > 100 and outcomes["refused"] > 100
