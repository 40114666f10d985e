"""scripts/pickles/pickled.py: tensors out of pickle, every number as torch.save wrote it, and one line for the rest."""

import io
import os
import pickle
import resource
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import pickle_machine
import pickled
from pickle_values import AXES
from support.paths import SCRIPTS

DTYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.bool),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64),
)


def converted(path: Path) -> dict[str, torch.Tensor]:
    target = path.with_name("out.safetensors")
    target.unlink(missing_ok=True)
    pickled.convert(path, target)
    return load_file(target)


def refused(path: Path) -> str:
    target = path.with_name("out.safetensors")
    with pytest.raises(SystemExit) as caught:
        pickled.convert(path, target)
    line = str(caught.value)
    assert line.isprintable() and len(line) < 300 and "weights_only" not in line and not target.exists(), line
    return line


# what is read


@pytest.mark.parametrize("new", [True, False])
def test_every_number_as_it_was_saved(new, tmp_path):
    whole = torch.randn(4, 6)
    tensors = {str(dtype): (whole * 50).abs().to(dtype) for dtype in DTYPES}
    tensors |= {
        "turned": whole.t(),
        "part": whole[1:3, ::2],
        "permuted": torch.randn(2, 3, 4).permute(2, 0, 1),
        "scalar": torch.tensor(2.5),
        "empty": torch.ones(0, 3),
        "parameter": torch.nn.Parameter(whole),
        "again": whole,
        "channels last": torch.randn(1, 2, 3, 4).to(memory_format=torch.channels_last),
        "named so: é": whole[0],
    }
    tensors["with an attribute"] = torch.nn.Parameter(whole[0])
    tensors["with an attribute"].note = "mine"
    torch.save(OrderedDict(tensors), tmp_path / "a.pt", _use_new_zipfile_serialization=new)
    found = converted(tmp_path / "a.pt")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape, name
        same = [value.detach().contiguous().view(-1).view(torch.uint8) for value in (found[name], tensor)]
        assert torch.equal(*same), name


