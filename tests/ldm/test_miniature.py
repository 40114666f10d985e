"""The small trained model that ships, and the recipe that made it."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

import weights
from ldm import tasks
from support.numbers import relative_l2
from support.paths import ROOT

CAPTIONS = ["red apple, flat style", "a pizza, 3d style, on a blue background"]


@pytest.fixture(scope="module")
def model():
    return weights.load(weights.MINIATURE)


def test_diffusers_draws_the_same_pictures(model):
    """Loaded by the unmodified pipeline, with the folder's own scheduler and a negative prompt."""
    pipeline = StableDiffusionPipeline.from_pretrained(weights.MINIATURE)
    pipeline.set_progress_bar_config(disable=True)
    facts = model.facts
    side = facts.size // facts.vae.factor
    noise = torch.randn(2, 4, side, side, generator=torch.Generator().manual_seed(1))
    options = dict(latents=noise, num_inference_steps=20, guidance_scale=facts.guidance)
    latents = pipeline(CAPTIONS, negative_prompt=["blue"] * 2, output_type="latent", **options).images
    images = pipeline(CAPTIONS, negative_prompt=["blue"] * 2, output_type="pt", **options).images * 2 - 1
    ours = dict(negative="blue", noise=noise, steps=20)
    assert relative_l2(tasks.text_to_image(model, CAPTIONS, decode=False, **ours), latents) < 1e-4
    assert (tasks.text_to_image(model, CAPTIONS, **ours) - images).abs().max() * 127.5 <= 1


def test_it_draws_what_the_caption_says(model):
    """Colors are the part that a program can judge: the apple in the middle and the background in a corner. The limits
    are half way between the color that is asked for and gray, in [-1, 1]."""
    image = tasks.text_to_image(model, ["a red apple", "a red apple, on a blue background", "a green apple"], seeds=[0])
    size = image.shape[-1]
    middle = image[..., size * 2 // 5 : size * 3 // 5, size * 2 // 5 : size * 3 // 5].mean((2, 3))  # (3 rgb)
    corner = image[..., : size // 12, : size // 12].mean((2, 3))
    red, green, _ = middle.T
    assert red[0] > green[0] + 0.5 and red[1] > green[1] + 0.5 and green[2] > red[2]
    assert (corner[[0, 2]] > 0.5).all()
    assert corner[1, 2] > corner[1, 0] + 0.5


def test_evaluation_on_the_card_is_good_enough():
    """Figures of scripts/miniature/evaluate.py, which needs the training pictures and so is not run here."""
    evaluation = json.loads((weights.MINIATURE / "evaluation.json").read_text())
    assert evaluation["plain"]["of"] >= 60 and evaluation["plain"]["right"] / evaluation["plain"]["of"] >= 0.7
    card = (weights.MINIATURE / "README.md").read_text()
    for result in evaluation.values():
        assert f"| {result['right']} of {result['of']} |" in card


def test_it_stays_small():
    total = sum(path.stat().st_size for path in weights.MINIATURE.rglob("*") if path.is_file())
    assert total <= 32e6
    assert not any(p.suffix in (".pt", ".bin", ".pkl") for p in weights.MINIATURE.rglob("*"))


def recipe(name: str, *args) -> None:
    subprocess.run(
        [sys.executable, str(ROOT / "scripts/miniature" / name), *map(str, args)],
        check=True,
        cwd=ROOT,
        capture_output=True,
    )


def test_recipe_runs_and_goes_on_where_it_was_stopped(tmp_path):
    """On 40 made-up pictures for seconds: train, stop, train on, export, load."""
    rng = np.random.default_rng(0)
    np.save(tmp_path / "pictures.npy", rng.integers(0, 255, (40, 64, 64, 3), dtype=np.uint8))
    records = [
        dict(label="red apple", tags=["fruit"], style="flat", background="white", small=False) for i in range(40)
    ]
    (tmp_path / "pictures.json").write_text(json.dumps(records))
    (tmp_path / "sources.json").write_text("[]")

    recipe("train_vae.py", "--out", tmp_path, "--minutes", 0.05, "--decoder-minutes", 0)
    first = torch.load(tmp_path / "vae.pt", weights_only=True)
    recipe("train_vae.py", "--out", tmp_path, "--minutes", 0.05, "--decoder-minutes", 0.05)
    second = torch.load(tmp_path / "vae.pt", weights_only=True)
    assert second["step"] > first["step"]
    same = [torch.equal(first["vae"][key], second["vae"][key]) for key in first["vae"] if key.startswith("encoder.")]
    changed = [not torch.equal(first["vae"][k], second["vae"][k]) for k in first["vae"] if k.startswith("decoder.")]
    assert all(same) and any(changed)  # the second run trained the decoder alone

    for minutes in (0.05, 0.1):
        recipe("train_unet.py", "--out", tmp_path, "--minutes", minutes, "--batch", 4)
    recipe("export.py", "--from", tmp_path, "--to", tmp_path / "model")
    loaded = weights.load(tmp_path / "model")
    assert tasks.text_to_image(loaded, "a red apple", steps=2).isfinite().all()
