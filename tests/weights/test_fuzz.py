"""Damaged and hostile files by the thousand: headers, indexes, settings and whole checkpoints with something changed.

The changes are the same in each run. Whatever comes of them, it is CheckpointError or a file without fault, within a
second of processor time and 200 MB of memory; and what our reader accepts, the safetensors library reads the same.
"""

import json
import os
import random
import re
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager, suppress
from math import prod
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ldm.config import ModelConfig
from support import tiny
from support.paths import ROOT
from support.single_files import COUNTERS, published
from weights import CheckpointError
from weights.disk.safetensors import BITS, read_header, read_stored
from weights.layouts import diffusers, single_file

SECOND, ROOM = 1.0, 200 * 2**20
STRICTER = {  # what the library reads and we refuse, by the words of our error -> why
    "more than once": "of two tensors, or texts, with one name two readers could take different ones",
    "must have dtype, shape and data_offsets": "a fourth field: it means nothing, and could come to mean something",
    "__metadata__ in its header": "null in its place",
    "more than any memory can hold": "sizes beyond all memory beside one of 0, so that there are no bytes",
    "at most 64 whole numbers": "more axes than PyTorch computes with: what is done for each must not become a bomb",
    "has a name of": "one longer than any published one, for the same reason",
}


@contextmanager
def limited():
    """No more memory than 200 MB beyond what the process has: the next allocation is a MemoryError."""
    before, used = resource.getrlimit(resource.RLIMIT_AS), int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (used * resource.getpagesize() + ROOM, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def outcome(read: Callable, path: Path) -> object:
    """What was read, or the line that refuses it; anything else fails the test."""
    start = time.thread_time()
    try:
        found = read(path)
    except CheckpointError as error:
        found = str(error)
        assert found.isprintable() and len(found) < 1000 and str(path.parent) in found
    assert time.thread_time() - start < SECOND, found
    return found


def kind(found: object) -> str:
    """An error without what it quotes, or that there is none."""
    return re.sub(r"[\d.-]+|'.*?'|\(.*?\)|\[.*?\]", "", found) if isinstance(found, str) else "good"


def put(path: Path, raw: bytes) -> None:
    """In place of what is there: to shorten a file that exists takes some file systems forty times longer."""
    path.unlink(missing_ok=True)
    path.write_bytes(raw)


# faults in bytes

JUNK = [
    b'"',
    b"{",
    b"}",
    b"[",
    b"]",
    b"0",
    b"-1",
    b"-0",
    b",",
    b":",
    b" ",
    b"\0",
    b"\xff",
    b"9" * 30,
    b"1e9",
    b"1.0",
    b"\\u0000",
    b"\\ud800",
    b"\\",
    b"null",
    b"NaN",
    b"Infinity",
    b"[" * 2000,
    b'{"a":' * 2000,
    b"1" * 5000,
    "é\u202e\U0001f600\u2028".encode(),
    b"//",
    b"\t\n",
    b"\xef\xbb\xbf",
    b'"dtype":"F32",',
    b'"__metadata__":{},',
]


def damaged(raw: bytes, dice: random.Random) -> bytes:
    """One to three faults."""
    for _ in range(dice.randint(1, 3)):
        at, end = dice.randrange(len(raw) + 1), dice.randrange(len(raw) + 1)
        match dice.randrange(8):
            case 0:
                raw = raw[:at] + dice.randbytes(1) + raw[at + 1 :]
            case 1:
                raw = raw[:at] + bytes([raw[at] ^ 1 << dice.randrange(8)]) + raw[at + 1 :] if raw[at:] else raw
            case 2:
                raw = raw[:at] + dice.randbytes(dice.randint(1, 9)) + raw[at:]
            case 3:
                raw = raw[:at]
            case 4:
                raw = raw[:at] + raw[at + dice.randint(1, 20) :]
            case 5:
                raw = raw[:at] + raw[at:end] + raw[at:]
            case _:
                raw = raw[:at] + dice.choice(JUNK) + raw[at + dice.randint(0, 2) :]
    return raw


# faults in meaning

NUMBERS = [
    -1,
    0,
    1,
    2,
    3,
    7,
    8,
    2**31,
    2**32,
    2**53,
    2**61,
    2**62,
    2**63 - 1,
    2**63,
    2**64 - 1,
    2**64,
    10**30,
    10**400,
    1.0,
    0.5,
    -0.0,
    1e300,
    float("nan"),
    float("inf"),
    True,
    None,
    "4",
    [4],
]
TEXTS = [
    "",
    "F32",
    "f32",
    "F32 ",
    "F4",
    "F31",
    "\0",
    "a\nb\x1b[2J",
    "\u202e",
    "\ud800",
    "\U0001f600",
    "é",
    "\u0301",
    "__metadata__",
    "../x",
    "a/b",
    "conv_in.weight",
    "İ",
    "ſ",
    "ＦＦ",
    "F8_E4M3FNUZ",
    "F8_E5M2FNUZ",
    "x" * 10**4,
]
VALUES = [
    *NUMBERS,
    *TEXTS,
    [],
    {},
    [[]],
    [0],
    [0, 0],
    [0, 2**63],
    [4, 0],
    [2**40] * 2,
    [1] * 5000,
    [2**63, 0],
    [2**62, 4, 0],
    [[[[[[0]]]]]],
    {"a": {}},
]


def edited(values: dict, dice: random.Random) -> dict:
    """A header, or any object of objects, with one thing changed in it."""
    with suppress(TypeError, LookupError, AttributeError, ValueError):  # an earlier change left nothing to change
        key, other = dice.choice(list(values)), dice.choice(list(values))
        match dice.randrange(13):
            case 0:
                values[key] = dice.choice(VALUES)
            case 12:
                values["__metadata__"] = dice.choice([None, {}, [], {"a": None}, {"a": {"b": 1}}, {"\ud800": ""}])
            case 1:
                values[dice.choice(TEXTS)] = values.pop(key)
            case 2:
                values.pop(key)
            case 3:
                values[key], values[other] = values[other], values[key]
            case 4:
                values[dice.choice(TEXTS)] = values[key]
            case 5:
                values[key][dice.choice(list(values[key]))] = dice.choice(VALUES)
            case 6:
                values[key].pop(dice.choice(list(values[key])))
            case 7:
                values[key][dice.choice(TEXTS)] = dice.choice(VALUES)
            case 8:
                values[key]["dtype"] = dice.choice([*BITS, *TEXTS])
            case 9:
                edit_list(values[key]["shape"], dice)
            case 10:
                edit_list(values[key]["data_offsets"], dice)
            case 11:
                values[key]["data_offsets"], values[other]["data_offsets"] = (
                    values[other]["data_offsets"],
                    values[key]["data_offsets"],
                )
    return values


def edit_list(numbers: list, dice: random.Random) -> None:
    at = dice.randrange(len(numbers) + 1)
    match dice.randrange(5):
        case 0:
            numbers.insert(at, dice.choice(NUMBERS))
        case 1:
            numbers[at : at + 1] = []
        case 2:
            numbers.reverse()
        case 3:
            numbers[at : at + 1] = [dice.choice(NUMBERS)]
        case 4:
            numbers[at] += dice.choice([-8, -4, -1, 1, 4, 8])


def written(values: dict, data: bytes, dice: random.Random) -> bytes:
    """A file of an edited header; now and then the text says a thing twice, or its length is wrong."""
    text = json.dumps(values, ensure_ascii=dice.random() < 0.5, separators=dice.choice([(",", ":"), (", ", " : ")]))
    raw = text.encode("utf-8", "surrogatepass")
    if dice.random() < 0.1:
        at = raw.find(b"{", dice.randrange(max(len(raw), 1)))
        part = raw[at + 1 : raw.find(b",", at)]
        raw = raw[: at + 1] + part + b"," + raw[at + 1 :]
    if dice.random() < 0.1:
        at = raw.find(b":", dice.randrange(len(raw))) + 1
        raw = raw[:at] + dice.choice(JUNK) + raw[at:]
    if dice.random() < 0.1:
        raw += dice.choice([b" ", b"\n" * 7, b"\0", b"}", b" " * 5000])
    length = len(raw) + (dice.choice([-8, -1, 1, 8, -len(raw), 10**8, 2**63]) if dice.random() < 0.05 else 0)
    return length.to_bytes(8, "little") + raw + data


# files


@pytest.fixture
def good(tmp_path) -> Path:
    path = tmp_path / "good.safetensors"
    save_file(
        {
            "a": torch.ones(2, 2),
            "b": torch.ones(4, dtype=torch.float16),
            "c": torch.ones(3, 2, dtype=torch.int8),
            "d.weight": torch.zeros(0, 5),
            "e": torch.ones((), dtype=torch.float64),
            "f": torch.ones(2, dtype=torch.bfloat16),
        },
        path,
        {"format": "pt", "title": "é"},
    )
    return path


def compare_with_library(path: Path, found: object, reasons: Counter) -> bool:
    """Is it a file without fault? What we accept the library must read the same; what it accepts and we do not must be
    of STRICTER."""
    try:
        with safe_open(path, framework="pt") as file:
            theirs = {
                key: (file.get_slice(key).get_dtype(), tuple(file.get_slice(key).get_shape())) for key in file.keys()
            }
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        assert isinstance(found, str), f"the library says {error}, and we accept {path.read_bytes()}"
        return False
    if isinstance(found, str):
        why = [words for words in STRICTER if words in found]
        assert len(why) == 1, f"the library reads it, and we say {found}"
        reasons[why[0]] += 1
        return False
    assert {key: (entry.dtype, entry.shape) for key, entry in found.entries.items()} == theirs
    assert found.metadata == metadata
    return True


def test_headers(good, tmp_path):
    dice, path, raw = random.Random(0), tmp_path / "bad.safetensors", good.read_bytes()
    end = 8 + int.from_bytes(raw[:8], "little")
    lines, reasons, passed = Counter(), Counter(), 0
    with limited():
        for k in range(6000):
            if k % 2:
                values = json.loads(raw[8:end])
                for _ in range(dice.choice([1, 1, 1, 2, 3])):
                    edited(values, dice)
                if k == 1:
                    values = json.loads(raw[8:end])
                    values["e"]["shape"] = [1] * 65  # which chance would hardly meet
                put(path, written(values, raw[end:], dice))
            else:
                put(path, damaged(raw, dice))
            found = outcome(read_header, path)
            lines[kind(found)] += 1
            passed += compare_with_library(path, found, reasons)
    assert passed > 300 and len(lines) > 40, (passed, len(lines))
    assert reasons.keys() == STRICTER.keys(), reasons  # each was met


def test_indexes(tmp_path):
    """A shard is a file beside its index, whatever the index says; those that lie elsewhere here are good files."""
    home = tmp_path / "model"
    home.mkdir()
    shards, names = ["m-00001-of-00002.safetensors", "m-00002-of-00002.safetensors"], ["a", "b", "c", "d"]
    for shard, keys in zip(shards, (names[:2], names[2:])):
        save_file({key: torch.ones(2) for key in keys}, home / shard)
    (home / "sub").mkdir()
    for place in (tmp_path / "x.safetensors", home / "sub/x.safetensors", tmp_path / "x"):
        save_file({"a": torch.ones(2), "b": torch.ones(2)}, place)
    (home / "link.safetensors").symlink_to("nowhere")
    good = {"metadata": {"total_size": 32}, "weight_map": {key: shards[key > "b"] for key in names}}
    places = [
        "../x.safetensors",
        "sub/x.safetensors",
        str(tmp_path / "x.safetensors"),
        "./" + shards[0],
        "../x",
        "..",
        ".",
        "",
        "/",
        "sub",
        "sub\\x.safetensors",
        "link.safetensors",
        "m.safetensors.index.json",
        shards[0] + "\0",
        shards[0].upper(),
        shards[0] + " ",
        "\u2024\u2024/x.safetensors",
        "~/x.safetensors",
        "file:///x.safetensors",
        "m-00003-of-00002.safetensors",
        ".safetensors",
        "-.safetensors",
        "a" * 300 + ".safetensors",
        *shards,
        *TEXTS,
        *NUMBERS,
        {},
        [],
    ]
    dice, path, lines, passed = random.Random(1), home / "m.safetensors.index.json", Counter(), 0
    with limited():
        for k in range(3000):
            values = json.loads(json.dumps(good))
            weights_of = values["weight_map"]
            match k % 4:
                case 0:
                    weights_of[dice.choice(names)] = dice.choice(places)
                case 1:
                    weights_of[dice.choice(TEXTS)] = dice.choice(shards)
                case 2:
                    edited(dice.choice([values, weights_of]), dice)
            raw = json.dumps(values).encode()
            put(path, damaged(raw, dice) if k % 4 == 3 else raw)
            found = outcome(read_stored, path)
            lines[kind(found)] += 1
            if not isinstance(found, str):
                passed += 1
                assert found.keys() == set(names)
                assert all(held.file.parent == home and held.file.name in shards for held in found.values())
    assert 100 < passed < 1500 and len(lines) > 15, (passed, lines)


def test_settings(tmp_path):
    """Any value in place of any setting of a model folder."""
    tiny.tiny_sdxl(tmp_path / "model")
    dice, home, lines = random.Random(2), tmp_path / "model", Counter()
    files = [file for file in sorted(home.rglob("*.json")) if file.name != "tokenizer.json"]
    texts = {file: file.read_bytes() for file in files}
    with limited():
        for k in range(150):
            file = dice.choice(files)
            if k % 5:
                values = json.loads(texts[file])
                values[dice.choice(list(values))] = dice.choice(VALUES + ["karras", [None], ["a", "b"]])
                put(file, json.dumps(values).encode())
            else:
                put(file, damaged(texts[file], dice))
            found = outcome(diffusers.read, file.parent if file.name == "model_index.json" else home)
            lines[kind(found)] += 1
            put(file, texts[file])
    assert 30 < lines["good"] < 105 and len(lines) > 30, lines


# whole checkpoints: their headers are good, and tell nonsense

SHAPES = [(), (0,), (1,), (2,), (3, 0), (4, 4), (1, 1, 1, 1), (320,), (320, 320), (2**20,), (7, 7, 7), (1,) * 40]
MARKS = [
    "edm_mean",
    "edm_std",
    "edm_vpred.sigma_max",
    "edm_vpred.sigma_min",
    "v_pred",
    "ztsnr",
    "betas",
    "x",
    "lora_unet_x",
    "model_ema.decay",
    "emb_params",
    "logit_scale",
]
NOTES = [
    {"ldm.facts": json.dumps({path: value})}
    for value in (1, 0, -1, 2**70, 1e300, "v", [], [0.5] * 4, [0] * 4, {}, None, True)
    for path in ("unet.heads", "vae.groups", "latent.std", "prediction", "noise.beta_end", "size", "pad_ids", "x")
]
METADATA = [{}, {"modelspec.prediction_type": "v"}, {"modelspec.prediction_type": "\u202e"}, {"ldm.facts": "{"}, *NOTES]


def changed(keys: dict, dice: random.Random) -> dict:
    """Key -> dtype and shape, with one thing or many things of one kind changed."""
    keys, names = dict(keys), list(keys)
    key, stem = dice.choice(names), ".".join(dice.choice(names).split(".")[: dice.randint(1, 5)])
    below = [name for name in names if name.startswith(stem)]
    match dice.randrange(8):
        case 0:
            keys[key] = keys[key][0], dice.choice(SHAPES)
        case 1:
            keys[key] = keys[key][0], keys[key][1][::-1]
        case 2:
            keys[key] = dice.choice(list(BITS)), keys[key][1]
        case 3:
            keys = {name: value for name, value in keys.items() if name not in below}
        case 4:
            keys = {
                name.replace(stem, dice.choice([stem + "0", "", "x", stem * 2])): value for name, value in keys.items()
            }
        case 5:
            keys |= {name: (keys[name][0], (1,) + keys[name][1]) for name in below}
        case 6:
            keys |= {name: (keys[name][0], keys[name][1][:-1]) for name in below}
        case 7:
            keys |= {
                name: (dice.choice(["F32", "F16", "I32", "U8", "F8_E4M3"]), dice.choice(SHAPES))
                for name in dice.sample(MARKS, dice.randint(1, 4))
            }
    return keys or {key: ("F32", ())}


def sane(facts: ModelConfig) -> bool:
    """Can the numbers be computed with?"""
    noise, latent, latents = facts.noise, facts.latent, facts.vae.latent_channels
    return (
        (0 < noise.sigma_min < noise.sigma_max if noise.edm else 0 < noise.beta_start <= noise.beta_end < 1)
        and (len(latent.mean) == len(latent.std) in (0, latents) and min(latent.std, default=1) > 0 < latent.scale)
        and (len(facts.pad_ids) == len(facts.texts) and min(facts.size, facts.steps) > 0)
    )


def write_sparse(path: Path, keys: dict, metadata: dict) -> None:
    """The header, and zeros that take no room on the disk."""
    header, end = {"__metadata__": metadata}, 0
    for key, (dtype, shape) in keys.items():
        begin, end = end, end + prod(shape) * BITS[dtype] // 8
        header[key] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    raw = json.dumps(header).encode()
    path.unlink(missing_ok=True)
    with path.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        file.truncate(8 + len(raw) + end)


@pytest.mark.parametrize("model, count", [("sd15", 40), ("sd2_v", 40), ("sd_x4", 20), ("playground_v25", 20)])
def test_checkpoints(model, count, tmp_path):
    """The names of published files. Recognition reads headers, and a few small tensors."""
    dice, path, lines = random.Random(model), tmp_path / "model.safetensors", Counter()
    keys = {
        key: (dtype, tuple(n if n < 64 else n // 16 for n in shape))  # of 2 % of the size, or less
        for key, (dtype, shape) in published(model, "F16", **COUNTERS).items()
    }
    with limited():
        for _ in range(count):
            keys_now = keys
            for _ in range(dice.choice([1, 1, 2])):
                keys_now = changed(keys_now, dice)
            write_sparse(path, keys_now, dice.choice(METADATA) if dice.random() < 0.5 else {})
            found = outcome(single_file.read, path)
            lines[kind(found)] += 1
            assert isinstance(found, str) or sane(found.facts), found.facts
    assert len(lines) > 5, lines


# all kinds of input, in a process of their own


def test_ten_thousand_inputs():
    """Of every kind that a stranger's files can have, within limits that the operating system keeps: see support.fuzz.
    What it found has a name in test_bombs.py and test_changing_files.py."""
    paths = os.pathsep.join(str(ROOT / name) for name in (".", "tests", "scripts"))
    run = subprocess.run(
        [sys.executable, "-m", "support.fuzz", "10000"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": paths},
    )
    assert run.returncode == 0, run.stderr[-2000:]
    figures = json.loads(run.stdout)
    assert sum(figures["inputs"].values()) == 10000 and len(figures["inputs"]) == 8
    for kind, count in figures["inputs"].items():  # neither all good nor all refused: the faults go deep
        assert 0.01 * count < figures["read"][kind] < 0.8 * count, (kind, figures)
    assert figures["lines"] > 500, figures
