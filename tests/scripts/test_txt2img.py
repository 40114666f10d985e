"""scripts/txt2img.py as a user runs it, on the small model that ships."""

import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin
from safetensors.torch import load_file, save_file

import weights
from support.paths import ROOT

FAST = ("--steps", 2)


def test_one_prompt_leaves_a_picture_that_tells_how_it_was_made(script, tmp_path):
    run = script("txt2img.py", "--prompt", "a red apple", "--negative", "blue", "--seed", 7, *FAST, "--out", tmp_path)
    assert run.returncode == 0, run.stderr
    path = tmp_path / "00000-7.png"
    assert run.stdout.strip() == str(path) and list(tmp_path.iterdir()) == [path]
    assert "it/s" not in run.stderr  # the bar is for terminals
    with Image.open(path) as image:
        size = weights.load(weights.MINIATURE).facts.size
        assert image.size == (size, size) and image.mode == "RGB"
        record, text = json.loads(image.text["ldm"]), image.text["parameters"]
    assert record["prompt"] == "a red apple" and record["seed"] == 7 and record["steps"] == 2
    assert record["sampler"] == "dpmpp_2m" and record["torch"] == torch.__version__
    assert len(record["files"]) == 3 and all(len(sha) == 64 for sha in record["files"].values())
    first, negative, facts = text.split("\n")
    assert (first, negative) == ("a red apple", "Negative prompt: blue")
    assert facts.startswith("Steps: 2, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale:") and "Seed: 7" in facts
    assert record["model"] is None and str(ROOT) not in json.dumps(record)  # remakes the picture on another machine


def test_a_picture_can_be_made_again_from_itself(script, tmp_path):
    script(
        "txt2img.py",
        "--prompt",
        "a green frog",
        "--seed",
        3,
        "--sampler",
        "euler_ancestral",
        "--schedule",
        "trailing",
        "--guidance",
        3,
        "--width",
        96,
        *FAST,
        "--out",
        tmp_path / "first.png",
    )
    run = script("txt2img.py", "--again", tmp_path / "first.png", "--out", tmp_path / "second.png")
    assert run.returncode == 0, run.stderr
    with Image.open(tmp_path / "first.png") as first, Image.open(tmp_path / "second.png") as second:
        assert first.tobytes() == second.tobytes()
        assert first.text == second.text
    changed = script("txt2img.py", "--again", tmp_path / "first.png", "--seed", 4, "--out", tmp_path / "third.png")
    assert changed.returncode == 0, changed.stderr
    with Image.open(tmp_path / "first.png") as first, Image.open(tmp_path / "third.png") as third:
        assert first.tobytes() != third.tobytes()


def test_options_reach_the_sampler_and_the_record(script, tmp_path):
    """Euler's ancestral sampler with eta=0 adds no noise: it is Euler's."""
    common = ("--prompt", "a green frog", "--steps", 3, "--out")
    flags = ("--sampler", "euler_ancestral", "--option", "eta=0", "--option", "s_noise=0.9")
    run = script("txt2img.py", *flags, *common, tmp_path / "ancestral.png")
    assert run.returncode == 0, run.stderr
    plain = script("txt2img.py", "--sampler", "euler", *common, tmp_path / "euler.png")
    assert plain.returncode == 0, plain.stderr
    again = script("txt2img.py", "--again", tmp_path / "ancestral.png", "--out", tmp_path / "again.png")
    assert again.returncode == 0, again.stderr
    with Image.open(tmp_path / "ancestral.png") as picture, Image.open(tmp_path / "euler.png") as euler:
        assert json.loads(picture.text["ldm"])["options"] == {"eta": 0, "s_noise": 0.9}
        assert json.loads(euler.text["ldm"])["options"] == {}
        furthest = np.abs(np.asarray(picture, dtype=int) - np.asarray(euler, dtype=int)).max()
        assert furthest <= 1  # the same to rounding
        with Image.open(tmp_path / "again.png") as same:
            assert same.tobytes() == picture.tobytes() and same.text == picture.text


def test_options_of_a_record_stay_with_its_sampler(script, tmp_path):
    """Another sampler has other options, so those of the record are left out, and that is said."""
    first = tmp_path / "first.png"
    script("txt2img.py", "--prompt", "x", "--sampler", "ddim", "--option", "eta=0.5", *FAST, "--out", first)
    for sampler, options in (("DDIM", {"eta": 0.5}), ("euler", {})):
        out = tmp_path / f"{sampler}.png"
        run = script("txt2img.py", "--again", first, "--sampler", sampler, "--out", out)
        assert run.returncode == 0, run.stderr
        with Image.open(out) as picture:
            assert json.loads(picture.text["ldm"])["options"] == options
        said = "" if options else f"warning: options of ddim, which {first} was made with, are left out: eta=0.5\n"
        assert run.stderr == said


