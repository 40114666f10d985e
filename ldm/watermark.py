"""The watermark of SDXL's published pipelines, which no task embeds unless you do: 48 bits in the color of a picture.

The scheme is that of the invisible-watermark package, method "dwtDct", whose name promises a cosine transform that it
does not take. Of the picture's U channel, one level of the Haar transform leaves the sums of 2 x 2 pixels, halved. In
each 4 x 4 block of these (8 x 8 pixels) the largest but the first is moved to carry one bit: a quarter, or three
quarters, of the way between two multiples of 36. Blocks take the bits in turn, row by row, and a reader lets them vote.

The package swaps two bands of details on the way back, which blurs color along edges. Here they stay, and its reader
finds as much, if it is given floats as the writer was: given bytes, it misreads every U below the middle. The mark
outlives neither a change of size nor a crop; smooth colors lose some of its bits, and may show it.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

SDXL = 0b101100111110110010010000011110111011000110011110  # Stability AI's 48 bits, the first at the left
BITS = 48
STEP = 36.0  # between two multiples; a bit is worth half of it
BLOCK = 8  # pixels in height and width
U_OF_RGB = (-0.299 * 0.492, -0.587 * 0.492, 0.886 * 0.492)  # 0.492 (B - Y); OpenCV adds 0.5 to pixels of floats
RGB_OF_U = (0.0, -0.395, 2.032)  # how a change of U changes red, green and blue


def embed(image: Tensor, mark: int = SDXL) -> Tensor:
    """The picture (b 3 h w) in [-1, 1] with the 48 bits of `mark`. Raises ValueError for a picture with fewer than 48
    blocks of 8 x 8 pixels, or a mark of more bits."""
    if not 0 <= mark < 2**BITS:
        raise ValueError(f"mark {mark}: a number of {BITS} bits is expected")
    blocks = blocks_of(image)
    bits = torch.tensor([mark >> (BITS - 1 - k) & 1 for k in range(BITS)], device=image.device)
    bits = bits[torch.arange(blocks.shape[1] * blocks.shape[2], device=image.device) % BITS]
    bits = rearrange(bits, "(rows columns) -> rows columns 1", rows=blocks.shape[1])

    place, value = largest(blocks)
    size = ((value.abs() / STEP).floor() + 0.25 + 0.5 * bits) * STEP
    moved = torch.where(value < 0, -size, size)
    change = torch.zeros_like(blocks).scatter(-1, place, moved - value)
    return add_to_u(image, change)


def detect(image: Tensor, mark: int = SDXL) -> list[int]:
    """How many of the 48 bits of `mark` are found in each picture (b 3 h w) in [-1, 1]: about 24 in one without it.
    Raises ValueError as `embed` does."""
    return [BITS - (found ^ mark).bit_count() for found in read(image)]


def read(image: Tensor) -> list[int]:
    """The 48 bits that are found in each picture (b 3 h w) in [-1, 1]. Raises ValueError as `embed` does."""
    _, value = largest(blocks_of(image))
    votes = rearrange((value.abs() % STEP) > STEP / 2, "b rows columns 1 -> b (rows columns)")
    found = []
    for picture in votes.double():
        bits = [picture[k::BITS].mean().item() >= 0.5 for k in range(BITS)]
        found.append(int("".join("1" if bit else "0" for bit in bits), 2))
    return found


def blocks_of(image: Tensor) -> Tensor:
    """The blocks of the Haar transform's sums of U, for pixels from 0 to 255: (b rows columns 16)."""
    height, width = (side // BLOCK * BLOCK for side in image.shape[2:])
    if height * width < BITS * BLOCK * BLOCK:
        raise ValueError(f"picture of {image.shape[3]} x {image.shape[2]} pixels: too small for a mark of {BITS} bits")
    rgb = (image[:, :, :height, :width].float() + 1) * 127.5
    u = (rgb * rgb.new_tensor(U_OF_RGB)[:, None, None]).sum(1, keepdim=True) + 0.5
    sums = F.avg_pool2d(u, 2) * 2
    return rearrange(sums, "b 1 (rows y) (columns x) -> b rows columns (y x)", y=4, x=4)


def largest(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Place and value (b rows columns 1) of what is largest in each block, but for its first."""
    place = blocks[..., 1:].abs().argmax(-1, keepdim=True) + 1
    return place, blocks.gather(-1, place)


def add_to_u(image: Tensor, change: Tensor) -> Tensor:
    """The picture with the blocks (b rows columns 16) added to its transform: each pixel takes half of its sum's."""
    sums = rearrange(change, "b rows columns (y x) -> b 1 (rows y) (columns x)", y=4, x=4)
    u = F.interpolate(sums / 2, scale_factor=2, mode="nearest")
    u = F.pad(u, (0, image.shape[3] - u.shape[3], 0, image.shape[2] - u.shape[2]))
    rgb = u * u.new_tensor(RGB_OF_U)[:, None, None] / 127.5
    return (image + rgb.to(image.dtype)).clamp(-1, 1)
