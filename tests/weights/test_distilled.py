"""Distilled models, SSD-1B and its like, in every form in which they are published: folders, single files of ldm and
sgm names with and without gaps in their numbers, a UNet alone, adapters; and the way back.

tests/ldm/test_networks.py compares their UNets with diffusers', tests/weights/test_manifests.py their names.
"""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

import weights
from ldm.clip import CLIPText
from ldm.config import MODELS, UNETS
from ldm.model import Model
from ldm.unet import UNet
from ldm.vae import VAE
from scripts import write_manifests as manifests
from support import single_files as files
from support.networks import REFERENCE_BK_TINY, REFERENCE_KOALA_700M, REFERENCE_SD15, REFERENCE_SSD_1B, TINY_UNETS
from support.numbers import randn, randomize, relative_error
from support.single_files import SDXL_POSITION_IDS, SDXL_TEXT_2, UNET_PREFIX, file_size, on_disk
from support.tiny import edit_tensors, tiny_sd, tiny_sdxl
from weights.checkpoint import build, match_tensors
from weights.disk.settings import Settings
from weights.errors import CheckpointError
from weights.layouts import diffusers, distilled
from weights.layouts import diffusers_configs as configs
from weights.layouts.names import unet_table
from weights.layouts.single_file import describe_stored

FAMILY = {name: "sd15" if name.startswith("bk") else "sdxl" for name in distilled.PUBLISHED}
FILE = Path("model.safetensors")  # for the errors: there is no such file
HAVE_GAPS = [name for name, unet in UNETS.items() if unet.layers == 1]  # where a script wrote the file


def keys_of(name: str, dtype: str = "F16") -> files.Listed:
    """All keys of a single file of a distilled model at its full size."""
    with torch.device("meta"):
        unet = UNet(UNETS[name])
    found = {
        key: value for key, value in files.published(FAMILY[name], dtype).items() if not key.startswith(UNET_PREFIX)
    }
    state = unet.state_dict()
    own = {piece.key: state[ours] for ours, piece in files.pieces(state, UNETS[name], "ldm").items()}
    return found | {UNET_PREFIX + key: (dtype, tuple(tensor.shape)) for key, tensor in own.items()}


def with_gaps(key: str, layers: int = 1) -> str:
    """A key of ours as diffusers' script convert_diffusers_to_original_stable_diffusion.py would write it: each level
    takes three numbers, whatever it has; and no attention is known at the start of the way up."""
    key = key.removeprefix(UNET_PREFIX)
    first, *rest = key.split(".")
    if first not in ("input_blocks", "output_blocks") or rest[0] == "0" and first == "input_blocks":
        return UNET_PREFIX + key
    number = int(rest[0]) - (first == "input_blocks")
    level, place = divmod(number, layers + 1)
    if first == "input_blocks":
        return UNET_PREFIX + ".".join([first, str(3 * level + 1 + (place if place < layers else 2)), *rest[1:]])
    if rest[2] == "conv":
        return UNET_PREFIX + ".".join([first, str(3 * level + 2), "1" if level == 0 else "2", *rest[2:]])
    if level == 0 and rest[1] == "1":
        return UNET_PREFIX + ".".join(["up_blocks.0.attentions", str(place), *rest[2:]])
    return UNET_PREFIX + ".".join([first, str(3 * level + place), *rest[1:]])


def test_where_the_numbers_of_the_scripts_have_gaps():
    """Taken from the script's own formulas, for BK-SDM-Tiny."""
    pairs = {
        "input_blocks.1.0.in_layers.0.weight": "input_blocks.1.0.in_layers.0.weight",
        "input_blocks.2.0.op.bias": "input_blocks.3.0.op.bias",
        "input_blocks.5.1.proj_in.weight": "input_blocks.7.1.proj_in.weight",
        "output_blocks.1.1.norm.bias": "up_blocks.0.attentions.1.norm.bias",
        "output_blocks.1.2.conv.weight": "output_blocks.2.1.conv.weight",
        "output_blocks.3.0.emb_layers.1.bias": "output_blocks.4.0.emb_layers.1.bias",
        "output_blocks.3.2.conv.weight": "output_blocks.5.2.conv.weight",
        "output_blocks.5.1.norm.weight": "output_blocks.7.1.norm.weight",
    }
    assert {key: with_gaps(key).removeprefix(UNET_PREFIX) for key in pairs} == pairs


