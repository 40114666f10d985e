"""Prompts with weights, of any length, and such as change: the grammars, the formulas, and what the network is told."""

import random
import re
from dataclasses import replace
from math import pi, tan

import pytest
import torch

import weights
from ldm import prompts, tasks
from ldm.clip import CLIPText
from ldm.conditioning import Conditioning, Sizes, TextCut
from ldm.conditioning import encode as encode_literally
from ldm.config import MODELS
from ldm.guidance import ClassifierFree
from ldm.model import Model
from ldm.plan import plan
from ldm.prompts.chunks import make_chunks
from ldm.prompts.rules import RULES, mix_without
from ldm.prompts.scheduled import TWICE, step_of
from ldm.prompts.weights import read_a1111, read_comfyui, read_compel
from ldm.tokenizer import BOS, EOT, Tokenizer
from ldm.unet import UNet
from ldm.vae import VAE
from samplers import SAMPLERS
from samplers.basics import Streams
from support.networks import TINY_CLIPS, TINY_UNETS, TINY_VAES
from support.numbers import randn, randomize, relative_l2
from support.tiny import tiny_sd, tiny_sdxl

COMMA = 267
ROUNDING = 1e-12  # of float64 through a text tower of three layers; a wrong formula is off by 1e-3 and more


@pytest.fixture(scope="module")
def sd() -> Model:
    return tiny_model("sd15", "sd15", ("l",))


@pytest.fixture(scope="module")
def sdxl() -> Model:
    return tiny_model("sdxl", "sdxl", ("l", "bigg"))


def tiny_model(facts: str, unet: str, clips: tuple[str, ...]) -> Model:
    """A model in float64 with random weights that matter."""
    configs = [TINY_CLIPS[name][0] for name in clips]
    texts = {
        part: randomize(CLIPText(config).double(), seed).eval()
        for seed, (part, config) in enumerate(zip(MODELS[facts].family.towers, configs), 5)
    }
    unet_config = replace(TINY_UNETS[unet][0], context_dim=sum(config.width for config in configs))
    model_facts = replace(MODELS[facts], unet=unet_config, vae=TINY_VAES["sd"][0], texts=tuple(configs), size=64)
    unet_network = randomize(UNet(unet_config).double(), 1).eval().requires_grad_(False)
    vae = randomize(VAE(model_facts.vae), 2).eval().requires_grad_(False)
    return Model(unet_network, vae, texts, Tokenizer(), model_facts)


@torch.no_grad()
def read_alone(model: Model, ids: list[int]) -> torch.Tensor:
    """What SD 1's tower makes of one chunk of ids, (77 d)."""
    return model.texts["text_encoder"](torch.tensor([ids])).last[0]


# The grammars


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("normal text", [("normal text", 1.0)]),
        ("an (important) word", [("an ", 1.0), ("important", 1.1), (" word", 1.0)]),
        ("(unbalanced", [("unbalanced", 1.1)]),
        (r"\(literal\]", [("(literal]", 1.0)]),
        ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
        (
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            [
                ("a ", 1.0), ("house", 1.3 * 1.1 * 1.1), (" ", 1.1), ("on", 1.0), (" a ", 1.1), ("hill", 0.55),
                (", sun, ", 1.1), ("sky", 1.1**4), (".", 1.1),
            ],
        ),
        ("[x:1.2]", [("x:1.2", 1 / 1.1)]),
        ("a :1.2) b", [("a :1.2) b", 1.0)]),
        ("(a: -.5 )", [("a", -0.5)]),
        ("", [("", 1.0)]),
    ],
)  # fmt: skip
def test_brackets_weigh_as_in_a1111(text, pieces):
    (found,) = read_a1111(text)
    assert [piece.text for piece in found] == [text for text, _ in pieces]
    assert [piece.weight for piece in found] == pytest.approx([weight for _, weight in pieces], rel=1e-12)