@pytest.mark.parametrize("new", [True, False])
def test_what_training_left_beside(new, tmp_path):
    network = torch.nn.Linear(3, 2)
    moments = {i: {"step": torch.tensor(1.0), "exp_avg": torch.zeros(2, 3)} for i in range(2)}
    optimizer = {"state": moments, "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.999), "params": [0, 1]}]}
    state = {"state_dict": network.state_dict(), "optimizer_states": [optimizer], "epoch": 3, "loss": 0.5}
    state |= {"seen": {1, 2}, "raw": b"\0\xff", "half": complex(1, 2), "none": None, "big": 2**70, "list": [(), {}]}
    torch.save(state, tmp_path / "a.ckpt", _use_new_zipfile_serialization=new)
    assert all(torch.equal(tensor, network.state_dict()[key]) for key, tensor in converted(tmp_path / "a.ckpt").items())


def test_protocol_3(tmp_path):
    torch.save({"a": torch.arange(3), "raw": b"abc"}, tmp_path / "a.pt", pickle_protocol=3)
    assert torch.equal(converted(tmp_path / "a.pt")["a"], torch.arange(3))


# lies about tensors


class Storage:
    def __init__(self, count, key="0", kind=torch.FloatStorage):
        self.reference = ("storage", kind, key, "cpu", count)


class Call:
    """What a pickle may ask for, whatever it is."""

    def __init__(self, function, *arguments):
        self.parts = function, arguments

    def __reduce__(self):
        return self.parts


class Pickler(pickle.Pickler):
    def persistent_id(self, value):
        return value.reference if isinstance(value, Storage) else None


def pickle_of(content) -> bytes:
    out = io.BytesIO()
    Pickler(out, 2).dump(content)
    return out.getvalue()


def archive(path: Path, content, numbers: bytes = bytes(40), kind: int = zipfile.ZIP_STORED, **more: bytes) -> Path:
    raw = content if isinstance(content, bytes) else pickle_of(content)
    with zipfile.ZipFile(path, "w", kind) as file:
        for name, data in ({"data.pkl": raw, "data/0": numbers} | more).items():
            file.writestr(f"x/{name}", data)
    return path


def tensor(size, stride, offset=0, count=10, **storage) -> Call:
    return Call(torch._utils._rebuild_tensor_v2, Storage(count, **storage), offset, size, stride, False, OrderedDict())


@pytest.mark.parametrize(
    "lie, words",
    [
        (tensor((11,), (1,)), "a tensor of '11' numbers in a storage of 10"),
        (tensor((10,), (1,), offset=1), "in a storage of 10"),
        (tensor((2, 2), (9, 1)), "in a storage of 10"),
        (tensor((10**9, 10**9), (0, 0)), "in a storage of 10"),
        (tensor((2**61, 2**61, 2**61), (0, 0, 0)), "in a storage of 10"),
        (tensor((11,), (1,), count=11), "the numbers of 'a' are missing"),
        (tensor((2**50,), (1,), count=2**50), "the numbers of 'a' are missing"),
        (tensor((5,), (1,), key="1"), "the numbers of 'a' are missing"),
        (tensor((5,), (1,), key="../data.pkl"), "the numbers of 'a' are missing"),
        (tensor((-1,), (1,)), "by what are no sizes"),
        (tensor((1,), (-1,)), "by what are no sizes"),
        (tensor((1,), (1,), offset=-1), "by what are no sizes"),
        (tensor((2**70,), (1,)), "by what are no sizes"),
        (tensor((1.0,), (1,)), "by what are no sizes"),
        (tensor((True,), (1,)), "by what are no sizes"),
        (tensor(5, (1,)), "by what are no sizes"),
        (tensor((1, 1), (1,)), "by 2 sizes and 1 strides"),
        (tensor((1,) * (AXES + 1), (1,) * (AXES + 1)), "sizes and"),
        (tensor((1,), (1,), kind=torch.QInt8Storage), "a storage of type 'QInt8Storage', which is not read"),
        (tensor((1,), (1,), kind=torch.Size), "a storage of type 'Size', which is not read"),
        (tensor((1,), (1,), count=-1), "describes a storage by what are no sizes"),
        (Call(torch._utils._rebuild_tensor_v2), "it is damaged"),
        (Call(torch._utils._rebuild_tensor_v2, 1, 2, (3,), (4,)), "by what are no sizes"),
    ],
)
def test_tensors_that_are_none(lie, words, tmp_path):
    assert words.replace("'", "") in refused(archive(tmp_path / "a.pt", {"a": lie})).replace("'", "")


def test_tensors_that_share_their_numbers_many_times(tmp_path):
    """Each is written, so a file of 40 MB would become one of 40 GB."""
    shared = Storage(10**7)
    part = torch._utils._rebuild_tensor_v2
    tensors = {f"a{i}": Call(part, shared, 0, (10**7,), (1,), False, OrderedDict()) for i in range(1000)}
    line = refused(archive(tmp_path / "a.pt", tensors, bytes(4 * 10**7)))
    assert "its tensors take 40000000000 bytes" in line and "it is a bomb" in line


@pytest.mark.parametrize(
    "tensors, words",
    [
        ({"a": torch.eye(3).to_sparse()}, "a sparse tensor"),
        ({"a": torch.ones(3, dtype=torch.complex64)}, "ComplexFloatStorage"),
        ({"a": torch.ones(3, device="meta")}, "a meta tensor"),
        ({"a": torch.ones(1).expand(5)}, "in a storage of 1"),
        ({"__metadata__": torch.ones(1)}, "'__metadata__', a name that safetensors keeps for itself"),
        ({5: torch.ones(1)}, "a key of type int"),
        ({("a",): torch.ones(1)}, "a key of type tuple"),
        ({"x" * 10**6: torch.ones(1)}, "a name that nobody would give"),
        ({"a\x1b[2J": torch.ones(1)}, "a name that nobody would give"),
        ({"a": 1, "b": [torch.ones(1)]}, "it holds no tensors by name"),
        ({"state_dict": 5}, "it holds no tensors by name"),
        ({"string_to_param": 5}, "it holds no tensors by name"),
        ([torch.ones(1)], "it holds no tensors by name"),
        (torch.ones(1), "it holds no tensors by name"),
        ({}, "it holds no tensors by name"),
    ],
)
def test_what_safetensors_cannot_hold(tensors, words, tmp_path):
    torch.save(tensors, tmp_path / "a.pt")
    assert words in refused(tmp_path / "a.pt")


# lies of other kinds


@pytest.mark.parametrize("protocol", [4, 5])
@pytest.mark.parametrize("new", [True, False])
def test_later_protocols_say_what_to_do(protocol, new, tmp_path):
    torch.save({"a": torch.ones(1)}, tmp_path / "a.pt", pickle_protocol=protocol, _use_new_zipfile_serialization=new)
    line = refused(tmp_path / "a.pt")
    assert f"protocol {protocol} of pickle" in line and "pickle_protocol=2" in line


@pytest.mark.parametrize(
    "function", [os.system, eval, exec, print, getattr, __import__, subprocess.Popen, torch.load, torch.hub.load]
)
def test_what_is_called_is_named_and_not_called(function, tmp_path):
    line = refused(archive(tmp_path / "a.pt", {"a": Call(function, "touch " + str(tmp_path / "ran"))}))
    assert "it asks for" in line and f".{function.__name__}" in line and "which is no tensor: it may do harm" in line
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "raw, words",
    [
        (b"", "it is damaged"),
        (b"\x80\x02}", "it is damaged"),
        (b"\x80\x02.", "it is damaged"),
        (b"\x80\x02}}}ss.", "it is damaged"),
        (b"\x80\x02}h\x00.", "it is damaged"),
        (b"\x80\x02KA}bu.", "it is damaged"),
        (b"\x80\x02N0.", "the instruction POP"),
        (b"\x80\x02X\xff\xff\xff\x7fabc.", "it is damaged"),
        (b"\x80\x02cos\nsystem\n.", "it asks for os.system"),
        (b"\x80\x02c" + b"a" * 10**6 + b"\nb\n.", "it asks for aaa"),
        (b"\x80\x02cos\nsys\x1b[2Jtem\n.", "it asks for os.sys"),
        (b"(S'a'\np0\nI1\ns.", "the instruction"),
        (b"\x80\x02\x82\x01.", "the instruction EXT1"),
        (b"\x80\x02(ios\nsystem\n.", "the instruction INST"),
        (b"\x80\x02]" * 3 + b".", "it holds no tensors by name"),
        (b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".", "it holds no tensors by name"),
        (b"\x80\x02" + b")" + b"\x85" * 100_000 + b".", "it holds no tensors by name"),
        (b"\x80\x02)" + b"q\x00h\x00\x86" * 30_000 + b"}K\x01K\x02sK\x00\x86.", "it holds no tensors by name"),
        (b"\x80\x02}(" + b")" + b"q\x00h\x00\x86" * 5_000 + b"K\x01u.", "it holds no tensors by name"),
        (b"\x80\x02)" + b"q\x00h\x00\x86" * 5_000 + b"Q.", "refers to what is no storage"),
    ],
    ids=range(20),
)
def test_pickles_that_are_damaged_or_bombs(raw, words, tmp_path):
    """Nested deeply, or a list of twice itself again and again, of which no one may ask for text or hash."""
    assert words in refused(archive(tmp_path / "a.pt", raw))


