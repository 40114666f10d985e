"""What people write and paste for a source, and what they give in its place."""

import os
import shlex
import shutil
import zipfile
from pathlib import Path

import numpy
import pytest
import torch
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import load_file, save_file

import weights
from ldm.config import VAEConfig
from ldm.vae import VAE
from scripts.settings import split_at_colon
from support.hub_server import Hub
from support.tiny import TEXT_FILE, UNET_FILE, VAE_FILE
from weights import CheckpointError
from weights.sources import Address, parse

MINIATURE = weights.MINIATURE
FACTS = weights.describe(MINIATURE).facts
AT_HUB = "https://huggingface.co/owner/name"


# names of repositories


@pytest.mark.parametrize(
    "text, repository",
    [
        ("owner/name", Address("owner/name")),
        ("owner/name/", Address("owner/name")),
        ("owner/name@v1.0", Address("owner/name", "v1.0")),
        ("owner/name@refs/pr/2", Address("owner/name", "refs/pr/2")),
        ("owner/name@v1/sub/x.safetensors", Address("owner/name", "v1", "sub/x.safetensors")),
        ("owner/name/sub/x.safetensors@v1", Address("owner/name", "v1", "sub/x.safetensors")),
        (AT_HUB, Address("owner/name")),
        (AT_HUB + "/", Address("owner/name")),
        (AT_HUB + ".git", Address("owner/name")),
        ("git clone " + AT_HUB, Address("owner/name")),
        (AT_HUB + "/tree/main", Address("owner/name", "main")),
        (AT_HUB + "/tree/v1/sub/folder/", Address("owner/name", "v1", "sub/folder")),
        (AT_HUB + "/tree/refs%2Fpr%2F3/sub", Address("owner/name", "refs/pr/3", "sub")),
        (AT_HUB + "/tree/refs/pr/3", Address("owner/name", "refs/pr/3")),
        (AT_HUB + "/blob/main/a%20b.safetensors", Address("owner/name", "main", "a b.safetensors")),
        (AT_HUB + "/blob/main/x.safetensors#L1", Address("owner/name", "main", "x.safetensors")),
        (AT_HUB + "/resolve/v1/x.safetensors?download=true", Address("owner/name", "v1", "x.safetensors")),
        (AT_HUB + "/commit/0123abc", Address("owner/name", "0123abc")),
        (AT_HUB + "/discussions/7", Address("owner/name")),
        ("http://www.huggingface.co/owner/name", Address("owner/name")),
        ("https://hf.co/owner/name", Address("owner/name")),
        ("hf.co/owner/name", Address("owner/name")),
        ("huggingface.co/owner/name/tree/main", Address("owner/name", "main")),
        ("hf://owner/name", Address("owner/name")),
        ("owner/name/tree/main", Address("owner/name", "main")),
    ],
)
def test_what_names_a_repository(text, repository):
    assert parse(text) == repository


@pytest.mark.parametrize("text", ["name", "a/b/c", "/a/b", "./a/b", "../a/b", "~/a", "a//b", ""])
def test_what_names_none(text):
    assert parse(text) is None


