"""Pictures as files: what is written is what is read, whole or not at all."""

import numpy as np
import pytest
import torch
from PIL import Image

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
