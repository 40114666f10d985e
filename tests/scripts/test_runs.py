"""What happens around drawing: where pictures go, what is refused, what is told. In this process, for a start takes
two seconds."""

import json
import os
import resource
import runpy
import subprocess
import sys
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin
from safetensors.torch import save_file

import weights
from ldm import pictures
from support.paths import SCRIPTS


@pytest.fixture
def program(monkeypatch, capsys):
    """program("txt2img.py", ...) -> exit status, output, errors."""

    def run(name: str, *args) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [name, *map(str, args)])
        status = 0
        threads = torch.get_num_threads()
        try:
            runpy.run_path(str(SCRIPTS / name))["main"]()
        except SystemExit as end:
            status = end.code
        finally:
            torch.set_num_threads(threads)
        out, err = capsys.readouterr()
        return status, out, err

    return run


@pytest.fixture
def draw(program):
    return lambda *args: program("txt2img.py", "--prompt", "a red apple", "--steps", 1, *args)


def check_refused(told: tuple[int, str, str], words: str):
    status, out, err = told
    assert (status, out) == (2, "") and words in err and err.count("\n") == 1 and len(err) < 2500, err


@pytest.mark.parametrize(
    "flags, name", [(("--format", "webp"), "00000-0.webp"), (("--format", ".JPEG"), "00000-0.jpg")]
)
def test_every_format_can_be_made_again(draw, program, tmp_path, flags, name):
    status, out, err = draw(*flags, "--out", tmp_path)
    assert (status, out, err) == (0, f"{tmp_path / name}\n", "")
    again = tmp_path / f"again{name[-5:].lstrip('0')}"
    assert program("txt2img.py", "--again", tmp_path / name, "--out", again)[0] == 0
    assert pictures.read_record(again) == pictures.read_record(tmp_path / name)
    with Image.open(tmp_path / name) as first, Image.open(again) as second:
        assert first.format == second.format == {"webp": "WEBP", "jpg": "JPEG"}[name.split(".")[1]]
        assert first.tobytes() == second.tobytes()


def test_a_picture_that_is_there_is_replaced_on_request_alone(draw, tmp_path):
    path = tmp_path / "x.png"
    draw("--out", path)
    before = path.read_bytes()
    check_refused(draw("--seed", 1, "--out", path), "x.png: exists already: choose another name, or --overwrite")
    assert path.read_bytes() == before
    assert draw("--seed", 1, "--out", path, "--overwrite")[0] == 0 and path.read_bytes() != before
    (tmp_path / "link.png").symlink_to("nowhere")
    check_refused(draw("--out", tmp_path / "link.png"), "link.png: exists already")


def test_a_grid_of_an_earlier_run_is_kept(draw, tmp_path):
    grids = []
    for seed in range(3):
        status, out, err = draw("--seed", seed, "--grid", "--out", tmp_path)
        assert status == 0 and out.endswith(f"{tmp_path / 'grid.png'}\n")
        grids.append((tmp_path / "grid.png").read_bytes())
    assert err == f"warning: {tmp_path / 'grid.png'} of an earlier run is {tmp_path / 'grid-2.png'} now\n"
    assert [(tmp_path / f"grid{k}.png").read_bytes() for k in ("-1", "-2", "")] == grids


def test_a_grid_is_no_wider_than_its_pictures(draw, tmp_path):
    assert draw("--count", 2, "--columns", 10**9, "--grid", "--out", tmp_path)[0] == 0
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.size == (128, 64)


def test_a_number_that_is_too_large_is_told_in_words(draw, tmp_path):
    told = draw("--sampler", "euler_ancestral", "--option", "eta=1e300", "--out", tmp_path / "out")
    check_refused(told, "error: a number is too large to compute with: choose smaller values")


def test_help_for_a_full_disk_is_told(monkeypatch):
    from common import make_parser
    from ldm import terminal

    with open("/dev/full", "w") as full, pytest.raises(SystemExit):
        monkeypatch.setattr(sys, "stdout", full)
        make_parser("x").parse_args(["--help"])
    assert terminal.failures.pop("/dev/full").strerror == "No space left on device"


