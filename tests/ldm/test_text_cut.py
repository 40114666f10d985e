"""Text that a model does not read is told by whoever encodes it: one warning, in one line."""

import warnings

import pytest

from ldm import tasks
from ldm.conditioning import Sizes, TextCut, encode
from scripts.lines_to_read import tiny_sdxl

SIZES = Sizes((64, 64), (64, 64))
LONG = "apple " * 75 + "pear"  # 75 tokens fit between the marks of start and end


@pytest.fixture(scope="module")
def model():
    return tiny_sdxl()


def told(run) -> list[warnings.WarningMessage]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run()
    return [warning for warning in caught if warning.category is TextCut]


def test_once_for_both_towers_and_all_texts(model):
    (warning,) = told(lambda: encode(model, ["x", LONG, LONG + "\n\x1b[31m" + "plum " * 1000], SIZES))
    text = str(warning.message)
    assert "the prompt 'apple apple" in text and text.endswith("what is not read begins at 'pear', and 1 more")
    assert text.isprintable() and len(text) < 400
    assert told(lambda: encode(model, ["x", None, LONG.removesuffix(" pear")], SIZES)) == []


def test_the_warning_is_at_the_line_that_asked_for_the_picture(model):
    (warning,) = told(lambda: tasks.text_to_image(model, "x", negative=LONG, height=64, width=64, steps=1))
    assert warning.filename == __file__
