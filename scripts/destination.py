"""Where pictures go: a folder with numbers for names, or one file; and the checks that come before hours of drawing.

Nothing is ever written over, unless that is asked for.
"""

import os
import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from common import fail
from drawing.estimate import in_words
from ldm import pictures
from ldm.scratch import scratch_folder

OTHERS = (  # that Pillow does not know
    *(".heic", ".heif", ".jxl", ".svg", ".psd", ".exr", ".raw", ".mp4", ".mkv", ".webm", ".mov", ".zip", ".gz", ".tar"),
    *(".safetensors", ".gguf", ".ckpt", ".pt", ".pth", ".bin", ".onnx", ".json", ".jsonl", ".csv", ".tsv", ".txt"),
    *(".md", ".html", ".htm", ".xml", ".yaml", ".yml", ".toml", ".py", ".ipynb"),
)
KINDS = "pictures are written as PNG, WebP or JPEG"
SMALLEST = {".png": 0.3, ".webp": 0.2, ".jpg": 0.05}  # bytes per channel and pixel, of pictures with little in them
WIDEST = 2**16  # pixels; the task refuses what is no size
PATIENCE = 16  # pictures in a row that cannot be written
LONGEST = f"00000-{2**64}.png"  # of the names in a folder


@dataclass(frozen=True)
class Destination:
    """path: of the one picture, None if `folder` takes several, which end in `suffix`."""

    folder: Path
    suffix: str
    path: Path | None
    overwrite: bool

    @property
    def longest_name(self) -> str:
        return LONGEST if self.path is None else self.path.name

    def save(self, image: Tensor, record: Mapping[str, Any]) -> Path:
        """Where the picture lies now. Raises OSError, one line, if it cannot be written."""
        if self.path is None:
            return pictures.save_numbered(image, self.folder, record["seed"], record, self.suffix)
        pictures.save(image, self.path, record, self.overwrite)
        return self.path


def choose_destination(out: Path, form: str | None, overwrite: bool, count: int) -> Destination:
    """From --out, --format and --overwrite, for so many pictures. Ends the program if they do not fit together."""
    ending = out.suffix.lower()
    if ending not in pictures.FORMATS:
        check_folder(out, ending)
        return Destination(out, f".{form or 'png'}", None, overwrite)
    if count > 1:
        fail(f"--out {out}: one name for several pictures; give a folder")
    if form and pictures.FORMATS[f".{form}"] != pictures.FORMATS[ending]:
        fail(f"--out {out} and --format {form}: the end of the name says another format; leave --format out")
    if os.path.isdir(out):  # unlike Path.is_dir, this raises nothing
        fail(f"--out {out}: cannot be written: it is a folder")
    if os.path.lexists(out) and not overwrite:
        fail(f"--out {out}: exists already: choose another name, or --overwrite to replace it")
    return Destination(out.parent, ending, out, overwrite)


def check_folder(out: Path, ending: str):
    if os.path.isdir(out):
        return
    if os.path.lexists(out):
        fail(f"--out {out}: is a file; give a folder or a name that ends in .png, .webp or .jpg")
    slip = get_close_matches(ending, pictures.FORMATS, n=1, cutoff=0.75)  # ".pngg"
    if slip or ending in OTHERS or ending in Image.registered_extensions():
        fail(f"--out {out}: {KINDS}; give a folder or a name that ends in .png, .webp or .jpg")


@contextmanager
def held(folder: Path, name: str = LONGEST) -> Generator[None]:
    """A while in which the folder is there and a file of this name can be written to it. A folder that was made for it
    vanishes at the end if nothing came to lie in it. Ends the program if it cannot be written."""
    if os.path.lexists(folder) and not os.path.isdir(folder):
        fail(f"--out {folder / name}: cannot be written: {folder} is no folder")
    entered = False
    try:
        with scratch_folder(folder) as scratch:
            (scratch / name).touch()
            (scratch / name).unlink()
            entered = True
            yield
    except (OSError, ValueError) as error:  # a name with a null byte is a ValueError
        if entered:
            raise
        place = folder if name == LONGEST else folder / name
        fail(f"--out {place}: cannot be written: {getattr(error, 'strerror', None) or error}")


def check_space(destination: Destination, count: int, settings: Mapping[str, Any]):
    """Refuse pictures of these settings for which the disk has no room, even if they have little in them. Before the
    model is loaded, its usual size may not be known."""
    height = settings["height"] or 8
    width = settings["width"] or 8
    if max(height, width) > WIDEST:
        return
    needed = int(count * 3 * height * width * SMALLEST.get(destination.suffix, 0.05))
    free = shutil.disk_usage(destination.folder).free
    if needed > free:
        place = destination.path or destination.folder
        fail(f"--out {place}: {count} pictures need {in_words(needed)} at least, and {in_words(free)} are free")


class Lost:
    """Pictures that could not be written. They are told at the end, after all that could be; only where one after the
    other is lost, nothing more is drawn."""

    def __init__(self):
        self.errors: list[str] = []
        self.in_a_row = 0

    @contextmanager
    def told_later(self, what: str) -> Generator[None]:
        try:
            yield
        except OSError as error:
            self.errors.append(f"{what}: {error}")
            self.in_a_row += 1
            if self.in_a_row >= PATIENCE:
                self.tell()
        else:
            self.in_a_row = 0

    def tell(self):
        """End the program if there are any."""
        if self.errors:
            more = f"; and {len(self.errors) - 1} more" if len(self.errors) > 1 else ""
            fail(f"{self.errors[0]}{more}; what was named above is complete")
