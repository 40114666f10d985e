"""Pictures as files: what is written is what is read, whole or not at all."""

import json
import multiprocessing
import os
import tracemalloc
import zlib
from struct import pack

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from ldm import pictures

RECORD = {
    "prompt": "a red apple",
    "negative": None,
    "sampler": "dpmpp_2m",
    "schedule": "karras",
    "steps": 20,
    "guidance": 7.5,
    "seed": 3,
    "height": 64,
    "width": 96,
    "model": "folder/name: with, marks",
    "files": {"vae/file": "b" * 64, "unet/file": "a" * 64},
}


def test_a_picture_and_its_record_come_back(tmp_path):
    image = torch.linspace(-1, 1, 3 * 8 * 16).reshape(3, 8, 16)
    pictures.save(image, tmp_path / "x.png", RECORD)
    assert pictures.read_record(tmp_path / "x.png") == RECORD
    with Image.open(tmp_path / "x.png") as written:
        assert written.size == (16, 8) and written.getpixel((0, 0))[0] == 0 and written.getpixel((15, 7))[2] == 255
        assert written.text["parameters"] == (
            "a red apple\nSteps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7.5, Seed: 3, Size: 96x64, "
            'Model hash: aaaaaaaaaa, Model: "name: with, marks"'
        )
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]


def test_values_are_rounded_to_the_nearest_of_256():
    image = torch.tensor([-1.0, -1 + 0.4 / 127.5, -1 + 0.6 / 127.5, 1.0]).expand(3, 1, 4)
    assert np.asarray(pictures.to_pil(image))[0, :, 0].tolist() == [0, 0, 1, 255]


def test_the_last_row_of_a_grid_is_filled_with_white():
    images = torch.zeros(3, 3, 4, 6) + torch.tensor([0.1, 0.2, 0.3]).reshape(3, 1, 1, 1)
    grid = pictures.grid(images, columns=2)
    assert grid.shape == (3, 8, 12)
    corners = [grid[0, 0, 0], grid[0, 0, 6], grid[0, 4, 0], grid[0, 4, 6]]
    assert torch.equal(torch.stack(corners), torch.tensor([0.1, 0.2, 0.3, 1.0]))


def test_numbers_go_on_from_the_highest(tmp_path):
    assert pictures.next_number(tmp_path / "none yet") == 0
    for name in ("00002-7.png", "00010-7.png", "grid.png", "00099-7.jpg", "x00050-7.png"):
        (tmp_path / name).touch()
    assert pictures.next_number(tmp_path) == 11


def test_a_picture_that_cannot_be_written_leaves_nothing(tmp_path):
    (tmp_path / "taken.png").mkdir()
    with pytest.raises(OSError, match="taken.png: cannot be written: "):
        pictures.save(torch.zeros(3, 8, 8), tmp_path / "taken.png")
    assert [path.name for path in tmp_path.iterdir()] == ["taken.png"]