def test_instructions_without_number(tmp_path, monkeypatch):
    monkeypatch.setattr(pickle_machine, "INSTRUCTIONS", 1000)
    assert "more than 1000 instructions" in refused(archive(tmp_path / "a.pt", b"\x80\x02" + b"N" * 1000 + b"."))
    assert "no tensors" in refused(archive(tmp_path / "a.pt", b"\x80\x02" + b"N" * 998 + b"."))


@pytest.mark.parametrize("name", [b"ccollections\nOrderedDict\n", b"ctorch\nSize\n"])
def test_copies_without_number(name, tmp_path, monkeypatch):
    """One list, of which ten bytes make another copy."""
    monkeypatch.setattr(pickle_machine, "INSTRUCTIONS", 1000)
    copies = b"](" + b"NN\x86" * 100 + b"eq\x01" + name + b"q\x02(" + b"h\x02h\x01\x85R" * 10 + b"t."
    assert "more than 1000 instructions" in refused(archive(tmp_path / "a.pt", b"\x80\x02" + copies))


def test_keys_of_one_hash_cost_no_more(tmp_path):
    """In a dict, so many would take an hour. They stand beside the tensors, as those of optimizers do."""
    bomb = b"".join(b"\x8a\x0a" + (i * (2**61 - 1)).to_bytes(10, "little") + b"N" for i in range(100_000))
    raw = pickle_of({"a": tensor((10,), (1,))})
    raw = raw[: raw.rindex(b"s.")] + b"sX\x01\0\0\0b}(" + bomb + b"us."
    assert list(converted(archive(tmp_path / "a.pt", raw))) == ["a"]


