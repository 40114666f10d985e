"""Many prompts in one file, each with settings of its own: --prompts as text, CSV, JSON, JSON lines, or from stdin.

Text has one prompt per line. CSV names its columns in the first row; JSON is a list of objects, or one object a line
(.jsonl). Columns and keys are called as the flags are: prompt, negative, seed, count, steps, guidance, sampler,
schedule, width, height, options, and option.eta for one option alone. What a row leaves empty is as the flags say.
What is wrong is one line that names the row and the column.
"""

import csv
import io
import json
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from math import isfinite, nan
from pathlib import Path
from typing import Any

from common import fail, first_line
from samplers.options import show
from settings import parse_seed, parse_word

KINDS = {  # columns -> what their values are
    "prompt": str, "negative": str, "seed": int, "count": int, "steps": int, "guidance": float, "sampler": str,
    "schedule": str, "width": int, "height": int, "options": dict,
}  # fmt: skip
ENCODINGS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}  # by the first bytes; all else is UTF-8
MAX_BYTES = 2**26  # of a file of prompts


@dataclass(frozen=True)
class Row:
    """One prompt. where: names it in messages, "prompts.csv: row 3: ". values: of the columns that it fills in."""

    where: str
    values: dict[str, Any]


def read_rows(path: Path) -> list[Row]:
    """The prompts of a file, of stdin for "-". Ends the program for what is no such file, or holds none."""
    name = "stdin" if str(path) == "-" else str(path)
    text = read_text(path, name)
    form = choose_form(path, text)
    try:
        rows = [read_row(f"{name}: row {number}", cells) for number, cells in form(text, name)]
    except ValueError as error:
        fail(str(error))
    if not rows:
        fail(f"{name}: holds no prompts; write one per line")
    return rows


def read_text(path: Path, name: str) -> str:
    try:
        if str(path) == "-":
            if sys.stdin is None:
                fail("stdin: cannot be read as text: it is closed")
            data = sys.stdin.buffer.read(MAX_BYTES + 1)
        else:
            with path.open("rb") as file:
                data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            fail(f"{name}: cannot be read as text: it is larger than {MAX_BYTES >> 20} MB")
        text = data.decode(ENCODINGS.get(data[:2], "utf-8-sig"))
    except (OSError, UnicodeError) as error:
        fail(f"{name}: cannot be read as text: {first_line(error)}")
    if "\0" in text:
        fail(f"{name}: cannot be read as text: it holds zero bytes")
    return text


def choose_form(path: Path, text: str):
    """The reader for a file, by the end of its name; for stdin and names without a known end, by what it holds."""
    if path.suffix.casefold() in FORMS:
        return FORMS[path.suffix.casefold()]
    if str(path) != "-":
        return lines_of_text
    first_line, _, rest = text.lstrip().partition("\n")
    if is_json(first_line) and rest.strip():
        return rows_of_json_lines
    if is_json(text):
        return rows_of_json
    names = [column.strip().casefold() for column in first_line.split(separator_of(first_line))]
    return rows_of_csv if "prompt" in names and len(names) > 1 else lines_of_text


def is_json(text: str) -> bool:
    """Whether a text is a JSON object or list, not a prompt in brackets."""
    try:
        return isinstance(json.loads(text), dict | list)
    except (ValueError, RecursionError):
        return False


Cells = Iterable[tuple[int, Mapping[str, Any]]]  # number of a row, from 1 -> what stands in its columns


def lines_of_text(text: str, name: str) -> Cells:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            yield number, {"prompt": line.strip()}


def rows_of_csv(text: str, name: str) -> Cells:
    """Rows are counted as a spreadsheet does: that of the names is row 1."""
    separator = separator_of(text.lstrip().partition("\n")[0])
    table = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True)
    columns = None
    number = 0
    try:
        for number, cells in enumerate(table, 1):
            filled = [cell.strip() for cell in cells]
            if not any(filled):
                continue
            if columns is None:
                columns = read_columns(f"{name}: row {number}", filled)
                continue
            if any(filled[len(columns) :]):
                cell = filled[len(columns)]
                raise ValueError(
                    f"{name}: row {number}: {len(cells)} cells for {len(columns)} columns, the first too many is "
                    f"{show(cell)}: put quotes around a cell that holds {separator!r}"
                )
            yield number, {column: cell for column, cell in zip(columns, filled) if cell}
    except csv.Error as error:
        raise ValueError(f"{name}: row {number + 1}: cannot be read as CSV: {error}") from None


def separator_of(line: str) -> str:
    """What stands between the names of columns: a comma, or what spreadsheets write elsewhere in the world."""
    return max(",;\t", key=line.count)


def read_columns(where: str, names: list[str]) -> list[str]:
    columns = []
    for name in names:
        column = check_column(where, name)
        if column in columns:
            raise ValueError(f"{where}: the column {column!r} is there twice")
        columns.append(column)
    if "prompt" not in columns:
        raise ValueError(f"{where}: no column is called 'prompt': the first row of a CSV names its columns")
    return columns


