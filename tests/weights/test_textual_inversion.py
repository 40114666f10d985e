"""New words from files of textual inversion: token ids and text features against diffusers, and what files can be."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTokenizer

import weights
from ldm import tasks
from ldm.clip import EOT
from ldm.config import MODELS
from ldm.model import Model
from ldm.tokenizer import Tokenizer
from support.networks import clip_pair
from support.numbers import randn, relative_error, relative_l2
from support.tiny import PADS, write_tokenizer
from weights import CheckpointError
from weights.adapters.embedding import Embedding, add_embedding

FAMILIES = {"sd15": ("l",), "sd2": ("h",), "sdxl": ("l", "bigg"), "sdxl_refiner": ("bigg",)}
WIDTHS = {"l": 32, "h": 48, "bigg": 40}
PROMPTS = ["a photo of <cat-toy>", "<Cat-Toy> and a <cat-toy>, red", "no new word", "fox " * 72 + "<cat-toy> fox"]
CLOSE = 1e-12  # of float64; measured 1e-15


def model_of(name: str) -> Model:
    texts = tuple(clip_pair(tower)[0] for tower in FAMILIES[name])
    facts = replace(MODELS[name], texts=tuple(text.config for text in texts))
    return Model(None, None, dict(zip(facts.family.towers, texts)), Tokenizer(), facts)


def features(name: str, model: Model, prompts: list[str]) -> list:
    found = []
    with torch.no_grad():
        for tower, pad in zip(model.texts.values(), model.facts.pad_ids):
            found.append(tower(model.tokenizer(prompts, pad).ids))
    return found


def pipeline_of(name: str, folder: Path) -> StableDiffusionPipeline | StableDiffusionXLPipeline:
    """Published configs make transformers pool at the largest id, which is an added token and not the end; the towers
    are told the id of the end here: then the first one counts."""
    parts = {}
    for tower, suffix in zip(FAMILIES[name], ("", "_2")):
        parts[f"text_encoder{suffix}"] = copy.deepcopy(clip_pair(tower)[1])
        parts[f"tokenizer{suffix}"] = CLIPTokenizer.from_pretrained(write_tokenizer(folder / tower, PADS[tower]))
        pool_at(EOT, parts[f"text_encoder{suffix}"])
    none = dict.fromkeys(("unet", "vae", "scheduler"))
    if name == "sdxl":
        return StableDiffusionXLPipeline(**parts, **none, add_watermarker=False)
    return StableDiffusionPipeline(**parts, **none, safety_checker=None, feature_extractor=None)


def pool_at(token_id: int, tower: torch.nn.Module) -> None:
    """2, the published value, stands for the largest id."""
    holders = [module for module in tower.modules() if hasattr(module, "eos_token_id")]
    assert holders
    for module in holders:
        module.eos_token_id = token_id


def vectors(name: str, count: int) -> tuple:
    return tuple(randn(count, WIDTHS[tower], seed=20 + i) for i, tower in enumerate(FAMILIES[name]))


@pytest.mark.parametrize("name, count", [("sd15", 1), ("sd15", 3), ("sd2", 2), ("sdxl", 1), ("sdxl", 4)])
def test_features_of_diffusers(name, count, tmp_path):
    """The last prompt is cut in the middle of a word of several vectors."""
    model, pipeline, new = model_of(name), pipeline_of(name, tmp_path), vectors(name, count)
    if name == "sdxl":
        save_file(dict(zip(("clip_l", "clip_g"), new)), tmp_path / "a.safetensors")
    else:
        save_file({"<cat-toy>": new[0] if count > 1 else new[0][0]}, tmp_path / "a.safetensors")
    extended = add_embedding(model, tmp_path / "a.safetensors", token="<cat-toy>")
    found = features(name, extended, PROMPTS)
    for i, (tensor, suffix) in enumerate(zip(new, ("", "_2"))):
        tower, tokenizer = getattr(pipeline, f"text_encoder{suffix}"), getattr(pipeline, f"tokenizer{suffix}")
        pipeline.load_textual_inversion({"<cat-toy>": tensor}, text_encoder=tower, tokenizer=tokenizer)
        prompts = [pipeline.maybe_convert_prompt(prompt.lower(), tokenizer) for prompt in PROMPTS]
        ids = tokenizer(prompts, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
        assert torch.equal(extended.tokenizer(PROMPTS, model.facts.pad_ids[i]).ids, ids)
        assert (ids >= 49408).sum(1).tolist() == [count, 2 * count, 0, min(count, 3)]
        with torch.no_grad():
            reference = tower(ids, output_hidden_states=True)
        pooled = reference.text_embeds if hasattr(reference, "text_embeds") else reference.pooler_output
        assert relative_error(found[i].last, reference.last_hidden_state) < CLOSE
        assert relative_error(found[i].hidden[-2], reference.hidden_states[-2]) < CLOSE
        assert relative_error(found[i].pooled, pooled) < CLOSE


def test_the_pooled_output_stays_at_the_end(tmp_path):
    """As published, transformers' is that of the new word: by far another vector."""
    model, pipeline = model_of("sdxl"), pipeline_of("sdxl", tmp_path)
    extended = add_embedding(model, Embedding("<x>", vectors("sdxl", 1)))
    tower = pipeline.text_encoder_2
    pipeline.load_textual_inversion({"<x>": vectors("sdxl", 1)[1]}, text_encoder=tower, tokenizer=pipeline.tokenizer_2)
    ids = extended.tokenizer(["a <x> fox"], 0).ids
    with torch.no_grad():
        right = tower(ids)
        pool_at(2, tower)
        wrong = tower(ids)
    found = features("sdxl", extended, ["a <x> fox"])[1]
    assert relative_error(found.pooled, right.text_embeds) < CLOSE
    assert relative_error(found.pooled, wrong.text_embeds) > 0.1
    assert relative_error(found.last, wrong.last_hidden_state) < CLOSE