def test_break_is_a_word_and_begins_a_section():
    assert [[piece.text for piece in section] for section in read_a1111("a  BREAK\nb BREAKFAST")] == [
        ["a"],
        ["b BREAKFAST"],
    ]
    assert read_a1111("(a BREAK b:1.2) c") == [[("a", 1.2)], [("b", 1.2), (" c", 1.0)]]


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("a (b) c", [("a ", 1.0), ("b", 1.1), (" c", 1.0)]),
        ("((b:1.3))", [("b", 1.3)]),  # absolute, whatever is around it
        ("((a) (b:0.5))", [("a", 1.21), (" ", 1.1), ("b", 0.5)]),
        ("(a (b) c:1.5)", [("a ", 1.5), ("b", 1.65), (" c", 1.5)]),
        ("(a:x)", [("a:x", 1.1)]),
        (r"\(a\) [b] BREAK", [("(a) [b] BREAK", 1.0)]),
        ("(a", [("(a", 1.0)]),
        ("a)", [("a)", 1.0)]),
    ],
)
def test_brackets_weigh_as_in_comfyui(text, pieces):
    (found,) = read_comfyui(text)
    assert [piece.text for piece in found] == [text for text, _ in pieces]
    assert [piece.weight for piece in found] == pytest.approx([weight for _, weight in pieces], rel=1e-12)


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("a fox++ runs", [("a", 1.0), ("fox", 1.21), ("runs", 1.0)]),
        ("a fox-- runs", [("a", 1.0), ("fox", 0.81), ("runs", 1.0)]),
        ("a (red fox)1.3 runs", [("a", 1.0), ("red fox", 1.3), ("runs", 1.0)]),
        ("(a (b)1.2 c)0.5", [("a", 0.5), ("b", 0.6), ("c", 0.5)]),
        ("fox+, cat", [("fox", 1.1), (", cat", 1.0)]),
        ("a+ b+", [("a b", 1.1)]),
        ("(a) well-known b", [("a well-known b", 1.0)]),
        (r"a \(b\) x - y", [("a (b) x - y", 1.0)]),
        ("(a", [("(a", 1.0)]),
        ("don't--", [("don't", 0.81)]),
    ],
)
def test_signs_weigh_as_in_compel(text, pieces):
    (found,) = read_compel(text)
    assert [piece.text.strip() for piece in found] == [text for text, _ in pieces]
    assert [piece.weight for piece in found] == pytest.approx([weight for _, weight in pieces], rel=1e-12)


@pytest.mark.parametrize("rule", RULES)
def test_brackets_in_any_order_never_raise(rule):
    chance = random.Random(3)
    for _ in range(300):
        text = "".join(chance.choices(["(", ")", "[", "]", ":", "|", "\\", "+", "-", "a", " ", "BREAK "], k=12))
        assert RULES[rule].read(text)
        prompts.texts_by_step(text, 4)
    for deep in ("(" * 3000, "(" * 1000 + "a" + ")" * 1000, "[" * 1000 + "a" + "]" * 1000, ")" * 3000):
        assert RULES[rule].read(deep)
        assert prompts.texts_by_step(deep, 2) == [deep, deep]


@pytest.mark.parametrize(
    ("rule", "text"), [("a1111", "a (fox:1.2.3)"), ("comfyui", "a (fox:1.2.3)"), ("compel", "a (fox)1.2.3")]
)
def test_what_is_no_number_is_one_line(sd, rule, text):
    with pytest.raises(ValueError, match=r"1\.2\.3.*a weight is one number, such as \(word:1\.2\)") as error:
        prompts.encode(sd, text, rule=rule)
    assert "\n" not in str(error.value) and len(str(error.value)) < 200


def test_a_weight_that_is_not_finite_is_one_line(sd):
    with pytest.raises(ValueError, match=r"'fox' in the prompt weighs inf"):
        prompts.encode(sd, f"(fox:{'9' * 400})", rule="a1111")


# Prompts that change


