"""What a run would need, told before it begins: steps, pixels and memory. What cannot fit is refused in one line."""

import os
from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import Any

import torch

from ldm.model import Model
from ldm.tasks.text_to_image import MAX_SIZE
from ldm.vae import VAE

try:
    import resource
except ImportError:  # Windows
    resource = None

MANY = 10_000  # pictures of one run; beyond it a slip of the keyboard is likelier than a wish, so --force is asked for
MOST = 10_000_000  # even so
GRID_SIDE = 65_500  # pixels, which is as far as viewers and JPEG go; PNG itself ends at 2^31 - 1
GRID_PIXELS = 178_956_970  # Pillow opens no larger picture, since it could be a decompression bomb
DRAWN = 12 + 3 + 12  # bytes per pixel of a finished picture: in float32, in 8 bits, and once more on the way

COPIES = 6  # of the decoder's widest level that exist at once, workspace included; measured on the miniature


def check_count(count: int, settings: Mapping[str, Any], force: bool):
    """Raises ValueError for more pictures than anybody wants. settings: of the first of them."""
    if count <= MANY or (force and count <= MOST):
        return
    work = f"{count:,} pictures"
    if settings["width"] and settings["height"]:
        pixels = settings["width"] * settings["height"]
        work += f" of {settings['width']} x {settings['height']} pixels, {in_words(count * pixels)} of files or more,"
    if settings["steps"]:
        work += f" in {count * settings['steps']:,} steps"
    limit = f"at most {MOST:,} are drawn in one run" if count > MOST else "if you mean it, add --force"
    raise ValueError(f"this asks for {work.rstrip(',')}: {limit}")


def check_sizes(pictures: Sequence[Mapping[str, Any]], device: str, force: bool):
    """Raises ValueError for sizes that no model could draw here, as far as they are known before one is loaded."""
    for settings in pictures:
        for name in ("width", "height"):
            size = settings[name]
            if size is not None and size > MAX_SIZE:
                raise ValueError(f"{name} {str(size)[:30]}: must be a positive multiple of 8, at most {MAX_SIZE}")
        if settings["width"] and settings["height"] and not force:
            least = settings["width"] * settings["height"] * (DRAWN + 8 * 32)  # 8 channels are the fewest of a decoder
            check_memory(settings, least, memory(device), 1, "at least")


def check_batches(model: Model, pictures: Sequence[Mapping[str, Any]], plan: Sequence[Sequence[int]]):
    """Raises ValueError if the pictures of a batch do not fit into the memory of the device at once."""
    free = memory(str(model.device))
    needs = {}
    for numbers in plan:
        settings = pictures[numbers[0]]
        needs[settings["width"], settings["height"], len(numbers)] = settings
    for (width, height, count), settings in needs.items():
        check_memory(settings, bytes_of_a_picture(model, width, height), free, count)


def check_memory(settings: Mapping[str, Any], one: int, free: int | None, batch: int, least: str = "about"):
    if free is None or one * batch <= free:
        return
    size = f"{settings['width']} x {settings['height']} pixels"
    need = f"{least} {in_words(one * batch)} of memory, and {in_words(free)} are free"
    if batch > 1 and one <= free:
        raise ValueError(f"{batch} pictures of {size} at once need {need}: choose --batch {free // one}")
    raise ValueError(f"a picture of {size} needs {need}: choose a smaller one, or try with --force")


def bytes_of_a_picture(model: Model, width: int, height: int) -> int:
    """About what drawing one needs at its peak, beside the weights. That is the decoder's last level in full size, with
    the wider channels that come from the level before, or the widest level of the UNet twice, for guidance."""
    pixels = width * height
    value = next(model.vae.parameters()).element_size()
    if isinstance(model.vae, VAE):
        channels = model.vae.config.channels
        decoder = COPIES * channels[min(1, len(channels) - 1)] * value
    else:
        decoder = COPIES * model.vae.config.channels * value
    latents = pixels // model.vae.factor**2
    network = 2 * latents * 12 * model.facts.unet.channels[0] * next(model.unet.parameters()).element_size()
    return pixels * DRAWN + max(pixels * decoder, network)


def check_grid(count: int, columns: int, width: int | None, height: int | None):
    """Raises ValueError for a grid that programs cannot open, or that does not fit into memory."""
    if width is None or height is None:
        return
    rows = ceil(count / columns)
    size = f"a grid of {columns:,} x {rows:,} pictures has {columns * width:,} x {rows * height:,} pixels"
    pixels = columns * width * rows * height
    free = memory("cpu")
    if max(columns * width, rows * height) > GRID_SIDE or pixels > GRID_PIXELS:
        limit = f"at most {GRID_SIDE:,} a side and {GRID_PIXELS:,} in all can be opened everywhere"
        raise ValueError(f"{size}: {limit}; choose other --columns, a smaller --count, or leave out --grid")
    if free is not None and pixels * DRAWN > free:
        raise ValueError(f"{size}, which need {in_words(pixels * DRAWN)} of memory, and {in_words(free)} are free")


def memory(device: str) -> int | None:
    """The bytes that are free on a device, on the CPU within the limits of this process and its container; None if
    nobody tells."""
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info(device)[0]
    if device.startswith("xpu"):
        return torch.xpu.mem_get_info(device)[0]
    container = read_number("/sys/fs/cgroup/memory.max")
    limits = [free for free in (free_memory(), room_of_process(), container) if free is not None]
    return min(limits, default=None)


def free_memory() -> int | None:
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            facts = dict(line.split(":", 1) for line in file)
        return (int(facts["MemAvailable"].split()[0]) + int(facts["SwapFree"].split()[0])) * 1024
    except (OSError, KeyError, ValueError):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")  # all of it, where nobody tells what is free
    except (AttributeError, OSError, ValueError):
        return None


def room_of_process() -> int | None:
    """What ulimit -v leaves."""
    if resource is None:
        return None
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return None
    used = read_number("/proc/self/statm") or 0
    return max(limit - used * os.sysconf("SC_PAGE_SIZE"), 0)


def read_number(path: str) -> int | None:
    try:
        return int(Path(path).read_text(encoding="ascii").split()[0])
    except (OSError, ValueError, IndexError):
        return None


def in_words(size: int) -> str:
    for unit in ("bytes", "KB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size = round(size / 1000)
    return f"{size / 1000:.3g} TB" if size >= 1000 else f"{size} GB"