def test_the_model_stays_as_it_was():
    """Only the token table is new; the ids of a second word follow those of the first."""
    model = model_of("sdxl")
    first = add_embedding(model, Embedding("<a>", vectors("sdxl", 3)))
    second = add_embedding(first, Embedding("Bb-2", tuple(-tensor for tensor in vectors("sdxl", 2))))
    assert second.tokenizer.encode("<a> fox bb-2.") == [49408, 49409, 49410, 3240, 49411, 49412, 269]
    for old, new, tensor in zip(model.texts.values(), second.texts.values(), vectors("sdxl", 3)):
        table = "text_model.embeddings.token_embedding.weight"
        olds, news = dict(old.named_parameters()), dict(new.named_parameters())
        assert {key for key in olds if olds[key] is not news[key]} == {table}
        assert torch.equal(news[table][:49411], torch.cat([olds[table], tensor]))
        assert len(olds[table]) == 49408 and new.config.vocab == len(news[table]) == 49413
    assert [text.vocab for text in second.facts.texts] == [49413] * 2 and model.tokenizer.added == {}
    assert len(model.tokenizer.encode("<a> fox bb-2.")) == 8
    longer = replace(model, texts=copy.deepcopy(model.texts))  # rows that no word reaches
    for text in longer.texts.values():
        text.text_model.embeddings.token_embedding = torch.nn.Embedding(49500, text.config.width).double()
    extended = add_embedding(longer, Embedding("<a>", vectors("sdxl", 3)))
    assert extended.tokenizer.encode("<a>") == [49408, 49409, 49410]
    assert torch.equal(
        extended.texts["text_encoder"].text_model.embeddings.token_embedding.weight[49408:], vectors("sdxl", 3)[0]
    )
    half = replace(model, texts={part: copy.deepcopy(text).half() for part, text in model.texts.items()})
    table = (
        add_embedding(half, Embedding("<a>", vectors("sdxl", 1)))
        .texts["text_encoder"]
        .text_model.embeddings.token_embedding
    )
    assert table.weight.dtype == torch.float16 and not table.weight.requires_grad