def runs(text: str, steps: int = 10) -> list[tuple[int, str]]:
    """The last step of every run of steps with one text, and the text."""
    found: list[tuple[int, str]] = []
    for step, same in enumerate(prompts.texts_by_step(text, steps), 1):
        if found and found[-1][1] == same:
            found.pop()
        found.append((step, same))
    return found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("test", [(10, "test")]),
        ("a [b:3]", [(3, "a "), (10, "a b")]),
        ("a [b: 3]", [(3, "a "), (10, "a b")]),
        ("a [[[b]]:2]", [(2, "a "), (10, "a [[b]]")]),
        ("[(a:2):3]", [(3, ""), (10, "(a:2)")]),
        ("a [b : c : 1] d", [(1, "a b  d"), (10, "a  c  d")]),
        ("a[b:[c:d:2]:1]e", [(1, "abe"), (2, "ace"), (10, "ade")]),
        ("a [unbalanced", [(10, "a [unbalanced")]),
        ("a [b:.5] c", [(5, "a  c"), (10, "a b c")]),
        ("((a][:b:c [d:3]", [(3, "((a][:b:c "), (10, "((a][:b:c d")]),
        ("[a::3]b", [(3, "ab"), (10, "b")]),
        ("a [b:1.0]", [(10, "a ")]),
        ("a [b:c:99]", [(10, "a b")]),
        ("a [b:c:0]", [(10, "a c")]),
        ("a [b:c:-3]", [(10, "a c")]),
        ("a [b:c:1e999]", [(10, "a b")]),
        ("[a:b]", [(10, "[a:b]")]),
        ("a|b [c:d:2]", [(10, "a|b [c:d:2]")]),  # outside of the grammar: all of it is text
        ("a [{b|d{:.5] c", [(10, "a [{b|d{:.5] c")]),
        (r"\[a:b:3\]", [(10, r"\[a:b:3\]")]),
    ],
)
def test_steps_have_the_texts_that_a1111_gives_them(text, expected):
    assert runs(text) == expected


def test_alternation_goes_on_at_every_step():
    assert prompts.texts_by_step("[a|(b:1.1)]", 4) == ["a", "(b:1.1)", "a", "(b:1.1)"]
    assert prompts.texts_by_step("[fe|]male", 4) == ["female", "male", "female", "male"]
    assert prompts.texts_by_step("[fe|||]male", 6) == ["female", "male", "male", "male", "female", "male"]


def test_and_joins_prompts_with_weights():
    assert prompts.split_at_and("a cat :1.2 AND a dog AND sky:-.5") == [
        ("a cat", 1.2),
        (" a dog ", 1.0),
        (" sky", -0.5),
    ]
    assert prompts.split_at_and("a clock at 10:30") == [("a clock at 10:30", 1.0)]
    assert prompts.split_at_and("SAND BRAND") == [("SAND BRAND", 1.0)]


# Chunks


def chunks_of(text: str, pad_id: int = EOT, **how) -> list[list[int]]:
    return [chunk.ids for chunk in make_chunks(Tokenizer(), read_a1111(text), pad_id, **how)]


def test_a_chunk_holds_75_tokens_between_bos_and_eot():
    (fox,) = Tokenizer().encode("fox")
    for count in (1, 75):
        assert chunks_of("fox " * count) == [[BOS, *[fox] * count, EOT, *[EOT] * (75 - count)]]
    assert chunks_of("fox " * 76, pad_id=0) == [[BOS, *[fox] * 75, EOT], [BOS, fox, EOT, *[0] * 74]]


@pytest.mark.parametrize(("before", "first"), [(54, 75), (55, 56), (70, 71), (74, 75)])
def test_what_follows_a_comma_among_the_last_20_tokens_moves(before, first):
    """before: how many tokens stand before the comma. The 20 places are those from 55 on."""
    (fox,) = Tokenizer().encode("fox")
    row = [fox] * before + [COMMA] + [fox] * (80 - before)
    text = "fox " * before + ", " + "fox " * (80 - before)
    ends = [BOS, *row[:first], EOT], [BOS, *row[first:], EOT]
    assert chunks_of(text) == [[*ids, *[EOT] * (77 - len(ids))] for ids in ends]
    assert [ids[1:76] for ids in chunks_of(text, commas=False)][0] == row[:75]