def test_count_prompts_file_and_grid(script, tmp_path):
    (tmp_path / "prompts.txt").write_text("a red apple\n\n  a blue car \n", encoding="utf-8")
    out = tmp_path / "pictures"
    run = script(
        "txt2img.py", "--prompts", tmp_path / "prompts.txt", "--count", 3, "--batch", 4, "--grid", *FAST, "--out", out
    )
    assert run.returncode == 0, run.stderr
    names = sorted(p.name for p in out.iterdir())
    assert names == [f"{i:05d}-{i % 3}.png" for i in range(6)] + ["grid.png"]
    with Image.open(out / "00004-1.png") as image, Image.open(out / "grid.png") as grid:
        assert json.loads(image.text["ldm"])["prompt"] == "a blue car"
        w, h = image.size
        assert grid.size == (3 * w, 2 * h)
        assert grid.crop((w, h, 2 * w, 2 * h)).tobytes() == image.tobytes()
    script("txt2img.py", "--prompt", "more", "--count", 3, "--columns", 2, "--grid", *FAST, "--out", out)
    assert (out / "00006-0.png").exists()  # numbered on, nothing overwritten
    with Image.open(out / "grid.png") as grid:
        assert grid.size == (2 * w, 2 * h) and grid.getpixel((2 * w - 1, 2 * h - 1)) == (255, 255, 255)


def test_what_is_cut_from_a_long_prompt_is_said(script, tmp_path):
    room = weights.load(weights.MINIATURE).facts.texts[0].length - 2  # beside the marks of start and end
    run = script(
        "txt2img.py",
        "--prompt",
        "apple " * room + "pear",
        "--negative",
        "plum " * room + "fig",
        *FAST,
        "--out",
        tmp_path,
    )
    assert run.returncode == 0 and run.stderr.count("warning: too long") == 2
    assert "is cut before 'pear'" in run.stderr and "is cut before 'fig'" in run.stderr


def test_adapters_and_embeddings_are_recorded(script, tmp_path):
    """Two files of one name, a key without a place, a word with a vector of its own; and the picture made again."""
    layer, width = (
        "unet.mid_block.attentions.0.proj_in",
        weights.load(weights.MINIATURE).texts["text_encoder"].config.width,
    )
    channels = weights.load(weights.MINIATURE).facts.unet.channels[-1]
    for k, name in enumerate("ab"):
        (tmp_path / name).mkdir()
        torch.manual_seed(k)
        save_file(
            {
                f"{layer}.lora_A.weight": torch.randn(2, channels, 1, 1),
                f"{layer}.lora_B.weight": torch.randn(channels, 2, 1, 1),
            },
            tmp_path / name / "my_unet_style.safetensors",
        )
    save_file(
        {
            f"{layer}.lora_A.weight": torch.ones(2, channels, 1, 1),
            "lora_te_foo.alpha": torch.ones(()),
            f"{layer}.lora_B.weight": torch.zeros(channels, 2, 1, 1),
        },
        tmp_path / "odd.safetensors",
    )
    save_file({"emb_params": torch.randn(2, width)}, tmp_path / "cat.safetensors")
    paths = [
        str(tmp_path / name)
        for name in ("cat.safetensors", "a/my_unet_style.safetensors", "b/my_unet_style.safetensors", "odd.safetensors")
    ]
    flags = (
        "--prompt",
        "a cat-toy apple",
        "--embedding",
        f"{paths[0]}:cat-toy",
        "--lora",
        f"{paths[1]}:0.5",
        "--lora",
        paths[2],
        "--lora",
        paths[3],
        *FAST,
        "--out",
    )
    check_refused(script("txt2img.py", *flags, tmp_path / "out"), "--partial-lora) leaves them out", tmp_path / "out")
    run = script("txt2img.py", *flags, tmp_path / "out", "--partial-lora")
    assert run.returncode == 0, run.stderr
    assert run.stderr == (
        f"warning: {paths[3]}: 1 tensors have no place in the model and are left out: lora_te_foo.alpha\n"
    )
    with Image.open(tmp_path / "out/00000-0.png") as image:
        record, text, pixels = json.loads(image.text["ldm"]), image.text["parameters"], image.tobytes()
    assert list(record["added"]) == paths and len(set(record["added"].values())) == 4
    assert f"Model hash: {record['files']['unet/diffusion_pytorch_model.safetensors'][:10]}," in text
    again = script("txt2img.py", "--again", tmp_path / "out/00000-0.png", "--out", tmp_path / "again.png")
    assert again.returncode == 0 and again.stderr == run.stderr
    with Image.open(tmp_path / "again.png") as image:
        assert image.tobytes() == pixels


