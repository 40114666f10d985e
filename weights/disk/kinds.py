"""What a file is that is no safetensors file, by its first bytes: for one line that says so, and what to do."""

import json
import re
import shlex
from pathlib import Path

READ = 4096  # bytes; a web page can begin with a long comment
PICKLED_OBJECTS = "pickled Python objects (for {}), which are never read here: convert it to safetensors"
PICKLED = (".ckpt", ".pt", ".pth", ".bin", ".pkl")  # how pickled files are usually named
PICTURES = (
    (b"\x89PNG\r\n", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"GIF8", "a GIF picture"),
    (b"II*\x00", "a TIFF picture"),
    (b"MM\x00*", "a TIFF picture"),
    (b"%PDF-", "a PDF document"),
)
ARCHIVES = (
    (b"\x1f\x8b", "is compressed by gzip"),
    (b"BZh", "is compressed by bzip2"),
    (b"\xfd7zXZ", "is compressed by xz"),
    (b"\x28\xb5\x2f\xfd", "is compressed by Zstandard"),
    (b"7z\xbc\xaf\x27\x1c", "is a 7-Zip archive"),
    (b"Rar!", "is a RAR archive"),
)
OTHERS = (
    (b"GGUF", "a GGUF file"),
    (b"ggml", "a GGML file"),
    (b"lmgg", "a GGML file"),
    (b"tjgg", "a GGML file"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x89HDF\r\n", "an HDF5 file"),
    (b"\x7fELF", "a program"),
    (b"SQLite format 3", "a database"),
)
ONNX = re.compile(rb"\x08[\x01-\x20](\x12.[\w.-]+|.{0,8}pytorch|.{0,8}onnx)", re.DOTALL)  # its version, its producer
AT_4 = ((b"ftyp", "a video or an AVIF picture"), (b"TFL3", "a TensorFlow Lite file"))


def describe_bytes(path: Path) -> str:
    """What a file is, as the end of a line that begins with its name; "" where nobody knows."""
    with path.open("rb") as file:
        start = file.read(READ)
    if not start.strip(b"\0"):
        return "" if len(start) < 512 else "holds zeros only: its download never got anywhere, begin it again"
    if start.startswith(b"PK\x03\x04") or start.startswith(tuple(bytes([0x80, n]) for n in range(2, 6))):
        return archive_or_pickle(path, start)
    for first, what in ARCHIVES:
        if start.startswith(first):
            return f"{what}: unpack it"
    if start[257:262] == b"ustar":
        return describe_tar(path, start)
    what = binary_kind(start)
    if what:
        return f"is {what}: this program reads safetensors"
    return describe_text(start)


def binary_kind(start: bytes) -> str:
    for first, what in (*PICTURES, *OTHERS):
        if start.startswith(first):
            return what
    for first, what in AT_4:
        if start[4:].startswith(first):
            return what
    if start.startswith(b"RIFF"):
        return "a WebP picture" if start[8:12] == b"WEBP" else "a sound or a video"
    if start.startswith(b"BM") and start[6:10] == bytes(4):
        return "a BMP picture"
    return "an ONNX file" if ONNX.match(start) else ""


def archive_or_pickle(path: Path, start: bytes) -> str:
    """torch.save makes zip archives too, with data.pkl at first."""
    is_zip = start.startswith(b"PK")
    if is_zip and b"data.pkl" not in start[:512] and b"/version" not in start[:512] and b".data/" not in start[:512]:
        return "is a zip archive, and not as torch.save writes it: unpack it"
    what = "is a zip archive as torch.save writes it and " if is_zip else ""
    return f"{what}holds {PICKLED_OBJECTS.format(convert_command(str(path)))}"


def describe_tar(path: Path, start: bytes) -> str:
    """The first versions of torch.save wrote one, of these files."""
    if not start.startswith((b"sys_info", b"pickle", b"storages", b"tensors")):
        return "is a tar archive: unpack it"
    return f"is a tar archive of PyTorch's first years and holds {PICKLED_OBJECTS.format(convert_command(str(path)))}"


def convert_command(source: str) -> str:
    """What to do with a pickled file, as a line for the shell."""
    path = Path(source)
    target = path.with_name(path.stem + ".safetensors")
    if target.name == path.name:
        target = path.with_name(path.stem + "-converted.safetensors")
    return f"`ldm convert {shlex.quote(source)} --to {shlex.quote(str(target))}`"


def describe_text(start: bytes) -> str:
    """Of a file that may hold text: whose, by how it begins."""
    text = start.decode("utf-8-sig", errors="replace").lstrip()
    lower = text[:2000].lower()
    if lower.startswith("version https://git-lfs"):
        return "is a git-LFS pointer and not the file itself: run git lfs pull"
    if lower.startswith(("<!doctype html", "<html", "<!doctype", "<head", "<!--")):
        title = re.search(r"<title[^>]*>\s*([^<]{1,80})", text, re.IGNORECASE)
        of = f", {' '.join(title[1].split())!r}" if title else ""
        return (
            f"is a web page{of}, and not the file: save what its download link leads to, which may need a licence "
            "or a token"
        )
    if lower.startswith("<?xml") or lower.startswith("<svg"):
        return "is an XML page: the download went wrong"
    if lower.startswith("{"):
        return describe_json(start)
    return describe_plain(start)


def describe_json(start: bytes) -> str:
    if b'"weight_map"' in start:
        return "is JSON text, an index of shards: name it as it was, .index.json, beside its shards"
    if b'"_class_name"' in start or b'"architectures"' in start:
        return "is JSON text, the settings of a model: its weights are in another file"
    if b'"error"' in start:
        return "is JSON text, an error: the download went wrong"
    return "is JSON text: the download went wrong, or another file is meant"


def describe_plain(start: bytes) -> str:
    """A text has no control codes but those between lines, and its bytes are UTF-8 except where it was cut."""
    try:
        text = start.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if len(start) < READ or error.start < READ - 4:
            return ""
        text = start[: error.start].decode("utf-8-sig")
    words = text.split()
    if not words or not all(c.isprintable() or c in "\t\r\n\f" for c in text):
        return ""
    return (
        f"is a text file and no safetensors file: it begins with {json.dumps(' '.join(words)[:40], ensure_ascii=False)}"
    )
