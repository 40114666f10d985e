"""A pickled checkpoint, as torch.save wrote it, to safetensors. Run by convert.py as a process of its own:

    python -I scripts/pickles/pickled.py old.ckpt new.safetensors

Nothing of the file is run (see pickle_machine.py). The process limits its memory and time besides, since even plain
data can be a bomb. An error is one line on stderr. Two formats are read: a zip archive (PyTorch 1.6 and later), in
which data.pkl describes the tensors and data/KEY holds their numbers; and before that several pickles in a row, with
the numbers of all storages behind them.
"""

import ctypes
import json
import mmap
import os
import signal
import struct
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

try:
    import resource
except ImportError:  # on Windows
    resource = None

sys.path.append(os.path.dirname(os.path.abspath(__file__)))  # -I leaves it out

from pickle_machine import Machine  # noqa: E402
from pickle_values import ODD, Made, Pairs, Refused, Tensor, shown  # noqa: E402

PICKLE_BYTES = 200_000_000
FILES = 200_000  # in an archive
TENSORS = 100_000
NAME_LENGTH = 1000
COPIES = 4  # times the file's size may be written: tensors that share their numbers are written one by one
SLACK = 10_000_000  # bytes that a small file may grow by
MEMORY = 2_000_000_000  # bytes beside the mapped file
SECONDS = 60  # of processor time, and more for a large file
BYTES_PER_SECOND = 20_000_000
MAGIC = 0x1950A86A20F9469CFC6C  # of the older format, and 1001 its version


class Place(NamedTuple):
    """Of a storage's numbers, in the file."""

    begin: int
    size: int


def main():
    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    die_with_parent()
    try:
        limit_process(source.stat().st_size)
    except OSError as error:
        sys.exit(f"{error.strerror}")
    convert(source, target)


def convert(source: Path, target: Path):
    """Ends the process with one line about whatever is wrong."""
    try:
        size = source.stat().st_size
        with source.open("rb") as file:
            places, content = read_archive(file) if zipfile.is_zipfile(file) else read_older(file, size)
            write(file, places, choose(content), target, size)
    except Refused as error:
        sys.exit(str(error))
    except MemoryError:
        sys.exit(f"it needs {MEMORY} bytes of memory and more beside its size: it is no checkpoint, or a bomb")
    except OSError as error:
        sys.exit(f"{error.strerror or error}")
    except zipfile.BadZipFile as error:
        sys.exit(f"it is a damaged archive, {shown(str(error))}: download it again")
    except Exception as error:  # a damaged pickle can raise any
        sys.exit(f"it is damaged, {type(error).__name__} {shown(str(error))}: download it again")


