"""The watermark against its scheme, written out block by block in numpy."""

import numpy as np
import pytest
import torch

from ldm import watermark
from support.pictures import pictures

MARK = 0b110010101111000010100101001111000011011001011010


def picture(height: int = 136, width: int = 200) -> torch.Tensor:
    """Color that is not flat, and far from black and white, where a change would be cut off."""
    generator = torch.Generator().manual_seed(3)
    return 0.5 * pictures(2, height, width) + 0.1 * torch.randn(2, 3, height, width, generator=generator)


def haar(image: np.ndarray) -> np.ndarray:
    """The first band of one level of the Haar transform of OpenCV's U, for one picture (3 h w) in [-1, 1]."""
    red, green, blue = (image.astype(np.float64) + 1) * 127.5
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    u = 0.492 * (blue - luma) + 0.5
    u = u[: u.shape[0] // 8 * 8, : u.shape[1] // 8 * 8]
    return (u[0::2, 0::2] + u[0::2, 1::2] + u[1::2, 0::2] + u[1::2, 1::2]) / 2


def marked(band: np.ndarray, mark: int) -> np.ndarray:
    band = band.copy()
    number = 0
    for top in range(0, band.shape[0], 4):
        for left in range(0, band.shape[1], 4):
            block = band[top : top + 4, left : left + 4].reshape(-1)
            place = 1 + int(np.argmax(np.abs(block[1:])))
            value = block[place]
            bit = int(f"{mark:048b}"[number % 48])
            moved = (abs(value) // 36 + 0.25 + 0.5 * bit) * 36
            band[top + place // 4, left + place % 4] = -moved if value < 0 else moved
            number += 1
    return band


def test_it_is_the_published_scheme():
    image = picture()
    found = watermark.embed(image, MARK)
    for before, after in zip(image.numpy(), found.numpy()):
        # OpenCV's way back from U is that of its way there to three digits: 0.02 % of a change of at most 27
        assert np.abs(haar(after) - marked(haar(before), MARK)).max() < 0.02
        luma = np.array([0.299, 0.587, 0.114])[:, None, None]
        assert np.abs(((after - before) * luma).sum(0)).max() * 127.5 < 0.01


def test_the_mark_is_found_again_in_bytes():
    image = picture(264, 328)
    saved = ((watermark.embed(image, MARK) + 1) * 127.5).round() / 127.5 - 1
    assert (
        min(watermark.detect(saved, MARK)) >= 40
    )  # a smooth block whose largest is not the one that was moved misleads
    assert [48 - (bits ^ MARK).bit_count() for bits in watermark.read(saved)] == watermark.detect(saved, MARK)
    assert max(watermark.detect(image, MARK)) < 36  # by chance: 24 +- 3.5
    assert max(watermark.detect(saved)) < 40  # another mark


def test_the_rest_of_the_picture_is_left_alone():
    """Rows and columns beyond the last whole block; half precision; a device's type."""
    image = picture(141, 203)
    found = watermark.embed(image)
    assert found[:, :, 136:].equal(image[:, :, 136:]) and found[:, :, :, 200:].equal(image[:, :, :, 200:])
    assert not found[:, :, :136, :200].equal(image[:, :, :136, :200])
    assert watermark.embed(image.half()).dtype == torch.float16


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="^picture of 64 x 40 pixels: too small for a mark of 48 bits$"):
        watermark.embed(torch.zeros(1, 3, 40, 64))
    with pytest.raises(ValueError, match="^mark 281474976710656: a number of 48 bits is expected$"):
        watermark.embed(picture(), 2**48)
