"""Pictures and masks as tasks take them: opened, turned upright, made RGB, brought to a size, and pasted back.

A picture is a PIL picture, several, or a tensor (b 3 h w) in [-1, 1]; a mask is the like, or (b 1 h w) in [0, 1], where
1 is to be painted. `resize` is one of RESIZES.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from samplers.options import show

Images = Image.Image | Sequence[Image.Image] | Tensor
Box = tuple[int, int, int, int]  # left, top, right, bottom, in pixels; right and bottom do not belong to it

MAX_PIXELS = 2**28  # of a picture that is opened: 16384 x 16384
RESIZES = ("stretch", "crop", "fill")  # to a size: as it comes; cover it and cut; fit inside and repeat the edges
SIXTEEN_BITS = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")


def open_image(path: Path) -> Image.Image:
    """A picture file, upright by its EXIF. Raises ValueError, one line, for what is no picture, is too large, animated
    or has more than 8 bits; OSError if the file cannot be read."""
    try:
        with Image.open(path) as image:
            refuse_unusual(str(path), image)
            return ImageOps.exif_transpose(image)
    except UnidentifiedImageError:
        raise ValueError(f"{path}: is no picture; give a PNG, JPEG or WebP") from None
    except (SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: is a damaged or too large picture: {error}") from None


def refuse_unusual(name: str, image: Image.Image) -> None:
    """Raises ValueError for a picture that no task can take, before its pixels are decoded."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ValueError(f"{name}: {width} x {height} pixels are too many; make it smaller first")
    if width < 1 or height < 1:
        raise ValueError(f"{name}: a picture of {width} x {height} pixels is empty")
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        raise ValueError(f"{name}: is animated; give one of its {frames} frames")
    if image.mode in SIXTEEN_BITS:
        raise ValueError(f"{name}: has 16 bits or more per channel; convert it to 8 bits first")


def to_rgb(image: Image.Image) -> Image.Image:
    """Three channels; what is transparent lies on white, as a browser shows it."""
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def as_images(name: str, images: Any, size: tuple[int, int] | None, factor: int, resize: str = "stretch") -> Tensor:
    """Pictures as a tensor (b 3 h w) in [-1, 1], float32 on the CPU, or the given tensor.

    size: (height, width); None takes that of the first picture, rounded down to a multiple of `factor`. PIL pictures
    are resized by Lanczos, as diffusers does it. Raises TypeError or ValueError, by the name, for what is no picture.
    """
    if resize not in RESIZES:
        raise ValueError(f"resize {resize!r}: choose one of {', '.join(RESIZES)}")
    if isinstance(images, Tensor):
        return tensor_of_images(name, images, size, factor)
    listed = [images] if isinstance(images, Image.Image) else images
    pictures = isinstance(listed, Sequence) and all(isinstance(image, Image.Image) for image in listed)
    if not pictures or len(listed) == 0:
        raise TypeError(f"{name} {show(images)}: give a PIL picture, several, or a tensor (b 3 h w) in [-1, 1]")
    for image in listed:
        refuse_unusual(name, image)
    if size is None:
        width, height = listed[0].size
        size = round_down(name, height, width, factor)
    return torch.stack([to_tensor(resize_image(to_rgb(image), size, resize)) for image in listed]) * 2 - 1


def round_down(name: str, height: int, width: int, factor: int) -> tuple[int, int]:
    """(height, width) in whole latents. Raises ValueError if nothing is left."""
    size = height // factor * factor, width // factor * factor
    if 0 in size:
        raise ValueError(f"{name}: {width} x {height} pixels are fewer than {factor} a side; give a larger picture")
    return size


def tensor_of_images(name: str, images: Tensor, size: tuple[int, int] | None, factor: int) -> Tensor:
    """A tensor of pictures, checked, in float32 and of that size. Raises ValueError for any other tensor."""
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point() or 0 in images.shape:
        kind = f"{images.dtype}, shape {tuple(images.shape)}"
        raise ValueError(f"{name} of {kind}: floats (b 3 h w) in [-1, 1] are expected")
    images = images.float()
    low, high = images.aminmax()
    if not (low >= -1.001 and high <= 1.001):  # also if NaN; rounding in float16 may pass 1
        raise ValueError(f"{name}: values from {low:.3g} to {high:.3g}: [-1, 1] is expected")
    wanted = round_down(name, *images.shape[2:], factor) if size is None else size
    if tuple(images.shape[2:]) == wanted:
        return images
    return F.interpolate(images, wanted, mode="bicubic", antialias=True).clamp(-1, 1)


def to_tensor(image: Image.Image) -> Tensor:
    """(c h w) in [0, 1]."""
    pixels = torch.from_numpy(np.array(image)).float() / 255
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)


