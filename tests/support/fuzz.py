"""Damaged and hostile inputs by the thousand, each with a seed of its own: whatever comes of one is a success, or one
bounded line. `make fuzz` runs 200,000 of them; tests/weights/test_fuzz.py runs 10,000.

    export PYTHONPATH=.:tests:scripts
    python -m support.fuzz 10000 --seed 0                # figures at the end, as JSON
    python -m support.fuzz 1 --kind headers --seed 4711  # one input again, by the number that its error names

The process has limits: 200 MB of memory beyond what it needs for nothing, and ten seconds of processor time for a
hundred inputs. Beyond them an input fails as a MemoryError, or the process ends by SIGXCPU.
"""

import argparse
import io
import json
import random
import resource
import sys
import tempfile
import warnings
import zlib
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr, suppress
from pathlib import Path

import torch
from safetensors.torch import save_file

import weights
from ldm import pictures
from weights.disk.safetensors import read_header, read_stored
from weights.disk.settings import Settings
from weights.layouts import diffusers, one_network
from weights.layouts.diffusers_scheduler import SCHEDULERS, read_scheduler

ROOM = 200 * 2**20
CHUNK = 100  # inputs
SECONDS = 10  # of processor time, for each chunk
Dice = random.Random
Input = Callable[[], object]

TOKENS_OF_JSON = [
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
    b"\0",
    b"\xff",
    b"9" * 30,
    b"1e999",
    b"\\ud800",
    b"null",
    b"NaN",
    b"-Infinity",
    b"[" * 1500,
    b'{"a":' * 1200,
    b"1" * 5000,
    "\u202e\U0001f600\u2028\x1b[2J".encode(),
]
NUMBERS = [
    -1,
    0,
    1,
    2,
    3,
    8,
    256,
    257,
    2**20,
    2**31,
    2**63,
    2**64,
    10**30,
    10**400,
    0.5,
    -0.0,
    1e30,
    1e300,
    float("nan"),
    float("inf"),
]
TEXTS = [
    "",
    "F32",
    "F8_E4M3",
    "\0",
    "a\nb\x1b[2J",
    "\u202e",
    "é",
    "../x",
    "conv_in.weight",
    "__metadata__",
    "x" * 300,
    "x." * 200,
    "9" * 5000,
]
OTHERS = [
    None,
    True,
    False,
    [],
    {},
    [[]],
    [0, 2**63],
    [1] * 70,
    [0.5] * 300,
    [[[[[[0]]]]]],
    {"a": {}},
    ["a", "b"],
    [None, None],
]
VALUES = [*NUMBERS, *TEXTS, *OTHERS]


def damaged(raw: bytes, dice: Dice) -> bytes:
    """Bytes with one to three faults."""
    for _ in range(dice.randint(1, 3)):
        at = dice.randrange(len(raw) + 1)
        match dice.randrange(6):
            case 0:
                raw = raw[:at] + dice.randbytes(dice.randint(1, 9)) + raw[at + 1 :]
            case 1:
                raw = raw[:at]
            case 2:
                raw = raw[:at] + raw[at + dice.randint(1, 30) :]
            case 3:
                raw = raw[:at] + raw[dice.randrange(len(raw) + 1) :]
            case _:
                raw = raw[:at] + dice.choice(TOKENS_OF_JSON) + raw[at + dice.randint(0, 2) :]
    return raw


def edited(value: object, dice: Dice) -> object:
    """A JSON value with one thing changed in it, at any depth."""
    if isinstance(value, dict) and value and dice.random() < 0.9:
        value = dict(value)
        key = dice.choice(list(value))
        match dice.randrange(8):
            case 0:
                value.pop(key)
            case 1:
                value[dice.choice(TEXTS)] = value.pop(key)
            case 2:
                value[dice.choice(TEXTS)] = dice.choice(VALUES)
            case 3:
                value[key] = value[dice.choice(list(value))]
            case 4:
                value[key] = dice.choice(VALUES)
            case _:
                value[key] = edited(value[key], dice)
        return value
    if isinstance(value, list) and value and dice.random() < 0.8:
        at = dice.randrange(len(value))
        change = dice.choice([[], [edited(value[at], dice)], [value[at]] * 2, [value[at]] * 300])
        return value[:at] + change + value[at + 1 :]
    if isinstance(value, int) and not isinstance(value, bool) and dice.random() < 0.5:
        return value + dice.choice([-8, -4, -1, 1, 4, 8])
    return dice.choice(VALUES)