def test_what_is_written_goes_home_too(tmp_path, monkeypatch):
    """A shell leaves the ~ of --to=~/x alone, and Python all of them: no folder of that name is made."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    vae = VAE(VAEConfig(channels=(8,), layers=1, groups=4)).requires_grad_(False)
    weights.save_part(vae, "~/models/vae.safetensors")
    assert weights.describe_part("~/models/vae.safetensors").path == tmp_path / "home/models/vae.safetensors"
    with pytest.raises(CheckpointError, match="home/models/vae.safetensors exists already"):
        weights.save_part(vae, Path("~/models/vae.safetensors"))
    weights.save_part(vae, "~nobody-has-this-name.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "~nobody-has-this-name.safetensors"]


def test_a_folder_of_the_hubs_cache(tmp_path):
    """It holds models of several revisions, and says where."""
    folder = tmp_path / "models--owner--name"
    (folder / "snapshots" / ("0" * 40)).mkdir(parents=True)
    with pytest.raises(CheckpointError, match=f"give the model in it, {folder}/snapshots/{'0' * 40}$"):
        weights.describe(folder)


@pytest.mark.parametrize(
    "text, words",
    [
        ("https://civitai.example/models/12", "only those of the hub are followed: download the file"),
        ("https://huggingface.co/datasets/a/b", "is a page of the hub's datasets"),
        ("https://huggingface.co/spaces/a/b", "is a page of the hub's spaces"),
        ("https://huggingface.co/name", "an address with owner/name is expected"),
        (AT_HUB + "/blob/main/v1%20final.ckpt", "`ldm convert 'v1 final.ckpt' --to 'v1 final.safetensors'`"),
        ("no such model", "does not exist: give a folder"),
        ("~nobody-has-this-name/x.safetensors", "no such user"),
    ],
)
def test_addresses_that_lead_nowhere(text, words):
    with pytest.raises(CheckpointError) as caught:
        weights.load(text)
    assert words in str(caught.value) and str(caught.value).isprintable()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with Hub() as hub:
        for name, value in {
            "ENDPOINT": hub.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(tmp_path / "hub"),
            "HF_TOKEN_PATH": str(tmp_path / "token"),
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_TELEMETRY": True,
        }.items():
            monkeypatch.setattr(constants, name, value)
        files = [file for file in MINIATURE.rglob("*") if file.is_file()]
        hub.push("owner/name", {file.relative_to(MINIATURE).as_posix(): file.read_bytes() for file in files})
        yield hub
    shutil.rmtree(tmp_path)


def test_pasted_addresses_load(hub):
    """Of the hub that is in use: a model, a folder of it, a file; what they name and no more is fetched."""
    page = f"{hub.url}/owner/name"
    assert weights.describe(f" {page}/tree/main\n").facts == FACTS
    vae = weights.describe_part(f"{page}/tree/main/vae")
    assert vae.config == FACTS.vae and vae.path.name == Path(VAE_FILE).name
    file = weights.describe_part(f"{page}/blob/main/{VAE_FILE}?download=true", "vae")
    assert file.path.name == Path(VAE_FILE).name
    with pytest.raises(CheckpointError, match="it has no folder 'sub'"):
        weights.load(f"{page}/tree/main/sub")
    with pytest.raises(CheckpointError, match="has no revision 'v9'"):
        weights.load("owner/name@v9")


def test_a_unet_by_its_page_knows_its_scheduler(hub, tmp_path):
    """As by the folder of a model on the disk: the miniature predicts v, so its UNet is none for a model of eps."""
    shutil.copytree(MINIATURE, tmp_path / "eps")
    scheduler = tmp_path / "eps/scheduler/scheduler_config.json"
    scheduler.write_text(scheduler.read_text().replace('"v_prediction"', '"epsilon"'))
    with pytest.raises(CheckpointError, match="trained with the prediction v, and the model's with eps"):
        weights.describe(tmp_path / "eps", unet=f"{hub.url}/owner/name/tree/main/unet")


# paths


class Written(os.PathLike):
    def __init__(self, path: Path):
        self.path = path

    def __fspath__(self) -> str:
        return str(self.path)


def test_paths_in_every_form(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(MINIATURE, tmp_path / "my model")
    for source in (
        "~/my model",
        "'~/my model' ",
        f'"{tmp_path}/my model"',
        f"{tmp_path}/my model/",
        f"{tmp_path}/my model/model_index.json",
        "~/my model/model_index.json",
        (tmp_path / "my model").as_uri(),
        Written(tmp_path / "my model"),
    ):
        assert weights.describe(source).facts == FACTS
    assert weights.describe_part("~/my model/vae/config.json").config == FACTS.vae
    lora = {"lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": torch.ones(2, 4)}
    save_file(lora, tmp_path / "lora.safetensors")
    assert weights.describe_adapter("~/lora.safetensors").path == tmp_path / "lora.safetensors"


def test_the_index_of_shards(tmp_path):
    """It stands for the network whose shards it lists, also where other variants lie beside it."""
    model = weights.load(MINIATURE, dtype=None)
    weights.save(model, tmp_path / "sharded", shard_size=300_000, variant="fp16")
    (index,) = (tmp_path / "sharded" / "vae").glob("*.index*.json")
    part = weights.load_part(index, dtype=None)
    assert all(torch.equal(value, part.state_dict()[name]) for name, value in model.vae.state_dict().items())
    assert weights.load(MINIATURE, dtype=None, vae=index).files.keys() > {UNET_FILE, TEXT_FILE}
    with pytest.raises(CheckpointError, match="holds a VAE, not a unet"):
        weights.load_part(index, "unet")
    with pytest.raises(CheckpointError, match="holds a VAE, not a whole model"):
        weights.load(index)
    (tmp_path / "workflow.json").write_text('{"nodes": []}')
    with pytest.raises(CheckpointError, match=r"workflow\.json is JSON text and no model"):
        weights.load(tmp_path / "workflow.json")


def test_flags_take_addresses():
    """The colon before a strength or a word is not that of an address."""
    assert split_at_colon(AT_HUB) == (AT_HUB, None)
    assert split_at_colon(AT_HUB + ":0.5") == (AT_HUB, "0.5")


@pytest.mark.parametrize(
    "text, dtype",
    [
        *((text, torch.float16) for text in ("float16", "fp16", "torch.float16", "half", " FP16 ", "Half")),
        *((text, torch.bfloat16) for text in ("bf16", "bfloat16", "torch.bfloat16")),
        *((text, torch.float32) for text in ("float32", "fp32", "float", "torch.float", "full")),
        *((text, torch.float64) for text in ("float64", "fp64", "double")),
    ],
)
def test_dtypes_as_text(text, dtype):
    vae = weights.load_part(MINIATURE, "vae", text, check_finite=False)
    assert {parameter.dtype for parameter in vae.parameters()} == {dtype}


@pytest.mark.parametrize("dtype", ["int8", "fp8", "", torch.int32, "x" * 1000])
def test_dtypes_that_are_none(dtype):
    with pytest.raises(ValueError, match="unknown dtype .*choose one of torch.float32") as caught:
        weights.load(MINIATURE, dtype)
    assert len(str(caught.value)) < 300


def test_dtypes_as_text_when_saving(tmp_path):
    weights.save_part(weights.load_part(MINIATURE, "vae", "stored"), tmp_path / "x.safetensors", dtype="bf16")
    assert {tensor.dtype for tensor in load_file(tmp_path / "x.safetensors").values()} == {torch.bfloat16}


# files that are none


def picture(format: str):
    return lambda path: Image.new("RGB", (8, 8)).save(path, format)


def text(content: str | bytes):
    return lambda path: path.write_bytes(content.encode() if isinstance(content, str) else content)


def zipped(path: Path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")


PAGE = "<!DOCTYPE html>\n<html><head>\n<title>owner/name · a hub</title></head></html>"
KINDS = {
    "text": (
        text("a photo of a fox\nanother line\n"),
        'is a text file and no safetensors file: it begins with "a photo',
    ),
    "text beyond ASCII": (text("Füchse\n" * 2000), 'begins with "Füchse'),
    "YAML": (text("model:\n  base_learning_rate: 1.0e-04\n"), "is a text file"),
    "web page": (text(PAGE), "is a web page, 'owner/name · a hub'"),
    "web page after a comment": (text("\n<!-- saved from -->\n" + PAGE), "is a web page"),
    "LFS pointer": (text("version https://git-lfs.github.com/spec/v1\noid sha256:4d\n"), "git-LFS pointer"),
    "settings": (text('{"_class_name": "AutoencoderKL"}'), "the settings of a model"),
    "index": (text('{"metadata": {}, "weight_map": {}}'), "an index of shards"),
    "JSON with an object at byte 8": (text('{"data":{"a": 1}, "padding": "' + "x" * 99 + '"}'), "is JSON text"),
    "SVG": (text('<svg xmlns="http://www.w3.org/2000/svg"/>'), "is an XML page"),
    "PNG": (picture("PNG"), "is a PNG picture"),
    "JPEG": (picture("JPEG"), "is a JPEG picture"),
    "WebP": (picture("WEBP"), "is a WebP picture"),
    "GIF": (picture("GIF"), "is a GIF picture"),
    "BMP": (picture("BMP"), "is a BMP picture"),
    "PDF": (text(b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n"), "is a PDF document"),
    "zip": (zipped, "is a zip archive, and not as torch.save writes it: unpack it"),
    "7z": (text(b"7z\xbc\xaf\x27\x1c\x00\x04" + bytes(40)), "is a 7-Zip archive: unpack it"),
    "tar": (text(bytes([97]) + bytes(256) + b"ustar\x0000" + bytes(300)), "is a tar archive: unpack it"),
    "GGUF": (text(b"GGUF\x03\x00\x00\x00" + bytes(40)), "is a GGUF file"),
    "ONNX": (text(b"\x08\x08\x12\x07pytorch\x1a\x052.4.0:" + b"\xd0\xff\x01" * 50), "is an ONNX file"),
    "NumPy": (lambda path: numpy.save(path.open("wb"), numpy.ones(3)), "is a NumPy array"),
    "HDF5": (text(b"\x89HDF\r\n\x1a\n" + bytes(40)), "is an HDF5 file"),
    "zeros": (text(bytes(5000)), "holds zeros only"),
    "empty": (text(b""), "is empty"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_files_are_named_for_what_they_are(kind, tmp_path):
    """Whatever they are called, and wherever a model, a part or an adapter was expected."""
    write, words = KINDS[kind]
    path = tmp_path / "file.safetensors"
    write(path)
    for read in (weights.load, weights.load_part, weights.describe_adapter):
        with pytest.raises(CheckpointError) as caught:
            read(path)
        line = str(caught.value)
        assert str(path) in line and words in line and line.isprintable() and len(line) - len(str(path)) < 300


def as_vae(path: Path):
    return weights.load(MINIATURE, vae=path)


@pytest.mark.parametrize(
    "name, target",
    [
        ("v1 final.ckpt", "v1 final.safetensors"),
        ("it's.pt", "it's.safetensors"),
        ("vae.bin", "vae.safetensors"),
        ("model.safetensors", "model-converted.safetensors"),
    ],
)
def test_a_pickle_is_told_the_command(name, target, tmp_path):
    """It is a line for the shell, quotes and all, whatever was expected."""
    torch.save({"state_dict": {"x": torch.ones(2)}}, tmp_path / name)
    for read in (weights.load, weights.load_part, weights.describe_adapter, as_vae):
        with pytest.raises(CheckpointError) as caught:
            read(tmp_path / name)
        line = str(caught.value)
        assert line.endswith("never read here: convert it to safetensors")
        command = shlex.split(line.split("`")[1])
        assert command == ["ldm", "convert", str(tmp_path / name), "--to", str(tmp_path / target)]


def test_folders_say_what_they_have(tmp_path):
    """Of a folder that is no model: its files, or the command for what is pickled in it."""
    for name, words in (
        ("a.safetensors", "name one of its files, 'a.safetensors'"),
        ("v1.ckpt", f"`ldm convert {tmp_path}/v1.ckpt/v1.ckpt --to {tmp_path}/v1.ckpt/v1.safetensors`"),
        ("config.json", "weights.load_part reads a network alone"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text("{}")
        with pytest.raises(CheckpointError, match="model_index.json is missing") as caught:
            weights.load(tmp_path / name)
        assert words in str(caught.value)
    model = shutil.copytree(MINIATURE, tmp_path / "my model")
    (model / UNET_FILE).rename(model / UNET_FILE.replace(".safetensors", ".bin"))
    with pytest.raises(CheckpointError) as caught:
        weights.load(model)
    assert f"by `ldm convert '{model}' --to '{model}-converted'`" in str(caught.value)


def test_the_command_works_for_a_network_alone(tmp_path, script):
    """As a VAE's fine-tunes were published: what is written can take the place of the model's own."""
    weights.save_part(VAE(VAEConfig(channels=(32, 32))), tmp_path / "expected.safetensors", "ldm")
    tensors = load_file(tmp_path / "expected.safetensors")
    torch.save({"state_dict": tensors}, tmp_path / "vae.pt")
    with pytest.raises(CheckpointError) as caught:
        weights.load(MINIATURE, vae=tmp_path / "vae.pt")
    run = script(*shlex.split(str(caught.value).split("`ldm ")[1].split("`")[0].replace("convert", "convert.py", 1)))
    assert run.returncode == 0, run.stderr
    found = load_file(tmp_path / "vae.safetensors")
    assert found.keys() == tensors.keys() and all(torch.equal(found[key], tensors[key]) for key in tensors)