def test_words_beside_a_lora(tmp_path, script):
    """One file gives both; the word that stays unknown is told in one line, in the form of the other warnings."""
    facts = weights.describe(weights.MINIATURE).facts
    channels, width, stem = facts.unet.channels[-1], facts.texts[0].width, "diffusion_model.middle_block.1.proj_in"
    path = tmp_path / "a.safetensors"
    save_file(
        {
            f"{stem}.lora_down.weight": torch.ones(2, channels),
            f"{stem}.lora_up.weight": torch.ones(channels, 2) / 1000,
            "bundle_emb.zxqj.clip_l": torch.ones(2, width) / 10,
            "bundle_emb.<y>.clip_l": torch.ones(1, width) / 10,
        },
        path,
    )
    flags = ("--prompt", "a zxqj apple", "--lora", path, *FAST, "--out", tmp_path / "out.png", "--embedding")
    run = script("txt2img.py", *flags, f"{path}:zxqj")
    assert run.returncode == 0, run.stderr
    how = "add_embedding (txt2img: --embedding FILE:WORD) makes them known"
    assert run.stderr == f"warning: {path} also holds the words '<y>': {how}\n"


def broken(tmp_path, change) -> str:
    """A copy of the miniature with one thing wrong."""
    folder = tmp_path / "model"
    shutil.copytree(weights.MINIATURE, folder)
    change(folder)
    return str(folder)


def cut_in_half(folder):
    path = folder / "unet/diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:1_000_000])


def rewrite(folder, change):
    path = folder / "vae/diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


BROKEN_MODELS = {
    "missing component": (lambda f: shutil.rmtree(f / "vae"), "vae"),
    "missing file": (lambda f: (f / "text_encoder/model.safetensors").unlink(), "text_encoder"),
    "truncated file": (cut_in_half, "unet/diffusion_pytorch_model.safetensors"),
    "wrong file": (lambda f: (f / "vae/diffusion_pytorch_model.safetensors").write_text("<!doctype html>"), "web page"),
    "missing key": (lambda f: rewrite(f, lambda t: t.pop("quant_conv.bias")), "quant_conv.bias"),
    "extra key": (lambda f: rewrite(f, lambda t: t.update(extra=torch.zeros(1))), "extra"),
    "other shape": (
        lambda f: rewrite(f, lambda t: t.update({"quant_conv.bias": torch.zeros(5).half()})),
        "quant_conv.bias",
    ),
    "NaN": (lambda f: rewrite(f, lambda t: t["quant_conv.bias"].fill_(float("nan"))), "quant_conv.bias"),
}


@pytest.mark.parametrize("name", BROKEN_MODELS)
def test_a_broken_model_is_told_in_one_line(script, tmp_path, name):
    change, words = BROKEN_MODELS[name]
    run = script("txt2img.py", "--prompt", "x", "--model", broken(tmp_path, change), "--out", tmp_path / "out")
    check_refused(run, words, tmp_path / "out")


@pytest.mark.parametrize(
    "flags, words",
    [
        (("--sampler", "eular"), "unknown sampler 'eular': choose one of"),
        (("--lora", "style:much"), "--lora style: the strength 'much' is no number"),
        (("--lora", "style:nan"), "--lora style: the strength 'nan' is no number"),
        (("--lora", ":1"), ":1: names no file before the colon"),
        (("--option", "eta"), "--option eta: give NAME=VALUE, for example eta=0.5"),
        (("--option", "eta="), "--option eta=: give NAME=VALUE"),
        (("--sampler", "ddim", "--option", "eta=1", "--option", "eta=0"), "--option eta=0: eta is given twice"),
        (("--sampler", "ddim", "--option", "eta=abc"), "sampler ddim: option eta='abc': a number is expected"),
        (("--option", "etta=1"), "sampler dpmpp_2m: option 'etta': this sampler has no such option"),
        (("--schedule", "caras"), "unknown schedule 'caras'"),
        (("--height", 60), "height 60: must be a positive multiple of 8, for example 64"),
        (("--width", 0), "width 0"),
        (("--steps", 0), "0 steps: choose 1 to 1000"),
        (("--steps", 1001), "1001 steps"),
        (("--seed", -2), "seed -2"),
        (("--seed", 2**64), "must be between 0 and"),
        (("--count", 0), "choose at least 1"),
        (("--model", "no/such/folder"), "no/such/folder does not exist"),
        (("--device", "toaster"), "toaster"),
        (("--count", 2, "--out", "one.png"), "one name for several pictures"),
        (("--out", "one.jpx"), "pictures are written as PNG"),
        (("--out", ROOT / "README.md"), "is a file"),
        (("--guidance", "nan"), "guidance nan: must be a number"),
        (("--seed", 2**64 - 1, "--count", 2, "--batch", 1), "must be between 0 and"),
        (("--width", 10**20), "must be a positive multiple of 8"),
    ],
)
def test_bad_flags_are_told_in_one_line(script, tmp_path, flags, words):
    run = script("txt2img.py", "--prompt", "x", "--out", tmp_path / "out", *flags)
    check_refused(run, words, tmp_path / "out")