def test_break_ends_a_chunk_but_not_the_prompt():
    assert len(chunks_of("a BREAK b")) == 2
    assert chunks_of("a BREAK") == chunks_of("a")
    assert chunks_of("BREAK a") == [*chunks_of(""), *chunks_of("a")]


def test_comfyui_keeps_short_pieces_together():
    seven = [[("fox " * 72, 1.0), ("red " * 7, 1.2)]]
    eight = [[("fox " * 72, 1.0), ("red " * 8, 1.2)]]
    assert [chunk.used for chunk in make_chunks(Tokenizer(), seven, EOT, commas=False, together=8)] == [72, 7]
    assert [chunk.used for chunk in make_chunks(Tokenizer(), eight, EOT, commas=False, together=8)] == [75, 5]


def test_a_learned_word_is_never_split():
    tokenizer = Tokenizer().with_token("<style>", 4)
    chunks = make_chunks(tokenizer, [[("fox " * 73 + "<style>", 1.3)]], EOT)
    assert [chunk.used for chunk in chunks] == [73, 4]
    assert chunks[1].weights == [1.0] + [1.3] * 4 + [1.0] * 72
    with pytest.raises(ValueError, match="80 vectors: a chunk holds 75"):
        make_chunks(Tokenizer().with_token("<style>", 80), [[("<style>", 1.0)]], EOT)


# What the weights do


def test_every_rule_leaves_a_prompt_without_weights_as_it_is(sd, sdxl):
    for model in (sd, sdxl):
        size = Sizes((64, 64), (64, 64))
        expected = encode_literally(model, ["a red fox, running", None], size)
        for rule in (None, *RULES):
            found = prompts.encode(model, ["a red fox, running", None], rule=rule)
            # SDXL's zeros stand for no prompt
            assert relative_l2(found.context, expected.context) < ROUNDING
            assert (found.vector is None) == (expected.vector is None)
            if found.vector is not None:
                assert relative_l2(found.vector, expected.vector) < ROUNDING


def test_a1111_restores_the_mean_of_each_picture(sd):
    text = "a (red:1.4) [fox]"
    row = [BOS, *sd.tokenizer.encode("a red fox"), EOT]
    z = read_alone(sd, [*row, *[EOT] * (77 - len(row))])
    factors = torch.ones(77, 1, dtype=torch.float64)
    factors[2] = 1.4
    factors[3] = 1 / 1.1
    weighted = z * factors
    found = prompts.encode(sd, text, rule="a1111_no_norm")
    assert relative_l2(found.context[0], weighted) < ROUNDING
    expected = weighted * (z.mean() / weighted.mean())
    assert relative_l2(expected, weighted) > 1e-4  # it does something
    for batch in ([text], [text, "a (blue:1.7) whale", "(sky:0.2) " * 60]):
        found = prompts.encode(sd, batch, rule="a1111")
        assert relative_l2(found.context[0, :77], expected) < ROUNDING


def test_a1111_batch_restores_the_mean_of_all(sd):
    texts = ["a (red:1.4) fox", "a whale"]
    z = prompts.encode(sd, ["a red fox", "a whale"], rule="plain").context
    scaled = prompts.encode(sd, texts, rule="a1111_no_norm").context
    found = prompts.encode(sd, texts, rule="a1111_batch").context
    assert relative_l2(found, scaled * (z.mean() / scaled.mean())) < ROUNDING
    assert relative_l2(found[1:], z[1:]) > 1e-6  # the fault: the other prompt changes this one
    assert relative_l2(prompts.encode(sd, texts, rule="a1111").context[1:], z[1:]) < ROUNDING