def edit_text(value: dict, dice: Dice) -> bytes:
    """A JSON file in which something is changed, in its meaning or in its bytes."""
    for _ in range(dice.choice([1, 1, 2])):
        value = edited(value, dice)
    with suppress(ValueError):  # numbers that JSON cannot write, of too many digits
        raw = json.dumps(value, ensure_ascii=dice.random() < 0.5).encode("utf-8", "surrogatepass")
        return damaged(raw, dice) if dice.random() < 0.2 else raw
    return b"{}"


def put(path: Path, raw: bytes):
    """In place of what is there: to shorten a file takes some file systems longer."""
    path.unlink(missing_ok=True)
    path.write_bytes(raw)


class Fuzz:
    """The inputs of each kind. home: a folder of their own."""

    def __init__(self, home: Path):
        self.home = home
        self.model = weights.load(weights.MINIATURE)
        self.path = home / "x.safetensors"
        self.good = self.written({"a": (2, 2), "b": (4,), "c.weight": (0, 5), "d": ()}, {"title": "é"})
        self.folder = home / "model"
        self.texts = self.copy_settings()
        self.index = home / "m.safetensors.index.json"
        for name, keys in (("m-1", "ab"), ("m-2", "cd")):
            save_file({key: torch.ones(2) for key in keys}, home / f"{name}.safetensors")
        self.adapters = self.make_adapters()
        self.picture = self.make_picture()
        self.kinds: dict[str, tuple[int, Callable[[Dice], Input]]] = {  # by name: how often, and what makes one
            "headers": (30, self.headers),
            "indexes": (12, self.indexes),
            "settings": (30, self.settings),
            "folders": (1, self.folders),
            "shapes": (3, self.shapes),
            "adapters": (10, self.adapter),
            "embeddings": (8, self.embeddings),
            "records": (6, self.records),
        }

    def written(self, shapes: dict[str, tuple], metadata: dict[str, str] = {}) -> bytes:
        """A file of such tensors."""
        save_file({key: torch.ones(shape) for key, shape in shapes.items()}, self.path, metadata)
        return self.path.read_bytes()

    def copy_settings(self) -> dict[Path, bytes]:
        texts = {}
        for source in sorted(weights.MINIATURE.rglob("*")):
            place = self.folder / source.relative_to(weights.MINIATURE)
            place.parent.mkdir(parents=True, exist_ok=True)
            if source.name.endswith(("config.json", "model_index.json", "special_tokens_map.json")):
                texts[place] = source.read_bytes()
                put(place, texts[place])
            elif source.is_file():
                place.symlink_to(source)
        return texts

    def make_adapters(self) -> list[bytes]:
        path = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
        width = self.model.unet.get_submodule(path).weight.shape[0]
        ranks = {"r": 2, "lora_alpha": 4, "rank_pattern": {path: 2}, "alpha_pattern": {"^" + path: 3}}
        peft = json.dumps({f"unet.{key}": value for key, value in ranks.items()})
        kohya = "lora_unet_" + path.replace(".", "_")
        factors = {"a": (width, 2), "b": (2, width)}
        return [
            self.written(
                {f"unet.{path}.lora_A.weight": (2, width), f"unet.{path}.lora_B.weight": (width, 2)},
                {"lora_adapter_metadata": peft},
            ),
            self.written(
                {f"{kohya}.lora_down.weight": (2, width), f"{kohya}.lora_up.weight": (width, 2), f"{kohya}.alpha": ()}
            ),
            self.written({f"{kohya}.hada_w{n}_{ab}": shape for n in "12" for ab, shape in factors.items()}),
            self.written({f"{kohya}.lokr_w1": (2, 2), f"{kohya}.lokr_w2": (width // 2, width // 2)}),
            self.written({f"{kohya}.diff": (width, width)}),
        ]

    def make_picture(self) -> tuple[bytes, dict]:
        path = self.home / "x.png"
        record = {"prompt": "a", "negative": "", "steps": 2, "guidance": 1.0, "seed": 0, "height": 8, "width": 8}
        record |= {"sampler": "euler", "schedule": "leading", "model": None, "files": {"x": "0" * 64}, "options": {}}
        pictures.save(torch.zeros(3, 8, 8), path, record | {"lora": [], "dtype": "float32"})
        return path.read_bytes(), pictures.read_record(path)

    # one input each

    def headers(self, dice: Dice) -> Input:
        put(self.path, self.changed(self.good, dice))
        return lambda: read_header(self.path)

    def changed(self, raw: bytes, dice: Dice) -> bytes:
        """A .safetensors file with a change in its header, or anywhere."""
        if dice.random() < 0.4:
            return damaged(raw, dice)
        end = 8 + int.from_bytes(raw[:8], "little")
        text = edit_text(json.loads(raw[8:end]), dice)
        return len(text).to_bytes(8, "little") + text + raw[end:]

    def indexes(self, dice: Dice) -> Input:
        shards = {key: f"m-{1 + (key > 'b')}.safetensors" for key in "abcd"}
        put(self.index, edit_text({"metadata": {"total_size": 32}, "weight_map": shards}, dice))
        return lambda: read_stored(self.index)

    def settings(self, dice: Dice) -> Input:
        """The settings of one network or of the noise."""
        place = dice.choice([place for place in self.texts if place.name in ("config.json", "scheduler_config.json")])
        put(self.home / "config.json", edit_text(json.loads(self.texts[place]), dice))
        if place.name == "config.json":
            return lambda: one_network.read_network(Settings.read(self.home / "config.json"))
        name = dice.choice(list(SCHEDULERS))
        return lambda: read_scheduler(Settings.read(self.home / "config.json"), name, dice.random() < 0.5)

    def folders(self, dice: Dice) -> Input:
        """A whole model, of which one file is changed; what is described is built too."""
        place = dice.choice(list(self.texts))
        put(place, edit_text(json.loads(self.texts[place]), dice))

        def read():
            try:
                for part in diffusers.read(self.folder).parts.values():
                    part.match()
            finally:
                put(place, self.texts[place])

        return read

    def shapes(self, dice: Dice) -> Input:
        """A network without settings, by the shapes of its tensors."""
        source = dice.choice(["vae", "text_encoder"])
        (file,) = (weights.MINIATURE / source).glob("*.safetensors")
        entries = {key: list(entry.shape) for key, entry in read_header(file).entries.items()}
        for _ in range(dice.choice([1, 1, 5])):
            key = dice.choice(list(entries))
            match dice.randrange(4):
                case 0:
                    entries.pop(key)
                case 1:
                    entries[key] = dice.choice([[], [0], [1], [2**20], [1] * 64, entries[key][::-1]])
                case 2:
                    stem = ".".join(key.split(".")[: dice.randint(1, 4)])
                    entries |= {f"{stem}.{n}.weight": [1] for n in range(dice.choice([1, 70]))}
                case _:
                    entries[key.replace("0", str(dice.choice([1, 7, 99, 10**9])))] = entries.pop(key)
        put(self.path, empty_file(entries, dice))
        with self.path.open("r+b") as opened:
            opened.truncate(self.path.stat().st_size + 4 * sum(map(count, entries.values())))
        return lambda: weights.describe_part(self.path).match()

    def adapter(self, dice: Dice) -> Input:
        put(self.path, self.changed(dice.choice(self.adapters), dice))
        return lambda: weights.load_adapter(self.path, self.model, partial=dice.random() < 0.5)

    def embeddings(self, dice: Dice) -> Input:
        width = self.model.texts["text_encoder"].config.width
        good = self.written({dice.choice(["emb_params", "<word>", "clip_l"]): (2, width)})
        put(self.path, self.changed(good, dice))
        return lambda: weights.add_embedding(self.model, self.path, dice.choice([None, "new", "", "a b", "x" * 1000]))

    def records(self, dice: Dice) -> Input:
        """The record in a picture, and what the command that draws it again makes of it."""
        raw, record = self.picture
        path = self.home / "x.png"
        if dice.random() < 0.3:
            put(path, damaged(raw, dice))
        else:
            put(path, with_record(raw, edit_text(record, dice)))
        return lambda: check_record(path)


def count(shape: list[int]) -> int:
    total = 1
    for length in shape:
        total *= length
    return total


def empty_file(shapes: dict[str, list[int]], dice: Dice) -> bytes:
    """Its header."""
    values = (
        {"__metadata__": {"ldm.facts": json.dumps(edited({"heads": 2, "groups": 8}, dice))}}
        if dice.random() < 0.2
        else {}
    )
    end = 0
    for key, shape in shapes.items():
        begin = end
        end += 4 * count(shape)
        values[key] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(values).encode()
    return len(text).to_bytes(8, "little") + text


def with_record(raw: bytes, text: bytes) -> bytes:
    """A PNG with another record: a chunk iTXt in place of its own."""
    at = raw.index(b"iTXtldm\0") - 4
    end = at + 12 + int.from_bytes(raw[at : at + 4], "big")
    body = b"iTXtldm\0\0\0\0\0" + text
    return raw[:at] + len(body[4:]).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big") + raw[end:]


def check_record(path: Path):
    """What a program ends with is a line too."""
    import settings

    said = io.StringIO()
    try:
        with redirect_stderr(said):
            settings.check_record(path, pictures.read_record(path))
    except SystemExit as error:
        raise ValueError(said.getvalue().removesuffix("\n")) from error


def memory() -> int:
    """Bytes of the process's addresses."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def spent() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def limit_time():
    resource.setrlimit(resource.RLIMIT_CPU, (int(spent()) + SECONDS, resource.RLIM_INFINITY))


def try_one(make: Callable[[Dice], Input], seed: str) -> str:
    """ "" for a success, else the line; AssertionError for anything else."""
    read = make(Dice(seed))
    try:
        read()
    except (ValueError, OSError) as error:
        line = str(error)
        assert line.isprintable() and len(line) <= 1000, f"{seed}: a line of {len(line)} characters: {line[:300]!r}"
        own = isinstance(error, weights.CheckpointError) or seed.startswith("records")
        assert own, f"{seed}: {type(error).__name__}: {line[:300]}"
        return line
    except BaseException as error:
        raise AssertionError(f"{seed}: {type(error).__name__}: {str(error)[:300]}") from error
    return ""


def run(total: int, seed: int, kinds: list[str], tell: Callable[[str], None]) -> dict:
    """The figures: inputs and successes by kind, different lines, seconds, memory."""
    warnings.simplefilter("ignore")
    figures: dict = {"inputs": Counter(), "read": Counter(), "lines": set()}
    with tempfile.TemporaryDirectory() as home:
        fuzz = Fuzz(Path(home))
        chosen = [name for name, (often, _) in fuzz.kinds.items() for _ in range(often) if name in kinds or not kinds]
        for k in range(CHUNK):  # what is imported once
            try_one(fuzz.kinds[chosen[k % len(chosen)]][1], f"{chosen[k % len(chosen)]} first {k}")
        before = peak()
        start = spent()
        if len(kinds) != 1:
            resource.setrlimit(resource.RLIMIT_AS, (memory() + ROOM, resource.RLIM_INFINITY))
        for k in range(total):
            if k % CHUNK == 0:
                limit_time()
                tell(f"{k} of {total}, {spent() - start:.0f} s, {(peak() - before) / 1e6:.0f} MB")
            name = chosen[k % len(chosen)]
            line = try_one(fuzz.kinds[name][1], f"{name} {seed + k}")
            figures["inputs"][name] += 1
            figures["read"][name] += not line
            figures["lines"].add("".join(c for c in line.replace(home, "") if not c.isdigit())[:60])
    figures["lines"] = len(figures["lines"])
    return figures | {"seconds": round(spent() - start, 1), "megabytes": round((peak() - before) / 1e6, 1)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("total", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", action="append", default=[])
    args = parser.parse_args()
    torch.set_num_threads(1)

    def tell(text: str):
        if sys.stderr.isatty() or args.total > 20000:
            print(text, file=sys.stderr, end="\r" if sys.stderr.isatty() else "\n")

    print(json.dumps(run(args.total, args.seed, args.kind, tell), indent=1))


if __name__ == "__main__":
    main()