def test_names_without_number(tmp_path, monkeypatch):
    """One tensor under many names."""
    monkeypatch.setattr(pickled, "TENSORS", 1000)
    one = tensor((1,), (1,))
    assert "it holds 1001 tensors" in refused(archive(tmp_path / "a.pt", {str(i): one for i in range(1001)}))
    assert len(converted(archive(tmp_path / "a.pt", {str(i): one for i in range(1000)}))) == 1000


# archives


def test_archives_that_are_none(tmp_path):
    good = {"a": tensor((10,), (1,))}
    path = tmp_path / "a.pt"
    assert "a compressed archive" in refused(archive(path, good, bytes(10**7), zipfile.ZIP_DEFLATED))
    assert "the other order of bytes" in refused(archive(path, good, byteorder=b"big"))
    assert "a program of TorchScript" in refused(archive(path, good, **{"constants.pkl": b""}))
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/b", b"")
    assert "without one data.pkl" in refused(path)
    archive(path, good)
    with zipfile.ZipFile(path, "a") as file, pytest.warns(UserWarning, match="Duplicate"):
        file.writestr("x/data/0", bytes(40))
    assert "names that repeat" in refused(path)
    for cut in (1, 30, 60, 100, 150):
        archive(path, good)
        os.truncate(path, path.stat().st_size - cut)
        refused(path)
    archive(path, good)
    raw = bytearray(path.read_bytes())
    for size in (2**31, 2**32 - 2):  # of data/0, as the directory says it
        entry = raw.rindex(b"PK\x01\x02")
        raw[entry + 20 : entry + 28] = struct.pack("<II", size, size)
        path.write_bytes(raw)
        refused(path)


def test_tar_archives_of_the_first_years(tmp_path):
    with tarfile.open(tmp_path / "a.pt", "w", format=tarfile.USTAR_FORMAT) as file:
        file.addfile(tarfile.TarInfo("storages"))
    assert "a tar archive, as PyTorch wrote before 0.2" in refused(tmp_path / "a.pt")


def test_older_files_that_are_cut_off(tmp_path):
    torch.save({"a": torch.ones(1000)}, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    whole = (tmp_path / "a.pt").read_bytes()
    for length in (1, 20, 200, len(whole) // 2, len(whole) - 1):
        (tmp_path / "a.pt").write_bytes(whole[:length])
        assert "it is cut off" in (line := refused(tmp_path / "a.pt")) or "it is damaged" in line
    count = whole.rindex(struct.pack("<q", 1000))
    for number in (-1, 2**62, 2**63 - 1):
        (tmp_path / "a.pt").write_bytes(whole[:count] + struct.pack("<q", number) + whole[count + 8 :])
        refused(tmp_path / "a.pt")
    for pickles in (b"\x80\x02K\x01.", b"\x80\x02]q\x00h\x00a."):
        (tmp_path / "a.pt").write_bytes(pickles)
        assert "not one that torch.save has written" in refused(tmp_path / "a.pt")


# the process


def test_the_process_has_limits(tmp_path):
    pid = os.fork()
    if pid == 0:
        try:
            pickled.limit_process(10**9)
            assert resource.getrlimit(resource.RLIMIT_CPU)[0] == 110
            bytes(3 * 10**9)
            bytes(10**10)
        except MemoryError:
            os._exit(7)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7


def test_the_program_by_itself(tmp_path):
    """Alone as convert starts it: without torch, whatever lies in its folder or on the path of Python."""
    torch.save({"a": torch.arange(3)}, tmp_path / "a.pt")
    for name in ("torch", "numpy", "json", "zipfile"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('taken')")
    command = [sys.executable, "-I", SCRIPTS / "pickles" / "pickled.py", "a.pt", "out.safetensors"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == done.stderr == ""
    assert torch.equal(load_file(tmp_path / "out.safetensors")["a"], torch.arange(3))
