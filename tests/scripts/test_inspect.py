"""scripts/inspect_checkpoint.py on the miniature and on tiny files, in this process: each start costs two seconds."""

import json
import os
import runpy
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

import weights
from support.hub_server import Hub
from support.paths import SCRIPTS
from support.single_files import Written
from support.tiny import UNET_FILE

INSPECT = SCRIPTS / "inspect_checkpoint.py"


@pytest.fixture
def run(monkeypatch, capsys):
    """Inspect, to the exit code given; -> what was printed."""
    main = runpy.run_path(str(INSPECT))["main"]

    def run(*args, code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["inspect_checkpoint.py", *map(str, args)])
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capsys.readouterr()
        assert end.value.code == code, err
        return out + err

    return run


def test_report_on_the_miniature(run):
    report = json.loads(run(weights.MINIATURE, "--json"))
    assert report["what"] == "sd1: a folder in the layout of diffusers" and report["facts"]["prediction"] == "v"
    training = json.loads((weights.MINIATURE / "training.json").read_text())
    assert [row["parameters"] for row in report["networks"]] == [
        training["parameters"][name] for name in ("unet", "vae", "text")
    ]
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
    report = json.loads(run(tmp_path / "unet", "--base", weights.MINIATURE, "--json"))
    changed = {row["block"]: row for row in report["changed"]}
    assert changed["up_blocks.1"]["change"] == pytest.approx(expected, rel=1e-6)
    assert changed["up_blocks.1"]["changed"] == 1
    assert sum(row["changed"] for row in changed.values()) == 1


def test_values_that_are_not_finite_are_named(run, tmp_path):
    state = load_file(weights.MINIATURE / "vae" / "diffusion_pytorch_model.safetensors")
    state["quant_conv.bias"][2] = torch.nan
    shutil.copytree(weights.MINIATURE / "vae", tmp_path / "vae")
    save_file(state, tmp_path / "vae" / "diffusion_pytorch_model.safetensors")
    assert "not finite: quant_conv.bias: 1 of 8 values" in run(tmp_path / "vae", code=1)
    assert "not finite" not in run(tmp_path / "vae", "--quick")


def test_single_file_says_what_decided(run, tmp_path):
    Written("sd2_v", tmp_path / "model.safetensors", betas=torch.rand(1000))
    told = run(tmp_path / "model.safetensors")
    for words in (
        "sd2 in the ldm layout",
        "it predicts v:",
        "deviates by 0.120, which is above 0.09",
        "the noise schedule of its training: 1 tensors, 'betas'",
        "the last block of the text tower",
    ):
        assert words in told
    shutil.rmtree(tmp_path)


def test_adapter_ranks(run, tmp_path):
    """Two ranks of LoRA in the UNet, another in the text tower."""
    tensors = {}
    for module, rank, width in (
        ("lora_unet_mid_block_attentions_0_proj_in", 4, 64),
        ("lora_unet_mid_block_attentions_0_proj_out", 4, 64),
        ("lora_te_text_model_encoder_layers_0_mlp_fc1", 2, 96),
    ):
        tensors |= {
            f"{module}.lora_down.weight": torch.ones(rank, width),
            f"{module}.lora_up.weight": torch.ones(width, rank),
            f"{module}.alpha": torch.tensor(1.0),
        }
    save_file(tensors, tmp_path / "lora.safetensors", {"ss_network_dim": "4"})
    report = json.loads(run(tmp_path / "lora.safetensors", "--json"))
    assert report["what"] == "an adapter" and report["metadata"] == {"ss_network_dim": "4"}
    assert [(row["network"], row["kind"], row["rank"], row["alpha"], row["layers"]) for row in report["adapter"]] == [
        ("lora_te", "LoRA", 2, 1.0, 1),
        ("lora_unet", "LoRA", 4, 1.0, 2),
    ]


def test_nothing_known_is_an_error(run, tmp_path):
    save_file({"x": torch.zeros(2)}, tmp_path / "x.safetensors")
    assert "holds no network known here but 'x'" in run(tmp_path / "x.safetensors", code=2)