@pytest.mark.parametrize(("rule", "text"), [("comfyui", "a (red:1.4) (fox:0.7)"), ("compel", "a (red)1.4 fox")])
def test_comfyui_and_compel_move_from_the_empty_prompt(sd, rule, text):
    z = prompts.encode(sd, "a red fox").context[0]
    empty = prompts.encode(sd, "").context[0]
    expected = z.clone()
    expected[2] = empty[2] + 1.4 * (z[2] - empty[2])
    if rule == "comfyui":
        expected[3] = empty[3] + 0.7 * (z[3] - empty[3])
    assert relative_l2(prompts.encode(sd, text, rule=rule).context[0], expected) < ROUNDING


def test_compel_mixes_with_the_prompt_without_words_below_1(sd):
    z = prompts.encode(sd, "a red fox").context[0]
    empty = prompts.encode(sd, "").context[0]
    without = prompts.encode(sd, "a fox").context[0]
    whole = z.clone()
    whole[2] = empty[2] + 0.6 * (z[2] - empty[2])
    share = tan(0.4 * pi / 2)
    expected = (whole + share * without) / (1 + share)
    assert relative_l2(prompts.encode(sd, "a (red)0.6 fox", rule="compel").context[0], expected) < ROUNDING
    assert [share for _, share in mix_without(read_compel("a (b)0.5 c"))] == pytest.approx([1, 1])


def test_both_towers_are_weighted_each_by_itself(sdxl):
    plain = prompts.encode(sdxl, "a red fox")
    found = prompts.encode(sdxl, "a (red:1.4) fox", rule="a1111")
    for part in (slice(0, 32), slice(32, None)):  # their widths are 32 and 40
        z = plain.context[0, :, part]
        weighted = z.clone()
        weighted[2] *= 1.4
        assert relative_l2(found.context[0, :, part], weighted * (z.mean() / weighted.mean())) < ROUNDING
    assert relative_l2(found.vector, plain.vector) < ROUNDING  # pooled text is never weighted


def test_pooled_text_is_that_of_the_first_chunk(sdxl):
    first = prompts.encode(sdxl, "a red fox")
    both = prompts.encode(sdxl, "a red fox BREAK a whale", rule="a1111")
    second = prompts.encode(sdxl, "a whale")
    assert relative_l2(both.context, torch.cat([first.context, second.context], dim=1)) < ROUNDING
    assert relative_l2(both.vector, first.vector) < ROUNDING


@pytest.mark.parametrize("rule", ["plain", "a1111", "comfyui", "compel"])
def test_a_picture_reads_the_same_alone_and_in_a_batch(sdxl, rule):
    texts = ["a fox", "a (red)++ fox, " * 12, "a (red:1.3) fox, " * 30]
    batch = prompts.encode(sdxl, texts, rule=rule)
    for k, text in enumerate(texts):
        alone, _ = prompts.match(prompts.encode(sdxl, text, rule=rule), batch)
        assert torch.equal(alone.context[0], batch.context[k]) and torch.equal(alone.vector[0], batch.vector[k])


def test_without_a_rule_a_long_prompt_is_cut_and_told(sd):
    with pytest.warns(TextCut, match="what is not read begins at 'whale'"):
        found = prompts.encode(sd, "fox " * 75 + "whale")
    assert found.context.shape[1] == 77
    assert prompts.encode(sd, "fox " * 75 + "whale", rule="plain").context.shape[1] == 154


# Contexts of different lengths


def test_a_repeated_context_is_the_same_to_the_network(sd):
    cond = prompts.encode(sd, "a red fox, " * 30, rule="plain")  # two chunks
    uncond = prompts.encode(sd, "blurry, " * 90, rule="plain")  # three
    longer, other = prompts.match(cond, uncond)
    assert longer.context.shape == other.context.shape == (1, 6 * 77, 32)
    x = randn(1, 4, 8, 8)
    for short, long in ((cond, longer), (uncond, other)):
        with torch.no_grad():
            error = relative_l2(sd.unet(x, 500, long.context), sd.unet(x, 500, short.context))
        assert error < 1e-12  # float64 sums in another order


