"""Small files that ask for much: each is refused, or read, within a second of processor time and 200 MB.

The limits are those of the operating system, in a process of their own: memory that is asked for beyond them is a
MemoryError, and processor time a signal. So a bomb cannot pass because the machine that runs the tests is large.
"""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

import weights
from support.paths import ROOT
from weights import CheckpointError
from weights.disk.safetensors import read_header
from weights.errors import LINE, shown

FOLDER = """
import json, resource, signal, sys, warnings
from pathlib import Path
import torch, weights
warnings.simplefilter("ignore")
torch.set_num_threads(1)

MODEL = weights.load(weights.MINIATURE)
READ = {
    "load": weights.load,
    "part": weights.load_part,
    "adapter": lambda path: (weights.describe_adapter(path), weights.load_adapter(path, MODEL, partial=True)),
    "embedding": lambda path: weights.add_embedding(MODEL, path),
    "index": lambda path: weights.disk.safetensors.read_stored(Path(path)),
}
for read in READ.values():  # what is imported once
    try:
        read(sys.argv[1])
    except ValueError:
        pass
resource.setrlimit(resource.RLIMIT_CPU, (200, 200))  # where no signal is looked at
now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + 200 * 2**20, resource.RLIM_INFINITY))

class Slow(BaseException):
    pass

def stop(*_):
    raise Slow

signal.signal(signal.SIGPROF, stop)
found = {}
for line in sys.stdin:
    name, kind, path = json.loads(line)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)  # of processor time
    try:
        READ[kind](path)
        found[name] = ""
    except weights.CheckpointError as error:
        found[name] = str(error)
    except BaseException as error:
        found[name] = f"!!! {type(error).__name__}: {error}"
    signal.setitimer(signal.ITIMER_PROF, 0)
    print(json.dumps([name, found[name]]), flush=True)
"""
SECONDS = 2  # twice of what an idle core needs at most, for the two that share it


def header(path: Path, raw: str, data: int = 0) -> Path:
    """A file of this header and `data` zeros, which take no room."""
    text = raw.encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    os.truncate(path, 8 + len(text) + data)
    return path


def tensors(path: Path, shapes: dict[str, tuple], metadata: dict[str, str] = {}) -> Path:
    values = {"__metadata__": metadata}
    end = 0
    for key, shape in shapes.items():
        begin = end
        end += 4 * math.prod(shape)
        values[key] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
    return header(path, json.dumps(values), end)


def entry(key: str, k: int = 0, dtype: str = "F32", shape: str = "1", more: str = "") -> str:
    """The text of the k-th tensor, of one number."""
    return f'"{key}":{{"dtype":"{dtype}","shape":[{shape}],"data_offsets":[{4 * k},{4 * k + 4}]{more}}}'


def numbered(count: int, key: str = "k{}.weight") -> str:
    """A header of so many tensors of one number each, without its last bracket."""
    return "{" + ",".join(entry(key.format(k), k) for k in range(count))


def one(**parts: str) -> str:
    return "{" + entry("a", **parts) + "}"


def meta(text: str) -> str:
    return '{"__metadata__":{"a":"' + text + '"}}'