def test_a_damaged_model_is_told_of(run, tmp_path):
    """Of three parts two are listed, and the third is the problem: cut off, a link to nothing, not there."""
    whole = (weights.MINIATURE / UNET_FILE).read_bytes()
    for damage, problem in (
        (lambda file: file.write_bytes(whole[: 10**6]), "the file is cut off, download it again"),
        (lambda file: file.symlink_to("nothing"), "is a link to a file that does not exist"),
        (
            lambda file: shutil.rmtree(file.parent),
            "the component unet of 'StableDiffusionPipeline' is missing as a folder",
        ),
    ):
        shutil.copytree(weights.MINIATURE, tmp_path / "model")
        (tmp_path / "model" / UNET_FILE).unlink()
        damage(tmp_path / "model" / UNET_FILE)
        for args in ([tmp_path / "model"], [weights.MINIATURE, "--base", tmp_path / "model"]):
            report = json.loads(run(*args, "--quick", "--json", code=2))
            assert len(report["problems"]) == 1 and problem in report["problems"][0]
        assert [row["part"] for row in report["networks"]] == ["unet", "vae", "text_encoder"]
        assert list(dict.fromkeys(row["part"] for row in report["changed"])) == ["vae", "text_encoder"]
        report = json.loads(run(tmp_path / "model", "--quick", "--json", code=2))
        assert [row["part"] for row in report["networks"]] == ["vae", "text_encoder"]
        assert f"problems: {report['problems'][0]}" in run(tmp_path / "model", "--quick", code=2)
        shutil.rmtree(tmp_path / "model")


def test_json_has_no_nan(run, tmp_path):
    state = load_file(weights.MINIATURE / "vae" / "diffusion_pytorch_model.safetensors")
    state["quant_conv.bias"][2] = torch.nan
    shutil.copytree(weights.MINIATURE / "vae", tmp_path / "vae")
    save_file(state, tmp_path / "vae" / "diffusion_pytorch_model.safetensors")
    told = run(tmp_path / "vae", "--base", weights.MINIATURE / "vae", "--json", code=1)
    rows = json.loads(told, parse_constant=pytest.fail)["changed"]
    assert [row["change"] for row in rows if row["block"] == "quant_conv"] == [None]


DOWN, UP = (f"lora_unet_mid_block_attentions_0_proj_in.lora_{which}.weight" for which in ("down", "up"))


def test_adapters_with_faults(run, tmp_path):
    """They are listed as far as they can be; --quick looks at no value."""
    file, good = tmp_path / "lora.safetensors", {DOWN: torch.ones(4, 64), UP: torch.ones(64, 4)}
    save_file(good | {DOWN: torch.full((4, 64), torch.inf)}, file)
    assert f"not finite: {DOWN}: 256 of 256 values" in run(file, code=1)
    assert "LoRA     4      4       1" in run(file, "--quick")
    for tensors, problem in (
        (good | {DOWN: torch.ones(())}, "factors of the shapes [(64, 4), ()] are no matrices"),
        (good | {DOWN.replace("lora_down.weight", "alpha"): torch.ones(2)}, "alpha must be one number"),
    ):
        save_file(tensors, file)
        told = run(file, code=2)
        assert f"problems: {file}: 'lora_unet_mid_block_attentions_0_proj_in': {problem}" in told
    save_file(good, file)
    assert f"error: --base: {file} and the base have no network in common" in run(
        file, "--base", weights.MINIATURE, code=2
    )


def test_alpha_of_an_adapter_as_loading_takes_it(run, tmp_path):
    """From the metadata that diffusers writes, where no tensor tells it."""
    tensors = {
        "unet.mid_block.attentions.0.proj_in.lora_A.weight": torch.ones(4, 64),
        "unet.mid_block.attentions.0.proj_in.lora_B.weight": torch.ones(64, 4),
    }
    config = {"unet.r": 4, "unet.lora_alpha": 16}
    save_file(tensors, tmp_path / "lora.safetensors", {"lora_adapter_metadata": json.dumps(config)})
    (row,) = json.loads(run(tmp_path / "lora.safetensors", "--json"))["adapter"]
    assert (row["network"], row["rank"], row["alpha"]) == ("unet", 4, 16)


def test_an_adapter_on_the_hub(tmp_path):
    """The only file there; by the program itself, whose reader goes away."""
    save_file(
        {DOWN: torch.ones(4, 64), UP: torch.ones(64, 4)},
        tmp_path / "lora.safetensors",
        {str(i): "x" * 200 for i in range(1000)},
    )
    with Hub() as hub:
        hub.push("owner/lora", {"x.safetensors": (tmp_path / "lora.safetensors").read_bytes()})
        environment = os.environ | {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "hub"),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        with subprocess.Popen(
            [sys.executable, INSPECT, "owner/lora"],
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            told = [process.stdout.readline() for _ in range(5)]
            process.stdout.close()
            errors = process.stderr.read()
    assert told[1] == "  an adapter\n" and told[4].startswith("lora_unet  LoRA     4      4       1")
    assert process.returncode == 0 and "Traceback" not in errors and "Broken pipe" not in errors, errors