def rows_of_json(text: str, name: str) -> Cells:
    """A list of objects or texts; one object alone, or with such a list as its "prompts"."""
    found = parse_json(text, name)
    if isinstance(found, dict) and isinstance(found.get("prompts"), list) and len(found) == 1:
        found = found["prompts"]
    for number, item in enumerate(found if isinstance(found, list) else [found], 1):
        yield number, as_cells(f"{name}: row {number}", item)


def rows_of_json_lines(text: str, name: str) -> Cells:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            where = f"{name}: row {number}"
            yield number, as_cells(where, parse_json(line, where))


def parse_json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: cannot be read as JSON: {error}") from None
    except ValueError:  # Python reads no whole number of so many digits
        raise ValueError(f"{where}: cannot be read as JSON: it holds a number of thousands of digits") from None
    except RecursionError:
        raise ValueError(f"{where}: cannot be read as JSON: it is nested too deeply") from None


def as_cells(where: str, item: Any) -> Mapping[str, Any]:
    if isinstance(item, str):
        return {"prompt": item}
    if not isinstance(item, dict):
        raise ValueError(f'{where}: {show(item)}: give a text, or an object such as {{"prompt": "a fox", "seed": 7}}')
    return {key: value for key, value in item.items() if value is not None}


FORMS = {
    ".csv": rows_of_csv,
    ".tsv": rows_of_csv,
    ".json": rows_of_json,
    ".jsonl": rows_of_json_lines,
    ".ndjson": rows_of_json_lines,
}


def read_row(where: str, cells: Mapping[str, Any]) -> Row:
    """Raises ValueError, which names the row and the column, for what no flag could have given."""
    values: dict[str, Any] = {}
    options: dict[str, Any] = {}
    for name, value in cells.items():
        column = check_column(where, name)
        place = f"{where}: column {column!r}"
        if column.startswith("option."):
            options[column.removeprefix("option.")] = read_option(place, column, value)
        elif column == "options":
            options |= read_options(place, value)
        elif column in values:
            raise ValueError(f"{place} is there twice")
        else:
            values[column] = read_value(place, KINDS[column], column, value)
    if "prompt" not in values:
        raise ValueError(f"{where}: column 'prompt' is empty")
    if options:
        values["options"] = options
    return Row(f"{where}: ", values)


def check_column(where: str, name: str) -> str:
    """The column in our spelling. Raises ValueError for one that does not exist."""
    column = name.strip().removeprefix("--").replace("-", "_")
    start, dot, option = column.partition(".")
    if dot and start.casefold() in ("option", "options") and option.isidentifier():
        return f"option.{option}"
    column = column.casefold()
    if column == "option":
        return "options"
    if column in KINDS:
        return column
    near = get_close_matches(column[:40], KINDS, n=1, cutoff=0.5)
    offer = f"perhaps {near[0]!r}; " if near else ""
    raise ValueError(f"{where}: unknown column {show(name)}: {offer}choose from {', '.join(KINDS)}, option.NAME")


def read_value(place: str, kind: type, column: str, value: Any) -> Any:
    """A cell of CSV, or a value of JSON, which may be a number or a text that spells one."""
    if kind is str:
        if not isinstance(value, str):
            raise ValueError(f"{place}: {show(value)}: give a text")
        if not value.isascii():
            check_characters(place, value)
        return value
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{place}: {show(value)}: give a number")
    if column == "seed":
        return read_seed(place, value)
    try:
        number = float(value)
    except (ValueError, OverflowError):
        number = nan
    if not isfinite(number):
        raise ValueError(f"{place}: {show(value)}: give a number")
    if kind is float:
        return number
    if number != int(number) or number < 1:
        raise ValueError(f"{place}: {show(value)}: give a whole number from 1")
    return int(number)


def check_characters(place: str, text: str):
    """JSON can hold one half of a character that UTF-16 writes in two."""
    try:
        text.encode("utf-8")
    except UnicodeError:
        raise ValueError(f"{place}: {show(text)}: holds half a character: give a text") from None


def read_seed(place: str, value: str | int | float) -> int:
    text = str(value).removesuffix(".0")  # as spreadsheets write whole numbers
    try:
        return parse_seed(text)
    except ValueError as error:
        raise ValueError(f"{place}: {show(value)}: {error}") from None


def read_options(place: str, value: Any) -> dict[str, Any]:
    """An object of JSON, or texts NAME=VALUE: in a list, or in one text with spaces, commas or semicolons between."""
    if isinstance(value, dict):
        return {name: read_option(place, name, setting) for name, setting in value.items()}
    texts = re.split(r"[\s,;]+", value.strip()) if isinstance(value, str) else value
    if not isinstance(texts, list):
        raise ValueError(f"{place}: {show(value)}: give options as eta=0.5")
    options = {}
    for text in texts:
        name, equals, setting = str(text).partition("=")
        if not name.isidentifier() or not setting:
            raise ValueError(f"{place}: {show(text)}: give options as eta=0.5")
        options[name] = parse_word(setting)
    return options


def read_option(place: str, name: str, value: Any) -> bool | int | float | str:
    if isinstance(value, str):
        return parse_word(value)
    if isinstance(value, bool | int | float):
        return value
    raise ValueError(f"{place}: {show(value)}: give a number, true, false or a word for {name}")