NOTES = '{"__metadata__":{' + ",".join(f'"{i}":"{i}"' for i in range(100000)) + "}}"
NONE = "no network known here"  # in a file that may well be read
FIELDS = "dtype, shape and data_offsets"
HEADERS = {  # name -> text of the header, bytes of data, what the line says
    "40000 keys, one of them twice": (numbered(40000) + ',"k7.weight":{}}', 160000, "values, and at most 250000"),
    "15000 keys, one of them twice": (numbered(15000) + ',"k7.weight":{}}', 60000, "'k7.weight' more than once"),
    "12000 keys": (numbered(12000) + "}", 48000, NONE),
    "5000 keys of 480 letters": (numbered(5000, "a." * 238 + "{:04}") + "}", 20000, NONE),
    "30000 axes": (one(shape="9223372036854775807," * 29999 + "1"), 4, "at most 64"),
    "axes of 4000 digits": (one(shape=f"{'9' * 4000}," * 4000 + "1"), 4, "500 digits"),
    "150000 axes of 1": (one(shape="1," * 149999 + "1"), 4, "at most 64"),
    "axes beyond all memory": (one(shape=",".join(["4294967296"] * 3)), 4, "any memory"),
    "no bytes, and axes beyond all memory": (one(shape="4294967296,4294967296,0"), 0, "any memory"),
    "a dtype of a megabyte": (one(dtype="F" * 10**6), 4, "unknown dtype 'FFF"),
    "a key of a megabyte": ("{" + entry("k." * 5 * 10**5) + "}", 4, "a name of 1000000 characters"),
    "90 MB of metadata": (meta("x" * 90 * 10**6), 0, "at most 20000000 are allowed"),
    "19 MB of metadata with a sign of four bytes": (meta("\U0001f600" + "x" * 19 * 10**6), 0, NONE),
    "1 million tags": (meta(r"\",:[{" * 1 * 10**6), 0, NONE),
    "6 million objects": ('{"a":[' + "{}," * 6 * 10**6 + "{}]}", 0, "at most 250000 are read"),
    "a megabyte of lists": ('{"a":[' + "[]," * 340000 + "[]]}", 0, FIELDS),
    "lists in lists": ('{"a":' + "[" * 900 + "]" * 900 + "}", 0, FIELDS),
    "a million lists in lists": ('{"a":' + "[" * 10**6, 0, "not valid JSON"),
    "100000 notes": (NOTES, 0, NONE),
    "a fourth field of lists": (one(more=',"x":' + "[" * 900 + "]" * 900), 4, FIELDS),
    "1e400": (one(shape="1e400"), 4, "whole numbers"),
    "40000 numbers of 480 digits": ('{"a":[' + ("9" * 480 + ",") * 40000 + "1]}", 0, "more than 400000 digits"),
    "200000 numbers of 39 digits": ('{"a":[' + ("9" * 39 + ",") * 200000 + "1]}", 0, FIELDS),
    "a text without end": ('{"a":"' + r"\"," * 6 * 10**6, 0, "not valid JSON"),
    "a number of 5000 digits": (one(shape="9" * 5000), 4, "not valid JSON"),
}
IN_UNET = "model.diffusion_model."


def below(stem: str, end: str, count: int) -> dict[str, tuple]:
    return {f"{stem}{i}{end}": (1,) for i in range(count)}


