"""weights.load on folders and files with something wrong: each fault has its own CheckpointError, one line long."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

import weights
from support import tiny
from support.single_files import Written
from support.tiny import TEXT_FILE, UNET_FILE, VAE_FILE
from weights import CheckpointError
from weights.disk.safetensors import choose_file
from weights.disk.settings import names_in
from weights.misfits import READS_TEXT


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Name -> a folder with nothing wrong: of a model in diffusers' layout, or of a single FILE."""
    made = {}
    write = {
        "sd": tiny.tiny_sd,
        "sdxl": tiny.tiny_sdxl,
        "file": lambda path: Written("sd15", path / FILE, torch.float32),
    }

    def get(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            write[name](made[name])
        return made[name]

    return get


@pytest.fixture
def broken(whole, tmp_path):
    """A copy of a folder, to be broken; gone after the test."""
    yield lambda name="sd": shutil.copytree(whole(name), tmp_path / name)
    shutil.rmtree(tmp_path)


FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARDS = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
FINAL, POSITIONS = "final_layer_norm.bias", "embeddings.position_embedding.weight"
OLD_BIAS = "encoder.mid_block.attentions.0.query.bias"
IN_UNET, IN_VAE = "model.diffusion_model.", "first_stage_model."

# what can be done to a folder


def header_of(path: Path) -> tuple[dict, bytes]:
    raw = path.read_bytes()
    end = 8 + int.from_bytes(raw[:8], "little")
    return json.loads(raw[8:end]), raw[end:]


def write_header(path: Path, raw: bytes, data: bytes = b"") -> None:
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data)


def only_header(raw: bytes):
    return lambda path: write_header(path / UNET_FILE, raw)


def header(change, name=UNET_FILE):
    """Break a folder by a change of one header; change(entries of the header, keys in the order of their data)."""

    def act(path):
        values, data = header_of(path / name)
        keys = sorted(values.keys() - {"__metadata__"}, key=lambda key: values[key]["data_offsets"])
        write_header(path / name, json.dumps(change(values, keys) or values).encode(), data)

    return act


def first(**changes):
    """A change of the header's entry for the first tensor in the file."""
    return header(lambda values, keys: values[keys[0]].update(changes))


def content(data: bytes, name=UNET_FILE):
    return lambda path: (path / name).write_bytes(data)


def setting(file, **changes):
    return lambda path: tiny.edit_json(path / file, lambda values: values | changes)


def tensors(change, name=UNET_FILE):
    return lambda path: tiny.edit_tensors(path / name, change)


def remove(name):
    def act(path):
        shutil.rmtree(path / name) if (path / name).is_dir() else (path / name).unlink()

    return act


def both(*acts):
    return lambda path: [act(path) for act in acts]


def shift(by: int, index: int = 1):
    """Move the place of one tensor in the data."""

    def change(values, keys):
        begin, end = values[keys[index]]["data_offsets"]
        values[keys[index]]["data_offsets"] = [begin + by, end + by]

    return header(change)


def torch_saved(path, zipped: bool):
    torch.save({"a": torch.ones(3)}, path / UNET_FILE, _use_new_zipfile_serialization=zipped)


def as_folder(path):
    (path / UNET_FILE).unlink()
    (path / UNET_FILE).mkdir()


def dangling(path):
    (path / UNET_FILE).unlink()
    (path / UNET_FILE).symlink_to("nowhere.safetensors")


def pipe(path):
    (path / UNET_FILE).unlink()
    os.mkfifo(path / UNET_FILE)


def rename(old, new):
    return lambda path: (path / old).rename(path / new)


def copied(old, new):
    return lambda path: shutil.copy(path / old, path / new)


def shards(change: dict = {}, more: dict = {}):
    """Two shards of the text tower and their index. `change` alters the index; `more` joins the second shard."""

    def act(path):
        state, folder = load_file(path / TEXT_FILE), path / "text_encoder"
        halves = [{key: tensor for key, tensor in state.items() if (key == FINAL) == last} for last in (False, True)]
        for name, half in zip(SHARDS, (halves[0], halves[1] | more)):
            save_file(half, folder / name)
        names = {key: name for name, half in zip(SHARDS, halves) for key in half}
        (folder / INDEX).write_text(json.dumps({"weight_map": names | change}))
        (path / TEXT_FILE).unlink()

    return act