@pytest.mark.parametrize("name", FAMILY)
def test_single_files_at_full_size(name):
    found = describe_stored(on_disk(keys_of(name)), {}, FILE, no_value)
    assert found.facts == replace(MODELS[FAMILY[name]], unet=UNETS[name])
    assert distilled.PUBLISHED[name] in "\n".join(found.evidence) and found.warnings == ()
    match_tensors(build(found.parts["unet"]), found.parts["unet"])


@pytest.mark.parametrize("name", HAVE_GAPS)
def test_single_files_whose_numbers_have_gaps(name):
    keys = {with_gaps(key) if key.startswith(UNET_PREFIX) else key: value for key, value in keys_of(name).items()}
    assert keys.keys() != keys_of(name).keys()
    found = describe_stored(on_disk(keys), {}, FILE, no_value)
    assert found.facts.unet == UNETS[name]
    places = match_tensors(build(found.parts["unet"]), found.parts["unet"])
    assert {place.held.key for place in places.values()} == {key for key in keys if key.startswith(UNET_PREFIX)}


def no_value(held):
    raise AssertionError(f"{held.key} needs no look")


def test_published_files_to_the_byte():
    """SSD-1B.safetensors as convert_diffusers_to_original_sdxl.py writes it, segmind-vega.safetensors with the empty
    metadata that ComfyUI writes. The length of a header depends on every key, dtype and shape."""
    vega = {key: value for key, value in keys_of("segmind_vega").items() if not key.endswith("logit_scale")}
    assert file_size(vega, {}, by_name=False, padded=True) == 3_293_395_670

    ssd = {key: value for key, value in keys_of("ssd_1b").items() if not key.endswith("logit_scale")}
    ssd[SDXL_TEXT_2 + "text_projection.weight"] = ssd.pop(SDXL_TEXT_2 + "text_projection")
    ssd[SDXL_POSITION_IDS] = ("F16", (1, 77))
    ssd[SDXL_TEXT_2 + "text_model.embeddings.position_ids"] = ("F16", (1, 77))
    assert file_size(ssd, None, by_name=False, padded=True) == 4_465_671_506
    found = describe_stored(on_disk(ssd), {}, FILE, no_value)
    assert found.facts == replace(MODELS["sdxl"], unet=UNETS["ssd_1b"])
    for part in found.parts.values():
        match_tensors(build(part), part)