def noise(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("name", ["x.png", "x.webp", "x.jpg", "x.JPEG"])
def test_every_format_holds_the_same_record(tmp_path, name):
    record = RECORD | {"prompt": "é 🍎 \n two lines", "lora": ["a\udcffb"]}  # a file name that is no UTF-8
    image = noise(3, 16, 24)
    pictures.save(image, tmp_path / name, record)
    assert pictures.read_record(tmp_path / name) == record
    with Image.open(tmp_path / name) as written:
        difference = np.abs(np.asarray(written, dtype=int) - np.asarray(pictures.to_pil(image), dtype=int))
        assert written.size == (24, 16)
        # Lossless but for JPEG, in which noise is worst; 4:2:0 or the usual quality of 75 would differ by 25 and more
        assert difference.mean() < 4 if "j" in name.lower() else difference.max() == 0


@pytest.mark.parametrize("name", ["x.webp", "x.jpg"])
def test_other_programs_find_the_text_in_exif(tmp_path, name):
    """As piexif reads it for A1111: UserComment of type 7, the word UNICODE, UTF-16 with the high byte first."""
    pictures.save(noise(3, 8, 8), tmp_path / name, RECORD | {"prompt": "é 🍎"})
    with Image.open(tmp_path / name) as written:
        exif = written.getexif()
        comment = exif.get_ifd(0x8769)[0x9286]
    assert comment[:8] == b"UNICODE\0" and comment[8:].decode("utf-16-be").startswith("é 🍎\nSteps: 20, Sampler: DPM++")
    assert exif[0x010F].startswith('ldm:{"prompt": "\\u00e9 ')
    assert b"\x92\x86\x00\x07" in (tmp_path / name).read_bytes()


def test_a_record_survives_other_programs(tmp_path):
    """Pillow turns the order of bytes in EXIF and writes text chunks in three ways."""
    pictures.save(noise(3, 8, 8), tmp_path / "x.jpg", RECORD)
    with Image.open(tmp_path / "x.jpg") as image:
        exif = Image.Exif()
        exif.endian = "<"
        exif[0x010F] = image.getexif()[0x010F]
        image.save(tmp_path / "again.jpg", exif=exif)
        image.save(tmp_path / "again.webp", exif=exif)
    assert b"II*\0" in (tmp_path / "again.jpg").read_bytes()
    for name in ("again.jpg", "again.webp"):
        assert pictures.read_record(tmp_path / name) == RECORD
    text = json.dumps(RECORD)
    for kind, zipped in (("add_text", False), ("add_text", True), ("add_itxt", True)):
        info = PngImagePlugin.PngInfo()
        getattr(info, kind)("ldm", text, zip=zipped)
        Image.new("RGB", (8, 8)).save(tmp_path / "x.png", pnginfo=info)
        assert pictures.read_record(tmp_path / "x.png") == RECORD


def test_a_record_that_a_jpeg_has_no_room_for_is_refused(tmp_path):
    long = RECORD | {"prompt": "🍎" * 10_000}
    with pytest.raises(ValueError, match="a JPEG has room for 65000"):
        pictures.save(noise(3, 8, 8), tmp_path / "x.jpg", long)
    for name in ("x.png", "x.webp"):
        pictures.save(noise(3, 8, 8), tmp_path / name, long)
        assert pictures.read_record(tmp_path / name) == long


def test_batches_become_lists_for_notebooks():
    shown = pictures.to_pil(noise(2, 3, 8, 16))
    assert [image.size for image in shown] == [(16, 8), (16, 8)] and shown[0].tobytes() != shown[1].tobytes()
    assert np.asarray(pictures.to_pil(torch.tensor([-9.0, 9.0]).expand(3, 1, 2)))[0, :, 0].tolist() == [0, 255]
    for image, words in ((noise(8, 8, 3), "8x8x3"), (noise(8, 8), "8x8"), (noise(3, 1, 1) * np.nan, "not numbers")):
        with pytest.raises(ValueError, match=words):
            pictures.to_pil(image)


def test_no_picture_takes_the_place_of_another(tmp_path):
    image = noise(3, 8, 8)
    with pytest.raises(FileExistsError, match="x.png: exists already"):
        for _ in range(2):
            pictures.save(image, tmp_path / "x.png", overwrite=False)
    for seed, suffix in ((7, ".png"), (8, ".webp"), (7, ".png")):
        pictures.save_numbered(image, tmp_path, seed, suffix=suffix)
    for k in range(3):
        earlier = pictures.save_latest(image * k / 2, tmp_path / "grid.png")
    assert earlier == tmp_path / "grid-2.png"
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"x.png", "00000-7.png", "00001-8.webp", "00002-7.png", "grid.png", "grid-1.png", "grid-2.png"}
    with Image.open(tmp_path / "grid-1.png") as first:
        assert set(first.getdata()) == {(128, 128, 128)}


def test_links_are_not_followed(tmp_path):
    (tmp_path / "victim").write_text("precious")
    for name in ("00000-7.png", "x.png", "grid.png"):
        (tmp_path / name).symlink_to("victim")
    image = noise(3, 8, 8)
    pictures.save(image, tmp_path / "x.png")
    pictures.save_latest(image, tmp_path / "grid.png")
    assert pictures.save_numbered(image, tmp_path, 7) == tmp_path / "00001-7.png"
    assert (tmp_path / "victim").read_text() == "precious" and (tmp_path / "grid-1.png").is_symlink()
    assert not (tmp_path / "x.png").is_symlink() and not (tmp_path / "grid.png").is_symlink()


