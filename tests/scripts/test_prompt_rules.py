"""`ldm draw` with --prompt-rule, --clip-skip and --prompt-2, on the small model that ships."""

import json

import pytest
import torch
from PIL import Image

import weights
from drawing.jobs import batches, draw_batches
from drawing.prompt_rules import check_words, without_syntax
from drawing.prompt_syntax import find_syntax

PLAIN = {"negative": None, "sampler": "euler", "schedule": "karras", "guidance": 3.0, "options": {}, "height": 64,
         "width": 64, "steps": 2, "seed": 0, "prompt_2": None, "clip_skip": None, "prompt_rule": "a1111"}  # fmt: skip


@pytest.fixture(scope="module")
def model():
    return weights.load(weights.MINIATURE)


def draw(model, *changes) -> list[torch.Tensor]:
    jobs = [PLAIN | change for change in changes]
    return [image for _, image, _ in sorted(draw_batches(model, jobs, 8), key=lambda found: found[0])]


def test_a_picture_with_a_rule_repeats_from_its_record(script, tmp_path):
    prompt = "a [red:blue:0.5] (apple:1.5)"
    flags = ("--prompt-rule", "a1111", "--clip-skip", 1, "--steps", 2, "--seed", 3)
    first = script("txt2img.py", "--prompt", prompt, *flags, "--out", tmp_path / "first.png")
    assert first.returncode == 0 and first.stderr == ""  # nothing is read literally, and every word is known
    again = script("txt2img.py", "--again", tmp_path / "first.png", "--out", tmp_path / "again.png")
    assert again.returncode == 0, again.stderr
    with Image.open(tmp_path / "first.png") as picture, Image.open(tmp_path / "again.png") as same:
        record = json.loads(picture.text["ldm"])
        assert (record["prompt"], record["prompt_rule"], record["clip_skip"]) == (prompt, "a1111", 1)
        assert "Clip skip: 2" in picture.text["parameters"]  # A1111's count
        assert picture.tobytes() == same.tobytes() and picture.text == same.text


def test_rule_and_clip_skip_change_the_picture_and_are_not_drawn_together(model):
    prompt = {"prompt": "a (red:1.8) apple"}
    changes = ({}, {"prompt_rule": None}, {"prompt_rule": "comfyui"}, {"clip_skip": 1})
    assert batches([PLAIN | prompt | change for change in changes], 8) == [[0], [1], [2], [3]]
    images = draw(model, *(prompt | change for change in changes))
    for image in images[1:]:
        assert (image - images[0]).abs().max() > 1 / 255
    (plain,) = draw(model, {"prompt": "a red apple", "prompt_rule": None})
    (skipped,) = draw(model, {"prompt": "a red apple", "clip_skip": 0})
    assert (plain - skipped).abs().max() < 1e-4  # rounding of float32


def test_a_picture_is_the_same_alone_and_beside_longer_and_changing_ones(model):
    """Of 96 tokens and of 32: the shorter context is repeated."""
    short = {"prompt": "a red apple", "negative": "(dark:1.2)"}
    longer = {"prompt": "a (green:1.2) frog, " * 15}
    changing = {"prompt": "a [red|blue] ball AND a frog :0.5"}
    (alone,) = draw(model, short)
    together, _, _ = draw(model, short, longer, changing)
    beside, _ = draw(model, short, longer)
    for image in (together, beside):
        assert (image - alone).abs().max() < 1e-3  # float32 sums of attention in another order


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": "a (fox:1.2.3)"}, "a weight is one number"),
        ({"negative": "a (fox:1.2.3)"}, "a weight is one number"),
        ({"prompt": "a [b:(fox:1..3):2]"}, "a weight is one number"),
        ({"clip_skip": 9}, "clip_skip 9: from 0"),
        ({"prompt_2": "a dog"}, "this model has one text tower"),
        ({"prompt_rule": "b1111"}, "rule 'b1111': choose one of"),
    ],
)
def test_what_cannot_be_read_is_one_line_before_anything_is_drawn(model, change, message, capsys):
    with pytest.raises(SystemExit) as error:
        check_words(model, [PLAIN | {"prompt": "a red apple"} | change])
    told = capsys.readouterr().err
    assert error.value.code == 2 and message in told and len(told.splitlines()) == 1


def test_what_a_rule_reads_is_not_told_to_be_literal():
    texts = ["(a:1.2) ((b)) [c:d:3] [e] a AND b BREAK \\(x\\)", "fox++"]
    assert len(find_syntax(texts)) == 7
    assert find_syntax(texts, "a1111") == []
    assert len(find_syntax(["<lora:x:1> {a|b}"], "a1111")) == 2  # no rule reads these


def test_words_without_syntax_are_those_of_all_steps():
    found = without_syntax("a [red:(blue:1.25):0.5] [cat|dog] AND sky :0.75", "a1111").split()
    assert sorted(found) == ["a", "blue", "cat", "dog", "red", "sky"]