@pytest.mark.parametrize(
    "content, words",
    [("\n \n", "holds no prompts"), (None, "No such file"), (b"\xff\xfe\x00", "cannot be read as text")],
)
def test_a_bad_prompt_file_is_told_in_one_line(script, tmp_path, content, words):
    path = tmp_path / "prompts.txt"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    check_refused(script("txt2img.py", "--prompts", path, "--out", tmp_path / "out"), words, tmp_path / "out")


def test_again_needs_a_picture_of_ours(script, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "other.png")
    (tmp_path / "text.png").write_text("no picture")
    for name, words in (("other.png", "holds no record"), ("text.png", "not a picture"), ("none.png", "No such file")):
        check_refused(
            script("txt2img.py", "--again", tmp_path / name, "--out", tmp_path / "out"), words, tmp_path / "out"
        )


def check_refused(run, words: str, out):
    """Exit 2, one line that says what is wrong, nothing written."""
    assert run.returncode == 2, run.stdout + run.stderr
    assert words in run.stderr and run.stderr.startswith("error: ") and run.stderr.count("\n") == 1, run.stderr
    assert not out.exists()


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda r: [1], "names no prompt"),
        (lambda r: r | {"steps": "8"}, "steps is '8'"),
        (lambda r: r | {"lora": [1]}, "lora is [1]"),
        (lambda r: r | {"dtype": "int8"}, "dtype is 'int8'"),
        (lambda r: r | {"sampler": ["euler"]}, "sampler is"),
        (lambda r: r | {"model": "gone"}, "gone does not exist"),
    ],
)
def test_a_damaged_record_is_told_in_one_line(script, tmp_path, change, words):
    info = PngImagePlugin.PngInfo()
    info.add_itxt("ldm", json.dumps(change({"prompt": "x", "steps": 2})))
    Image.new("RGB", (8, 8)).save(tmp_path / "damaged.png", pnginfo=info)
    check_refused(
        script("txt2img.py", "--again", tmp_path / "damaged.png", "--out", tmp_path / "out"), words, tmp_path / "out"
    )


def test_other_weights_than_recorded_are_told(script, tmp_path):
    info = PngImagePlugin.PngInfo()
    info.add_itxt("ldm", json.dumps({"prompt": "x", "steps": 1, "files": {"unet": "0" * 64}}))
    Image.new("RGB", (8, 8)).save(tmp_path / "old.png", pnginfo=info)
    run = script("txt2img.py", "--again", tmp_path / "old.png", "--out", tmp_path / "new.png")
    assert run.returncode == 0 and "was made with other files" in run.stderr


def test_nothing_half_written_stays(script, tmp_path):
    (tmp_path / "taken.png").mkdir()
    run = script("txt2img.py", "--prompt", "x", *FAST, "--out", tmp_path / "taken.png")
    assert run.returncode == 2 and "taken.png: cannot be written" in run.stderr and run.stderr.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["taken.png"]


def test_interrupting_leaves_what_is_finished(tmp_path):
    command = [
        sys.executable,
        str(ROOT / "scripts/txt2img.py"),
        "--prompt",
        "a cat",
        "--count",
        "200",
        "--batch",
        "1",
        "--steps",
        "4",
        "--out",
        str(tmp_path),
    ]
    unbuffered = os.environ | {"PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=unbuffered)
    for _ in range(3):
        assert process.stdout.readline().strip().endswith(".png")  # each picture is named when it is complete
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate()
    assert process.returncode == 130 and "Traceback" not in stderr and "stopped" in stderr
    assert 3 <= len(list(tmp_path.glob("*.png"))) < 200 and not list(tmp_path.glob("*.part"))
    for path in tmp_path.glob("*.png"):
        Image.open(path).load()
