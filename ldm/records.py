"""How a picture was made, inside its file: as a JSON record, from which the picture can be made again, and as the text
that A1111's programs read (`parameters`).

    PNG          two iTXt chunks, `ldm` and `parameters`
    JPEG, WebP   EXIF: the record in Make after "ldm:", as ComfyUI writes "workflow:" there; the text in UserComment, in
                 UTF-16, as A1111 writes it

Files are read by their chunks alone: no pixel is decoded, and no more memory is used than a record may take, whatever
a file claims.
"""

import json
import os
import zlib
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from stat import S_ISREG
from struct import pack, unpack
from typing import Any, BinaryIO

from samplers import SAMPLERS, find

LARGEST = 2**20  # bytes of a record, or of what holds it, that are read
CHUNKS = 100_000  # that are looked at in one file
EXIF_BLOCKS = 64  # too
EXIF_TAGS = 1000  # of one directory; cameras write thirty
EXIF_LARGEST = 65000  # bytes of EXIF in a JPEG, whose segments have 16 bits for their length
MAKE, EXIF_DIRECTORY, USER_COMMENT = 0x010F, 0x8769, 0x9286
ASCII, LONG, UNDEFINED = 2, 4, 7
KEY = b"ldm"


class Damaged(ValueError):
    """What a file holds is no picture, or its record cannot be read."""


def parameters(record: Mapping[str, Any]) -> str:
    """A record as the text that A1111's programs read: the prompt, the negative prompt, then one line of settings."""
    sampler = SAMPLERS[find(record["sampler"])]
    facts = {
        "Steps": record["steps"],
        "Sampler": sampler.label or record["sampler"],
        "Schedule type": record["schedule"].capitalize(),
        "CFG scale": record["guidance"],
        "Seed": record["seed"],
        "Size": f"{record['width']}x{record['height']}",
        "Model hash": model_hash(record["files"])[:10],
        "Model": Path(record["model"] or "miniature").name,  # the one that ships, if none is named
    }
    if record.get("clip_skip"):
        facts["Clip skip"] = record["clip_skip"] + 1  # A1111 counts the usual last layer too
    settings = []
    for key, value in facts.items():
        text = str(value)
        if "," in text or ":" in text:
            text = json.dumps(value)
        settings.append(f"{key}: {text}")
    lines = [record["prompt"]]
    if record["negative"]:
        lines.append(f"Negative prompt: {record['negative']}")
    lines.append(", ".join(settings))
    return "\n".join(lines).encode("utf-8", "backslashreplace").decode("utf-8")  # names of files may be no Unicode


def model_hash(files: Mapping[str, str]) -> str:
    """SHA-256 of the UNet's file, or of the one that holds everything. files: name -> hash."""
    for name, sha in files.items():
        if "unet" in name:
            return sha
    return next(iter(files.values()))


def to_json(record: Mapping[str, Any]) -> str:
    """Readable if all of it is Unicode; names of files may hold bytes that are not, and then everything is escaped."""
    text = json.dumps(record, ensure_ascii=False)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return json.dumps(record)
    return text


def to_exif(record: Mapping[str, Any]) -> bytes:
    """Both texts as EXIF: a first directory with Make, and a second one with UserComment (EXIF 2.3, section 4.6)."""
    make = b"ldm:" + json.dumps(record).encode("ascii") + b"\0"
    make += b"\0" * (len(make) % 2)
    comment = b"UNICODE\0" + parameters(record).encode("utf-16-be")
    first = 8
    second = first + 2 + 2 * 12 + 4
    data = second + 2 + 12 + 4
    parts = [
        b"Exif\0\0" + b"MM\0*" + pack(">I", first),
        pack(">H", 2),
        pack(">HHII", MAKE, ASCII, len(make), data),
        pack(">HHII", EXIF_DIRECTORY, LONG, 1, second),
        pack(">I", 0),  # no further directory
        pack(">H", 1),
        pack(">HHII", USER_COMMENT, UNDEFINED, len(comment), data + len(make)),
        pack(">I", 0),
        make,
        comment,
    ]
    return b"".join(parts)


def read_record(path: Path) -> dict[str, Any]:
    """The JSON record of a picture that `pictures.save` wrote. Raises ValueError, one line, if there is none in it, and
    OSError if the file cannot be read."""
    advice = "give a picture that this program wrote"
    try:
        text = read_text(path)
    except Damaged as error:
        raise ValueError(f"{path}: {error}; {advice}") from None
    except (OSError, ValueError) as error:  # a name with a null byte is a ValueError
        raise OSError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    if text is None:
        raise ValueError(f"{path}: holds no record of how it was made; {advice}")
    try:
        record = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError):
        raise ValueError(f"{path}: its record is damaged: it is no JSON; {advice}") from None
    if not isinstance(record, dict) or not isinstance(record.get("prompt"), str):
        raise ValueError(f"{path}: its record is damaged: it names no prompt")
    return record