# diffusers


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory):
    """diffusers' tiny pipelines, and our models of the same files, both with text towers in float64."""
    found = {}
    for name, build in (("sd", tiny_sd), ("sdxl", tiny_sdxl)):
        folder = tmp_path_factory.mktemp(name)
        pipeline = build(folder)
        model = weights.load(folder)
        for part, tower in model.texts.items():
            tower.double()
            getattr(pipeline, part).double()
        found[name] = pipeline, model
    return found


@pytest.mark.parametrize("skip", [0, 1, 2])
def test_clip_skip_of_sdxl_is_that_of_diffusers_for_both_halves(pipelines, skip):
    if skip == 2:
        with pytest.raises(ValueError, match=r"clip_skip 2: from 0, .* to 1; A1111's count is one more"):
            prompts.encode(pipelines["sdxl"][1], "a red fox", clip_skip=skip)
        return
    pipeline, model = pipelines["sdxl"]
    context, _, pooled, _ = pipeline.encode_prompt("a red fox", clip_skip=skip, do_classifier_free_guidance=False)
    found = prompts.encode(model, ["a red fox", "a red fox"], clip_skip=skip)
    for half in range(2):
        assert relative_l2(found.context[half], context[0]) < ROUNDING
        assert relative_l2(found.vector[half, : pooled.shape[1]], pooled[0]) < ROUNDING


@pytest.mark.parametrize("skip", [0, 1, 2])
def test_clip_skip_of_sd_norms_an_earlier_layer(pipelines, skip):
    """As diffusers' encode_prompt does; that one needs an attribute that its newest towers have not."""
    pipeline, model = pipelines["sd"]
    ids = pipeline.tokenizer("a red fox", padding="max_length", max_length=77, return_tensors="pt").input_ids
    tower = pipeline.text_encoder
    norm = getattr(tower, "text_model", tower).final_layer_norm
    with torch.no_grad():
        expected = norm(tower(ids, output_hidden_states=True).hidden_states[-(skip + 1)])
    assert relative_l2(prompts.encode(model, "a red fox", clip_skip=skip).context, expected) < ROUNDING


def test_second_prompt_is_prompt_2_of_diffusers(pipelines):
    pipeline, model = pipelines["sdxl"]
    context, _, pooled, _ = pipeline.encode_prompt("a red fox", "oil painting", do_classifier_free_guidance=False)
    found = prompts.encode(model, "a red fox", second="oil painting")
    assert relative_l2(found.context, context) < ROUNDING
    assert relative_l2(found.vector[:, : pooled.shape[1]], pooled) < ROUNDING
    with pytest.raises(ValueError, match="one text tower"):
        prompts.encode(pipelines["sd"][1], "a red fox", second="oil painting")


def test_towers_with_different_counts_of_chunks_meet(sdxl):
    found = prompts.encode(sdxl, "a fox", second="a whale, " * 30, rule="plain")
    first = prompts.encode(sdxl, "a fox BREAK", rule="a1111")
    empty = prompts.encode(sdxl, "")
    assert found.context.shape[1] == 154
    assert relative_l2(found.context[:, :77, :32], first.context[..., :32]) < ROUNDING
    assert relative_l2(found.context[:, 77:, :32], empty.context[..., :32]) < ROUNDING


# Drawing


class Recorder:
    """A network that notes the contexts it is told, and puts out a number that depends on them."""

    def __init__(self):
        self.told: list[torch.Tensor] = []

    def __call__(self, x, t, context, vector=None):
        self.told.append(context)
        return 0.1 * x + context.mean(dim=(1, 2))[:, None, None, None].to(x.dtype)