def resize_image(image: Image.Image, size: tuple[int, int], resize: str = "stretch") -> Image.Image:
    """A picture of that (height, width), by a rule of RESIZES. Sides are rounded down, as in diffusers."""
    height, width = size
    if resize == "stretch" or image.size == (width, height):
        return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.LANCZOS)
    wide = width * image.height > height * image.width  # what is asked for is wider than the picture
    if wide == (resize == "crop"):
        scaled = width, max(image.height * width // image.width, 1)
    else:
        scaled = max(image.width * height // image.height, 1), height
    scaled_image = image.resize(scaled, Image.Resampling.LANCZOS)
    left = width // 2 - scaled[0] // 2
    top = height // 2 - scaled[1] // 2
    if resize == "crop":
        return scaled_image.crop((-left, -top, width - left, height - top))
    return spread_edges(scaled_image, (left, top), (width, height))


def spread_edges(image: Image.Image, place: tuple[int, int], size: tuple[int, int]) -> Image.Image:
    """The picture at (left, top) of a larger one of (width, height), whose borders repeat its edges."""
    left, top = place
    right = size[0] - left - image.width
    bottom = size[1] - top - image.height
    pixels = np.array(image)
    around = [(top, bottom), (left, right)] + [(0, 0)] * (pixels.ndim - 2)
    return Image.fromarray(np.pad(pixels, around, mode="edge"))


# Masks


def as_mask(mask: Any, pictures: Tensor, given: Any = None) -> Tensor:
    """A mask as (b 1 h w) in [0, 1], float32, on the device of the pictures (b 3 h w) that it belongs to.

    PIL masks are read as greys. given: the pictures before they were resized; a PIL mask of their size is resized like
    them. Raises TypeError or ValueError for what is no mask, one of another size, and an empty one.
    """
    size = tuple(pictures.shape[2:])
    found = tensor_of_masks(mask, size, given)
    if tuple(found.shape[2:]) != size:
        there = f"{found.shape[3]} x {found.shape[2]}"
        raise ValueError(f"mask of {there} pixels for pictures of {size[1]} x {size[0]}: give one of the same size")
    if len(found) not in (1, len(pictures)):
        raise ValueError(f"{len(found)} masks for {len(pictures)} pictures: give one, or one each")
    if not (found.min() >= 0 and found.max() <= 1):  # also if NaN
        raise ValueError(f"mask with values from {found.min():.3g} to {found.max():.3g}: [0, 1] is expected")
    if not found.any():
        raise ValueError("mask is empty: mark with white what is to be painted")
    return found.to(pictures.device)


def tensor_of_masks(mask: Any, size: tuple[int, ...], given: Any) -> Tensor:
    """(b 1 h w) float32; PIL masks that have the size of the given PIL picture are brought to `size`."""
    if isinstance(mask, Tensor):
        found = mask.float() if mask.dtype == torch.bool else mask
        if found.ndim != 4 or found.shape[1] != 1 or not found.is_floating_point() or 0 in found.shape:
            raise ValueError(f"mask of {mask.dtype}, shape {tuple(mask.shape)}: (b 1 h w) in [0, 1] is expected")
        return found.float()
    listed = [mask] if isinstance(mask, Image.Image) else mask
    if not isinstance(listed, Sequence) or not listed or not all(isinstance(one, Image.Image) for one in listed):
        raise TypeError(f"mask {show(mask)}: give a PIL picture, several, or a tensor (b 1 h w) in [0, 1]")
    sizes = {one.size for one in listed}
    if len(sizes) > 1:
        raise ValueError(f"masks of different sizes, {sorted(sizes)}: give masks of one size")
    first = given[0] if isinstance(given, Sequence) and given else given
    resized = []
    for one in listed:
        grey = one.convert("L")
        if isinstance(first, Image.Image) and first.size == one.size:
            grey = resize_image(grey, (size[0], size[1]))
        resized.append(to_tensor(grey))
    return torch.stack(resized)


def extend(image: Tensor, left: int = 0, top: int = 0, right: int = 0, bottom: int = 0) -> tuple[Tensor, Tensor]:
    """A larger picture (b 3 h w) around this one, its edges repeated, and the mask (1 1 h w) of what is new: what
    inpainting needs to paint beyond the edges. The sides are in pixels. Raises ValueError for a side below 0, or if
    none is above."""
    sides = (left, right, top, bottom)
    if min(sides) < 0 or max(sides) == 0:
        raise ValueError(f"sides {sides}: give pixels to add, 0 or more, and more than 0 on one side")
    mask = torch.zeros_like(image[:1, :1])
    return F.pad(image, sides, mode="replicate"), F.pad(mask, sides, value=1.0)


def mask_of_latents(mask: Tensor, factor: int, rule: str = "any") -> Tensor:
    """A mask (b 1 f*h f*w) at the size of latents, (b 1 h w).

    rule: "any" paints a latent if any of its pixels is painted, so that thin strokes stay; "nearest" looks at the pixel
    at its top left, as diffusers does. Raises ValueError for another rule.
    """
    if rule == "any":
        return F.max_pool2d(mask, factor)
    if rule == "nearest":
        return mask[:, :, ::factor, ::factor]
    raise ValueError(f"mask rule {rule!r}: choose any or nearest")


def box_around(mask: Tensor, padding: int, aspect: float) -> Box:
    """The smallest box that holds all that is painted in a mask (1 1 h w) with `padding` pixels around, grown to the
    aspect width / height as far as the picture allows."""
    height, width = mask.shape[2:]
    rows = mask[0, 0].amax(dim=1).nonzero().flatten()
    columns = mask[0, 0].amax(dim=0).nonzero().flatten()
    left, top = max(int(columns[0]) - padding, 0), max(int(rows[0]) - padding, 0)
    right, bottom = min(int(columns[-1]) + 1 + padding, width), min(int(rows[-1]) + 1 + padding, height)
    wanted_width = max(right - left, round((bottom - top) * aspect))
    wanted_height = max(bottom - top, round((right - left) / aspect))
    left, right = grow(left, right, min(wanted_width, width), width)
    top, bottom = grow(top, bottom, min(wanted_height, height), height)
    return left, top, right, bottom


def grow(low: int, high: int, length: int, end: int) -> tuple[int, int]:
    """An interval of that length around low to high, moved to lie within 0 to end."""
    low = max(low - (length - (high - low)) // 2, 0)
    low = min(low, end - length)
    return low, low + length


def feathered(mask: Tensor, feather: int) -> Tensor:
    """The mask (b 1 h w) with an edge that fades over `feather` pixels outside of it; 0 beyond them, exactly."""
    if feather < 1:
        return (mask > 0).float()
    grown = F.max_pool2d((mask > 0).float(), 2 * feather + 1, stride=1, padding=feather)
    # Twice a box filter, each of half the width, so that nothing reaches further than `feather` from what is painted.
    inner = F.max_pool2d((mask > 0).float(), 2 * (feather // 2) + 1, stride=1, padding=feather // 2)
    width = 2 * (feather - feather // 2) + 1
    padded = F.pad(inner, (width // 2,) * 4, mode="replicate")
    soft = F.avg_pool2d(padded, width, stride=1)
    return torch.where(mask > 0, torch.ones_like(soft), soft * grown)


def paste_back(original: Tensor, result: Tensor, mask: Tensor, feather: int = 4) -> Tensor:
    """The result inside the mask, the original outside; (b c h w) each, the mask (b 1 h w), in float.

    Further than `feather` pixels from what is painted the bits of the original are left as they are.
    """
    soft = feathered(mask, feather)
    mixed = original + soft * (result - original)
    return torch.where(soft > 0, mixed, original)


# Depth


def as_depth(depth: Any) -> Tensor:
    """Depth as (b 1 h w) float32. Raises TypeError or ValueError for what is none, with NaN, or infinite."""
    if isinstance(depth, Image.Image):
        depth = np.array(depth if depth.mode in ("I", "F", "I;16") else depth.convert("L"))
    elif isinstance(depth, list | tuple) and depth and all(isinstance(one, Image.Image) for one in depth):
        return torch.cat([as_depth(one) for one in depth])
    if isinstance(depth, np.ndarray) and depth.dtype.kind in "uif":
        depth = torch.from_numpy(depth.astype(np.float32))
    if not isinstance(depth, Tensor):
        raise TypeError(f"depth {show(depth)}: a tensor or array (b h w), or PIL pictures, are expected")
    if depth.ndim == 4 and depth.shape[1] == 1:
        depth = depth[:, 0]
    found = depth.float() if depth.ndim == 3 else depth.float()[None]
    if found.ndim != 3 or found.numel() == 0:
        raise ValueError(f"depth of shape {tuple(depth.shape)}: (b h w) is expected")
    if not found.isfinite().all():
        raise ValueError("depth with NaN or infinity: give finite numbers, near is large")
    return found[:, None]


def depth_of_latents(depth: Tensor, size: tuple[int, ...], pictures: int) -> Tensor:
    """Depth (b 1 h w) at the size of latents and from -1 to 1 in each picture, as the network was trained with; zeros
    where all is equally far. Raises ValueError for another number of maps than one or one for each picture."""
    if len(depth) not in (1, pictures):
        raise ValueError(f"{len(depth)} depth maps for {pictures} pictures: give one, or one each")
    small = F.interpolate(depth, (size[0], size[1]), mode="bicubic", align_corners=False)
    low = small.amin(dim=(1, 2, 3), keepdim=True)
    high = small.amax(dim=(1, 2, 3), keepdim=True)
    span = torch.where(high > low, high - low, torch.ones_like(high))
    between = 2 * (small - low) / span - 1
    return torch.where(high > low, between, torch.zeros_like(between)).expand(pictures, -1, -1, -1)