MANY = 3000
SINGLE_FILES = {  # name -> shapes beside those of the miniature in one file, what the line says
    "block 99999": (below(f"{IN_UNET}input_blocks.9999", ".0.op.weight", 10), ""),
    "blocks 1 to 3000": (below(f"{IN_UNET}input_blocks.", ".0.op.weight", MANY), ""),
    "1500 levels of 1500 blocks": (
        below("first_stage_model.encoder.down.", ".block.0.norm1.weight", MANY // 2)
        | below("first_stage_model.encoder.down.0.block.", ".norm1.weight", MANY // 2),
        "more than 64 modules",
    ),
    "text of 3000 layers": (
        below("cond_stage_model.transformer.text_model.encoder.layers.", ".layer_norm1.weight", MANY),
        "more than 64 modules",
    ),
    "3000 averages": (below("model_ema.x", "", MANY), ""),
    "3000 unknown": (below("x", "", MANY), ""),
}  # fmt: skip
UNET = "time_embedding.linear_1.weight"
TAESD = "decoder.layers.0.weight"
ALONE = {  # name -> shapes of a network without a config.json
    "3000 levels of a UNet": below("down_blocks.", ".resnets.0.conv1.weight", MANY) | {UNET: (1, 1)},
    "3000 layers of TAESD": below("encoder.layers.", ".conv.0.weight", MANY) | {TAESD: (1, 1, 1, 1)},
    "3000 numbers of TAESD": below("", ".weight", MANY),
}  # fmt: skip
DEEP_UNET = dict(
    block_out_channels=[32] * 256,
    layers_per_block=256,
    transformer_layers_per_block=256,
    down_block_types=["CrossAttnDownBlock2D"] * 256,
    up_block_types=["CrossAttnUpBlock2D"] * 256,
    attention_head_dim=1,
    norm_num_groups=1,
)
DEEP_VAE = dict(
    block_out_channels=[4] * 256,
    norm_num_groups=1,
    down_block_types=["DownEncoderBlock2D"] * 256,
    up_block_types=["UpDecoderBlock2D"] * 256,
)
DEEP_TAESD = dict(
    _class_name="AutoencoderTiny",
    act_fn="relu",
    scaling_factor=1.0,
    encoder_block_out_channels=[64] * 256,
    decoder_block_out_channels=[64] * 256,
    num_encoder_blocks=[256] * 256,
    num_decoder_blocks=[256] * 256,
)
CONFIGS = {  # file of the miniature's folder -> settings
    "UNet of 256 levels of 256 blocks": ("unet/config.json", DEEP_UNET),
    "UNet of 256 blocks in each": ("unet/config.json", dict(layers_per_block=256, transformer_layers_per_block=256)),
    "giant widths": ("unet/config.json", dict(block_out_channels=[2**20] * 3)),
    "wider than a giant": ("unet/config.json", dict(block_out_channels=[10**12] * 3)),
    "giant heads": ("unet/config.json", dict(attention_head_dim=2**20)),
    "giant groups": ("unet/config.json", dict(norm_num_groups=10**9)),
    "200000 levels": ("unet/config.json", dict(block_out_channels=[32] * 200000)),
    "VAE of 256 levels": ("vae/config.json", DEEP_VAE),
    "TAESD of 256 levels of 256": ("vae/config.json", DEEP_TAESD),
    "text of 256 layers": ("text_encoder/config.json", dict(num_hidden_layers=256)),
    "text of a million layers": ("text_encoder/config.json", dict(num_hidden_layers=10**6)),
    "a vocabulary of 10^12": ("text_encoder/config.json", dict(vocab_size=10**12)),
    "a vocabulary of a million": ("text_encoder/config.json", dict(vocab_size=2**20, intermediate_size=2**20)),
    "10^9 steps of training": ("scheduler/scheduler_config.json", dict(num_train_timesteps=10**9)),
    "a million steps of training": ("scheduler/scheduler_config.json", dict(num_train_timesteps=10**6)),
    "100000 betas": ("scheduler/scheduler_config.json", dict(trained_betas=[0.1] * 10**5)),
    "a million betas": ("scheduler/scheduler_config.json", dict(trained_betas=[0.1] * 10**6)),
    "60000 components": ("model_index.json", {f"c{i}": ["a", "b"] for i in range(60000)} | {"vae": [None, None]}),
    "a class of a megabyte": ("model_index.json", dict(unet=["diffusers", "U" * 10**6])),
    "a pad of lists": ("tokenizer/special_tokens_map.json", dict(pad_token={"content": [[[]] * 1000] * 50})),
}  # fmt: skip


def lora(rank: int, modules: int = 1) -> dict[str, tuple]:
    shapes = {}
    for i in range(modules):
        shapes |= {f"unet.m{i}.lora_A.weight": (rank, 4), f"unet.m{i}.lora_B.weight": (4, rank)}
    return shapes


def peft(**settings: object) -> dict[str, str]:
    values = {f"unet.{key}": value for key, value in (dict(r=1, lora_alpha=1) | settings).items()}
    return {"lora_adapter_metadata": json.dumps(values)}


def long_name(length: int) -> dict[str, tuple]:
    return {f"unet.{'x' * length}.lora_A.weight": (1, 4), f"unet.{'x' * length}.lora_B.weight": (4, 1)}


ADAPTERS = {  # name -> shapes, metadata
    "1000 modules": (lora(1, 1000), {}),
    "a rank of 10^9": (lora(10**9), {}),
    "a rank of two million": (lora(2 * 10**6), {}),
    "20000 patterns and 1000 modules": (lora(1, 1000), peft(rank_pattern={f"x{i}": 1 for i in range(20000)})),
    "2000 expressions and 1000 modules": (lora(1, 1000), peft(rank_pattern={f".*x{i}.*": 1 for i in range(2000)})),
    "900 names and 2000 modules": (lora(1, 2000), peft(rank_pattern={"x" * n: 1 for n in range(1, 900)})),
    "a long expression and 2000 modules": (lora(1, 2000), peft(rank_pattern={"[" + "a-z" * 300 + "]": 1})),
    "an expression that looks ahead, and 2000 modules": (lora(1, 2000), peft(rank_pattern={"(?=.*){1000}" * 50: 1})),
    "an expression without end": (long_name(60), peft(rank_pattern={"(x+x+)+y": 1})),
    "expressions of many stars": (long_name(200), peft(alpha_pattern={".*x" * 30 + "y": 1})),
    "an expression of a megabyte": (lora(1, 10), peft(rank_pattern={"(" * 10**6: 1})),
    "a giant rank in words": (lora(1), peft(r=10**9)),
}
EMBEDDINGS = {
    "a million vectors": {"emb_params": (10**6, 768)},
    "a vector of 10^9": {"emb_params": (1, 10**9)},
    "a vector of 10^9, flat": {"<word>": (10**9,)},
    "a pair of millions": {"clip_l": (10**6, 768), "clip_g": (10**6, 1280)},
}


def write_bombs(home: Path) -> list[tuple[str, str, Path, str]]:
    """Name, how it is read, where it lies, what the line must say."""
    bombs = []
    for name, (raw, data, words) in HEADERS.items():
        bombs.append((name, "load", header(home / f"h{len(bombs)}", raw, data), words))
    whole = home / "whole.safetensors"
    weights.save(weights.load(weights.MINIATURE), whole, layout="ldm")
    usual = {key: (1,) * len(entry.shape) for key, entry in read_header(whole).entries.items()}
    for name, (shapes, words) in SINGLE_FILES.items():
        bombs.append((name, "load", tensors(home / f"s{len(bombs)}", usual | shapes), words))
    for name, shapes in ALONE.items():
        bombs.append((name, "part", tensors(home / f"n{len(bombs)}-encoder", shapes), ""))
    for name, (file, settings) in CONFIGS.items():
        folder = home / f"c{len(bombs)}"
        copy_miniature(folder, file)
        values = json.loads((ROOT / "weights/miniature" / file).read_text()) | settings
        (folder / file).write_text(json.dumps(values))
        bombs.append((name, "load", folder, ""))
    for name, (shapes, metadata) in ADAPTERS.items():
        bombs.append((name, "adapter", tensors(home / f"a{len(bombs)}", shapes, metadata), ""))
    for name, shapes in EMBEDDINGS.items():
        bombs.append((name, "embedding", tensors(home / f"e{len(bombs)}", shapes), ""))
    for name, count in (("10^6 entries of an index", 10**6), ("100000 entries of an index", 100000)):
        path = home / f"{len(bombs)}.json"
        path.write_text(json.dumps({"weight_map": {f"k{i}.weight": f"m-{i:06}.safetensors" for i in range(count)}}))
        bombs.append((name, "index", path, ""))
    bombs.append(("30 shards of 2000 tensors", "index", many_shards(home / "shards"), "more than 20000 tensors"))
    return bombs


def many_shards(folder: Path) -> Path:
    """Each by itself has no more tensors than are read."""
    folder.mkdir()
    names = [f"m-{k}.safetensors" for k in range(30)]
    for k, name in enumerate(names):
        header(folder / name, numbered(2000, f"s{k}." + "{}") + "}", 8000)
    index = folder / "m.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {f"s{k}.0": name for k, name in enumerate(names)}}))
    return index


def copy_miniature(folder: Path, file: str):
    """By links, but for the one file."""
    for source in (ROOT / "weights/miniature").rglob("*"):
        place = folder / source.relative_to(ROOT / "weights/miniature")
        place.parent.mkdir(parents=True, exist_ok=True)
        if source.is_file() and source != ROOT / "weights/miniature" / file:
            place.symlink_to(source)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> dict[str, tuple[str, str, str]]:
    """Name -> what the line must say, what was said, and of which path."""
    bombs = write_bombs(tmp_path_factory.mktemp("bombs"))
    run = subprocess.run(
        [sys.executable, "-c", FOLDER.replace("SECONDS", str(SECONDS)), str(bombs[0][2])],
        input="\n".join(json.dumps([name, kind, str(path)]) for name, kind, path, _ in bombs),
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    said = dict(json.loads(line) for line in run.stdout.splitlines())
    assert len(said) == len(bombs), (run.returncode, run.stderr[-1000:])
    return {name: (words, said[name], str(path)) for name, _, path, words in bombs}


ALL = [*HEADERS, *SINGLE_FILES, *ALONE, *CONFIGS, *ADAPTERS, *EMBEDDINGS, "10^6 entries of an index"]


@pytest.mark.parametrize("name", [*ALL, "100000 entries of an index", "30 shards of 2000 tensors"])
def test_a_bomb_is_one_line(name, outcomes):
    words, said, path = outcomes[name]
    assert said and not said.startswith("!!!"), said
    assert words in said and (path in said or str(Path(path).parent) in said), said
    assert said.isprintable() and len(said) <= 1000, said


def test_an_error_keeps_its_beginning_and_its_end():
    """The file, which is named first, and what to do, which is said last; escapes count as they are printed."""
    error = str(CheckpointError("model.safetensors: " + "\x1b\U0001f600\n" * 10**6 + ": download it again"))
    assert error.startswith("model.safetensors: \\x1b") and error.endswith(": download it again")
    assert len(error) == LINE and error.isprintable()
    assert str(CheckpointError("short")) == "short"


def test_what_cannot_be_shown():
    """Lists that are too deep for Python to write them, and numbers of too many digits."""
    deep: list = []
    for _ in range(10**5):
        deep = [deep]
    assert shown(deep) == "list too large to be shown"
    assert shown(10**5000) == "int too large to be shown"
    assert shown("a" * 10**6) == "'" + "a" * 63 + "..." + "a" * 32 + "'"