@pytest.mark.parametrize(("sampler", "calls"), [("euler", 1), ("heun", 2)])
def test_every_call_is_told_the_text_of_its_step(sd, sampler, calls):
    """[a:b:0.5] of Heun's 4 steps, 7 calls of 8: the change comes at the level of the third step, to which the last
    call of the second belongs too."""
    how = {"steps": 4, "sampler": sampler}
    network = Recorder()
    texts = {text: prompts.encode(sd, text).context for text in ("a cat", "a dog", "bad")}
    guidance = prompts.scheduled(sd, "a [cat:dog:0.5]", plan(sd, **how), guidance=3.0)
    tasks.text_to_image(sd, "", negative="bad", guidance=guidance, network=network, decode=False, **how)
    told = []
    for uncond, cond in network.told:
        assert relative_l2(uncond, texts["bad"][0]) < ROUNDING
        told += [name for name, context in texts.items() if relative_l2(cond, context[0]) < ROUNDING]
    expected = ["a cat"] * 2 + ["a dog"] * 2 if calls == 1 else ["a cat"] * 3 + ["a dog"] * 4
    assert told == expected


@pytest.mark.parametrize("label", TWICE)
def test_samplers_of_two_calls_are_known(sd, label):
    """Every call has a number of its own, but where one ends at the level at which the next step begins."""
    (name,) = [name for name, sampler in SAMPLERS.items() if sampler.label == label]
    run = plan(sd, 4, name, "karras")
    levels: list[float] = []

    def note(x, sigma):
        levels.append(sigma)
        return 0.5 * x

    noise = run.sampler.noise(Streams([0], (4, 8, 8)), run.sigmas)
    for _ in run.sampler.run(note, run.start_std * randn(1, 4, 8, 8).float(), run.sigmas, noise):
        pass
    assert len(levels) >= 7  # the last step goes to 0 in one call
    numbers = {step_of(sigma, run.sigmas, 2) for sigma in levels}
    within = label in ("DPM2", "DPM++ SDE")  # their second call is between two levels, that of the others at the next
    assert numbers == (set(range(7)) if within else {0, 2, 4, 6})


def test_alternation_in_prompt_and_negative_by_picture(sd):
    how = {"steps": 3, "sampler": "euler"}
    network = Recorder()
    guidance = prompts.scheduled(sd, ["[a|b] fox", "a whale"], plan(sd, **how), guidance=3.0, negative="[bad:worse:1]")
    tasks.text_to_image(sd, ["", ""], guidance=guidance, network=network, decode=False, **how)
    for context, texts in zip(
        network.told,
        [
            ("bad", "bad", "a fox", "a whale"),
            ("worse", "worse", "b fox", "a whale"),
            ("worse", "worse", "a fox", "a whale"),
        ],
    ):
        assert relative_l2(context, prompts.encode(sd, texts).context) < ROUNDING


def test_a_prompt_that_does_not_change_is_drawn_as_always(sdxl):
    """With SDXL's sizes, which are the task's own; a negative prompt of None stays SDXL's zeros."""
    how = {"steps": 2, "sampler": "euler", "height": 64, "width": 96, "decode": False}
    run = plan(sdxl, 2, "euler")
    expected = tasks.text_to_image(sdxl, ["a fox", "a whale"], guidance=3.0, **how)
    for negative in (None, [None]):
        guidance = prompts.scheduled(sdxl, ["a fox", "a whale"], run, guidance=3.0, negative=negative)
        found = tasks.text_to_image(sdxl, ["", ""], guidance=guidance, **how)
        assert relative_l2(found, expected) < 1e-6  # float32 latents


