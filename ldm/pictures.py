"""Pictures as files: PNGs that hold how they were made, as the text that A1111's programs read (`parameters`) and as
a JSON record (`ldm`), from which the picture can be made again."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from PIL import Image, PngImagePlugin, UnidentifiedImageError
from torch import Tensor

from samplers import SAMPLERS, find


def to_pil(image: Tensor) -> Image.Image:
    """A picture (3 h w) in [-1, 1] in 8 bits per channel, rounded to the nearest."""
    pixels = ((image.float() + 1) * 127.5).round().byte().cpu()
    return Image.fromarray(rearrange(pixels, "c h w -> h w c").numpy())


def grid(images: Tensor, columns: int) -> Tensor:
    """Pictures (n c h w) row by row -> one (c rows*h columns*w); what is missing in the last row is white."""
    missing = torch.ones_like(images[:1]).expand(-len(images) % columns, -1, -1, -1)
    return rearrange(torch.cat([images, missing]), "(rows columns) c h w -> c (rows h) (columns w)", columns=columns)


def save(image: Tensor, path: Path, record: Mapping[str, Any] | None = None):
    """Write a picture (3 h w) in [-1, 1] as PNG, whole or not at all.

    record: how it was made, with the fields that `parameters` reads; anything else that JSON can hold may be in it.
    Raises OSError, one line, if the file cannot be written.
    """
    info = PngImagePlugin.PngInfo()
    if record:
        info.add_itxt("parameters", parameters(record))
        info.add_itxt("ldm", json.dumps(record, ensure_ascii=False))
    part = path.with_name(path.name + ".part")
    try:
        to_pil(image).save(part, format="PNG", pnginfo=info)
        os.replace(part, path)
    except OSError as error:
        raise OSError(f"{path}: cannot be written: {error.strerror}") from error
    finally:
        part.unlink(missing_ok=True)


def read_record(path: Path) -> dict[str, Any]:
    """The JSON record of a picture that `save` wrote. Raises ValueError, one line, if there is none in it, and OSError
    if the file cannot be read."""
    try:
        with Image.open(path) as image:
            text = image.info.get("ldm")
    except UnidentifiedImageError:
        raise ValueError(f"{path}: not a picture; give a PNG that this program wrote") from None
    except OSError as error:
        raise OSError(f"{path}: {error.strerror or error}") from error
    try:
        record = json.loads(text or "")
    except (TypeError, ValueError, RecursionError):
        raise ValueError(f"{path}: holds no record of how it was made; give a PNG that this program wrote") from None
    if not isinstance(record, dict) or not isinstance(record.get("prompt"), str):
        raise ValueError(f"{path}: its record is damaged: it names no prompt")
    return record


def next_number(folder: Path) -> int:
    """The number of the next picture in a folder of 00000-SEED.png, 00001-SEED.png and so on: one above the highest."""
    number = 0
    for path in folder.glob("*.png"):
        name = re.fullmatch(r"(\d{5,})-\d+\.png", path.name)
        if name:
            number = max(number, int(name[1]) + 1)
    return number


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
    return "\n".join(lines)


def model_hash(files: Mapping[str, str]) -> str:
    """SHA-256 of the UNet's file, or of the one that holds everything. files: name -> hash."""
    for name, sha in files.items():
        if "unet" in name:
            return sha
    return next(iter(files.values()))
