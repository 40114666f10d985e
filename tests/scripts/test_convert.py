"""scripts/convert.py on the miniature and on tiny files, most of it in this process: each start costs two seconds."""

import argparse
import json
import os
import re
import resource
import runpy
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import weights
from ldm.adapters import lora
from support import tiny
from support.hub_server import Hub
from support.paths import SCRIPTS
from support.single_files import Written
from support.tiny import TEXT_FILE, UNET_FILE
from weights.adapters.embedding import read_embedding
from weights.disk.safetensors import read_header
from weights.layouts.names import ema_key

CONVERT = SCRIPTS / "convert.py"


@pytest.fixture
def run(monkeypatch, capsys):
    """Convert, with success or to the exit code given; -> what was printed. An error is one line, after warnings."""
    main = runpy.run_path(str(CONVERT))["main"]

    def run(*args, code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["convert.py", *map(str, args)])
        try:
            main()
        except SystemExit as end:
            assert end.code == code
        else:
            assert code == 0
        out, err = capsys.readouterr()
        lines = [line for line in err.splitlines() if not line.startswith("warning: ")]
        assert code != 2 or len(lines) == 1 and lines[0].startswith("error: "), err
        return out + err

    run.main = main
    return run


@pytest.fixture(scope="module")
def sd15(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sd15")
    yield Written("sd15", folder / "sd15.safetensors")
    shutil.rmtree(folder)


def tensors_of(model) -> dict[str, torch.Tensor]:
    networks = {"unet": model.unet, "vae": model.vae} | {
        f"text{i}": text for i, text in enumerate(model.texts.values())
    }
    return {
        f"{part}.{name}": tensor for part, network in networks.items() for name, tensor in network.state_dict().items()
    }


def assert_equal(ours, theirs, dtype=None):
    found = tensors_of(theirs)
    for name, tensor in tensors_of(ours).items():
        assert torch.equal(tensor.to(dtype or tensor.dtype), found[name]), name


def test_miniature_to_a_file_and_back(run, tmp_path):
    """All of its facts survive, though its sizes are none that shapes could tell."""
    first = weights.load(weights.MINIATURE, dtype=None)
    run(weights.MINIATURE, "--to", tmp_path / "mini.safetensors")
    run(
        tmp_path / "mini.safetensors",
        "--to",
        tmp_path / "mini",
        "--dtype",
        "float32",
        "--shard-size",
        "5MB",
        "--write-variant",
        "full",
    )
    single, folder = (weights.load(tmp_path / name, dtype=None) for name in ("mini.safetensors", "mini"))
    assert single.facts == folder.facts == first.facts
    assert_equal(first, single)
    assert_equal(first, folder, torch.float32)
    shards = sorted((tmp_path / "mini" / "unet").glob("*.safetensors"))
    assert len(shards) == 7 and all(path.stat().st_size < 5.1e6 for path in shards)
    assert (tmp_path / "mini" / "unet" / "diffusion_pytorch_model.safetensors.index.full.json").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mini", "mini.safetensors"]


def test_a_folder_that_was_written_runs_in_diffusers(tmp_path):
    """Its JSON and tokenizer files too: the pictures of both pipelines are equal, but for the rounding of matrix
    products, which depends on where in memory a tensor lies (4e-6 was seen)."""
    for build, pipeline in ((tiny.tiny_sd, StableDiffusionPipeline), (tiny.tiny_sdxl, StableDiffusionXLPipeline)):
        expected = build(tmp_path / "first")
        weights.save(weights.load(tmp_path / "first"), tmp_path / "second")
        found = pipeline.from_pretrained(tmp_path / "second", safety_checker=None)
        found.set_progress_bar_config(disable=True)
        pictures = [
            pipe(
                "an apple",
                num_inference_steps=2,
                output_type="pt",
                height=64,
                width=64,
                generator=torch.Generator().manual_seed(0),
            ).images
            for pipe in (expected, found)
        ]
        assert (pictures[0] - pictures[1]).abs().max() < 1e-4
        shutil.rmtree(tmp_path)


@pytest.mark.parametrize("model, pipeline", [("sd15", StableDiffusionPipeline), ("sdxl", StableDiffusionXLPipeline)])
def test_a_file_that_was_written_is_read_by_diffusers(model, pipeline, tmp_path):
    """from_single_file finds every tensor where it expects it; a folder of ours describes the tiny sizes to it."""
    Written(model, tmp_path / "first.safetensors")
    ours = weights.load(tmp_path / "first.safetensors")
    weights.save(ours, tmp_path / "folder")
    weights.save(weights.load(tmp_path / "folder"), tmp_path / "again.safetensors")
    theirs = pipeline.from_single_file(
        tmp_path / "again.safetensors", config=str(tmp_path / "folder"), local_files_only=True, safety_checker=None
    )
    for network, reference in (
        (ours.unet, theirs.unet),
        (ours.vae, theirs.vae),
        (list(ours.texts.values())[-1], theirs.text_encoder_2 if model == "sdxl" else theirs.text_encoder),
    ):
        found = {key.removeprefix("text_model."): tensor for key, tensor in reference.state_dict().items()}
        for name, tensor in network.state_dict().items():
            assert torch.equal(tensor, found[name.removeprefix("text_model.")]), name
    shutil.rmtree(tmp_path)


def test_metadata_of_a_file_are_kept(run, tmp_path):
    Written("sdxl_refiner", tmp_path / "a.safetensors", metadata={"modelspec.title": "mine", "format": "pt"})
    run(tmp_path / "a.safetensors", "--to", tmp_path / "b.safetensors", "--dtype", "float16")
    run(tmp_path / "a.safetensors", "--to", tmp_path / "c.safetensors", "--part", "text_encoder_2")
    for name in ("b", "c"):
        assert read_header(tmp_path / f"{name}.safetensors").metadata["modelspec.title"] == "mine"
    assert {tensor.dtype for tensor in load_file(tmp_path / "b.safetensors").values()} == {torch.float16}
    shutil.rmtree(tmp_path)


def test_one_network_alone(run, tmp_path):
    first = weights.load(weights.MINIATURE, dtype=None)
    for part, names, expected in (
        ("vae", "ldm", first.vae),
        ("unet", "diffusers", first.unet),
        ("text_encoder", "open_clip", first.texts["text_encoder"]),
    ):
        run(weights.MINIATURE, "--to", tmp_path / f"{part}.safetensors", "--part", part, "--names", names)
        found = weights.load_part(tmp_path / f"{part}.safetensors", dtype=None)
        assert found.config == expected.config
        assert all(torch.equal(tensor, found.state_dict()[name]) for name, tensor in expected.state_dict().items())


def test_each_tensor_keeps_its_dtype(run, tmp_path):
    """A text tower and a norm of float32 in a file of float16, where SDXL's VAE must not become float32; in a folder
    and back."""
    written = Written("sdxl", tmp_path / "first.safetensors", dtype=torch.float16)
    norm = "model.diffusion_model.out.0.weight"
    mixed = {
        key: tensor.float() if key == norm or key.startswith("conditioner.embedders.0.") else tensor
        for key, tensor in written.tensors.items()
    }
    save_file(mixed, written.path)
    run(written.path, "--to", tmp_path / "folder")
    run(tmp_path / "folder", "--to", tmp_path / "again.safetensors")
    again = load_file(tmp_path / "again.safetensors")
    assert len(again) > 1000 and again.keys() <= mixed.keys()
    assert all(torch.equal(tensor, mixed[key]) and tensor.dtype == mixed[key].dtype for key, tensor in again.items())
    assert {tensor.dtype for tensor in load_file(tmp_path / "folder" / tiny.VAE_FILE).values()} == {torch.float16}
    shutil.rmtree(tmp_path)


def test_float8(run, sd15, tmp_path):
    small = {key: tensor.to(torch.float8_e4m3fn) for key, tensor in sd15.tensors.items()}
    save_file(small, tmp_path / "small.safetensors")
    for args, dtype in (([], torch.float8_e4m3fn), (["--dtype", "float16"], torch.float16)):
        target = tmp_path / f"{len(args)}.safetensors"
        run(tmp_path / "small.safetensors", "--to", target, *args)
        found = load_file(target)
        assert len(found) == len(small) and all(tensor.dtype == dtype for tensor in found.values())
        assert all(torch.equal(tensor.half(), small[key].half()) for key, tensor in found.items())
    shutil.rmtree(tmp_path)


def test_values_that_float16_cannot_hold(run, sd15, tmp_path):
    key = "model.diffusion_model.out.2.bias"
    save_file(sd15.tensors | {key: sd15.tensors[key] + 7e4}, tmp_path / "large.safetensors")
    for args in (["x.safetensors"], ["y.safetensors", "--part", "unet"], ["x"]):
        told = run(tmp_path / "large.safetensors", "--to", tmp_path / args[0], *args[1:], "--dtype", "float16", code=2)
        assert re.search(r"(out\.2|conv_out)\.bias' holds values beyond float16: choose bfloat16 or float32", told)
    run(tmp_path / "large.safetensors", "--to", tmp_path / "x.safetensors", "--dtype", "bfloat16")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["large.safetensors", "x.safetensors"]


def test_what_is_left_out_is_told(run, sd15, tmp_path):
    averaged = {ema_key(key): 2 * tensor for key, tensor in sd15.tensors.items() if key.startswith("model.diffusion")}
    extras = {f"depth_model.model.{i}": torch.ones(3) for i in range(4)} | {"model_ema.decay": torch.tensor(0.9)}
    save_file(sd15.tensors | averaged | extras, tmp_path / "first.safetensors")
    told = run(tmp_path / "first.safetensors", "--to", tmp_path / "plain")
    assert "left out: MiDaS, the network that estimates depth, 4 tensors\n" in told
    assert f"left out: averaged weights, or what counts them, {len(averaged) + 1} tensors\n" in told
    told = run(tmp_path / "first.safetensors", "--to", tmp_path / "averaged", "--ema")
    assert "left out: averaged weights, or what counts them\n" in told  # the decay
    plain, ema = (load_file(tmp_path / name / UNET_FILE) for name in ("plain", "averaged"))
    assert all(torch.equal(2 * tensor, ema[key]) for key, tensor in plain.items())

    index = json.loads((tmp_path / "plain" / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    (tmp_path / "plain" / "model_index.json").write_text(json.dumps(index))
    assert run(tmp_path / "plain", "--to", tmp_path / "again").count("left out: ") == 1
    shutil.rmtree(tmp_path)


def test_metadata_of_a_file_on_the_hub_are_kept(sd15, tmp_path):
    """By the program itself, under a name that ASCII does not have."""
    save_file(sd15.tensors, tmp_path / "first.safetensors", {"modelspec.title": "mine"})
    with Hub() as hub:
        hub.push("owner/name", {"m.safetensors": (tmp_path / "first.safetensors").read_bytes()})
        environment = os.environ | {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "hub"),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "PYTHONIOENCODING": "ascii",
        }
        done = subprocess.run(
            [sys.executable, CONVERT, "owner/name/m.safetensors", "--to", tmp_path / "\u00e9", "--layout", "diffusers"],
            env=environment,
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0 and done.stdout.endswith("\\xe9\n"), done.stderr
    with safe_open(tmp_path / "\u00e9" / UNET_FILE, "pt") as file:
        assert file.metadata()["modelspec.title"] == "mine"
    shutil.rmtree(tmp_path)


# pickle: here and nowhere else


class ModelCheckpoint:
    """As pytorch_lightning's, which checkpoints of SD 1 name beside their tensors."""


def lightning(monkeypatch) -> type:
    module = "pytorch_lightning.callbacks.model_checkpoint"
    for name in ("pytorch_lightning", "pytorch_lightning.callbacks", module):
        monkeypatch.setitem(sys.modules, name, types.SimpleNamespace(ModelCheckpoint=ModelCheckpoint))
    monkeypatch.setattr(ModelCheckpoint, "__module__", module)
    return ModelCheckpoint


def test_pickled_checkpoints(run, sd15, tmp_path, monkeypatch):
    """In the form of today, and in that before PyTorch 1.6 under a name that it does not deserve."""
    callbacks = {lightning(monkeypatch): {"best_model_score": torch.tensor(0.5)}}
    torch.save({"state_dict": sd15.tensors, "global_step": 7, "callbacks": callbacks}, tmp_path / "old.ckpt")
    torch.save({"state_dict": sd15.tensors}, tmp_path / "older.safetensors", _use_new_zipfile_serialization=False)
    for name in ("old.ckpt", "older.safetensors"):
        told = run(tmp_path / name, "--to", tmp_path / "out.safetensors")
        assert f"warning: {tmp_path / name} is pickled Python" in told
        found = load_file(tmp_path / "out.safetensors")
        assert found.keys() <= sd15.tensors.keys() and len(found) > 500
        assert all(torch.equal(tensor, sd15.tensors[key]) for key, tensor in found.items())
        (tmp_path / "out.safetensors").unlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old.ckpt", "older.safetensors"]
    shutil.rmtree(tmp_path)


def test_safetensors_that_begin_as_pickle_does(run, tmp_path):
    """A header of 0x..80 bytes, in a file whose name says nothing."""
    vector = {"<cat>": torch.randn(2, 32)}
    for count in range(0, 256, 8):  # the library pads headers to multiples of 8
        save_file(vector, tmp_path / "cat.bin", {"pad": "x" * count})
        if (tmp_path / "cat.bin").read_bytes()[0] == 0x80:
            break
    assert (tmp_path / "cat.bin").read_bytes()[0] == 0x80
    assert "pickled" not in run(tmp_path / "cat.bin", "--to", tmp_path / "cat.safetensors")
    assert torch.equal(load_file(tmp_path / "cat.safetensors")["<cat>"], vector["<cat>"])


def test_pickled_adapters_and_embeddings(run, tmp_path):
    """What the readers of both take."""
    model = weights.load(weights.MINIATURE)
    adapter = lora.new(model, "unet.mid_block.*.attn2.to_[kv]", rank=2)
    for delta in adapter.deltas.values():
        delta.up.normal_()
    weights.save_adapter(adapter, tmp_path / "lora.safetensors", model)
    torch.save(load_file(tmp_path / "lora.safetensors"), tmp_path / "pytorch_lora_weights.bin")
    run(tmp_path / "pytorch_lora_weights.bin", "--to", tmp_path / "again.safetensors", "--dtype", "float64")
    found = weights.load_adapter(tmp_path / "again.safetensors", model)
    assert found.deltas.keys() == adapter.deltas.keys() and len(found.deltas) == 2
    assert all(torch.equal(delta.up.double(), found.deltas[name].up) for name, delta in adapter.deltas.items())

    vectors = torch.randn(2, 96)
    beside = {"string_to_token": {"*": torch.tensor(265)}, "name": "cat", "step": 1}
    for name, content in (
        ("a.bin", {"<cat>": vectors}),
        ("b.pt", beside | {"string_to_param": {"*": torch.nn.Parameter(vectors)}}),
        ("c.pt", beside | {"string_to_param": torch.nn.ParameterDict({"*": vectors})}),
    ):
        torch.save(content, tmp_path / name)
        target = (tmp_path / name).with_suffix(".safetensors")
        run(tmp_path / name, "--to", target)
        embedding = read_embedding(target)
        assert torch.equal(embedding.vectors[0], vectors)
        assert embedding.token == ("<cat>" if name == "a.bin" else target.stem)
    assert "--ema has no effect on an adapter or embedding" in run(
        tmp_path / "c.pt", "--to", tmp_path / "x.safetensors", "--ema", code=2
    )


def test_pickled_folder(run, tmp_path):
    """As folders were until 2023, the text tower in shards; transformers no longer writes one. What is no part of the
    model stays closed."""
    tiny.tiny_sd(tmp_path / "new")
    tiny.tiny_sd(tmp_path / "old", safe_serialization=False)
    text, listing = tmp_path / "old" / TEXT_FILE, {}
    for i, keys in enumerate((list(load_file(text))[::2], list(load_file(text))[1::2]), 1):
        shard = text.with_name(f"pytorch_model-0000{i}-of-00002.bin")
        torch.save({key: load_file(text)[key] for key in keys}, shard)
        listing |= dict.fromkeys(keys, shard.name)
    text.with_name("pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": listing}))
    text.unlink()
    torch.save({"x": Payload(tmp_path / "ran")}, tmp_path / "old" / "training.bin")
    (tmp_path / "old" / "safety_checker").mkdir()
    torch.save({"x": Payload(tmp_path / "ran")}, tmp_path / "old" / "safety_checker" / "pytorch_model.bin")
    assert not list((tmp_path / "old").rglob("*.safetensors"))
    told = run(tmp_path / "old", "--to", tmp_path / "out")
    assert told.count("warning: ") == told.count(" is pickled Python") == 4
    assert_equal(weights.load(tmp_path / "new"), weights.load(tmp_path / "out"))

    run(tmp_path / "old" / "vae", "--to", tmp_path / "vae.safetensors", "--part", "vae")
    (tmp_path / "old" / "model_index.json").unlink()
    told = run(tmp_path / "old", "--to", tmp_path / "x", code=2)
    assert f"{tmp_path / 'old'}: it has no model_index.json" in told and "warning" not in told
    shutil.rmtree(tmp_path)


class Payload:
    """Runs a command when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("new", [True, False])
def test_code_in_a_pickle_is_not_run(new, run, tmp_path):
    torch.save(
        {"state_dict": {"a": Payload(tmp_path / "ran")}}, tmp_path / "evil.ckpt", _use_new_zipfile_serialization=new
    )
    told = run(tmp_path / "evil.ckpt", "--to", tmp_path / "out.safetensors", code=2)
    assert f"error: {tmp_path / 'evil.ckpt'} cannot be converted: it asks for posix.system, which is no tensor" in told
    assert [path.name for path in tmp_path.iterdir()] == ["evil.ckpt"]


def pickled_vae(folder: Path) -> Path:
    folder.mkdir(parents=True)
    shutil.copy(weights.MINIATURE / "vae" / "config.json", folder)
    torch.save(
        load_file(weights.MINIATURE / "vae" / "diffusion_pytorch_model.safetensors"),
        folder / "diffusion_pytorch_model.bin",
    )
    return folder


@pytest.mark.parametrize(
    "source, target, here",
    [
        ("..", "out", "vae/in"),
        (".", "out", "vae"),
        (".", "sub/out", "vae"),
        ("vae", "vae/a/out", ""),
        ("../..", "x", "vae/a/b"),
    ],
)
def test_nothing_is_written_beside_the_destination(source, target, here, run, tmp_path, monkeypatch):
    """Though the source's name may be none, or the destination lie in it; and after a failure not even the folders
    that were made for it are left."""
    pickled_vae(tmp_path / "vae")
    (tmp_path / here).mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(tmp_path / here)
    before = sorted(tmp_path.rglob("*"))
    run(source, "--to", target, code=2)
    assert sorted(tmp_path.rglob("*")) == before
    target = Path(target + ".safetensors")
    run(source, "--to", target, "--part", "vae")
    parents = [parent for parent in target.absolute().parents if tmp_path in parent.parents and parent not in before]
    assert sorted(tmp_path.rglob("*")) == sorted([*before, target.absolute(), *parents])
    shutil.rmtree(tmp_path / "vae")


def test_no_room_for_what_stood_in_a_pickle(run, tmp_path):
    torch.save({"a": torch.ones(1_000_000)}, tmp_path / "a.ckpt")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        told = run(tmp_path / "a.ckpt", "--to", tmp_path / "x.safetensors", code=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert f"error: {tmp_path / 'a.ckpt'} cannot be converted: File too large" in told
    assert [path.name for path in tmp_path.iterdir()] == ["a.ckpt"]


@pytest.mark.parametrize(
    "program, words",
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGXCPU)", "it takes far more time than a file of its size"),
        ("import time; time.sleep(60)", "it takes more than 0.2 seconds"),
        ("import sys; sys.exit('\\x1b[2J' + 'x' * 5000)", "cannot be converted: \\x1b[2Jxxx"),
        ("import os; os.abort()", "the process ended with -6"),
    ],
)
def test_a_process_that_ends_badly_is_one_line(program, words, run, tmp_path, monkeypatch):
    torch.save({"a": torch.ones(1)}, tmp_path / "a.ckpt")
    (tmp_path / "program.py").write_text(program)
    settings = run.main.__globals__
    monkeypatch.setitem(settings, "UNPICKLE", tmp_path / "program.py")
    monkeypatch.setitem(settings, "PATIENCE", 0.2 if "sleep" in program else 600)
    told = run(tmp_path / "a.ckpt", "--to", tmp_path / "x.safetensors", code=2)
    assert words in told and len(told) < 1000 and "\x1b" not in told


def test_errors_name_the_users_file(run, tmp_path):
    """Not the copy without pickle, which is gone by then."""
    torch.save({f"x.{i}": torch.ones(1) for i in range(3)}, tmp_path / "odd.ckpt")
    assert f"error: {tmp_path / 'odd.ckpt'} holds no network known here" in run(
        tmp_path / "odd.ckpt", "--to", tmp_path / "out.safetensors", code=2
    )


def test_nothing_stays_after_the_end(sd15, tmp_path):
    """Of a program that is asked to end while it opens a pickle."""
    torch.save({"state_dict": sd15.tensors}, tmp_path / "old.ckpt")
    process = subprocess.Popen([sys.executable, CONVERT, tmp_path / "old.ckpt", "--to", tmp_path / "out.safetensors"])
    while not list(tmp_path.glob(".part-*")) and process.poll() is None:
        time.sleep(0.01)
    assert list(tmp_path.glob(".part-*"))
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 143
    assert [path.name for path in tmp_path.iterdir()] == ["old.ckpt"]
    shutil.rmtree(tmp_path)


@pytest.mark.parametrize(
    "args, message",
    [
        ("miniature --to there", "there exists already"),
        ("nothing --to x --part vae", "--to .*x: the name of a file must end with .safetensors"),
        ("nothing --to x --layout ldm", "--to .*x: the name of a file must end with .safetensors"),
        (
            "nothing --to x.safetensors --layout diffusers",
            "the name of a file must end with .safetensors, and that of a folder must not",
        ),
        ("nothing --to x.safetensors --part unet --ema", "--ema has no effect on one network"),
        ("nothing --to x.safetensors --part unet --vae y", "--vae has no effect on one network"),
        ("nothing --to x.safetensors --part unet --prediction v", "--prediction has no effect on one network"),
        ("nothing --to x.safetensors --part unet --layout sgm", "--layout has no effect on one network"),
        ("nothing --to x.safetensors --part unet --shard-size 1GB", "--shard-size has no effect on one network"),
        ("nothing --to x.safetensors --write-variant fp16", "--write-variant has no effect on one file"),
        ("nothing --to x.safetensors --shard-size 1GB", "--shard-size has no effect on one file"),
        ("nothing --to x --names ldm", "--names has no effect on a folder"),
        ("nothing --to x --write-variant v1.0", "--write-variant v1.0: it can have letters, digits, _ and -"),
        ("nothing --to x --write-variant ../y", "--write-variant ../y: it can have letters"),
        ("nothing --to x --shard-size much", "--shard-size much: give a number of bytes"),
        ("nothing --to x --shard-size 0.5", "--shard-size 0.5: give a number of bytes"),
        ("miniature --to x --layout sgm", "the name of a file must end"),
        ("miniature --to x.safetensors --layout sgm", "sd1 was never published in the layout 'sgm'"),
        ("miniature --to x.safetensors --part text_encoder_2", "is a whole model: choose its part"),
        ("miniature --to x.safetensors --part vae --names open_clip", "a VAE was never published with the"),
        ("nothing --to new/dir/x", "nothing does not exist"),
        ("there --to x", "there: model_index.json is missing"),
        ("miniature --to there/model_index.txt/x.safetensors", "x.safetensors cannot be written: File exists"),
    ],
)
def test_what_cannot_be_done_is_one_line(args, message, run, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "model_index.txt").touch()
    paths = {"miniature": weights.MINIATURE} | {
        name: tmp_path / name for name in args.split() if re.match("(there|nothing|x|new)", name)
    }
    assert re.search(message, run(*(paths.get(arg, arg) for arg in args.split()), code=2))
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


@pytest.mark.parametrize("name", ["m.gguf", "m.ckpt", "m.bin", "m.SAFETENSORS", "m.sft", "nul\0"])
def test_names_of_other_files_are_no_folders(name, capsys):
    program = runpy.run_path(str(SCRIPTS / "convert.py"))
    with pytest.raises(SystemExit):
        program["check"](argparse.Namespace(to=Path(name)), "a folder")
    assert re.match("error: --to .*(written as .safetensors|null character)[^\n]*\n$", capsys.readouterr().err)


def test_sizes_beyond_all_disks_are_one_line(capsys):
    size = runpy.run_path(str(SCRIPTS / "convert.py"))["size"]
    for text in ("9" * 5000, "9" * 30 + "GB"):
        with pytest.raises(SystemExit):
            size(text)
        told = capsys.readouterr().err
        assert told.startswith("error: --shard-size 999") and told.count("\n") == 1 and len(told) < 200
    assert size("1.5 GB") == 1_500_000_000