@contextmanager
def largest_file(size: int):
    """A while in which this process can write no larger file; EFBIG takes the part of a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("batch", [1, 8])
def test_a_picture_that_cannot_be_written_loses_no_other(program, tmp_path, batch):
    (tmp_path / "prompts.txt").write_text("a\n" + "pear " * 3000 + "\nc\n")
    with largest_file(25_000):
        told = program("txt2img.py", "--prompts", tmp_path / "prompts.txt", "--steps", 1, "--seed", 7, "--batch", batch,
                       "--out", tmp_path / "out")  # fmt: skip
    status, out, err = told
    assert status == 2 and out.splitlines() == [str(tmp_path / f"out/0000{k}-7.png") for k in (0, 1)]
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "the picture of seed 7: " in errors[0] and "cannot be written: File too large" in err
    found = sorted((tmp_path / "out").iterdir())
    assert [pictures.read_record(path)["prompt"] for path in found] == ["a", "c"]


def test_the_disk_is_asked_before_the_first_picture(program):
    main = runpy.run_path(str(SCRIPTS / "destination.py"))
    destination = main["choose_destination"](SCRIPTS, None, False, 10**9)
    with pytest.raises(SystemExit):
        main["check_space"](destination, 10**9, {"height": 8192, "width": 8192})
    main["check_space"](destination, 1, {"height": 8192, "width": 8192})


@pytest.mark.parametrize(
    "flags, words",
    [
        (("--out", ""), "--out is empty"),
        (("--out=",), "--out is empty"),
        (("--model", ""), "--model is empty"),
        (("--lora", ""), "--lora is empty"),
        (("--sampler", ""), "--sampler is empty"),
        (("--option", ""), "--option is empty"),
        (("--out", "x.jpx"), "pictures are written as PNG, WebP or JPEG"),
        (("--out", "x.TIFF"), "pictures are written as PNG, WebP or JPEG"),
        (("--out", "m.gguf"), "pictures are written as PNG, WebP or JPEG"),
        (("--out", "x.pngg"), "pictures are written as PNG, WebP or JPEG"),
        (("--out", "x.png", "--format", "jpg"), "the end of the name says another format"),
        (("--format", "gif"), "invalid choice: 'gif'"),
        (("--out", "x" * 300), "cannot be written: File name too long"),
        (("--out", "x" * 300 + ".png"), "cannot be written: File name too long"),
        (("--out", "/dev/full"), "is a file"),
        (("--out", "/dev/full/x.png"), "cannot be written: /dev/full is no folder"),
        (("--out", "/proc/here"), "cannot be written: No such file"),
        (("--out", "nul\0.png"), "cannot be written: "),
        (("--prompt", "\udcff"), "--prompt: holds bytes that are not UTF-8: '\\udcff'"),
        (("--negative", "\udcff"), "--negative: holds bytes that are not UTF-8"),
        (("--threads", "0"), "--threads 0: choose 1 to 1024"),
        (("--sampler", "\x1b[31m\n\x9b"), "unknown sampler"),
        (("--stpes\x1b[2J", "1"), "unrecognized arguments: --stpes\\x1b[2J"),
        (("--out", "/proc/here", "--model", "no/such/model"), "cannot be written"),  # before the model is looked for
    ],
)
def test_what_is_refused_is_one_line_and_comes_before_the_model(draw, monkeypatch, tmp_path, flags, words):
    def forbidden(*args, **more):
        raise AssertionError("a model is loaded")

    monkeypatch.setattr(weights, "load", forbidden)
    monkeypatch.chdir(tmp_path)
    check_refused(draw(*flags), words)
    assert not list(tmp_path.iterdir())


def test_bytes_of_another_alphabet_become_text_again(draw, tmp_path):
    """As Python hands over an emoji in the locale POSIX."""
    assert draw("--negative", "🍎".encode().decode("ascii", "surrogateescape"), "--out", tmp_path)[0] == 0
    assert pictures.read_record(tmp_path / "00000-0.png")["negative"] == "🍎"


HARMFUL = "\x1b]0;title\x07\x9b2J\r\u202e"


def check_harmless(*texts: str):
    for text in texts:
        assert text and not set(text) & set("\x1b\x07\x9b\r\u202e\x7f"), text


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": HARMFUL},
        {"steps": HARMFUL},
        {"steps": ["9" * 100] * 9000},
        {"model": HARMFUL},
        {"model": "nul\0"},
        {"sampler": HARMFUL * 1000},
        {"schedule": HARMFUL},
        {"options": {HARMFUL: HARMFUL}},
        {"options": {"eta": [[[]]]}},
        {"seed": int("9" * 4000)},
        {"steps": int("9" * 4000)},
        {"width": int("8" * 4000)},
        {"guidance": int("8" * 4000)},
        {"guidance": 10**400},
        {"lora": [HARMFUL + ":1"]},
        {"embedding": [""]},
        {"prompt": "x" * 900_000, "model": HARMFUL},
        {"prompt": "\ud800"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_hostile_record_is_one_harmless_line(program, tmp_path, change):
    info = PngImagePlugin.PngInfo()
    info.add_itxt("ldm", json.dumps({"prompt": "x", "steps": 1} | change))
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png", pnginfo=info)
    told = program("txt2img.py", "--again", tmp_path / "x.png", "--out", tmp_path / "out")
    check_refused(told, "error: ")
    check_harmless(told[2])
    assert not (tmp_path / "out").exists()


def test_names_and_texts_of_files_do_not_command_the_terminal(program, tmp_path):
    """Of an adapter and of metadata, in every way in which programs show them."""
    path = tmp_path / f"lora{HARMFUL}.safetensors"
    layer = "unet.mid_block.attentions.0.proj_in"
    channels = weights.load(weights.MINIATURE).facts.unet.channels[-1]
    tensors = {f"{layer}.lora_A.weight": torch.ones(1, channels, 1, 1), f"{HARMFUL}.alpha": torch.ones(())}
    tensors[f"{layer}.lora_B.weight"] = torch.zeros(channels, 1, 1, 1)
    save_file(tensors, path, {"title": HARMFUL + "\x7f\n", HARMFUL: "x"})
    check_harmless(program("inspect_checkpoint.py", path)[1])
    status, out, _ = program("inspect_checkpoint.py", path, "--json")
    check_harmless(out)
    assert json.loads(out)["metadata"]["title"] == HARMFUL + "\x7f\n"
    flags = ("--prompt", "x", "--steps", 1, "--lora", path, "--partial-lora")
    status, out, err = program("txt2img.py", *flags, "--out", tmp_path / f"out{HARMFUL}")
    assert status == 0
    check_harmless(out, err)
    check_harmless(program("convert.py", path, "--to", tmp_path / f"{HARMFUL}.safetensors")[1])
    again = program("convert.py", path, "--to", tmp_path / f"{HARMFUL}.safetensors")
    check_refused(again, "exists already")
    check_harmless(again[2])


def test_a_picture_in_a_notebook_is_the_picture_in_the_file(draw, tmp_path):
    draw("--out", tmp_path / "x.png")
    from ldm import tasks

    image = tasks.text_to_image(weights.load(weights.MINIATURE), ["a red apple"], seeds=[0], steps=1)
    (shown,) = pictures.to_pil(image)
    with Image.open(tmp_path / "x.png") as written:
        difference = np.asarray(shown, dtype=int) - np.asarray(written, dtype=int)
    assert abs(difference).max() <= 1 and shown._repr_png_()


# Threads


def processor_time(out, **variables) -> float:
    """Seconds that drawing a picture takes of all cores together."""
    environment = {name: value for name, value in os.environ.items() if name not in SPINNING} | variables
    command = [sys.executable, SCRIPTS / "txt2img.py", "--prompt", "x", "--steps", "6", "--out", out]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_utime + usage.ru_stime


SPINNING = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def test_a_busy_machine_costs_little_more_processor_time(tmp_path):
    """While another process burns one core. Threads that waited for each other took 6 to 20 times as much."""
    burner = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        assert processor_time(tmp_path / "a.png") < 2 * processor_time(tmp_path / "b.png", OMP_NUM_THREADS="1")
    finally:
        burner.kill()
        burner.wait()


@pytest.mark.parametrize(
    "asked, parameters, pixels, variables, expected",
    [
        (None, 8_000_000, 8 * 64 * 64, {}, 1),
        (None, 8_000_000, 512 * 512, {}, 3),
        (None, 860_000_000, 64 * 64, {}, 3),
        (None, 8_000_000, 64 * 64, {"OMP_NUM_THREADS": "3"}, 3),
        (2, 8_000_000, 64 * 64, {"OMP_NUM_THREADS": "3"}, 2),
    ],
)
def test_small_networks_get_one_thread(monkeypatch, asked, parameters, pixels, variables, expected):
    for name in SPINNING:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    model = SimpleNamespace(unet=torch.nn.Linear(parameters, 1, bias=False, device="meta"))
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        runpy.run_path(str(SCRIPTS / "threads.py"))["set_threads"](asked, model, pixels)
        assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(before)
