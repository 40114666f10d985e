"""Files that change while they are read, or are no files: one line, never a signal, never a wait for ever.

The changes are made where they hurt: between a header and the values, while the values are read. What would end the
process, or hang it, is tried in another process with limits.
"""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import weights
from support.paths import ROOT
from weights import CheckpointError
from weights.adapters.embedding import read_embedding
from weights.adapters.tensors import read_all
from weights.disk import safetensors as disk
from weights.disk.safetensors import Held, map_tensors, read_header, read_stored, read_tensors, read_value
from weights.disk.settings import read_json

CPU = torch.device("cpu")
CHANGED = "model.safetensors has changed since its header was read: load it again when nothing writes to it"
WIDE = 3 * disk.PIECE + 5  # numbers in three whole pieces and a part of one
NUMBERS = (torch.arange(WIDE) % 1000).float()


@pytest.fixture
def path(tmp_path) -> Path:
    path = tmp_path / "model.safetensors"
    save_file({"a": NUMBERS, "b": torch.ones(7, 3)}, path)
    return path


def cut_in_place(path: Path):
    os.truncate(path, path.stat().st_size // 2)


def emptied(path: Path):
    os.truncate(path, 0)


def grown(path: Path):
    with path.open("ab") as file:
        file.write(b"x")


def overwritten(path: Path):
    """Other values of the same size, as a program writes that saves to the same name."""
    with path.open("r+b") as file:
        file.seek(-8, os.SEEK_END)
        file.write(b"12345678")
    os.utime(path, ns=(1, 1))  # a clock that ticks every 4 ms would not always show a write so soon after the last


def replaced(path: Path):
    """Another file under its name, with a key less: as a download ends."""
    other = path.with_name("other")
    save_file({"a": NUMBERS}, other)
    os.replace(other, path)


CHANGES = [cut_in_place, emptied, grown, overwritten, replaced]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_change_between_header_and_values(change, dtype, path):
    """float32 stays in the file, float16 is converted."""
    entries = read_header(path).entries
    change(path)
    with pytest.raises(CheckpointError, match=CHANGED):
        list(read_tensors(path, entries, dtype, CPU, check=True))
    with pytest.raises(CheckpointError, match=CHANGED):
        read_value(Held(path, "b", entries["b"]))


@pytest.mark.parametrize("change", [cut_in_place, emptied, grown, overwritten])
@pytest.mark.parametrize("read", ["mapped", "converted"])
def test_a_change_while_values_are_read(change, read, path):
    """After the first tensor, whose file is open by then. A file that is replaced or deleted goes on to be read: it is
    still the one that was opened."""
    entries = read_header(path).entries
    values = (
        map_tensors(path, entries, True) if read == "mapped" else read_tensors(path, entries, torch.float16, CPU, True)
    )
    next(values)
    change(path)
    with pytest.raises(CheckpointError, match=CHANGED):
        list(values)


@pytest.mark.parametrize("change", [replaced, os.unlink])
def test_what_was_opened_is_read_to_its_end(change, path):
    entries = read_header(path).entries
    values = read_tensors(path, entries, torch.float64, CPU, True)
    first = next(values)
    change(path)
    found = dict([first, *values])
    assert torch.equal(found["a"], NUMBERS.double())
    assert torch.equal(found["b"], torch.ones(7, 3, dtype=torch.float64))


def test_nothing_mapped_is_touched(path):
    """The pages of a mapping count as memory of the process once they were touched; also when values are checked."""
    entries = read_header(path).entries
    found = dict(map_tensors(path, entries, True))
    maps = Path("/proc/self/smaps").read_text()
    (mapping,) = re.findall(rf"{re.escape(str(path))}\n(?:[A-Z].*\n)+", maps)
    assert int(re.search(r"Rss: +(\d+) kB", mapping)[1]) == 0
    assert torch.equal(found["a"], NUMBERS)


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"])
@pytest.mark.parametrize("count", [0, 1, 2, disk.PIECE - 1, disk.PIECE, disk.PIECE + 1])
def test_pieces_make_up_the_tensor(dtype, count, tmp_path):
    """Mapped and converted, at the borders of what is read at a time, from a header of any length."""
    values = (torch.arange(count) % 13 - 6).to(disk.FLOATS[dtype])
    path = tmp_path / "x.safetensors"
    save_file({"x": values, "y": values.clone()[None]}, path, {"pad": "p" * (count % 7)})
    for wanted in (disk.FLOATS[dtype], torch.float64):
        found = dict(read_tensors(path, read_header(path).entries, wanted, CPU, check=True))
        assert found["x"].shape == (count,) and found["y"].shape == (1, count)
        assert torch.equal(found["x"].double(), values.double())
        assert torch.equal(found["y"][0].double(), values.double())


@pytest.mark.parametrize("at", [0, disk.PIECE - 1, disk.PIECE, WIDE - 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_nan_is_found_in_every_piece(at, dtype, tmp_path):
    values = torch.zeros(WIDE)
    values[at] = float("nan")
    save_file({"x": values}, tmp_path / "x.safetensors")
    entries = read_header(tmp_path / "x.safetensors").entries
    with pytest.raises(CheckpointError, match="x holds NaN or infinity"):
        list(read_tensors(tmp_path / "x.safetensors", entries, dtype, CPU, check=True))


def a_pipe(path: Path):
    os.mkfifo(path)


def a_socket(path: Path):
    folder = os.open(path.parent, os.O_RDONLY)
    home = os.getcwd()
    os.chdir(folder)  # the name of a socket has at most 100 characters
    server = socket.socket(socket.AF_UNIX)
    server.bind(path.name)
    server.close()
    os.chdir(home)
    os.close(folder)


def a_loop(path: Path):
    path.symlink_to(path.name)


def a_device(path: Path):
    path.symlink_to("/dev/zero")


def a_terminal(path: Path):
    path.symlink_to("/dev/tty")


@pytest.mark.parametrize(
    "make, words",
    [
        (Path.mkdir, "is a folder where a file is expected"),
        (a_pipe, "is no regular file|is no.* where a file is expected"),
        (a_socket, "is no regular file"),
        (a_device, "is no regular file"),
        (a_terminal, "is no regular file"),
        (a_loop, "cannot be read: Too many levels of symbolic links"),
    ],
    ids=["folder", "pipe", "socket", "device", "terminal", "loop"],
)
def test_what_is_no_file(make, words, tmp_path):
    """As a file, as a shard, as settings and as an adapter. A pipe that nobody writes to would wait for ever."""
    shard = tmp_path / "m-1.safetensors"
    make(shard)
    index = tmp_path / "m.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "m-1.safetensors"}}')
    settings = tmp_path / "folder" / "model_index.json"
    settings.parent.mkdir()
    make(settings)
    for read, source in (
        (weights.load_part, shard),
        (read_stored, index),
        (weights.load, settings.parent),
        (weights.describe_adapter, shard),
    ):
        if make is Path.mkdir and read in (weights.load_part, weights.describe_adapter):
            continue  # a folder is a source of its own
        with pytest.raises(CheckpointError, match=words) as caught:
            read(source)
        assert "\n" not in str(caught.value)


TRUNCATED = """
import os, sys, random, threading, torch, weights, resource
from pathlib import Path
from weights import CheckpointError
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
home = Path(sys.argv[1])
raw = (home / "good.safetensors").read_bytes()
dice, refused, loaded = random.Random(0), 0, 0
for k in range(60):
    path = home / f"{k}.safetensors"
    path.write_bytes(raw)
    delay, size = dice.uniform(0, 0.05), dice.randrange(len(raw))
    timer = threading.Timer(delay, os.truncate, (path, size))
    timer.start()
    try:
        network = weights.load_part(path, dtype=[torch.float32, torch.float16][k % 2])
        loaded += 1
        del network
    except CheckpointError as error:
        assert str(error).count("\\n") == 0 and str(path) in str(error), error
        refused += 1
    timer.join()
    path.unlink()
print(refused, loaded)
"""


def test_a_file_cut_off_at_any_moment_of_loading(tmp_path):
    """60 times: SIGBUS would end the process."""
    vae = weights.load(weights.MINIATURE, dtype=torch.float32).vae
    weights.save_part(vae, tmp_path / "good.safetensors")
    run = subprocess.run(
        [sys.executable, "-c", TRUNCATED, tmp_path], capture_output=True, text=True, cwd=ROOT, timeout=300
    )
    assert run.returncode == 0, (run.returncode, run.stderr[-2000:])
    refused, loaded = map(int, run.stdout.split())
    assert refused + loaded == 60 and refused > 5, run.stdout


def test_a_model_described_and_loaded_later(tmp_path):
    model = weights.load(weights.MINIATURE)
    weights.save(model, tmp_path / "model")
    found = weights.describe(tmp_path / "model")
    file = next((tmp_path / "model" / "vae").glob("*.safetensors"))
    os.truncate(file, file.stat().st_size - 4)
    with pytest.raises(CheckpointError, match=f"{re.escape(str(file))} has changed since"):
        weights.load(found)
    file.unlink()
    with pytest.raises(CheckpointError, match=f"{re.escape(str(file))} is missing: download it again"):
        weights.load(found)


def test_an_adapter_that_changes(tmp_path, monkeypatch):
    """Its header is read, then its values, in one call: the change comes between them."""
    path = tmp_path / "model.safetensors"
    save_file({"unet.x.lora_A.weight": torch.ones(4, 8), "unet.x.lora_B.weight": torch.ones(8, 4)}, path)
    entries = read_header(path).entries
    emptied(path)
    with pytest.raises(CheckpointError, match=CHANGED):
        dict(map_tensors(path, entries, True))


def test_what_is_computed_with_at_once_is_read(tmp_path):
    """Float8 of an adapter, the factors of (IA)^3, new words: where they were mapped, a file that is cut off before
    they are used ends the process, here another one."""
    path = tmp_path / "model.safetensors"
    factors = {"a.ia3_l": torch.ones(1, 320), "a.lora_A.weight": torch.ones(2**17).to(torch.float8_e4m3fn)}
    save_file(factors, path)
    save_file({"emb_params": torch.ones(75, 2048)}, tmp_path / "word.safetensors")
    pid = os.fork()
    if pid == 0:
        tensors, _ = read_all(path)
        word = read_embedding(tmp_path / "word.safetensors")
        emptied(path)
        emptied(tmp_path / "word.safetensors")
        used = [*tensors.values(), *word.vectors]
        os._exit(all(bool((tensor == 1).all()) for tensor in used))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1


@pytest.mark.parametrize("read", [read_header, read_json])
@pytest.mark.parametrize("written", [b"", b"{}"])
def test_a_pipe_that_takes_the_place_of_a_file(read, written, path, monkeypatch):
    """Between the look at a file and its opening: nobody waits for a writer, nor for what one has not written yet."""
    looked = os.stat(path)
    path.unlink()
    os.mkfifo(path)
    keep = os.open(path, os.O_RDWR) if written else None
    monkeypatch.setattr(Path, "stat", lambda self: looked)
    with pytest.raises(CheckpointError, match="is empty|is not valid JSON"):
        read(path)
    if keep is not None:
        os.close(keep)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_permission_denied(path):
    path.chmod(0)
    with pytest.raises(CheckpointError, match="cannot be read: Permission denied"):
        weights.load_part(path)


def test_a_disk_that_fails():
    """/proc/self/mem is a regular file whose beginning cannot be read: an error of input and output."""
    with pytest.raises(CheckpointError, match="cannot be read: Input/output error"):
        read_header(Path("/proc/self/mem"))
