"""scripts/convert.py and scripts/inspect_checkpoint.py as a user runs them, on the miniature and on tiny files."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file

import tiny
import weights
from single_files import Written
from tiny import TEXT_FILE
from weights.load import read_checkpoint


@pytest.fixture
def run(script):
    """Run a script that should succeed, or fail with the exit code given; -> what it printed."""
    def run(name: str, *args, code: int = 0) -> str:
        done = script(name, *args)
        assert done.returncode == code, done.stderr
        assert code != 2 or (done.stderr.count("\n") == 1 and done.stderr.startswith("error: ")), done.stderr
        return done.stdout + done.stderr
    return run


def tensors_of(model) -> dict[str, torch.Tensor]:
    networks = {"unet": model.unet, "vae": model.vae} | {f"text{i}": text for i, text in enumerate(model.texts)}
    return {f"{part}.{name}": tensor for part, network in networks.items()
            for name, tensor in network.state_dict().items()}


def assert_equal(ours, theirs, dtype=None):
    found = tensors_of(theirs)
    for name, tensor in tensors_of(ours).items():
        assert torch.equal(tensor.to(dtype or tensor.dtype), found[name]), name


def test_miniature_to_a_file_and_back(run, tmp_path):
    """All of its facts survive, though its sizes are none that shapes could tell."""
    first = weights.load(weights.MINIATURE, dtype=None)
    run("convert.py", weights.MINIATURE, "--to", tmp_path / "mini.safetensors")
    run("convert.py", tmp_path / "mini.safetensors", "--to", tmp_path / "mini", "--dtype", "float32",
        "--shard-size", "5MB", "--write-variant", "full")
    single, folder = (weights.load(tmp_path / name, dtype=None) for name in ("mini.safetensors", "mini"))
    assert single.facts == folder.facts == first.facts
    assert_equal(first, single)
    assert_equal(first, folder, torch.float32)
    shards = sorted((tmp_path / "mini" / "unet").glob("*.safetensors"))
    assert len(shards) == 7 and all(path.stat().st_size < 5.1e6 for path in shards)
    assert (tmp_path / "mini" / "unet" / "diffusion_pytorch_model.safetensors.index.full.json").exists()
    assert not list(tmp_path.glob("*.part"))


def test_a_folder_that_was_written_runs_in_diffusers(tmp_path):
    """Its JSON and tokenizer files too: the pictures of both pipelines are equal, but for the rounding of matrix
    products, which depends on where in memory a tensor lies (4e-6 was seen)."""
    for build, pipeline in ((tiny.tiny_sd, StableDiffusionPipeline), (tiny.tiny_sdxl, StableDiffusionXLPipeline)):
        expected = build(tmp_path / "first")
        weights.save(weights.load(tmp_path / "first"), tmp_path / "second")
        found = pipeline.from_pretrained(tmp_path / "second", safety_checker=None)
        found.set_progress_bar_config(disable=True)
        pictures = [pipe("an apple", num_inference_steps=2, output_type="pt", height=64, width=64,
                         generator=torch.Generator().manual_seed(0)).images for pipe in (expected, found)]
        assert (pictures[0] - pictures[1]).abs().max() < 1e-4
        shutil.rmtree(tmp_path)


@pytest.mark.parametrize("model, pipeline", [("sd15", StableDiffusionPipeline), ("sdxl", StableDiffusionXLPipeline)])
def test_a_file_that_was_written_is_read_by_diffusers(model, pipeline, tmp_path):
    """from_single_file finds every tensor where it expects it; a folder of ours describes the tiny sizes to it."""
    Written(model, tmp_path / "first.safetensors")
    ours = weights.load(tmp_path / "first.safetensors")
    weights.save(ours, tmp_path / "folder")
    weights.save(weights.load(tmp_path / "folder"), tmp_path / "again.safetensors")
    theirs = pipeline.from_single_file(tmp_path / "again.safetensors", config=str(tmp_path / "folder"),
                                       local_files_only=True, safety_checker=None)
    for network, reference in ((ours.unet, theirs.unet), (ours.vae, theirs.vae), (ours.texts[-1], theirs.text_encoder_2
                               if model == "sdxl" else theirs.text_encoder)):
        found = {key.removeprefix("text_model."): tensor for key, tensor in reference.state_dict().items()}
        for name, tensor in network.state_dict().items():
            assert torch.equal(tensor, found[name.removeprefix("text_model.")]), name
    shutil.rmtree(tmp_path)


def test_metadata_of_a_file_are_kept(run, tmp_path):
    Written("sdxl_refiner", tmp_path / "a.safetensors", metadata={"modelspec.title": "mine", "format": "pt"})
    run("convert.py", tmp_path / "a.safetensors", "--to", tmp_path / "b.safetensors", "--dtype", "float16")
    assert read_checkpoint(tmp_path / "b.safetensors").metadata["modelspec.title"] == "mine"
    assert {tensor.dtype for tensor in load_file(tmp_path / "b.safetensors").values()} == {torch.float16}
    shutil.rmtree(tmp_path)


def test_one_network_alone(run, tmp_path):
    first = weights.load(weights.MINIATURE, dtype=None)
    for part, names, expected in (("vae", "ldm", first.vae), ("unet", "diffusers", first.unet),
                                  ("text_encoder", "open_clip", first.texts[0])):
        run("convert.py", weights.MINIATURE, "--to", tmp_path / f"{part}.safetensors", "--part", part, "--names", names)
        found = weights.load_part(tmp_path / f"{part}.safetensors", dtype=None)
        assert found.config == expected.config
        assert all(torch.equal(tensor, found.state_dict()[name]) for name, tensor in expected.state_dict().items())


# pickle: here and nowhere else

def test_pickled_checkpoint(run, tmp_path):
    file = Written("sd15", tmp_path / "new.safetensors")
    torch.save({"state_dict": file.tensors, "global_step": 7}, tmp_path / "old.ckpt")
    told = run("convert.py", tmp_path / "old.ckpt", "--to", tmp_path / "out.safetensors")
    assert "warning:" in told and "old.ckpt is pickled Python" in told
    assert_equal(weights.load(file.path), weights.load(tmp_path / "out.safetensors"))
    shutil.rmtree(tmp_path)


def test_pickled_folder(run, tmp_path):
    """As folders were until 2023; transformers no longer writes one."""
    tiny.tiny_sd(tmp_path / "new")
    tiny.tiny_sd(tmp_path / "old", safe_serialization=False)
    text = tmp_path / "old" / TEXT_FILE
    torch.save(load_file(text), text.with_name("pytorch_model.bin"))
    text.unlink()
    assert not list((tmp_path / "old").rglob("*.safetensors"))
    run("convert.py", tmp_path / "old", "--to", tmp_path / "out")
    assert_equal(weights.load(tmp_path / "new"), weights.load(tmp_path / "out"))
    shutil.rmtree(tmp_path)


class Payload:
    """Runs a command when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_code_in_a_pickle_is_not_run(script, tmp_path):
    torch.save({"state_dict": {"a": Payload(tmp_path / "ran")}}, tmp_path / "evil.ckpt")
    done = script("convert.py", tmp_path / "evil.ckpt", "--to", tmp_path / "out.safetensors")
    warning, error = done.stderr.splitlines()
    assert done.returncode == 2 and error.startswith("error: ") and "cannot be converted" in error
    assert not (tmp_path / "ran").exists() and not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("args, message", [
    (["miniature", "--to", "there"], "there exists already"),
    (["miniature", "--to", "x", "--layout", "sgm"], "sd1 was never published in the layout 'sgm'"),
    (["miniature", "--to", "x", "--part", "text_encoder_2"], "is a whole model: choose its part"),
    (["miniature", "--to", "x", "--part", "vae", "--names", "open_clip"], "a VAE was never published with the"),
    (["miniature", "--to", "x", "--shard-size", "much"], "--shard-size much: give a number of bytes"),
    (["nothing", "--to", "x"], "nothing does not exist"),
    (["there", "--to", "x"], "there: model_index.json is missing"),
])
def test_what_cannot_be_done_is_one_line(args, message, run, tmp_path):
    (tmp_path / "there").mkdir()
    args = [weights.MINIATURE if arg == "miniature" else tmp_path / arg if arg in ("there", "x", "nothing") else arg
            for arg in args]
    assert re.search(message, run("convert.py", *args, code=2))
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