def test_a_model_with_new_words_is_not_saved(tmp_path):
    """No layout holds them: the model without them and the embedding's own file do."""
    model = weights.load(weights.MINIATURE)
    word = weights.add_embedding(
        model, Embedding("cat-toy", (torch.zeros(1, model.texts["text_encoder"].config.width),), "here")
    )
    with pytest.raises(CheckpointError, match="no layout holds added words, 'cat-toy': save the model that"):
        weights.save(word, tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_where_a_word_is_found():
    """As a word of its own, the longest first; a sign at its edge needs no gap."""
    tokenizer = Tokenizer().with_token("<a>").with_token("zxqj").with_token("zxqj-2").with_token("caf\u00e9x", 2)
    a, z, z2, c = ([49408], [49409], [49410], [49411, 49412])
    for text, ids in {
        "<a>": a,
        "x<a>y": [343, *a, 344],
        "<A><a>": a + a,
        "zxqj": z,
        "ZXQJ, zxqj": [*z, 267, *z],
        "zxqj-2": z2,
        "zxqj-3": [*z, 268, 274],
        "caf\u00c9X zxqj": c + z,
    }.items():
        assert tokenizer.encode(text) == ids, text
    for text in ("zxqjs", "azxqj", "zxqj_2", "caf\u00e9", "< a >"):
        assert tokenizer.encode(text) == Tokenizer().encode(text)
    both = [Tokenizer(rules).with_token("<a>").encode("fox! <a> fox!", 0) for rules in ("open_clip", "transformers")]
    assert both == [[3240, 256, *a, 3240, 256], [3240, 0, *a, 3240, 0]]
    assert tokenizer(["fox " * 74 + "caf\u00e9x zxqj"]).cut == ["caf\u00e9x_1 zxqj"]
    assert tokenizer.decode(c + z) == "caf\u00e9x caf\u00e9x_1 zxqj"


def test_pictures_with_new_words_in_both_prompts(tmp_path):
    """diffusers, from its own files of the miniature: float32, 4 steps."""
    model, pipeline = weights.load(weights.MINIATURE), StableDiffusionPipeline.from_pretrained(weights.MINIATURE)
    pipeline.set_progress_bar_config(disable=True)
    width, facts = model.texts["text_encoder"].config.width, model.facts
    words = {"<apple>": randn(2, width, seed=1).float() / 10, "<bad>": randn(1, width, seed=2).float() / 10}
    for token, tensor in words.items():
        pipeline.load_textual_inversion({token: tensor})
        model = add_embedding(model, Embedding(token, (tensor,)))
    side = facts.size // facts.vae.factor
    noise = randn(1, 4, side, side, seed=3).float()
    options = dict(latents=noise, num_inference_steps=4, guidance_scale=facts.guidance, output_type="latent")
    expected = pipeline("a red <apple>", negative_prompt="blue, <bad>", **options).images
    ours = [
        tasks.text_to_image(model, "a red <apple>", negative=negative, noise=noise, steps=4, decode=False)
        for negative in ("blue, <bad>", "blue")
    ]
    assert relative_l2(ours[0], expected) < 1e-4 < 0.01 < relative_l2(ours[1], expected)


FILES = {  # family, tensors -> token, or what the error says
    "diffusers": ("sd15", {"<x>": torch.ones(2, 32)}, "<x>"),
    "one vector": ("sd15", {"<x>": torch.ones(32)}, "<x>"),
    "web UI": ("sd15", {"emb_params": torch.ones(2, 32, dtype=torch.float16)}, "the-file"),
    "SDXL": ("sdxl", {"clip_g": torch.ones(2, 40), "clip_l": torch.ones(2, 32)}, "the-file"),
    "SDXL, for the refiner": ("sdxl_refiner", {"clip_g": torch.ones(2, 40), "clip_l": torch.ones(2, 32)}, "the-file"),
    "SDXL for SD": (
        "sd15",
        {"clip_g": torch.ones(2, 1280), "clip_l": torch.ones(2, 768)},
        "has vectors of width 768 and 1280 (SDXL), and the model's text towers 32",
    ),
    "SD 2 for SD": ("sd15", {"<x>": torch.ones(2, 1024)}, "of width 1024 (SD 2), and the model's text towers 32"),
    "SD for SDXL": ("sdxl", {"<x>": torch.ones(2, 768)}, "of width 768 (SD 1), and the model's text towers 32 and 40"),
    "swapped": ("sdxl", {"clip_l": torch.ones(2, 40), "clip_g": torch.ones(2, 32)}, "of width 40 and 32, and"),
    "unequal": ("sdxl", {"clip_l": torch.ones(2, 32), "clip_g": torch.ones(1, 40)}, "2 vectors for one tower and 1"),
    "empty": ("sd15", {}, "holds nothing: an embedding has one tensor, or clip_l and clip_g"),
    "two words": ("sd15", {"<x>": torch.ones(32), "<y>": torch.ones(32)}, "holds '<x>', '<y>': an embedding has one"),
    "LoRA": (
        "sd15",
        {"lora_te_x.lora_up.weight": torch.ones(2, 2), "lora_te_x.lora_down.weight": torch.ones(2, 2)},
        "an embedding has one tensor",
    ),
    "no vectors": ("sd15", {"<x>": torch.ones(0, 32)}, "of the shape (0, 32): floating-point vectors (n d)"),
    "a number": ("sd15", {"<x>": torch.ones(())}, "floating-point vectors (n d) are expected"),
    "NaN": ("sd15", {"<x>": torch.full((1, 32), torch.nan)}, "holds NaN or infinity: the file is damaged"),
    "whole numbers": ("sd15", {"<x>": torch.ones(2, 32, dtype=torch.int64)}, "is of type I64: only"),
    "known word": ("sd15", {"cat": torch.ones(2, 32)}, "the token 'cat' is known already: choose another name"),
    "sentence": ("sd15", {"a cat": torch.ones(2, 32)}, "'a cat' is not one word without spaces: choose another name"),
}


@pytest.mark.parametrize("kind", FILES)
def test_kinds_of_files(kind, tmp_path):
    name, tensors, expected = FILES[kind]
    path = tmp_path / "the-file.safetensors"
    save_file(tensors, path)
    if expected in ("<x>", "the-file"):
        model = add_embedding(model_of(name), path)
        count = 1 if kind == "one vector" else 2
        assert model.tokenizer.added == {expected: list(range(49408, 49408 + count))}
        for text in model.texts.values():
            rows = text.text_model.embeddings.token_embedding.weight
            assert (rows[49408:] == 1).all() and len(rows) == text.config.vocab == 49408 + count
        with pytest.raises(CheckpointError, match="is known already: choose another name, as token$"):
            add_embedding(model, path)
        assert add_embedding(model, path, token="<other>").tokenizer.added["<other>"][0] == 49408 + count
    else:
        with pytest.raises(CheckpointError) as caught:
            add_embedding(model_of(name), path)
        assert expected in str(caught.value) and "the-file" in str(caught.value) and "\n" not in str(caught.value)


def added(model: Model) -> dict[str, list[list[Tensor]]]:
    """Word -> by tower, its vectors in the table."""
    found = {}
    for word, ids in model.tokenizer.added.items():
        tables = [text.text_model.embeddings.token_embedding.weight for text in model.texts.values()]
        found[word] = [[table[i] for i in ids] for table in tables]
    return found


def assert_word(model: Model, word: str, vectors: tuple[Tensor, ...]) -> None:
    found = added(model)[word]
    assert len(found) == len(vectors)
    for rows, expected in zip(found, vectors):
        assert torch.equal(torch.stack(rows), expected)


L, G = torch.arange(96.0).reshape(3, 32).double(), -torch.arange(120.0).reshape(3, 40).double()
ONE_WORD = {  # family, tensors by file -> the word without and with a token, and its vectors
    "kohya, OneTrainer": ("sdxl", {"zxqj.safetensors": {"clip_g": G, "clip_l": L}}, "zxqj", (L, G)),
    "one tower": ("sd15", {"zxqj.safetensors": {"clip_l": L}}, "zxqj", (L,)),
    "refiner": ("sdxl_refiner", {"zxqj.safetensors": {"clip_g": G}}, "zxqj", (G,)),
    "web UI": ("sd15", {"zxqj.safetensors": {"string_to_param.*": L}}, "zxqj", (L,)),
    "web UI's star": ("sd15", {"zxqj.safetensors": {"*": L}}, "zxqj", (L,)),
    "pair": (
        "sdxl",
        {"learned_embeds.safetensors": {"<x>": L}, "learned_embeds_2.safetensors": {"<x>": G}},
        "<x>",
        (L, G),
    ),
    "second of a pair": (
        "sdxl",
        {"learned_embeds_2.safetensors": {"<x>": G}, "learned_embeds.safetensors": {"<x>": L}},
        "<x>",
        (L, G),
    ),
    "steps": (
        "sdxl",
        {
            "learned_embeds-steps-500.safetensors": {"<x>": L},
            "learned_embeds_2-steps-500.safetensors": {"<x>": G},
            "learned_embeds_2.safetensors": {"<x>": 2 * G},
            "learned_embeds.safetensors": {"<x>": 2 * L},
        },
        "<x>",
        (L, G),
    ),
    "pair, one vector": (
        "sdxl",
        {"learned_embeds.safetensors": {"<x>": L[0]}, "learned_embeds_2.safetensors": {"<x>": G[0]}},
        "<x>",
        (L[:1], G[:1]),
    ),
    "pair, for the refiner": (
        "sdxl_refiner",
        {"learned_embeds.safetensors": {"<x>": L}, "learned_embeds_2.safetensors": {"<x>": G}},
        "<x>",
        (G,),
    ),
    "two words that are no pair": (
        "sd15",
        {"learned_embeds.safetensors": {"<x>": L}, "learned_embeds_2.safetensors": {"<y>": 2 * L}},
        "<x>",
        (L,),
    ),
    "beside a LoRA": (
        "sdxl",
        {"zxqj.safetensors": {"bundle_emb.my.cat.clip_l": L, "bundle_emb.my.cat.clip_g": G, "x.alpha": torch.ones(1)}},
        "my.cat",
        (L, G),
    ),
    **{
        f"beside a LoRA, {field}": ("sd15", {"a.safetensors": {f"bundle_emb.<x>.{field}": L}}, "<x>", (L,))
        for field in ("emb_params", "clip_l", "string_to_param.*", "text_encoders_0", "<x>")
    },
}


@pytest.mark.parametrize("kind", ONE_WORD)
def test_forms_of_one_word(kind, tmp_path):
    """The first file is named; another token may stand for the word."""
    name, files, word, expected = ONE_WORD[kind]
    model = model_of(name)
    for file, tensors in files.items():
        save_file(tensors, tmp_path / file)
    path = tmp_path / next(iter(files))
    assert_word(add_embedding(model, path), word, expected)
    assert_word(add_embedding(model, path, token="<new>"), "<new>", expected)
    if len(files) < 3 and "no pair" not in kind:
        assert_word(add_embedding(model, tmp_path), word, expected)
    if kind.startswith(("pair", "steps")) and name == "sdxl":
        for order in (1, -1):
            names = [tmp_path / file for file in list(files)[:2]][::order]
            assert_word(add_embedding(model, names), word, expected)


def test_a_pair_of_other_names(tmp_path):
    """In the order of the towers; where no token is named, the first file's name stands for it."""
    save_file({"emb_params": L}, tmp_path / "zxqj.safetensors")
    save_file({"emb_params": G}, tmp_path / "dog.safetensors")
    model = model_of("sdxl")
    paths = [str(tmp_path / "zxqj.safetensors"), str(tmp_path / "dog.safetensors")]
    assert_word(add_embedding(model, paths), "zxqj", (L, G))
    with pytest.raises(CheckpointError, match="width 40 and 32, and the model's text towers 32 and 40$"):
        add_embedding(model, paths[::-1])


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_vectors_that_are_words(name, tmp_path):
    """diffusers' advanced trainers: rows are <s0>, <s1>, ..., as `load_textual_inversion` adds them there."""
    tensors = dict(zip(("text_encoders_0", "text_encoders_1"), (L, G) if name == "sdxl" else (L,)))
    save_file(tensors, tmp_path / "embeddings.safetensors")
    save_file({"x": torch.ones(1)}, tmp_path / "pytorch_lora_weights.safetensors")
    model, path = model_of(name), tmp_path / "embeddings.safetensors"
    expected = {f"<s{i}>": tuple(tensor[i : i + 1] for tensor in tensors.values()) for i in range(3)}
    for source in (path, tmp_path):
        extended = add_embedding(model, source)
        assert list(extended.tokenizer.added) == list(expected)
        for word, rows in expected.items():
            assert_word(extended, word, rows)
    assert extended.tokenizer.encode("<s0><s2>, fox") == [49408, 49410, 267, 3240]
    only = add_embedding(model, path, token="<s1>")
    assert list(only.tokenizer.added) == ["<s1>"]
    assert_word(only, "<s1>", expected["<s1>"])
    assert_word(add_embedding(model, path, token="zxqj"), "zxqj", tuple(tensors.values()))
    if name == "sdxl":
        pipeline = pipeline_of(name, tmp_path)
        for tensor, suffix in zip(tensors.values(), ("", "_2")):
            tower, tokenizer = getattr(pipeline, f"text_encoder{suffix}"), getattr(pipeline, f"tokenizer{suffix}")
            pipeline.load_textual_inversion(tensor, token=list(expected), text_encoder=tower, tokenizer=tokenizer)
            table = tower.get_input_embeddings().weight
            ids = tokenizer("<s0><s1> <s2>", add_special_tokens=False).input_ids
            assert ids == extended.tokenizer.encode("<s0><s1> <s2>") and torch.equal(table[ids], tensor)


def test_words_beside_a_lora(tmp_path):
    """Several: one is chosen by its token. The LoRA's own tensors are not looked at."""
    path, model = tmp_path / "lora.safetensors", model_of("sdxl")
    words = {"<a>": (L, G), "b.c": (2 * L, 2 * G)}
    tensors = {"lora_te1_x.lora_up.weight": torch.full((2, 2), torch.nan)}
    for word, (first, second) in words.items():
        tensors |= {f"bundle_emb.{word}.clip_l": first, f"bundle_emb.{word}.clip_g": second}
    save_file(tensors, path)
    for word, expected in words.items():
        extended = add_embedding(model, path, token=word)
        assert list(extended.tokenizer.added) == [word]
        assert_word(extended, word, expected)
    for token, missing in ((None, ""), ("<x>", " and not '<x>'")):
        with pytest.raises(CheckpointError) as caught:
            add_embedding(model, path, token)
        assert str(caught.value).endswith(
            f"lora.safetensors holds the words '<a>', 'b.c'{missing}: choose one as token "
            "(txt2img: --embedding FILE:TOKEN)"
        )


WRONG = {  # family, tensors by file -> what the error says
    "half of SDXL": ("sdxl", {"zxqj.safetensors": {"clip_l": L}}, "of width 32, and the model's text towers 32 and 40"),
    "half of a pair": (
        "sdxl",
        {"learned_embeds.safetensors": {"<x>": L}},
        "and the model's text towers 32 and 40: learned_embeds_2.safetensors is expected beside it",
    ),
    "other half": (
        "sdxl",
        {"learned_embeds_2-steps-9.safetensors": {"<x>": G}},
        "32 and 40: learned_embeds-steps-9.safetensors is expected beside it",
    ),
    "a pair of two words": (
        "sdxl",
        {"learned_embeds.safetensors": {"<x>": L}, "learned_embeds_2.safetensors": {"<y>": G}},
        "learned_embeds_2.safetensors '<y>': the files of one word are expected",
    ),
    "a pair of two lengths": (
        "sdxl",
        {"learned_embeds.safetensors": {"<x>": L}, "learned_embeds_2.safetensors": {"<x>": G[:2]}},
        "holds 3 vectors for one tower and 2 for the other: equally many are expected",
    ),
    "a pair for SD": (
        "sd15",
        {"learned_embeds.safetensors": {"<x>": L}, "learned_embeds_2.safetensors": {"<x>": G}},
        "has vectors of width 32 and 40, and the model's text towers 32",
    ),
    "rows for SD": (
        "sd15",
        {"zxqj.safetensors": {"text_encoders_0": torch.ones(2, 768), "text_encoders_1": torch.ones(2, 1280)}},
        "of width 768 and 1280 (SDXL), and the model's text towers 32",
    ),
    "of another family beside a LoRA": (
        "sdxl",
        {"zxqj.safetensors": {"bundle_emb.x.emb_params": torch.ones(2, 1024)}},
        "of width 1024 (SD 2), and the model's text towers 32 and 40",
    ),
    "outputs": (
        "sdxl",
        {"zxqj.safetensors": {"bundle_emb.x.clip_l": L, "bundle_emb.x.clip_g": G, "bundle_emb.x.clip_l_out": 2 * L}},
        "'bundle_emb.x.clip_l_out' is added to what a text tower gives, which OneTrainer alone does",
    ),
    "Flux": (
        "sdxl",
        {"zxqj.safetensors": {"clip_l": L, "t5": G}},
        "holds 'clip_l', 't5': an embedding has one tensor, or",
    ),
    "half a bundle": (
        "sdxl",
        {"zxqj.safetensors": {"bundle_emb.x.clip_l": L, "bundle_emb.x.t5": G}},
        "holds 'clip_l', 't5' of 'x': an embedding has one tensor, or clip_l and clip_g",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_words(kind, tmp_path):
    name, files, expected = WRONG[kind]
    for file, tensors in files.items():
        save_file(tensors, tmp_path / file)
    with pytest.raises(CheckpointError) as caught:
        add_embedding(model_of(name), tmp_path / next(iter(files)))
    assert expected in str(caught.value) and "\n" not in str(caught.value)


def test_files_that_are_no_pair(tmp_path):
    for file in "abc":
        save_file({"<x>": L}, tmp_path / f"{file}.safetensors")
    model, paths = model_of("sdxl"), sorted(tmp_path.iterdir())
    for sources in ([], paths[:1], paths):
        with pytest.raises(CheckpointError, match="one file, or two with the vectors of one tower each are expected"):
            add_embedding(model, sources)
    with pytest.raises(CheckpointError, match="holds several adapters: choose one of"):
        add_embedding(model, tmp_path)


def test_pickles_are_refused(tmp_path):
    """The web UIs' .pt and diffusers' .bin, in both forms of torch.save."""
    content = {"string_to_token": {"*": 265}, "string_to_param": {"*": torch.ones(2, 32)}, "name": "x"}
    for name, zipped in (("x.pt", True), ("x.bin", False), ("x.safetensors", True)):
        torch.save(content, tmp_path / name, _use_new_zipfile_serialization=zipped)
        with pytest.raises(CheckpointError, match="never read here: convert it to safetensors$"):
            add_embedding(model_of("sd15"), tmp_path / name)
