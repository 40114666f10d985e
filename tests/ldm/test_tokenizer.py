"""ldm/tokenizer.py against open_clip's tokenizer and transformers' CLIPTokenizer, id for id, on generated prompts."""

import json
import random
import subprocess
import sys
import unicodedata
from importlib import metadata

import pytest
import torch

from ldm import tokenizer as module
from ldm.tokenizer import BOS, EOT, Tokenizer, published_files
from support.paths import ROOT

COUNT = 1500  # strings of each kind
PADS = {EOT: "<|endoftext|>", 0: "!"}  # SD1 and SDXL's first tower; SD2 and SDXL's second
ENGLISH = """a an the of in on with under over beside portrait photo photograph painting oil watercolor sketch render
fox cat dog horse astronaut woman man child castle city street forest mountain river ocean sky moon sunset night rainy
misty golden crimson tiny enormous ancient futuristic cyberpunk baroque highly detailed sharp focus trending artstation
masterpiece cinematic lighting volumetric fog lens bokeh wearing holding riding smiling sleeping photorealistic
greg rutkowski unreal engine extraordinarily antidisestablishmentarianism zxqj"""
SCRIPTS = [
    (0x20, 0x7F),
    (0xA0, 0x180),
    (0x180, 0x250),
    (0x370, 0x400),
    (0x400, 0x530),
    (0x590, 0x600),
    (0x600, 0x700),
    (0x900, 0xA00),
    (0xE00, 0xE80),
    (0x10A0, 0x1100),
    (0x1100, 0x1200),
    (0x1E00, 0x1F00),
    (0x1F00, 0x2000),
    (0x2000, 0x2070),
    (0x2100, 0x2200),
    (0x2460, 0x2500),
    (0x3040, 0x3100),
    (0x3200, 0x3400),
    (0x4E00, 0x9FA6),
    (0xAC00, 0xD7A4),
    (0xF900, 0xFA2E),
    (0xFB00, 0xFB50),
    (0xFE30, 0xFF00),
    (0xFF00, 0xFFEF),
    (0x1D400, 0x1D800),
]
CURIOUS = [
    *"“”‘’„…—ﬁﬂﬀﬃ！ſİıẞŉǄ½²Ⅷ№™",
    *"\u212a\u212b\u2126\u0345\u0338\u226f\u2329\u037e\u0387\u00ad",
    *"=>aB ._-",
    "Ｆｕｌｌ",
    "'ſ",
    "ΑΣ",
    "ΟΔΟΣ ΣΣ",
]
SPACES = [
    " ",
    "  ",
    "\t",
    "\n",
    "\r\n",
    "\v",
    "\f",
    "\x1c",
    "\x1d",
    "\x1e",
    "\x1f",
    "\x85",
    "\xa0",
    "\u1680",
    "\u180e",
    "\u2003",
    "\u2009",
    "\u200b",
    "\u2028",
    "\u2029",
    "\u202f",
    "\u205f",
    "\u2060",
    "\u3000",
    "\ufeff",
]
ENTITIES = [
    "lt",
    "gt",
    "amp",
    "quot",
    "apos",
    "nbsp",
    "eacute",
    "EACUTE",
    "hearts",
    "#33",
    "#x27",
    "#x1F98A",
    "#0",
    "#28",
    "#128",
    "#xD800",
    "#xFFFF",
    "notit",
    "bogus",
    "fjlig",
    "ThickSpace",
]
EMOJI = [*"😀👩🦊🚀❤☠✈🏴🏿1# a", *"\ufe0f\ufe0e\u20e3\u200d\u200d\u200d\U000e0067", "🧑🏽", "🇫🇷", "🇯🇵"]
LITERALS = [
    "<start_of_text>",
    "<end_of_text>",
    "<|startoftext|>",
    "<|endoftext|>",
    "<START_OF_TEXT>",
    "<ſtart_of_text>",
    "<|ENDOFTEXT|>",
    "<|",
    "|>",
    "</w>",
    "!",
    "a",
    "cat",
    " ",
    "'",
    "&lt;end_of_text&gt;",
]


def join(rng, pool, most=12, glue=""):
    return glue.join(rng.choices(pool, k=rng.randrange(most + 1)))


def code_points(rng, ranges, most=20):
    return "".join(chr(rng.randrange(*rng.choice(ranges))) for _ in range(rng.randrange(1, most)))


def prompt(rng):
    words = [
        rng.choice([w, w, w.title(), f"({w}:1.{rng.randrange(10)})", f"{w},", f"{w}!", str(rng.randrange(3000))])
        for w in rng.choices(ENGLISH.split(), k=rng.randrange(1, 40))
    ]
    return " ".join(words) + rng.choice(["", ".", "...", ", 8k", ", f/1.8", "!!!"])