def die_with_parent():
    """If convert is killed, nobody waits for this process, and nobody would remove what it writes."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def limit_process(size: int):
    """Memory and processor time, by the size of the file."""
    if resource is None or sys.platform != "linux":
        return
    used = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
    for kind, limit in (
        (resource.RLIMIT_AS, used + size + MEMORY),
        (resource.RLIMIT_CPU, SECONDS + size // BYTES_PER_SECOND),
        (resource.RLIMIT_CORE, 0),
    ):
        _, most = resource.getrlimit(kind)
        if most == resource.RLIM_INFINITY or limit < most:
            resource.setrlimit(kind, (limit, most))


# the two formats


def read_archive(file: BinaryIO) -> tuple[dict[str, Place], object]:
    """Where each storage lies, and what data.pkl describes."""
    with zipfile.ZipFile(file) as archive:
        entries = {info.filename: info for info in archive.infolist()}
        if len(entries) != len(archive.infolist()) or len(entries) > FILES:
            raise Refused(f"it is an archive of {len(archive.infolist())} files, with names that repeat or too many")
        for info in entries.values():
            if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
                raise Refused("it is a compressed archive, as PyTorch never writes: unpack it, if you know what it is")
        found = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(found) != 1:
            raise Refused("it is an archive without one data.pkl: it is no checkpoint of PyTorch's")
        top = found[0].removesuffix("data.pkl")
        if f"{top}constants.pkl" in entries:
            raise Refused("it is a program of TorchScript, and no checkpoint")
        if entries[found[0]].file_size > PICKLE_BYTES:
            raise Refused(f"its data.pkl has {entries[found[0]].file_size} bytes, and no checkpoint needs so many")
        if f"{top}byteorder" in entries and archive.read(f"{top}byteorder") != b"little":
            raise Refused("its numbers are of a machine with the other order of bytes")
        with archive.open(found[0]) as pickle:
            content = Machine().read(pickle)
    places = {
        name.removeprefix(f"{top}data/"): locate(file, info)
        for name, info in entries.items()
        if name.startswith(f"{top}data/")
    }
    return places, content


def locate(file: BinaryIO, info: zipfile.ZipInfo) -> Place:
    """What the directory at the end of the archive says is only a hint: the entry itself begins with its own header."""
    file.seek(info.header_offset)
    header = file.read(30)
    if header[:4] != b"PK\x03\x04":
        raise Refused(f"it is a damaged archive, without {shown(info.filename)}: download it again")
    name, extra = struct.unpack("<HH", header[26:30])
    return Place(info.header_offset + 30 + name + extra, info.file_size)


def read_older(file: BinaryIO, size: int) -> tuple[dict[str, Place], object]:
    """The same, of several pickles: a magic number, a version, the machine's sizes, the content, the storages' keys."""
    file.seek(0)
    start = file.read(512)
    if start[257:262] == b"ustar":
        raise Refused("it is a tar archive, as PyTorch wrote before 0.2: load it there and save it again")
    file.seek(0)
    machine = Machine()
    if machine.read(file) != MAGIC:
        raise Refused("it is a pickle, but not one that torch.save has written")
    if machine.read(file) != 1001:
        raise Refused("it is of a version of PyTorch's format that is not read")
    sizes = machine.read(file)
    if not isinstance(sizes, Pairs) or sizes.get("little_endian") is not True:
        raise Refused("its numbers are of a machine with the other order of bytes")
    content = machine.read(file)
    keys = machine.read(file)
    places: dict[str, Place] = {}
    for key in keys:
        if not isinstance(key, str):
            raise Refused("it is damaged: it names a storage by what is no text")
        count = struct.unpack("<q", file.read(8))[0]
        length = count * machine.storages[key].width
        begin = file.tell()
        if count < 0 or begin + length > size:
            raise Refused("it is cut off: download it again")
        places[key] = Place(begin, length)
        file.seek(length, os.SEEK_CUR)
    return places, content


# what is written


def choose(content: object) -> dict[str, Tensor]:
    """The tensors by name: of a model, of an adapter or of an embedding of the web UI, {"*": vectors}."""
    if isinstance(content, Pairs) and content.get("state_dict") is not None:
        content = content.get("state_dict")
    if isinstance(content, Pairs) and content.get("string_to_param") is not None:
        vectors = content.get("string_to_param")
        if isinstance(vectors, Made) and isinstance(vectors.state, Pairs):
            vectors = vectors.state.get("_parameters")
        content = Pairs([("emb_params", vectors[0][1])] if isinstance(vectors, Pairs) and vectors else [])
    tensors: dict[str, Tensor] = {}
    if not isinstance(content, Pairs):
        content = Pairs()
    for name, value in content:
        if isinstance(value, Made) and value.name in ODD:
            raise Refused(f"it holds a {ODD[value.name]} tensor, and safetensors holds dense ones alone")
        if isinstance(value, Tensor):
            check_name(name)
            tensors[name] = value
    if not tensors:
        raise Refused("it holds no tensors by name")
    if len(tensors) > TENSORS:
        raise Refused(f"it holds {len(tensors)} tensors, and no checkpoint has so many")
    return tensors


def check_name(name: object):
    if not isinstance(name, str):
        raise Refused(f"it holds a tensor under a key of type {type(name).__name__}, which is no name")
    if name == "__metadata__":
        raise Refused("it holds a tensor named '__metadata__', a name that safetensors keeps for itself")
    if len(name) > NAME_LENGTH or not name.isprintable():
        raise Refused(f"it holds a tensor of a name that nobody would give, {shown(name)}")


def write(file: BinaryIO, places: Mapping[str, Place], tensors: Mapping[str, Tensor], target: Path, size: int):
    """A safetensors file: eight bytes that say how long the header is, the header, then the numbers."""
    header = {}
    reached = 0
    names = sorted(tensors, key=lambda name: (-tensors[name].storage.width, name))  # so each is aligned
    for name in names:
        tensor = tensors[name]
        check_place(name, tensor, places, size)
        end = reached + tensor.numbers * tensor.storage.width
        header[name] = {"dtype": tensor.storage.dtype, "shape": tensor.size, "data_offsets": (reached, end)}
        reached = end
    if reached > COPIES * size + SLACK:
        raise Refused(f"its tensors take {reached} bytes, and the file has {size}: it is a bomb")
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with target.open("xb") as out, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as numbers:
        out.write(struct.pack("<Q", len(text)) + text)
        for name in names:
            out.write(bytes_of(tensors[name], places, numbers))


def check_place(name: str, tensor: Tensor, places: Mapping[str, Place], size: int):
    place = places.get(tensor.storage.key)
    needed = tensor.storage.count * tensor.storage.width
    if place is None or place.size < needed or place.begin + place.size > size:
        raise Refused(f"the numbers of {shown(name)} are missing: the file is damaged, download it again")


def bytes_of(tensor: Tensor, places: Mapping[str, Place], numbers: mmap.mmap) -> bytes:
    """In the order of the axes, whatever order they have in the storage."""
    if tensor.numbers == 0:
        return b""
    storage = tensor.storage
    flat = np.frombuffer(numbers, f"V{storage.width}", storage.count, places[storage.key].begin)
    strides = [step * storage.width for step in tensor.stride]
    return np.lib.stride_tricks.as_strided(flat[tensor.offset :], tensor.size, strides).tobytes()


if __name__ == "__main__":
    main()
