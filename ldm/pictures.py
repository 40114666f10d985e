"""Pictures as files, PNG, WebP or JPEG, that hold how they were made (`records`). A file appears under its name when it
is complete, and takes the place of no other unless that is asked for.
"""

import os
import re
import time
from collections.abc import Collection, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from PIL import Image, PngImagePlugin
from torch import Tensor

from .records import EXIF_LARGEST, model_hash, parameters, read_record, to_exif, to_json
from .scratch import place, scratch_folder

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None

__all__ = [
    "FORMATS",
    "grid",
    "metadata",
    "model_hash",
    "next_number",
    "parameters",
    "read_record",
    "save",
    "save_latest",
    "save_numbered",
    "to_pil",
]

FORMATS: dict[str, tuple[str, dict[str, Any]]] = {  # suffix -> Pillow's name for it, and how it writes it
    ".png": ("PNG", {}),
    ".webp": ("WEBP", {"lossless": True}),
    ".jpg": ("JPEG", {"quality": 95, "subsampling": 0}),  # colour in full resolution
    ".jpeg": ("JPEG", {"quality": 95, "subsampling": 0}),
}
NUMBERED = re.compile(r"(\d{5,})-\d+(\.\w+)", re.ASCII)
PATIENCE = 50  # times a tenth of a second, to wait for another program that numbers a picture


def to_pil(image: Tensor) -> Any:
    """A picture (3 h w) in [-1, 1] as a PIL image in 8 bits per channel, rounded to the nearest; a batch (b 3 h w) as
    the list of them. Notebooks show both. What lies outside of [-1, 1] is cut off. Raises ValueError for other shapes,
    and for values that are not numbers."""
    if image.ndim not in (3, 4) or image.shape[-3] != 3:
        shape = "x".join(map(str, image.shape))
        raise ValueError(f"a picture of shape {shape}: 3 h w or b 3 h w is expected")
    if image.isnan().any():
        raise ValueError("a picture with values that are not numbers cannot be shown")
    pixels = ((image.detach().float().clamp(-1, 1) + 1) * 127.5).round().byte().cpu()
    if image.ndim == 4:
        return [to_pil_image(picture) for picture in pixels]
    return to_pil_image(pixels)


def to_pil_image(pixels: Tensor) -> Image.Image:
    return Image.fromarray(rearrange(pixels, "c h w -> h w c").numpy())


def grid(images: Tensor, columns: int) -> Tensor:
    """Pictures (n c h w) row by row -> one (c rows*h columns*w); what is missing in the last row is white."""
    missing = torch.ones_like(images[:1]).expand(-len(images) % columns, -1, -1, -1)
    return rearrange(torch.cat([images, missing]), "(rows columns) c h w -> c (rows h) (columns w)", columns=columns)


def save(image: Tensor, path: Path, record: Mapping[str, Any] | None = None, overwrite: bool = True):
    """Write a picture (3 h w) in [-1, 1], whole or not at all, in the format that the end of its name says: .png, .webp
    (lossless), .jpg or .jpeg.

    record: how it was made, with the fields that `parameters` reads; anything else that JSON can hold may be in it.
    A link at `path` is replaced and not followed. Raises ValueError for another name or a record that is too long for
    a JPEG, and OSError, one line, if the file cannot be written; FileExistsError if it exists and is not to be
    overwritten.
    """
    with written(image, path, record) as part:
        if overwrite:
            os.replace(part, path)
        else:
            place(part, path)


def save_numbered(
    image: Tensor, folder: Path, seed: int, record: Mapping[str, Any] | None = None, suffix: str = ".png"
) -> Path:
    """Write a picture as FOLDER/NUMBER-SEED.png, 00000-7.png for example, under the next number that is free; where it
    lies. Programs that write into one folder at the same time get numbers of their own. Raises as `save` does."""
    with written(image, folder / f"picture{suffix}", record) as part, numbering(folder):
        number = next_number(folder, FORMATS)
        while True:
            path = folder / f"{number:05d}-{seed}{suffix}"
            try:
                place(part, path)
            except FileExistsError:
                number += 1
            else:
                return path


def save_latest(image: Tensor, path: Path) -> Path | None:
    """Write a picture as grid.png, for example. One that has this name already gets another, grid-1.png or the next
    that is free; its new name. Raises as `save` does."""
    earlier = None
    with written(image, path, None) as part, numbering(path.parent):
        if os.path.lexists(path):
            earlier = move_aside(path)
        place(part, path)
    return earlier


def move_aside(path: Path) -> Path:
    number = 1
    while os.path.lexists(path.with_stem(f"{path.stem}-{number}")):
        number += 1
    earlier = path.with_stem(f"{path.stem}-{number}")
    os.rename(path, earlier)
    return earlier


@contextmanager
def written(image: Tensor, path: Path, record: Mapping[str, Any] | None) -> Generator[Path]:
    """The picture in a scratch folder beside its place, to be moved there; its errors name the place."""
    known = FORMATS.get(path.suffix.lower())
    if known is None:
        raise ValueError(f"{path}: pictures are written as PNG, WebP or JPEG: choose a name that ends in .png")
    form, options = known
    options = options | metadata(path, record)
    try:
        with scratch_folder(path.parent) as scratch:
            part = scratch / f"picture{path.suffix}"
            to_pil(image).save(part, format=form, **options)
            yield part
    except FileExistsError:
        raise FileExistsError(f"{path}: exists already") from None
    except OSError as error:
        raise OSError(f"{path}: cannot be written: {error.strerror or error}") from error


def metadata(path: Path, record: Mapping[str, Any] | None) -> dict[str, Any]:
    """A record as Pillow writes it into a picture of this name. Raises ValueError if it has no room there."""
    form, _ = FORMATS[path.suffix.lower()]
    if not record:
        return {}
    if form == "PNG":
        info = PngImagePlugin.PngInfo()
        info.add_itxt("parameters", parameters(record))
        info.add_itxt("ldm", to_json(record))
        return {"pnginfo": info}
    exif = to_exif(record)
    if form == "JPEG" and len(exif) > EXIF_LARGEST:
        raise ValueError(f"{path}: how it was made takes {len(exif)} bytes, and a JPEG has room for {EXIF_LARGEST}")
    return {"exif": exif}


def next_number(folder: Path, suffixes: Collection[str] = (".png",)) -> int:
    """The number of the next picture in a folder of 00000-SEED.png, 00001-SEED.png and so on: one above the highest."""
    number = 0
    if folder.is_dir():
        for name in os.listdir(folder):
            match = NUMBERED.fullmatch(name)
            if match and match[2] in suffixes:
                number = max(number, int(match[1]) + 1)
    return number


@contextmanager
def numbering(folder: Path) -> Generator[None]:
    """A while in which no other program numbers a picture in this folder. Where the file system knows no locks, or one
    is held for too long, names are still taken by nobody else, and two pictures may share a number."""
    descriptor = lock(folder)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def lock(folder: Path) -> int | None:
    if fcntl is None:
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    for _ in range(PATIENCE):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.1)
        except OSError:
            break
        else:
            return descriptor
    os.close(descriptor)
    return None