def entities(rng):
    return "".join(
        rng.choice(
            [
                "fox ",
                "A",
                " ",
                "<b>",
                "&" + "amp;" * rng.randrange(4) + rng.choice(ENTITIES) + ";",
                "&" + rng.choice(ENTITIES),
            ]
        )
        for _ in range(rng.randrange(8))
    )


def mojibake(rng):
    words = ["café", "naïve", "“quoted”", "it’s", "–", "München", "日本", "🦊", "Ünï", " ", "à"]
    text = join(rng, words, 6, glue=rng.choice(["", " "]))
    for _ in range(rng.randrange(1, 3)):
        text = text.encode().decode(rng.choice(["latin-1", "cp1252", "cp1251", "mac_roman"]), errors="replace")
    return text


def combining(rng):
    marks = [(0x300, 0x370), (0x1AB0, 0x1ABF), (0x20D0, 0x20F1)]
    text = "".join(rng.choice("aeiouncsAEOzд>=") + code_points(rng, marks, 4) for _ in range(rng.randrange(1, 8)))
    return unicodedata.normalize(rng.choice(["NFC", "NFD"]), text)


def long_word(rng):
    return join(rng, ENGLISH.split(), 40) if rng.random() < 0.7 else code_points(rng, [(0x61, 0x7B)], 300)


KINDS = {
    "english": prompt,
    "any plane": lambda rng: code_points(
        rng,
        [
            (0, 0x3000),
            (0, 0xD800),
            (0xE000, 0x10000),
            (0x10000, 0x20000),
            (0x20000, 0x32000),
            (0x32000, 0xE0000),
            (0xE0000, 0xE0200),
            (0xE0200, 0x110000),
        ],
    ),
    "scripts": lambda rng: " ".join(code_points(rng, [rng.choice(SCRIPTS)], 10) for _ in range(rng.randrange(1, 5))),
    "mixed scripts": lambda rng: code_points(rng, SCRIPTS),
    "cjk": lambda rng: code_points(rng, [(0x4E00, 0x9FA6), (0x4E00, 0x9FA6), (0x3000, 0x3100), (0xFF01, 0xFF20)], 60),
    "right to left": lambda rng: code_points(
        rng, [(0x5D0, 0x5EB), (0x620, 0x650), (0x200E, 0x2010), (0x202A, 0x202F), (0x660, 0x66A), (0x20, 0x40)]
    ),
    "combining marks": combining,
    "emoji": lambda rng: join(rng, EMOJI),
    "control": lambda rng: code_points(rng, [(0, 0x20), (0x7F, 0xA0), (0x61, 0x7B)]) + join(rng, ["\x1b[31m", "é"], 3),
    "entities": entities,
    "mojibake": mojibake,
    "typography": lambda rng: join(rng, CURIOUS),
    "apostrophes": lambda rng: join(rng, [*"'7I ", "'s", "'S", "'re", "'VE", "'ll", "'d", "'m", "'t", "don't", "’s"]),
    "long words": long_word,
    "whitespace": lambda rng: join(rng, SPACES + ["a", "fox", "!"]),
    "literal specials": lambda rng: join(rng, LITERALS, 6),
    "exclamation": lambda rng: join(rng, ["!", "!!!", "!" * 9, "?!", "wow", "'s", " ", "1", "¡", "！"]),
    "repeats": lambda rng: rng.choice(["", "a", "0", ".", "~", "ha", "é", "🦊"]) * rng.randrange(150),
}


def strings(kind: str) -> list[str]:
    rng = random.Random(kind)
    return [KINDS[kind](rng) for _ in range(COUNT)]


def settled(text: str) -> str:
    """Without characters younger than Unicode 3.2: the `tokenizers` library and Python's `regex` carry different
    Unicode tables, so the newest letters are letters to one of them only."""
    return "".join(c for c in text if unicodedata.ucd_3_2_0.category(c) != "Cn")


def different(texts, ours, theirs):
    return [(text, a, b) for text, a, b in zip(texts, ours, theirs, strict=True) if a != b]


@pytest.fixture(scope="module")
def open_clip():
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()


def folder_tokenizer(folder, pad_token, special):
    """transformers' tokenizer read from a folder of published files. As in SD2's, the pad token stands in
    special_tokens_map.json; special: how the folder writes the other special tokens."""
    from transformers import CLIPTokenizer

    names = {
        "bos_token": special("<|startoftext|>"),
        "eos_token": special("<|endoftext|>"),
        "unk_token": special("<|endoftext|>"),
    }
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": 77,
        "do_lower_case": True,
        "errors": "replace",
        "pad_token": "<|endoftext|>",
        **names,
    }
    for name, text in published_files().items():
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "special_tokens_map.json").write_text(json.dumps({**names, "pad_token": pad_token}))
    return CLIPTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def transformers(tmp_path_factory):
    """pad id -> CLIPTokenizer."""
    return {
        pad_id: folder_tokenizer(tmp_path_factory.mktemp("tokenizer"), pad_token, special=str)
        for pad_id, pad_token in PADS.items()
    }