# inspection

def test_report_on_the_miniature(run):
    report = json.loads(run("inspect_checkpoint.py", weights.MINIATURE, "--json"))
    assert report["what"] == "sd: a folder in the layout of diffusers" and report["facts"]["prediction"] == "v"
    training = json.loads((weights.MINIATURE / "training.json").read_text())
    assert [row["parameters"] for row in report["networks"]] == [training["parameters"][name]
                                                               for name in ("unet", "vae", "text")]
    blocks = {row["block"]: row["parameters"] for row in report["blocks"] if row["part"] == "unet"}
    assert sum(blocks.values()) == training["parameters"]["unet"] and "down_blocks.1" in blocks
    assert "not_finite" not in report


def test_what_a_fine_tune_changed(run, tmp_path):
    """One tensor doubled: its block changed by the share of its norm, and no other."""
    state = load_file(weights.MINIATURE / "unet" / "diffusion_pytorch_model.safetensors")
    key = "up_blocks.1.resnets.0.conv1.weight"
    block = [tensor.double() for name, tensor in state.items() if name.startswith("up_blocks.1.")]
    expected = float(state[key].double().norm() / torch.stack([tensor.norm() for tensor in block]).norm())
    shutil.copytree(weights.MINIATURE / "unet", tmp_path / "unet")
    save_file(state | {key: 2 * state[key]}, tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
    report = json.loads(run("inspect_checkpoint.py", tmp_path / "unet", "--base", weights.MINIATURE, "--json"))
    changed = {row["block"]: row for row in report["changed"]}
    assert changed["up_blocks.1"]["change"] == pytest.approx(expected, rel=1e-6)
    assert changed["up_blocks.1"]["changed"] == 1
    assert sum(row["changed"] for row in changed.values()) == 1


def test_values_that_are_not_finite_are_named(run, tmp_path):
    state = load_file(weights.MINIATURE / "vae" / "diffusion_pytorch_model.safetensors")
    state["quant_conv.bias"][2] = torch.nan
    shutil.copytree(weights.MINIATURE / "vae", tmp_path / "vae")
    save_file(state, tmp_path / "vae" / "diffusion_pytorch_model.safetensors")
    assert "not finite: quant_conv.bias: 1 of 8 values" in run("inspect_checkpoint.py", tmp_path / "vae", code=1)
    assert "not finite" not in run("inspect_checkpoint.py", tmp_path / "vae", "--quick")


def test_single_file_says_what_decided(run, tmp_path):
    Written("sd2_v", tmp_path / "model.safetensors", betas=torch.rand(1000))
    told = run("inspect_checkpoint.py", tmp_path / "model.safetensors")
    for words in ("sd2 in the ldm layout", "it predicts v:", "deviates by 0.120, which is above 0.09",
                  "the noise schedule of its training: 1 tensors, 'betas'", "the last block of the text tower"):
        assert words in told
    shutil.rmtree(tmp_path)


def test_adapter_ranks(run, tmp_path):
    """Two ranks of LoRA in the UNet, another in the text tower."""
    tensors = {}
    for module, rank, width in (("lora_unet_mid_block_attentions_0_proj_in", 4, 64),
                                ("lora_unet_mid_block_attentions_0_proj_out", 4, 64),
                                ("lora_te_text_model_encoder_layers_0_mlp_fc1", 2, 96)):
        tensors |= {f"{module}.lora_down.weight": torch.ones(rank, width),
                    f"{module}.lora_up.weight": torch.ones(width, rank), f"{module}.alpha": torch.tensor(1.0)}
    save_file(tensors, tmp_path / "lora.safetensors", {"ss_network_dim": "4"})
    report = json.loads(run("inspect_checkpoint.py", tmp_path / "lora.safetensors", "--json"))
    assert report["what"] == "an adapter" and report["metadata"] == {"ss_network_dim": "4"}
    assert [(row["network"], row["kind"], row["rank"], row["alpha"], row["layers"]) for row in report["adapter"]] == [
        ("lora_te", "LoRA", 2, 1.0, 1), ("lora_unet", "LoRA", 4, 1.0, 2)]


def test_nothing_known_is_an_error(run, tmp_path):
    save_file({"x": torch.zeros(2)}, tmp_path / "x.safetensors")
    assert "holds no network known here but 'x'" in run("inspect_checkpoint.py", tmp_path / "x.safetensors", code=2)