def write_header(network, path) -> None:
    """A file of a network's names and shapes, whose values take no room on the disk."""
    header, end = {}, 0
    for key, tensor in network.state_dict().items():
        begin, end = end, end + 2 * tensor.numel()
        header[key] = {"dtype": "F16", "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


@pytest.mark.parametrize("name", ["bk_sdm_tiny", "ssd_1b"])
def test_folders_at_full_size(name, tmp_path):
    """With the published settings, here of an LCM such as lcm-ssd-1b."""
    facts = replace(MODELS[FAMILY[name]], unet=replace(UNETS[name], guidance_dim=256))
    diffusers.write_facts(tmp_path, facts)
    settings = manifests.UNETS[name] | dict(time_cond_proj_dim=256)
    (tmp_path / "unet" / "config.json").write_text(json.dumps(settings | {"_class_name": "UNet2DConditionModel"}))
    with torch.device("meta"):
        write_header(UNet(facts.unet), tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
        write_header(VAE(facts.vae), tmp_path / "vae" / "diffusion_pytorch_model.safetensors")
        for tower, cfg in zip(facts.family.towers, facts.texts):
            write_header(CLIPText(cfg), tmp_path / tower / "model.safetensors")
    found = weights.describe(tmp_path)
    assert (found.facts.family, found.facts.unet, found.facts.texts) == (facts.family, facts.unet, facts.texts)
    assert found.evidence == distilled.title_of(UNETS[name]) and distilled.PUBLISHED[name] in found.evidence[0]
    match_tensors(build(found.parts["unet"]), found.parts["unet"])


def test_bk_sdm_of_sd_2_is_named():
    settings = manifests.BK_TINY | dict(attention_head_dim=[5, 10, 20], cross_attention_dim=1024)
    unet = configs.read_unet(Settings("config.json", settings | dict(use_linear_projection=True)))
    assert distilled.title_of(unet) == ("its UNet has the sizes of BK-SDM-Tiny for SD 2",)
    assert distilled.title_of(UNETS["sd15"]) == distilled.title_of(UNETS["sdxl"]) == ()


SD1_SIZES = dict(norm_num_groups=32, cross_attention_dim=64, attention_head_dim=8)
SDXL_SIZES = dict(
    norm_num_groups=32,
    cross_attention_dim=192,
    block_out_channels=[64, 128, 128],
    attention_head_dim=[1, 2, 2],
    projection_class_embeddings_input_dim=48 + 6 * 8,
)
TINY = {  # heads and groups as in the published networks, so that a file without config.json tells them
    "base": REFERENCE_SD15 | SD1_SIZES | dict(layers_per_block=1),
    "tiny": REFERENCE_BK_TINY | SD1_SIZES,
    "ssd_1b": REFERENCE_SSD_1B | SDXL_SIZES,
    "koala": REFERENCE_KOALA_700M | SDXL_SIZES,
}


@pytest.mark.parametrize("name", TINY)
@torch.no_grad()
def test_a_unet_alone(name, tmp_path):
    """In diffusers' names, in ldm's as diffusers' own loader pairs them, and with gaps; and what we write of it."""
    reference = randomize(UNet2DConditionModel(**TINY[name]), seed=1).eval()
    in_ldm = files.unet_to_ldm(reference)
    forms = {"diffusers": reference.state_dict(), "ldm": in_ldm}
    if TINY[name].get("layers_per_block") == 1:
        forms["gaps"] = {with_gaps(key): tensor for key, tensor in in_ldm.items()}
    x, context = randn(1, 4, 8, 8), randn(1, 7, reference.config.cross_attention_dim, seed=1)
    vector, added = None, None
    if reference.config.addition_embed_type:
        pooled, ids = randn(1, 48, seed=2), torch.zeros(1, 6, dtype=torch.float64)
        vector = torch.cat([pooled, torch.tensor([1.0, 1, 1, 1, 0, 0, 0, 0]).double().repeat(6)[None]], dim=1)
        added = {"text_embeds": pooled, "time_ids": ids}
    expected = reference.double()(x, 500, context, added_cond_kwargs=added).sample
    for form, tensors in forms.items():
        path = tmp_path / f"{form}.safetensors"
        save_file({key: tensor.float().contiguous() for key, tensor in tensors.items()}, path)
        ours = weights.load_part(path, dtype=torch.float64)
        assert relative_error(ours(x, 500, context, vector), expected) <= 1e-12, form  # as in test_networks
        weights.save_part(ours, tmp_path / f"{form}_again.safetensors", names="ldm", dtype=torch.float32)
        again = load_file(tmp_path / f"{form}_again.safetensors")
        assert {UNET_PREFIX + key for key in again} == in_ldm.keys()
        assert all(torch.equal(again[key.removeprefix(UNET_PREFIX)], tensor.float()) for key, tensor in in_ldm.items())


def tiny_folder(name: str, path) -> None:
    if name in ("base", "tiny"):
        tiny_sd(path, unet=TINY[name] | dict(cross_attention_dim=32))
    else:
        tiny_sdxl(path, unet=TINY[name] | dict(cross_attention_dim=72, projection_class_embeddings_input_dim=72))


@pytest.mark.parametrize("name", ["tiny", "ssd_1b"])
def test_whole_models_go_there_and_back(name, tmp_path):
    """Folder -> one file -> folder, which diffusers reads: equal facts, tensors and settings."""
    tiny_folder(name, tmp_path / "folder")
    first = weights.load(tmp_path / "folder")
    assert first.facts.unet.mid_depth in ((), (0,))
    weights.save(first, tmp_path / "file.safetensors")
    from_file = weights.load(tmp_path / "file.safetensors")
    weights.save(from_file, tmp_path / "again")
    again = weights.load(tmp_path / "again")
    assert first.facts == from_file.facts == again.facts
    for model in (from_file, again):
        state = model.unet.state_dict()
        assert all(torch.equal(state[key], tensor) for key, tensor in first.unet.state_dict().items())
    read = UNet2DConditionModel.from_pretrained(tmp_path / "again" / "unet")
    assert read.state_dict().keys() == first.unet.state_dict().keys()
    keys = ("mid_block_type", "transformer_layers_per_block", "reverse_transformer_layers_per_block")
    assert [read.config[key] for key in keys] == {
        "tiny": [None, [1, 1, 1], None],
        "ssd_1b": ["UNetMidBlock2D", [1, 2, 4], [[4, 4, 10], [2, 1, 1], 1]],
    }[name]


@pytest.mark.parametrize("name", FAMILY)
def test_settings_there_and_back(name):
    written = json.loads(json.dumps(configs.write_unet(UNETS[name], 64, 256)))
    assert configs.read_unet(Settings("config.json", written)) == UNETS[name]
    with torch.device("meta"):
        theirs = UNet2DConditionModel(**{key: value for key, value in written.items() if not key.startswith("_")})
        ours = UNet(UNETS[name])
    assert theirs.state_dict().keys() == ours.state_dict().keys()


def test_lists_as_diffusers_reads_them():
    """The middle takes the first number of the last level, and what stands in a list beyond its resnets is not read."""
    settings = manifests.SDXL | dict(
        transformer_layers_per_block=[7, [2, 3], [5, 4, 9]], reverse_transformer_layers_per_block=[6, [1, 2, 3], [9]]
    )
    unet = configs.read_unet(Settings("config.json", settings))
    assert (unet.depth, unet.mid_depth, unet.up_depth) == ((0, (2, 3), (5, 4)), 5, (0, (1, 2, 3), 6))
    with torch.device("meta"):
        assert UNet(unet).state_dict().keys() == UNet2DConditionModel(**settings).state_dict().keys()


UP = "reverse_transformer_layers_per_block"
BAD = {
    "lists without a way up": (dict(transformer_layers_per_block=[1, [2, 2], [4, 4]]), "transformer_layers_per_block"),
    "a list that is too short": (dict(transformer_layers_per_block=[1, [2], 4]) | {UP: [4, 2, 1]}, "each of the 2"),
    "a way up that is too short": ({UP: [[4, 4], 2, 1]}, "each of the 3 resnets"),
    "a level too few": ({UP: [4, 2]}, "3 values"),
    "no numbers": ({UP: [[4, 4, 4], [1, "2", 1], 1]}, "whole number"),
    "nothing behind a resnet": ({UP: [[4, 0, 4], 1, 1]}, "whole number"),
    "too many": ({UP: [[4] * 300, 1, 1]}, "or a list of them"),
    "lists in lists": ({UP: [[[4, 4, 4]], 1, 1]}, "or a list of them"),
    "another middle": (dict(mid_block_type="UNetMidBlock2DSimpleCrossAttn"), "mid_block_type"),
    "a middle that is a list": (dict(mid_block_type=["UNetMidBlock2D"]), "mid_block_type"),
}


@pytest.mark.parametrize("change, words", BAD.values(), ids=BAD)
def test_settings_that_are_no_network(change, words):
    with pytest.raises(CheckpointError, match=re.escape(words)) as caught:
        configs.read_unet(Settings("config.json", manifests.SDXL | change))
    assert len(str(caught.value)) < 400


def cut(keys: files.Listed, *prefixes: str) -> files.Listed:
    return {key: value for key, value in keys.items() if not key.removeprefix(UNET_PREFIX).startswith(prefixes)}


@pytest.mark.parametrize(
    "name, prefixes, missing",
    [
        ("sdxl", ("middle_block.1.",), "mid_block.attentions.0."),
        ("sdxl", ("middle_block.2.",), "mid_block.resnets.1."),
        ("ssd_1b", ("middle_block.0.in_layers.0.",), "mid_block.resnets.0.norm1."),
        ("ssd_1b", ("output_blocks.1.1.",), "up_blocks.0.attentions.1."),
        ("bk_sdm_tiny", ("output_blocks.5.1.transformer_blocks.",), "up_blocks.2.attentions.1."),
    ],
)
def test_damaged_files_are_no_distilled_models(name, prefixes, missing):
    """What is missing in part is named: it makes no smaller network."""
    keys = files.published("sdxl", "F16") if name == "sdxl" else keys_of(name)
    with pytest.raises(CheckpointError, match="missing.*" + re.escape(missing)):
        found = describe_stored(on_disk(cut(keys, *prefixes)), {}, FILE, no_value)
        match_tensors(build(found.parts["unet"]), found.parts["unet"])


def test_a_unet_as_nobody_published_it_is_doubted():
    """A file without its middle is a network still, and a list of depths may end early in one place."""
    keys = cut(files.published("sdxl", "F16"), "middle_block.")
    found = describe_stored(on_disk(keys), {}, FILE, no_value)
    assert found.facts.unet.mid_depth == () and "may be incomplete" in found.warnings[0]
    keys = cut(files.published("sdxl", "F16"), "output_blocks.1.1.transformer_blocks.9.")
    found = describe_stored(on_disk(keys), {}, FILE, no_value)
    assert found.facts.unet.up_depth == (0, 2, (10, 9, 10)) and "may be incomplete" in found.warnings[0]


def test_adapters_of_kohya_in_the_numbers_of_sgm(tmp_path):
    """Blocks of SSD-1B that SDXL has too, and none beyond its own."""
    cfg = TINY_UNETS["ssd_1b"][0]
    model = Model(UNet(cfg), None, {}, None, replace(MODELS["sdxl"], unet=cfg))
    places = {
        "input_blocks_8_1_transformer_blocks_3_ff_net_2": "down_blocks.2.attentions.1.transformer_blocks.3.ff.net.2",
        "output_blocks_2_1_transformer_blocks_9_attn2_to_k": "up_blocks.0.attentions.2.transformer_blocks.9.attn2.to_k",
        "output_blocks_3_1_transformer_blocks_1_ff_net_2": "up_blocks.1.attentions.0.transformer_blocks.1.ff.net.2",
        "middle_block_0_in_layers_2": "mid_block.resnets.0.conv1",
    }
    tensors, changes = {}, {}
    for number, (theirs, ours) in enumerate(places.items()):
        shape = model.unet.get_parameter(f"{ours}.weight").shape
        up, down = randn(shape[0], 2, seed=number).float(), randn(2, *shape[1:], seed=10 + number).float()
        tensors[f"lora_unet_{theirs}.lora_down.weight"] = down
        tensors[f"lora_unet_{theirs}.lora_up.weight"] = up[:, :, None, None] if len(shape) == 4 else up
        tensors[f"lora_unet_{theirs}.alpha"] = torch.tensor(1.0)
        changes[f"unet.{ours}.weight"] = (up @ down.flatten(1)).view(shape) / 2
    save_file(tensors, tmp_path / "lora.safetensors")
    adapter = weights.load_adapter(tmp_path / "lora.safetensors", model)
    assert adapter.unmatched == () and adapter.deltas.keys() == changes.keys()
    for name, change in changes.items():
        assert relative_error(adapter.deltas[name].value(change), change) < 1e-6  # of float32 factors

    tensors["lora_unet_middle_block_1_transformer_blocks_0_attn1_to_q.lora_down.weight"] = torch.ones(2, 128)
    tensors["lora_unet_middle_block_1_transformer_blocks_0_attn1_to_q.lora_up.weight"] = torch.ones(128, 2)
    save_file(tensors, tmp_path / "of_sdxl.safetensors")
    with pytest.raises(CheckpointError, match="middle_block_1"):
        weights.load_adapter(tmp_path / "of_sdxl.safetensors", model)


def test_numbers_of_sgm_follow_the_resnets_of_a_level():
    """As ComfyUI counts; its settings of KOALA have one resnet for each level."""
    table = unet_table(UNETS["koala_700m"])
    assert table["down_blocks.1.resnets.0.norm1"] == "input_blocks.3.0.in_layers.0"
    assert table["down_blocks.2.attentions.0"] == "input_blocks.5.1"
    assert table["up_blocks.0.upsamplers.0.conv"] == "output_blocks.1.2.conv"
    assert table["up_blocks.2.resnets.1.conv2"] == "output_blocks.5.0.out_layers.3"


def test_a_folder_whose_unet_without_a_middle_reads_another_text(tmp_path):
    tiny_folder("tiny", tmp_path)
    edit_tensors(
        tmp_path / "unet" / "diffusion_pytorch_model.safetensors",
        lambda tensors: {
            key: torch.ones(len(tensor), 2048) if "attn2.to_k" in key else tensor for key, tensor in tensors.items()
        },
    )
    with pytest.raises(CheckpointError, match="attn2.to_k.weight"):
        weights.load(tmp_path)


def test_a_part_of_a_whole_file(tmp_path):
    tiny_folder("tiny", tmp_path / "folder")
    first = weights.load(tmp_path / "folder")
    weights.save(first, tmp_path / "file.safetensors")
    for part, expected in {"unet": first.unet, "vae": first.vae, **first.texts}.items():
        found = weights.load_part(tmp_path / "file.safetensors", part)
        assert all(torch.equal(tensor, found.state_dict()[key]) for key, tensor in expected.state_dict().items())