def read_text(path: Path) -> bytes | None:
    if not S_ISREG(os.stat(path).st_mode):
        raise Damaged("not a picture, and no regular file")
    with path.open("rb") as file:
        start = file.read(12)
        if start[:8] == b"\x89PNG\r\n\x1a\n":
            file.seek(8)
            return read_png(file)
        if start[:2] == b"\xff\xd8":
            file.seek(2)
            return find_in_exif(jpeg_segments(file))
        if start[:4] == b"RIFF" and start[8:] == b"WEBP":
            return find_in_exif(webp_chunks(file))
    raise Damaged("not a picture")


def read(file: BinaryIO, length: int) -> bytes:
    data = file.read(length)
    if len(data) < length:
        raise Damaged("its record is damaged: the file is cut off")
    return data


# PNG


def read_png(file: BinaryIO) -> bytes | None:
    """The text under the key of ours, which stands before or after the pixels."""
    for _ in range(CHUNKS):
        head = file.read(8)
        if len(head) < 8 or head[4:] == b"IEND":
            return None
        length = int.from_bytes(head[:4], "big")
        if head[4:] in (b"iTXt", b"tEXt", b"zTXt") and length <= LARGEST:
            data = read(file, length)
            sum_of_it = int.from_bytes(read(file, 4), "big")
            if data.startswith(KEY + b"\0"):
                if zlib.crc32(head[4:] + data) != sum_of_it:
                    raise Damaged("its record is damaged: the checksum is another")
                return text_of_chunk(head[4:], data[len(KEY) + 1 :])
        else:
            file.seek(length + 4, os.SEEK_CUR)
    return None


def text_of_chunk(kind: bytes, data: bytes) -> bytes:
    """UTF-8. Other programs may write a text again in another kind of chunk."""
    if kind == b"tEXt":
        return data.decode("latin-1").encode("utf-8")
    if kind == b"zTXt":
        return inflate(data[1:]).decode("latin-1").encode("utf-8")
    compressed = data[:1] == b"\1"
    text = data[2:].split(b"\0", 2)[-1]  # after two flags, a language and a translated key
    return inflate(text) if compressed else text


def inflate(data: bytes) -> bytes:
    engine = zlib.decompressobj()
    try:
        text = engine.decompress(data, LARGEST)
    except zlib.error:
        raise Damaged("its record is damaged: it cannot be decompressed") from None
    if engine.unconsumed_tail:
        raise Damaged(f"its record is damaged: it has more than {LARGEST} bytes")
    return text


# JPEG and WebP


def jpeg_segments(file: BinaryIO) -> Iterator[bytes]:
    """The EXIF segments, all of which stand before the pixels."""
    for _ in range(CHUNKS):
        head = file.read(4)
        if len(head) < 4 or head[0] != 0xFF or head[1] in (0xDA, 0xD9):
            return
        length = int.from_bytes(head[2:], "big") - 2
        if length < 0:
            return
        if head[1] == 0xE1:
            yield read(file, length)
        else:
            file.seek(length, os.SEEK_CUR)


def webp_chunks(file: BinaryIO) -> Iterator[bytes]:
    for _ in range(CHUNKS):
        head = file.read(8)
        if len(head) < 8:
            return
        length = int.from_bytes(head[4:], "little")
        room = length + length % 2  # to even places
        if head[:4] == b"EXIF" and length <= LARGEST:
            yield read(file, length)
            file.seek(room - length, os.SEEK_CUR)
        else:
            file.seek(room, os.SEEK_CUR)


def find_in_exif(blocks: Iterator[bytes]) -> bytes | None:
    for block in islice(blocks, EXIF_BLOCKS):
        make = read_make(block.removeprefix(b"Exif\0\0"))
        if make.startswith(KEY + b":"):
            return make[len(KEY) + 1 :].rstrip(b"\0")
    return None


def read_make(block: bytes) -> bytes:
    """The tag Make of the first directory; other programs may have turned the order of bytes."""
    orders = {b"MM": ">", b"II": "<"}
    order = orders.get(block[:2])
    if order is None or len(block) < 10:
        return b""
    (first,) = unpack(order + "I", block[4:8])
    directory = block[first + 2 :]
    count = int.from_bytes(block[first : first + 2], "big" if order == ">" else "little")
    for i in range(min(count, EXIF_TAGS, len(directory) // 12)):
        tag, kind, length, place = unpack(order + "HHII", directory[12 * i : 12 * i + 12])
        if tag == MAKE and kind == ASCII and length > 4:
            return block[place : place + length]
    return b""