def write_many(folder, seed):
    for _ in range(10):
        pictures.save_numbered(torch.zeros(3, 8, 8), folder, seed)


def test_programs_that_write_at_once_get_numbers_of_their_own(tmp_path):
    """Processes that are forked, since each would take seconds to start anew."""
    fork = multiprocessing.get_context("fork")
    writers = [fork.Process(target=write_many, args=(tmp_path, seed)) for seed in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert sorted(path.name[:5] for path in tmp_path.iterdir()) == [f"{k:05d}" for k in range(30)]


# Hostile files


def chunk(kind: bytes, data: bytes, length: int | None = None) -> bytes:
    return pack(">I", len(data) if length is None else length) + kind + data + pack(">I", zlib.crc32(kind + data))


def png(*chunks: bytes, size: int = 8) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0)) + b"".join(chunks)


def itxt(text: bytes, flag: bytes = b"\0") -> bytes:
    return chunk(b"iTXt", b"ldm\0" + flag + b"\0\0\0" + text)


BOMB = zlib.compress(b'{"prompt": "' + b" " * 10**8 + b'"}', 9)
TAGS = pack(">HHII", 1, 2, 8, 8) * 65534 + pack(">HHII", 0x010F, 2, 8, 0)
EXIF = b"MM\0*" + pack(">IH", 8, 65535) + TAGS  # to look at all of 64 such blocks would take seconds
HOSTILE = {
    "empty": (b"", "not a picture"),
    "other": (b"%PDF-1.7 ...", "not a picture"),
    "pixels": (png(chunk(b"IDAT", b"x"), size=10**5), "holds no record"),
    "no chunks": (png(), "holds no record"),
    "cut": (png(itxt(b"{}"))[:-8], "cut off"),
    "long": (png(chunk(b"iTXt", b"ldm\0", length=2**31 - 1)), "holds no record"),
    "checksum": (png(itxt(b"{}")).replace(b"{}", b"[]"), "the checksum is another"),
    "latin": (png(itxt('{"prompt": "é"}'.encode("latin-1"))), "it is no JSON"),
    "deep": (png(itxt(b"[" * 10**5)), "it is no JSON"),
    "digits": (png(itxt(b'{"prompt": "x", "seed": ' + b"9" * 10**5 + b"}")), "it is no JSON"),
    "list": (png(itxt(b"[" + b"0," * 400_000 + b"0]")), "names no prompt"),
    "itxt bomb": (png(itxt(BOMB, b"\1")), "more than 1048576 bytes"),
    "ztxt bomb": (png(chunk(b"zTXt", b"ldm\0\0" + BOMB)), "more than 1048576 bytes"),
    "no zlib": (png(itxt(b"garbage", b"\1")), "cannot be decompressed"),
    "jpeg": (b"\xff\xd8" + b"\xff\xe1\x00\x02" * 10**6, "holds no record"),
    "jpeg cut": (b"\xff\xd8\xff\xe1\xff\xffExif", "cut off"),
    "exif": (b"\xff\xd8\xff\xe1\x00\x18Exif\0\0MM\0*\xff\xff\xff\xff12345678", "holds no record"),
    "tags": (b"RIFF\0\0\0\0WEBPEXIF" + pack("<I", len(EXIF)) + EXIF, "holds no record"),
    "webp": (b"RIFF\xff\xff\xff\xffWEBPEXIF\xff\xff\xff\xff", "holds no record"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_picture_is_told_in_one_line(tmp_path, name):
    content, words = HOSTILE[name]
    (tmp_path / "x.png").write_bytes(content)
    tracemalloc.start()
    with pytest.raises(ValueError, match=words) as told:
        pictures.read_record(tmp_path / "x.png")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "\n" not in str(told.value) and len(str(told.value)) < 300 + len(str(tmp_path))
    assert peak < 40 * 2**20  # the largest text that is read, as bytes, as text and as a list


def test_what_is_no_file_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", tmp_path):
        with pytest.raises(ValueError, match="no regular file"):
            pictures.read_record(path)
    for path in (tmp_path / "none.png", tmp_path / ("x" * 300), tmp_path / "nul\0"):
        with pytest.raises(OSError, match=": (No such file|File name too long|embedded null)"):
            pictures.read_record(path)