@pytest.fixture(scope="module")
def ours():
    return {rules: Tokenizer(rules) for rules in module.RULES}


@pytest.mark.parametrize("kind", KINDS)
def test_ids_of_open_clip(kind, ours, open_clip):
    texts = strings(kind)
    encoded = [ours["open_clip"].encode(text) for text in texts]
    assert different(texts, encoded, map(open_clip.encode, texts)) == []
    assert len(set(map(tuple, encoded))) > COUNT / 20  # the generator did generate
    rows = texts[:200]
    assert torch.equal(ours["open_clip"](rows, pad_id=0).ids, open_clip(rows))


def test_lone_surrogates_as_open_clip(ours, open_clip):
    rng = random.Random(0)
    texts = ["a" + code_points(rng, [(0xD800, 0xE000), (0x61, 0x7B)]) + "\ud83e\udd8a" for _ in range(200)]
    encoded = [ours["open_clip"].encode(text) for text in texts]
    assert different(texts, encoded, map(open_clip.encode, texts)) == []


@pytest.mark.parametrize("pad_id", PADS)
@pytest.mark.parametrize("kind", KINDS)
def test_ids_of_transformers(kind, pad_id, ours, transformers):
    texts = [text if kind == "emoji" else settled(text) for text in strings(kind)[: COUNT // 2]]
    encoded = [ours["transformers"].encode(text, pad_id) for text in texts]
    theirs = transformers[pad_id](texts, add_special_tokens=False)["input_ids"]
    assert different(texts, encoded, theirs) == []
    rows = transformers[pad_id](texts[:200], padding="max_length", truncation=True, max_length=77, return_tensors="pt")
    assert torch.equal(ours["transformers"](texts[:200], pad_id).ids, rows["input_ids"])


@pytest.mark.parametrize("pad_id", PADS)
def test_ids_of_published_folders(pad_id, ours, tmp_path):
    """The folders of SD1 and SD2 mark bos and eos as "normalized", so there "<|STARTOFTEXT|>" is special too; all
    else is equal."""
    flags = {"__type": "AddedToken", "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    published = folder_tokenizer(tmp_path, PADS[pad_id], special=lambda name: {**flags, "content": name})
    assert published.pad_token_id == pad_id
    texts = [
        text
        for kind in ("english", "entities", "exclamation", "typography", "literal specials")
        for text in strings(kind)[:300]
        if "<|ENDOFTEXT|>" not in text
    ]
    encoded = [ours["transformers"].encode(text, pad_id) for text in texts]
    assert different(texts, encoded, published(texts, add_special_tokens=False)["input_ids"]) == []
    assert published("<|STARTOFTEXT|>", add_special_tokens=False)["input_ids"] == [BOS]
    assert len(ours["transformers"].encode("<|STARTOFTEXT|>", pad_id)) == 7


def test_known_ids(ours):
    """facts: "a photo" is 320 1125; open_clip keeps "!" a word, transformers makes it SD2's pad id."""
    assert ours["open_clip"].encode("a photo") == ours["transformers"].encode("a photo") == [320, 1125]
    assert ours["open_clip"].encode("!!! !", pad_id=0) == [995, 256]
    assert ours["transformers"].encode("!!! !", pad_id=0) == [0, 0, 0, 0]
    assert ours["transformers"].encode("!!! !", pad_id=EOT) == [995, 256]
    assert ours["open_clip"].encode("<start_of_text>") == ours["transformers"].encode("<|startoftext|>") == [BOS]
    assert ours["open_clip"].encode("Caf&amp;eacute;") == ours["open_clip"].encode("café")
    assert ours["transformers"].encode("Caf&amp;eacute;") != ours["transformers"].encode("café")


def test_padding_of_each_family(ours):
    for pad_id in (EOT, 0):
        tokens = ours["open_clip"](["a photo", ""], pad_id)
        expected = torch.tensor([[BOS, 320, 1125, EOT] + [pad_id] * 73, [BOS, EOT] + [pad_id] * 75])
        assert tokens.ids.dtype == torch.int64 and torch.equal(tokens.ids, expected)
        assert tokens.cut == ["", ""]
    assert torch.equal(ours["open_clip"]([""]).ids, torch.tensor([[BOS] + [EOT] * 76]))  # the default is SD1's
    assert ours["open_clip"]([]).ids.shape == (0, 77)


def test_what_does_not_fit_is_returned(ours):
    fits, long = " ".join(["fox"] * 75), " ".join(["fox"] * 75 + ["Jumping,", "over", "12", "DOGS"])
    tokens = ours["open_clip"]([fits, long, "fox"], pad_id=0)
    assert tokens.cut == ["", "jumping , over 1 2 dogs", ""]
    assert torch.equal(tokens.ids[0], tokens.ids[1])
    assert tokens.ids[1, 0] == BOS and tokens.ids[1, 75] == 3240 and tokens.ids[1, 76] == EOT
    short = Tokenizer(length=5)(["a red fox runs"])
    assert short.ids.tolist() == [[BOS, 320, 736, 3240, EOT]] and short.cut == ["runs"]


def test_every_cut_is_reported(ours):
    """Whatever the last id is, one id too many never passes in silence."""
    for rules, tokenizer in ours.items():
        for text in ["!", "\x00", "\x1c", "\u200b", "</w>", "é", "日", "<start_of_text>", "<|endoftext|>"]:
            ids = tokenizer.encode("fox " * 75 + text, pad_id=0)
            assert bool(tokenizer(["fox " * 75 + text], pad_id=0).cut[0]) == (len(ids) > 75), (rules, text)


@pytest.mark.parametrize("rules", module.RULES)
def test_decode_gives_back_the_words(rules, ours, open_clip):
    tokenizer = ours[rules]
    assert tokenizer.decode(tokenizer.encode("A  photo of Zürich, 日本 🦊!")) == "a photo of zürich , 日本 🦊!"
    for kind in ("english", "cjk", "emoji", "apostrophes"):
        for text in strings(kind)[:300]:
            ids = tokenizer.encode(text)
            assert tokenizer.encode(tokenizer.decode(ids)) == ids, text
            if rules == "open_clip":
                assert tokenizer.decode(ids) == open_clip.decode(ids).removesuffix(" ")
    assert tokenizer.decode([BOS, 320, 1125, EOT]) == "{}a photo {}".format(*module.SPECIALS[rules])


def test_order_of_prompts_changes_nothing():
    """Words are remembered; what is remembered must not depend on what came before."""
    texts = strings("english")[:100]
    forward, backward = Tokenizer(), Tokenizer()
    first = [forward.encode(text) for text in texts]
    assert first == [backward.encode(text) for text in reversed(texts)][::-1] == [forward.encode(t) for t in texts]


def test_what_is_no_word_takes_no_more_time_than_its_length(monkeypatch):
    """Half a million letters, as a damaged record or a pasted file has them; by pairs one by one it takes hours."""
    draw = random.Random(0)
    words = ["a" * 99, "".join(draw.choices("aeht", k=300)), *("".join(draw.choices("éa🦊!", k=60)) for _ in range(20))]
    expected = [Tokenizer().encode_word(word) for word in words]
    monkeypatch.setattr(module, "LONG_WORD", 0)
    assert [Tokenizer().encode_word(word) for word in words] == expected
    monkeypatch.undo()
    code = (
        "import resource; from ldm.tokenizer import Tokenizer; resource.setrlimit(resource.RLIMIT_CPU, (30, 30)); "
        "print(len(Tokenizer()(['a' * 80_000]).cut[0]))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and int(done.stdout) > 75_000


def test_published_files():
    files = published_files()
    merges, ids = files["merges.txt"].split("\n"), json.loads(files["vocab.json"])
    assert merges[0] == "#version: 0.2" and merges[1] == "i n" and merges[-1] == "" and len(merges) == 1 + 48894 + 1
    assert len(files["merges.txt"].encode()) == 524619  # the size of the file on the hub
    assert sorted(ids.values()) == list(range(49408))
    known = {"!": 0, "!</w>": 256, "a</w>": 320, "!!!</w>": 995, "<|startoftext|>": BOS, "<|endoftext|>": EOT}
    assert {symbol: ids[symbol] for symbol in known} == known


def test_errors(monkeypatch):
    with pytest.raises(ValueError, match="^unknown tokenizer rules 'bert': choose one of open_clip, transformers$"):
        Tokenizer("bert")
    with pytest.raises(TypeError, match="list of texts"):
        Tokenizer()("a photo")
    monkeypatch.setattr(metadata, "distribution", lambda name: metadata.Distribution.from_name("no-such-" + name))
    with pytest.raises(FileNotFoundError, match="^[^\n]*pip install open_clip_torch$"):
        Tokenizer()
    monkeypatch.setattr(metadata, "distribution", lambda name: metadata.PathDistribution(ROOT / "absent" / name))
    with pytest.raises(FileNotFoundError, match="^[^\n]*pip install open_clip_torch$"):
        Tokenizer()


def test_needs_no_other_tokenizer():
    """A program start pays for none of these imports."""
    heavy = {"open_clip", "transformers", "tokenizers", "torchvision", "timm", "diffusers"}
    code = (
        "import sys; from ldm.tokenizer import Tokenizer; Tokenizer()(['a fox &amp; “hound”']); "
        f"print(*{heavy} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