def test_and_adds_what_each_prompt_changes(sd):
    run = plan(sd, 2, "euler")
    network = Recorder()
    cond = Conditioning(prompts.encode(sd, ["", ""]).context)
    uncond = Conditioning(prompts.encode(sd, ["bad", "bad"]).context)
    make = prompts.scheduled(sd, ["a cat :1.5 AND a dog :-0.5", "a fox"], run, guidance=3.0)
    guided = make(network, cond, uncond)
    x = randn(2, 4, 8, 8)
    sigma = run.sigmas[0]
    found = guided.at(sigma)(x, 999.0)
    guided_pair = guided.pair_at(sigma)(x, 999.0)
    cat, dog, fox, bad = (network(x[:1], 0, prompts.encode(sd, t).context) for t in ("a cat", "a dog", "a fox", "bad"))
    fox = network(x[1:], 0, prompts.encode(sd, "a fox").context)
    bad_2 = network(x[1:], 0, prompts.encode(sd, "bad").context)
    expected = torch.cat([bad + 3 * (1.5 * (cat - bad) - 0.5 * (dog - bad)), bad_2 + 3 * (fox - bad_2)])
    assert relative_l2(found, expected) < ROUNDING
    assert relative_l2(guided_pair[0], expected) < ROUNDING
    assert relative_l2(guided_pair[1], torch.cat([bad, bad_2])) < ROUNDING


def test_the_usual_guidance_serves_one_prompt_of_weight_1(sd):
    run = plan(sd, 2, "euler")
    guided = prompts.scheduled(sd, "a fox", run)(sd.unet, *(prompts.encode(sd, "") for _ in range(2)))
    assert isinstance(guided.by_step[0], ClassifierFree) and guided.by_step[0] is guided.by_step[1]
    assert guided.by_step[0].scale(1.0) == run.guidance


def test_ready_conditioning_draws_with_tasks(sd):
    cond, uncond = prompts.match(
        prompts.encode(sd, "a (red:1.3) fox, " * 20, rule="a1111"), prompts.encode(sd, "bad", rule="a1111")
    )
    latents = tasks.text_to_image(sd, cond, negative=uncond, steps=1, sampler="euler", decode=False)
    assert latents.shape == (1, 4, 8, 8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: prompts.encode(m, "a fox", rule="A1111"), "rule 'A1111': choose one of plain, a1111"),
        (lambda m: prompts.encode(m, "a [b:c:3]", rule="a1111"), "changes with the step.*prompts.scheduled"),
        (lambda m: prompts.encode(m, "a AND b", rule="a1111"), "changes with the step, or holds AND"),
        (lambda m: prompts.encode(m, "a fox", clip_skip=-1), "clip_skip -1: from 0"),
        (lambda m: prompts.encode(m, []), "texts: give at least one prompt"),
        (lambda m: prompts.encode(m, '("a", "b").blend(1, 1)', rule="compel"), "only weights of compel's syntax"),
        (lambda m: prompts.scheduled(m, "a", plan(m, 4), guidance=[1.0]), "4 steps take as many numbers"),
    ],
)
def test_wrong_calls_are_one_line(sd, call, message):
    with pytest.raises(ValueError, match=message) as error:
        call(sd)
    assert "\n" not in str(error.value)


# The view


def test_show_prompt_draws_tokens_chunks_and_weights(sd):
    lines = str(prompts.show_prompt(sd, "a (red fox:1.3) BREAK <hyperfox>")).splitlines()
    assert re.split(r"\s{2,}", lines[1]) == ["tower", "chunk", "tokens", "weight", "text"]
    assert re.split(r"\s{2,}", lines[2]) == ["text_encoder", "1", "1", "1", "a"]
    assert re.split(r"\s{2,}", lines[3]) == ["text_encoder", "1", "2-3", "1.3", "red fox"]
    assert re.split(r"\s{2,}", lines[4]) == ["text_encoder", "2", "1-4", "1", "< hyper- fox >"]
    html = prompts.show_prompt(sd, "<hyperfox>")._repr_html_()
    assert "&lt; hyper- fox &gt;" in html and "<hyper" not in html


def test_show_prompt_tells_the_steps_and_both_towers(sd, sdxl):
    shown = str(prompts.show_prompt(sd, "a [cat:dog:0.5]", steps=4))
    assert "steps 1-2 of 4: a cat\nsteps 3-4 of 4: a dog" in shown
    rows = prompts.show_prompt(sdxl, "a fox", second="oil").rows
    assert [(row.tower, row.text) for row in rows] == [("text_encoder", ("a", "fox")), ("text_encoder_2", ("oil",))]
