"""A grid of pictures with labels on its axes, and a title that says what all of them share."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import ceil

from PIL import Image, ImageDraw, ImageFont

BACKGROUND = (255, 255, 255)
TEXT = (28, 28, 30)
SOFT = (110, 110, 116)  # of names and notes
LINE = (226, 226, 230)
SMALLEST_CELL = 160  # pixels; smaller pictures are enlarged by a whole factor, so that labels fit beside them
LARGEST = 50_000_000  # pixels; a grid of more is not enlarged
LABEL_LINES = 3  # the rest of a longer label is left out
ELLIPSIS = "..."
Rows = Sequence[Sequence[Image.Image]]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class Texts:
    """title: of the whole. note: in small letters below it. x, y: the names of the axes, "" for none. columns, rows:
    their values."""

    title: str
    note: str
    x: str
    y: str
    columns: Sequence[str]
    rows: Sequence[str]


class Layout:
    """Where everything stands, in pixels, and the texts as lines that fit there."""

    def __init__(self, cells: Rows, texts: Texts):
        self.widths = [max(row[k].width for row in cells) for k in range(len(cells[0]))]
        self.heights = [max(picture.height for picture in row) for row in cells]
        letters = min(max(min(self.widths) // 14, 16), 40)
        self.font = ImageFont.load_default(letters)
        self.small = ImageFont.load_default(max(letters * 3 // 4, 13))
        self.gap = max(letters // 2, 8)
        self.margin = 2 * self.gap

        self.columns = [wrap(text, width, self.font) for text, width in zip(texts.columns, self.widths)]
        self.rows = [wrap(text, max(min(self.widths), 8 * letters), self.font) for text in texts.rows]
        self.left = self.margin
        if texts.y:
            labels = max(self.font.getlength(line) for lines in self.rows for line in lines)
            self.left += line_height(self.small) + self.gap + ceil(labels) + 2 * self.gap
        self.width = self.left + sum(self.widths) + self.gap * (len(self.widths) - 1) + self.margin

        room = self.width - 2 * self.margin
        self.title = wrap(texts.title, room, self.font)
        self.note = wrap(texts.note, room, self.small)
        self.note_top = self.margin + len(self.title) * line_height(self.font) + self.gap // 2
        self.x_top = self.note_top + len(self.note) * line_height(self.small) + 2 * self.gap
        self.labels_top = self.x_top + (line_height(self.small) + self.gap // 2 if texts.x else 0)
        self.top = self.labels_top + max(map(len, self.columns)) * line_height(self.font) + self.gap
        self.height = self.top + sum(self.heights) + self.gap * (len(self.heights) - 1) + self.margin
        self.x_places = places(self.left, self.widths, self.gap)
        self.y_places = places(self.top, self.heights, self.gap)


def label_grid(pictures: Rows, texts: Texts) -> Image.Image:
    """pictures: rows of columns, which may differ in size. The grid is as large as they and their labels need."""
    smallest = min(max(picture.size) for row in pictures for picture in row)
    factor = ceil(SMALLEST_CELL / smallest)
    if sum(picture.width * picture.height for row in pictures for picture in row) * factor**2 > LARGEST:
        factor = 1
    cells = [[enlarge(picture, factor) for picture in row] for row in pictures]
    layout = Layout(cells, texts)
    canvas = Image.new("RGB", (layout.width, layout.height), BACKGROUND)
    pen = ImageDraw.Draw(canvas)
    for row, y, tall in zip(cells, layout.y_places, layout.heights):
        for picture, x, wide in zip(row, layout.x_places, layout.widths):
            place = x + (wide - picture.width) // 2, y + (tall - picture.height) // 2
            pen.rectangle(outline_of(picture, place), outline=LINE)  # where a white picture ends
            canvas.paste(picture, place)
    write_texts(canvas, layout, texts)
    return canvas


def enlarge(picture: Image.Image, factor: int) -> Image.Image:
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def outline_of(picture: Image.Image, place: tuple[int, int]) -> tuple[int, int, int, int]:
    """The corners of a line around it, one pixel outside."""
    x, y = place
    return x - 1, y - 1, x + picture.width, y + picture.height


def write_texts(canvas: Image.Image, layout: Layout, texts: Texts):
    pen = ImageDraw.Draw(canvas)
    write(pen, layout.title, (layout.margin, layout.margin), layout.font, TEXT, "l")
    write(pen, layout.note, (layout.margin, layout.note_top), layout.small, SOFT, "l")
    middle = (layout.left + layout.width - layout.margin) // 2
    write(pen, [texts.x], (middle, layout.x_top), layout.small, SOFT, "m")
    height = line_height(layout.font)
    for lines, x, wide in zip(layout.columns, layout.x_places, layout.widths):
        # The last line stands next to the pictures, however many there are
        top = layout.top - layout.gap - len(lines) * height
        write(pen, lines, (x + wide // 2, top), layout.font, TEXT, "m")
    if not texts.y:
        return
    for lines, y, tall in zip(layout.rows, layout.y_places, layout.heights):
        top = y + (tall - len(lines) * height) // 2
        write(pen, lines, (layout.left - 2 * layout.gap, top), layout.font, TEXT, "r")
    name_rows(canvas, layout, texts.y)


def name_rows(canvas: Image.Image, layout: Layout, name: str):
    """The name of the rows' axis, read from below along the left edge."""
    room = layout.height - layout.margin - layout.top
    (line,) = wrap(name, room, layout.small, lines=1)
    strip = Image.new("RGB", (room, line_height(layout.small)), BACKGROUND)
    write(ImageDraw.Draw(strip), [line], (room // 2, 0), layout.small, SOFT, "m")
    canvas.paste(strip.rotate(90, expand=True), (layout.margin, layout.top))


def write(pen: ImageDraw.ImageDraw, lines: Sequence[str], place: tuple[int, int], font: Font, color, side: str):
    """Lines below each other, from a place at their top. side: where they lie from it, "l", "m" or "r"."""
    x, y = place
    for line in lines:
        pen.text((x, y), line, font=font, fill=color, anchor=f"{side}a")
        y += line_height(font)


def wrap(text: str, width: float, font: Font, lines: int = LABEL_LINES) -> list[str]:
    """The text in lines of at most this width, broken after spaces, commas, underscores and colons, or anywhere if a
    word is too long. What does not fit into so many lines is left out, which three dots tell. [] for no text."""
    found = []
    rest = " ".join(text.split())
    while rest and len(found) < lines:
        end = len(rest)
        if font.getlength(rest) > width:
            end = 1
            while end < len(rest) and font.getlength(rest[: end + 1]) <= width:
                end += 1
            breaks = [k + 1 for k in range(end) if rest[k] in " ,_:|"]
            if breaks and len(found) < lines - 1:
                end = breaks[-1]
        found.append(rest[:end].strip())
        rest = rest[end:].strip()
    if rest:
        last = found[-1]
        while last and font.getlength(last + ELLIPSIS) > width:
            last = last[:-1]
        found[-1] = last.rstrip() + ELLIPSIS
    return found


def line_height(font: Font) -> int:
    top, bottom = font.getbbox("Ågjy|")[1::2]
    return ceil(max(bottom, bottom - top) * 1.15)


def places(start: int, lengths: Sequence[int], gap: int) -> list[int]:
    """Where things of these lengths begin, one after the other with a gap between."""
    return list(accumulate([length + gap for length in lengths[:-1]], initial=start))