def doubled(index: bytes):
    """The index of two shards, in whose text something stands twice."""

    def act(path):
        shards()(path)
        file = path / "text_encoder" / INDEX
        file.write_bytes(file.read_bytes().replace(b'{"weight_map": {', index))

    return act


def rescaled(value, key="conv_out.weight"):
    def change(state):
        state[key][0, 0, 0, 0] = value

    return change


def inside(change):
    """A change of a single file's tensors."""
    return tensors(change, FILE)


def only(prefix: str):
    return inside(lambda s: {key: tensor for key, tensor in s.items() if key.startswith(prefix)})


def with_keys(*keys: str):
    """A file of a few small tensors."""
    return lambda path: save_file({key: torch.ones(2, 2) for key in keys}, path / FILE)


def noted(text: str):
    return header(lambda values, keys: values | {"__metadata__": {"ldm.facts": text}}, FILE)


BAD = [  # what, the folder, how it is broken, what the line must say
    # a weight file that is none
    ("empty", "sd", content(b""), [UNET_FILE, "is empty", "download"]),
    ("seven bytes", "sd", content(b"\x00" * 7), [UNET_FILE, "7 bytes"]),
    (
        "LFS pointer",
        "sd",
        content(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"),
        [UNET_FILE, "git-LFS pointer", "git lfs pull"],
    ),
    ("web page", "sd", content(b"\n<!DOCTYPE html>\n<html><body>Access denied</body></html>"), [UNET_FILE, "web page"]),
    ("bare web page", "sd", content(b"<html><head><title>404</title></head></html>"), [UNET_FILE, "web page"]),
    ("XML", "sd", content(b'<?xml version="1.0"?><Error><Code>NoSuchKey</Code></Error>'), [UNET_FILE, "XML"]),
    ("JSON", "sd", content(b'{"error":"Entry not found","code":404}'), [UNET_FILE, "JSON text"]),
    ("zip", "sd", lambda path: torch_saved(path, True), [UNET_FILE, "zip archive", "pickled", "convert"]),
    ("pickle", "sd", lambda path: torch_saved(path, False), [UNET_FILE, "pickled", "convert"]),
    ("gzip", "sd", content(b"\x1f\x8b\x08" + b"\x00" * 50), [UNET_FILE, "gzip"]),
    ("GGUF", "sd", content(b"GGUF\x03" + b"\x00" * 50), [UNET_FILE, "GGUF"]),
    ("folder in its place", "sd", as_folder, [UNET_FILE, "is a folder"]),
    ("named pipe", "sd", pipe, [UNET_FILE, "no regular file"]),
    ("dangling link", "sd", dangling, [UNET_FILE, "link to a file that does not exist"]),
    # its header
    (
        "header above 100 MB",
        "sd",
        content((10**9).to_bytes(8, "little") + b"{}" + b" " * 60),
        [UNET_FILE, "1000000000 bytes is announced", "at most"],
    ),
    (
        "header longer than the file",
        "sd",
        content((500).to_bytes(8, "little") + b'{"a": {}}'),
        [UNET_FILE, "500 bytes is announced and only 9 follow", "cut off"],
    ),
    ("no brace", "sd", content((4).to_bytes(8, "little") + b"[{}]"), [UNET_FILE, "does not begin with '{'"]),
    ("not UTF-8", "sd", only_header(b'{"a\xff": {}}'), [UNET_FILE, "not UTF-8", "byte 3"]),
    ("not JSON", "sd", only_header(b'{"a": }'), [UNET_FILE, "not valid JSON"]),
    ("endless JSON", "sd", only_header(b'{"a":' + b"[" * 10**6), [UNET_FILE, "not valid JSON"]),
    ("huge number", "sd", only_header(b'{"a": ' + b"9" * 10**4 + b"}"), [UNET_FILE, "not valid JSON"]),
    ("tensor twice", "sd", only_header(b'{"a": {}, "b": {}, "a": {}}'), [UNET_FILE, "'a' more than once"]),
    ("field twice", "sd", only_header(b'{"a": {"dtype": "F32", "dtype": "F16"}}'), [UNET_FILE, "'dtype' more than"]),
    ("metadata twice", "sd", only_header(b'{"__metadata__": {"a": "1", "a": "2"}}'), [UNET_FILE, "'a' more than once"]),
    (
        "entry is no object",
        "sd",
        only_header(b'{"conv_in.bias": 3}'),
        [UNET_FILE, "conv_in.bias", "dtype, shape and data_offsets"],
    ),
    ("unknown dtype", "sd", first(dtype="F31"), [UNET_FILE, "unknown dtype 'F31'"]),
    ("dtype is no name", "sd", first(dtype=["F32"]), [UNET_FILE, "unknown dtype"]),
    (
        "missing field",
        "sd",
        header(lambda values, keys: values[keys[0]].pop("shape") and None),
        [UNET_FILE, "must have dtype, shape and data_offsets"],
    ),
    ("fractional shape", "sd", first(shape=[1.5]), [UNET_FILE, "shape [1.5]", "whole numbers"]),
    ("negative shape", "sd", first(shape=[-4]), [UNET_FILE, "shape [-4]"]),
    ("overflowing shape", "sd", first(shape=[2**40, 2**40]), [UNET_FILE, "more than any memory"]),
    ("negative offset", "sd", first(data_offsets=[-4, 4]), [UNET_FILE, "data_offsets [-4, 4]"]),
    ("offsets reversed", "sd", first(data_offsets=[8, 4]), [UNET_FILE, "data_offsets [8, 4]"]),
    ("three offsets", "sd", first(data_offsets=[0, 4, 8]), [UNET_FILE, "data_offsets [0, 4, 8]"]),
    ("bytes and shape disagree", "sd", first(shape=[3]), [UNET_FILE, "bytes of data", "need 12"]),
    ("overlap", "sd", shift(-4), [UNET_FILE, "overlaps another tensor"]),
    ("hole", "sd", shift(4), [UNET_FILE, "hole of 4 bytes"]),
    ("outside the file", "sd", shift(10**9), [UNET_FILE, "outside the file"]),
    ("cut off", "sd", lambda path: os.truncate(path / UNET_FILE, 10**6), [UNET_FILE, "announced and only", "cut off"]),
    (
        "trailing bytes",
        "sd",
        lambda path: content((path / UNET_FILE).read_bytes() + b"PK")(path),
        [UNET_FILE, "2 trailing bytes"],
    ),
    (
        "metadata is no text",
        "sd",
        header(lambda values, keys: values | {"__metadata__": {"a": 1}}),
        [UNET_FILE, "__metadata__"],
    ),
    (
        "control codes in a key",
        "sd",
        header(lambda values, keys: values | {"a\nb\x1b[2J\u202e": 1}),
        [UNET_FILE, r"a\nb\x1b[2J\u202e"],
    ),
    ("half a character", "sd", only_header(b'{"a\\ud800": {}}'), [UNET_FILE, r"a\ud800", "not Unicode"]),
    # which files a part has
    (
        "pickle only",
        "sd",
        rename(UNET_FILE, "unet/diffusion_pytorch_model.bin"),
        ["/unet", "diffusion_pytorch_model.bin", "pickled", "convert"],
    ),
    ("no weights", "sd", remove(UNET_FILE), ["/unet", "no diffusion_pytorch_model.safetensors", "config.json"]),
    (
        "two variants and no plain file",
        "sd",
        both(
            copied(UNET_FILE, "unet/diffusion_pytorch_model.fp16.safetensors"),
            rename(UNET_FILE, "unet/diffusion_pytorch_model.non_ema.safetensors"),
        ),
        ["/unet", "'fp16', 'non_ema'", "variant"],
    ),
    ("shards without index", "sd", both(shards(), remove("text_encoder/" + INDEX)), ["/text_encoder", "index"]),
    ("index without its shard", "sd", both(shards(), remove(f"text_encoder/{SHARDS[0]}")), [SHARDS[0], "is missing"]),
    (
        "shard path upwards",
        "sd",
        shards({POSITIONS: "../../secret.safetensors"}),
        [INDEX, "'../../secret.safetensors'", "beside it"],
    ),
    ("absolute shard path", "sd", shards({POSITIONS: "/etc/passwd"}), [INDEX, "'/etc/passwd'", "beside it"]),
    ("shard in a folder", "sd", shards({POSITIONS: "sub/x.safetensors"}), [INDEX, "'sub/x.safetensors'", "beside it"]),
    ("shard in a Windows folder", "sd", shards({POSITIONS: "..\\x.safetensors"}), [INDEX, "beside it"]),
    ("hidden shard", "sd", shards({POSITIONS: ".x.safetensors"}), [INDEX, "'.x.safetensors'", "beside it"]),
    ("pickled shard", "sd", shards({POSITIONS: "model-00001-of-00002.bin"}), [INDEX, "of-00002.bin'", "beside it"]),
    ("endless shard name", "sd", shards({POSITIONS: "a" * 9999 + ".safetensors"}), [INDEX, "aaa...", "beside it"]),
    (
        "shard that is a pickle",
        "sd",
        both(shards(), lambda path: torch.save([], path / "text_encoder" / SHARDS[1])),
        [SHARDS[1], "zip archive", "pickled"],
    ),
    ("shard name with a zero", "sd", shards({POSITIONS: "a\0.safetensors"}), [INDEX, "beside it"]),
    ("shard is no name", "sd", shards({POSITIONS: 1}), [INDEX, "weight_map"]),
    ("index names the wrong shard", "sd", shards({FINAL: SHARDS[0]}), [INDEX, FINAL, f"is not in {SHARDS[0]}"]),
    ("index names a tensor that is nowhere", "sd", shards({"x": SHARDS[0]}), [INDEX, f"'x' is not in {SHARDS[0]}"]),
    ("shard listed twice", "sd", doubled(b'{"weight_map": {"%s": "x", ' % FINAL.encode()), [INDEX, FINAL, "more than"]),
    ("two lists", "sd", doubled(b'{"weight_map": {}, "weight_map": {'), [INDEX, "'weight_map' more than once"]),
    ("tensor in two shards", "sd", shards(more={POSITIONS: torch.ones(1)}), [INDEX, POSITIONS, "in two shards"]),
    (
        "index without weight_map",
        "sd",
        both(shards(), lambda path: (path / "text_encoder" / INDEX).write_text("{}")),
        [INDEX, "weight_map"],
    ),
    # what the files hold
    (
        "missing tensors",
        "sd",
        tensors(lambda s: {k: t for k, t in s.items() if "mid_block" not in k}),
        [UNET_FILE, "are missing", "mid_block.resnets.0", "more"],
    ),
    (
        "one tensor missing",
        "sd",
        tensors(lambda s: s.pop("conv_in.bias") is None or s),
        [UNET_FILE, "1 are missing, 'conv_in.bias'"],
    ),
    (
        "unexpected tensor",
        "sd",
        tensors(lambda s: s | {"extra.weight": torch.ones(2)}),
        [UNET_FILE, "1 unexpected tensors, 'extra.weight'"],
    ),
    (
        "shape mismatch",
        "sd",
        tensors(lambda s: s | {"conv_out.bias": torch.ones(5)}),
        [UNET_FILE, "conv_out.bias (5,) for (4,)"],
    ),
    (
        "integers",
        "sd",
        tensors(lambda s: s | {"conv_out.bias": torch.ones(4, dtype=torch.int32)}),
        [UNET_FILE, "conv_out.bias", "I32"],
    ),
    (
        "two names of one tensor",
        "sd",
        tensors(lambda s: s | {OLD_BIAS: torch.ones(48)}, VAE_FILE),
        [VAE_FILE, "query.bias", "to_q.bias", "two names"],
    ),
    (
        "adapter",
        "sd",
        tensors(lambda s: {"lora_unet_down.lora_up.weight": torch.ones(2, 2)}),
        [UNET_FILE, "no tensor of this network", "lora_unet_down"],
    ),
    ("another part's file", "sd", copied(VAE_FILE, UNET_FILE), [UNET_FILE, "no tensor of this network", "decoder"]),
    ("no tensors", "sd", tensors(lambda s: {"logit_scale": torch.ones(1)}), [UNET_FILE, "are missing"]),
    ("NaN", "sd", tensors(rescaled(float("nan"))), [UNET_FILE, "conv_out.weight", "NaN or infinity"]),
    ("infinity", "sd", tensors(rescaled(-float("inf"))), [UNET_FILE, "conv_out.weight", "NaN or infinity"]),
    # a single file
    ("file: cut off", "file", lambda path: os.truncate(path / FILE, 10**6), [FILE, "announced and only", "cut off"]),
    ("file: LFS pointer", "file", content(b"version https://git-lfs.github.com/spec/v1\n", FILE), [FILE, "git-LFS"]),
    (
        "file: index",
        "file",
        both(copied(FILE, "x.json"), content(b'{"weight_map": {"a": "b.safetensors"}}', FILE)),
        [FILE, "JSON text"],
    ),
    ("file: no tensors", "file", lambda path: write_header(path / FILE, b"{}"), [FILE, "no network known here"]),
    ("file: another model", "file", with_keys("double_blocks.0.img_attn.qkv.weight"), [FILE, "double_blocks"]),
    ("file: LoRA of kohya", "file", with_keys("lora_unet_x.lora_up.weight"), [FILE, "is an adapter"]),
    ("file: LoRA of peft", "file", with_keys("unet.x.lora_A.weight"), [FILE, "is an adapter"]),
    ("file: textual inversion", "file", with_keys("emb_params"), [FILE, "is a textual inversion"]),
    ("file: ControlNet", "file", with_keys("control_model.input_hint_block.0.weight"), [FILE, "a ControlNet"]),
    ("file: VAE alone", "file", only(IN_VAE), [FILE, "holds a VAE, not a whole model", "vae='"]),
    ("file: UNet alone", "file", only(IN_UNET), [FILE, "holds a UNet, not a whole model", "unet='"]),
    (
        "file: no text tower",
        "file",
        inside(lambda s: {k: t for k, t in s.items() if "cond_stage" not in k}),
        [FILE, "a UNet and a VAE, not a whole model"],
    ),
    (
        "file: missing tensor",
        "file",
        inside(lambda s: s.pop(IN_UNET + "out.2.bias") is None or s),
        [FILE, "1 are missing, 'conv_out.bias'"],
    ),
    (
        "file: missing size",
        "file",
        inside(lambda s: s.pop(IN_UNET + "out.2.weight") is None or s),
        [FILE, "no complete UNet", "conv_out.weight is missing"],
    ),
    (
        "file: unexpected tensor",
        "file",
        inside(lambda s: s | {"extra": torch.ones(2)}),
        [FILE, "1 unexpected tensors outside its networks, 'extra'"],
    ),
    (
        "file: unexpected tensor in a network",
        "file",
        inside(lambda s: s | {IN_VAE + "extra": torch.ones(2)}),
        [FILE, "1 unexpected tensors, 'first_stage_model.extra'"],
    ),
    (
        "file: shape mismatch",
        "file",
        inside(lambda s: s | {IN_UNET + "out.2.bias": torch.ones(5)}),
        [FILE, "out.2.bias (5,) for (4,)"],
    ),
    (
        "file: size of no network",
        "file",
        inside(
            lambda s: {
                k: t[:40].contiguous() if k.startswith(IN_UNET + "input_blocks.4.0.in_layers.2") else t
                for k, t in s.items()
            }
        ),
        [FILE, "counts of heads and groups"],
    ),
    (
        "file: size that is none",
        "file",
        inside(lambda s: s | {IN_UNET + "out.2.weight": torch.ones(())}),
        [FILE, "no complete UNet", "shape ()"],
    ),
    (
        "file: another text tower",
        "file",
        inside(lambda s: {k: t[:, :32].contiguous() if "attn2.to_k" in k else t for k, t in s.items()}),
        [FILE, "text of width 32", "give 64", "different models"],
    ),
    (
        "file: integers",
        "file",
        inside(lambda s: s | {IN_UNET + "out.2.bias": torch.ones(4, dtype=torch.int32)}),
        [FILE, "out.2.bias", "I32"],
    ),
    ("file: NaN", "file", inside(rescaled(float("nan"), IN_UNET + "out.2.weight")), [FILE, "out.2.weight", "NaN"]),
    (
        "file: mark of no number",
        "file",
        inside(lambda s: s | {"edm_vpred.sigma_max": torch.ones(0)}),
        [FILE, "edm_vpred.sigma_max", "shape (0,)", "1 numbers"],
    ),
    (
        "file: mark of two",
        "file",
        inside(lambda s: s | {"edm_vpred.sigma_max": torch.full((2,), 80.0)}),
        [FILE, "edm_vpred.sigma_max", "shape (2,)", "1 numbers"],
    ),
    (
        "file: marks that cannot be",
        "file",
        inside(lambda s: s | {"edm_vpred.sigma_max": torch.zeros(1)}),
        [FILE, "impossible things of the noise"],
    ),
    ("file: note that is no JSON", "file", noted("{"), [FILE, "ldm.facts", "not valid JSON"]),
    ("file: note of nothing", "file", noted('{"x": 1}'), [FILE, "ldm.facts", "'x' is 1"]),
    ("file: note of another kind", "file", noted('{"size": "big"}'), [FILE, "'size' is 'big'"]),
    ("file: note that cannot be", "file", noted('{"unet.heads": [0, 1, 2, 3]}'), [FILE, "impossible", "heads"]),
    # the JSON files
    ("no model_index", "sd", remove("model_index.json"), ["model_index.json is missing", "diffusers' layout"]),
    ("model_index is no JSON", "sd", content(b"{", "model_index.json"), ["model_index.json", "not valid JSON"]),
    ("model_index is a list", "sd", content(b"[]", "model_index.json"), ["model_index.json", "list"]),
    ("model_index is not UTF-8", "sd", content(b"\xff", "model_index.json"), ["model_index.json", "UTF-8"]),
    ("setting twice", "sd", content(b'{"a": 1, "a": 2}', "unet/config.json"), ["unet/config.json", "'a' more than"]),
    ("part not listed", "sd", setting("model_index.json", vae=[None, None]), ["component vae", "missing in"]),
    ("part without folder", "sd", remove("vae"), ["component vae", "missing as a folder"]),
    ("no tokenizer", "sd", remove("tokenizer"), ["component tokenizer", "missing as a folder"]),
    ("no second text encoder", "sdxl", remove("text_encoder_2"), ["component text_encoder_2", "missing"]),
    ("no scheduler", "sd", remove("scheduler/scheduler_config.json"), ["scheduler_config.json is missing"]),
    ("no config", "sd", remove("unet/config.json"), ["unet/config.json is missing"]),
    ("class is no pair", "sd", setting("model_index.json", unet="UNet"), ["model_index.json", "unet is 'UNet'"]),
    (
        "another VAE",
        "sd",
        setting("model_index.json", vae=["diffusers", "AutoencoderKLWan"]),
        ["model_index.json", "AutoencoderKLWan", "only AutoencoderKL"],
    ),
    (
        "other pipeline",
        "sd",
        content(b'{"_class_name": "FluxPipeline"}', "model_index.json"),
        ["FluxPipeline", "component unet", "missing"],
    ),
    (
        "unknown pad token",
        "sd",
        setting("tokenizer/tokenizer_config.json", pad_token="[PAD]"),
        ["tokenizer_config.json", "pad_token is '[PAD]'"],
    ),
    (
        "setting not implemented",
        "sd",
        setting("unet/config.json", dual_cross_attention=True),
        ["unet/config.json", "dual_cross_attention is True"],
    ),
    ("text setting", "sd", setting("text_encoder/config.json", hidden_act="relu"), ["text_encoder/config", "'relu'"]),
    ("VAE setting", "sd", setting("vae/config.json", latents_std=[1.0, 1.0, 0.0, 1.0]), ["vae/config", "latents_std"]),
    ("bad defaults", "sd", setting("model_index.json", _defaults={"stpes": 20}), ["model_index.json", "_defaults"]),
    ("scheduler", "sd", setting("scheduler/scheduler_config.json", trained_betas=[0.1]), ["trained_betas", "None"]),
    ("few tokens", "sd", setting("text_encoder/config.json", vocab_size=1000), ["vocabularies", "49408"]),
    # parts of different models
    (
        "SDXL's weights in SD",
        "sd",
        tensors(lambda s: s | {READS_TEXT: torch.ones(96, 2048)}),
        [UNET_FILE, "another family", "2048 (SDXL)", "32"],
    ),
    (
        "SDXL's UNet in SD",
        "sd",
        setting("unet/config.json", addition_embed_type="text_time", projection_class_embeddings_input_dim=72),
        ["component text_encoder_2", "missing"],
    ),
    (
        "SD's UNet in SDXL",
        "sdxl",
        setting("unet/config.json", addition_embed_type=None),
        ["model_index.json", "text_encoder_2", "not SDXL's"],
    ),
    (
        "text of another width",
        "sd",
        setting("unet/config.json", cross_attention_dim=64),
        ["unet/config.json", "cross_attention_dim is 64", "32", "different models"],
    ),
    (
        "vector of another width",
        "sdxl",
        setting("unet/config.json", projection_class_embeddings_input_dim=70),
        ["projection_class_embeddings_input_dim is 70", "72"],
    ),
    ("latents of another width", "sd", setting("vae/config.json", latent_channels=8), ["out_channels is 4", "8"]),
]


@pytest.mark.parametrize("name, act, words", [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_what_is_wrong_is_one_line(name, act, words, broken):
    path = broken(name)
    act(path)
    with pytest.raises(CheckpointError) as caught:
        weights.load(path / FILE if name == "file" else path)
    line = str(caught.value)
    assert str(path) in line and all(word in line for word in words), line
    assert line.isprintable() and len(line) - len(str(path)) < 600, line


def test_variant_that_is_not_there(broken):
    path = broken()
    copied(VAE_FILE, "vae/diffusion_pytorch_model.fp16.safetensors")(path)
    with pytest.raises(CheckpointError, match=r"/vae has no variant 'bf16': it offers '\w+', '\w+'$") as caught:
        choose_file(str(path / "vae"), names_in(path / "vae"), "diffusion_pytorch_model", "bf16")
    assert "'plain'" in str(caught.value) and "'fp16'" in str(caught.value)
    with pytest.raises(CheckpointError, match="/unet has no variant 'bf16': it offers 'plain'"):
        weights.load(path, variant="bf16")  # fp16 loads, for one of the parts has it: test_mixed_variants


def test_values_beyond_float16(broken):
    path = broken()
    tiny.edit_tensors(path / UNET_FILE, rescaled(1e6))
    assert weights.load(path).unet.conv_out.weight.max() == 1e6
    with pytest.raises(CheckpointError, match="conv_out.weight holds NaN or infinity as float16"):
        weights.load(path, dtype=torch.float16)
    assert weights.load(path, dtype=torch.float16, check_finite=False).unet.conv_out.weight.isinf().any()


def test_unreadable_file(whole, monkeypatch):
    path = whole("sd")

    def refuse(*args, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)  # root, as whom tests may run, can read everything
    with pytest.raises(CheckpointError, match="model_index.json cannot be read: Permission denied"):
        weights.load(path)


class Harmful:
    """What a pickle can be: code that runs when it is read."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", ["model.safetensors", "model.SafeTensors", "MODEL.SAFETENSORS", "model.ckpt", "model"])
def test_pickles_are_known_by_their_bytes(name, zipped, tmp_path):
    path, touched = tmp_path / name, tmp_path / "touched"
    torch.save({"state_dict": Harmful(touched)}, path, _use_new_zipfile_serialization=zipped)
    for read in (
        weights.load,
        weights.load_part,
        lambda path: weights.load(weights.MINIATURE, vae=path),
        lambda path: weights.load(weights.MINIATURE, unet=path),
    ):
        with pytest.raises(CheckpointError, match=f"{name} .*pickled Python.*convert it to safetensors$"):
            read(path)
    assert not touched.exists()


def test_safetensors_are_too(whole, tmp_path):
    """Some download managers change the case of an ending, or lose it."""
    for name in ("model.SafeTensors", "model"):
        shutil.copy(whole("file") / FILE, tmp_path / name)
        assert weights.load(tmp_path / name).facts.family.name == "sd1"


@pytest.mark.parametrize(
    "source, words",
    [
        ("someone/some-model", "no such folder here, and the cache .* does not hold it"),
        ("a\0b", "does not exist"),
        ("no/such/folder", "does not exist: give a folder"),
        (__file__, "no safetensors file"),
        ("", "model_index.json is missing"),
    ],
)
def test_sources_that_are_none(source, words, monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match=words):
        weights.load(source)


def test_no_averaged_copy(whole):
    with pytest.raises(CheckpointError, match="has no averaged copy of its UNet.*load it without ema"):
        weights.load(whole("file") / FILE, ema=True)


@pytest.mark.parametrize("what", ["shard path upwards", "file: LoRA of kohya"])
def test_programs_exit_with_2(what, script, broken, tmp_path):
    """More of them, with the shipped model, in test_txt2img.py."""
    name, act, words = next(case[1:] for case in BAD if case[0] == what)
    path = broken(name)
    act(path)
    run = script(
        "txt2img.py", "--prompt", "x", "--model", path / FILE if name == "file" else path, "--out", tmp_path / "out"
    )
    assert run.returncode == 2 and run.stdout == "" and not (tmp_path / "out").exists()
    assert run.stderr.startswith("error: ") and run.stderr.count("\n") == 1
    assert all(word in run.stderr for word in words), run.stderr
