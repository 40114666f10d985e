"""--text, --zero-snr and their kin in the programs, run in this process: each start costs two seconds."""

import json
import runpy
import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import save_file

import weights
from ldm import pictures
from scripts.common import dtype_name, text_sources
from support.paths import SCRIPTS
from support.single_files import VAE_PREFIX, Written
from support.tiny import UNET_FILE

DRAW = ("--prompt", "a red apple", "--steps", 1, "--device", "cpu", "--height", 64, "--width", 64)


@pytest.fixture
def run(monkeypatch, capsys):
    """A program with arguments, to its exit code -> what it printed."""

    def run(program: str, *args, code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", [program, *map(str, args)])
        ended = 0
        try:
            runpy.run_path(str(SCRIPTS / program), run_name="__main__")
        except SystemExit as end:
            ended = end.code or 0
        out, err = capsys.readouterr()
        assert ended == code, err
        return out + err

    return run


@pytest.fixture
def textless(tmp_path):
    """The miniature without its text tower and that tower's tokenizer."""
    path = shutil.copytree(weights.MINIATURE, tmp_path / "textless")
    shutil.rmtree(path / "text_encoder")
    shutil.rmtree(path / "tokenizer")
    yield path
    shutil.rmtree(tmp_path)


def test_a_picture_with_given_text_is_made_again(run, textless, tmp_path):
    """The record holds the source, as it was given, and the hash of its file."""
    line = run("txt2img.py", *DRAW, "--model", textless, "--out", tmp_path / "x.png", code=2)
    assert "--text text_encoder=owner/name" in line and not (tmp_path / "x.png").exists()
    first = tmp_path / "first.png"
    text = f"text_encoder={weights.MINIATURE}"
    run("txt2img.py", *DRAW, "--model", textless, "--text", text, "--out", first)
    record = pictures.read_record(first)
    assert record["text"] == [text] and record["zero_snr"] is None
    label = f"{weights.MINIATURE}/text_encoder/model.safetensors"
    assert record["files"][label] == weights.file_hash(weights.MINIATURE / "text_encoder/model.safetensors")
    told = run("txt2img.py", "--again", first, "--device", "cpu", "--out", tmp_path / "second.png")
    assert "warning" not in told
    assert pictures.read_record(tmp_path / "second.png") == record
    whole = tmp_path / "whole.png"
    run("txt2img.py", *DRAW, "--out", whole)
    assert pixels(whole) == pixels(first)


def pixels(path: Path) -> bytes:
    return Image.open(path).tobytes()


def test_zero_snr_is_recorded(run, tmp_path):
    """The miniature predicts v, so it may be asked for: other noise levels, another picture."""
    plain, zero, again = (tmp_path / name for name in ("plain.png", "zero.png", "again.png"))
    run("txt2img.py", *DRAW, "--out", plain)
    run("txt2img.py", *DRAW, "--zero-snr", "--out", zero)
    assert pictures.read_record(zero)["zero_snr"] is True and pictures.read_record(zero)["schedule"] == "trailing"
    run("txt2img.py", "--again", zero, "--device", "cpu", "--out", again)
    assert pixels(again) == pixels(zero) != pixels(plain)


def test_what_is_inspected_may_be_put_together(run, tmp_path):
    """A file without a VAE is told of as what it is, and is a model with one."""
    whole = Written("sd15", tmp_path / "whole.safetensors")
    kept = {key: tensor for key, tensor in whole.tensors.items() if not key.startswith(VAE_PREFIX)}
    save_file(kept, tmp_path / "merge.safetensors")
    report = json.loads(run("inspect_checkpoint.py", tmp_path / "merge.safetensors", "--quick", "--json", code=2))
    assert [row["part"] for row in report["networks"]] == ["unet", "text_encoder"]
    assert "its VAE is missing" in report["problems"][0] and "--vae owner/name" in report["problems"][0]
    flags = ("--vae", whole.path, "--quick", "--json")
    report = json.loads(run("inspect_checkpoint.py", tmp_path / "merge.safetensors", *flags))
    assert [row["part"] for row in report["networks"]] == ["unet", "vae", "text_encoder"]
    assert report["what"].startswith("sd1: a single file")


def test_convert_puts_a_file_together(run, tmp_path):
    whole = Written("sd15", tmp_path / "whole.safetensors")
    kept = {key: tensor for key, tensor in whole.tensors.items() if not key.startswith("cond_stage_model.")}
    save_file(kept, tmp_path / "merge.safetensors")
    target = tmp_path / "new.safetensors"
    line = run("convert.py", tmp_path / "merge.safetensors", "--to", target, code=2)
    assert "--text owner/name" in line and not target.exists()
    run("convert.py", tmp_path / "merge.safetensors", "--to", target, "--text", whole.path, "--dtype", "fp16")
    found = weights.describe(target)
    assert found.facts == weights.describe(whole.path).facts
    assert {held.entry.dtype for part in found.parts.values() for held in part.stored.values()} == {"F16"}


def test_sources_of_text(capsys):
    assert text_sources(None) is None and text_sources(["owner/name"]) == "owner/name"
    assert text_sources(["text_encoder=a", "text_encoder_2=b=c"]) == {"text_encoder": "a", "text_encoder_2": "b=c"}
    assert text_sources(["odd=name"]) == "odd=name"
    for values in (["a", "b"], ["a", "text_encoder=b"], ["text_encoder=a", "text_encoder=b"]):
        with pytest.raises(SystemExit):
            text_sources(values)
        assert capsys.readouterr().err.startswith("error: --text")


def test_names_of_dtypes():
    assert [dtype_name(text) for text in ("fp16", "torch.bfloat16", "float32")] == ["float16", "bfloat16", "float32"]
    assert dtype_name("int8") == "int8"  # which argparse refuses


def test_mixed_variants_are_told(run, tmp_path):
    shutil.copytree(weights.MINIATURE, tmp_path / "sd")
    unet = tmp_path / "sd" / UNET_FILE
    unet.rename(unet.with_name("diffusion_pytorch_model.fp16.safetensors"))
    report = json.loads(run("inspect_checkpoint.py", tmp_path / "sd", "--variant", "fp16", "--quick", "--json"))
    assert any("vae has no variant 'fp16'" in line for line in report["evidence"])
    shutil.rmtree(tmp_path)
