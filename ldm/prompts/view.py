"""What a model reads in a prompt: a table of chunks, tokens and weights, for the terminal and for notebooks."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from ..model import Model
from .chunks import Chunk
from .editing import changes, split_at_and, texts_by_step
from .encoding import cut_up

ACROSS = 12  # tokens in a row of the table
HEADS = ("tower", "chunk", "tokens", "weight", "text")


@dataclass(frozen=True)
class Row:
    """Neighbours of one weight within a chunk. tokens: their places there, BOS being 0."""

    tower: str
    chunk: int
    tokens: str
    weight: float
    text: tuple[str, ...]

    def cells(self) -> tuple[str, ...]:
        return self.tower, str(self.chunk), self.tokens, f"{self.weight:.4g}", " ".join(self.text)


@dataclass(frozen=True)
class Shown:
    """str() of it is the table as text. title: what stands above."""

    title: tuple[str, ...]
    rows: tuple[Row, ...]

    def __str__(self) -> str:
        table = [HEADS, *(row.cells() for row in self.rows)]
        widths = [max(len(cells[k]) for cells in table) for k in range(len(HEADS))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(cells, widths)).rstrip() for cells in table]
        return "\n".join([*self.title, *lines])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """The same table; what weighs more is red, what weighs less blue."""
        title = "".join(f"<p>{html.escape(line)}</p>" for line in self.title)
        heads = "".join(f"<th>{head}</th>" for head in HEADS)
        rows = ""
        for row in self.rows:
            cells = "".join(f"<td>{html.escape(cell)}</td>" for cell in row.cells())
            rows += f'<tr style="background:{color(row.weight)}">{cells}</tr>'
        return f"{title}<table><tr>{heads}</tr>{rows}</table>"


def color(weight: float) -> str:
    strength = min(abs(weight - 1), 1.0) / 2
    if weight >= 1:
        return f"rgba(255,0,0,{strength:.2f})"
    return f"rgba(0,0,255,{strength:.2f})"


def show_prompt(
    model: Model, text: str, rule: str | None = "a1111", *, second: str | None = None, steps: int | None = None
) -> Shown:
    """The chunks, tokens and weights of a prompt in each text tower, without BOS, EOT and pads. second: the text for
    SDXL's second tower. steps: for a prompt that changes, how many steps a run has (default: the model's). Raises
    ValueError as encode does."""
    name = "every sign is text" if rule is None else f"rule {rule}"
    title = [name]
    texts = [text]
    if rule is not None and rule.startswith("a1111") and changes(text):
        steps = model.facts.steps if steps is None else steps
        texts = []
        for part, weight in split_at_and(text):
            lines, found = list_changes(part, steps)
            title += [f"AND, weight {weight:g}", *lines] if weight != 1 or part != text else lines
            texts += found
    rows = []
    for tower, pad_id in zip(model.texts, model.facts.pad_ids):
        is_second = second is not None and tower == list(model.texts)[-1]
        for read in dict.fromkeys([second or ""] if is_second else texts):
            chunks, _ = cut_up(model, read, pad_id, rule)[0]
            rows += list_rows(model, tower, chunks)
    return Shown(tuple(title), tuple(rows))


def list_changes(text: str, steps: int) -> tuple[list[str], list[str]]:
    """A line for every run of steps with the same text; and the texts, each once."""
    lines = []
    step = 1
    by_step = texts_by_step(text, steps)
    for same, group in groupby(by_step):
        last = step + len(list(group)) - 1
        lines.append(f"step {step} of {steps}: {same}" if step == last else f"steps {step}-{last} of {steps}: {same}")
        step = last + 1
    return lines, list(dict.fromkeys(by_step))


def list_rows(model: Model, tower: str, chunks: Sequence[Chunk]) -> list[Row]:
    rows = []
    for number, chunk in enumerate(chunks, 1):
        places = range(1, chunk.used + 1)
        for weight, group in groupby(places, key=lambda place: chunk.weights[place]):
            run = list(group)
            for first in range(0, len(run), ACROSS):
                part = run[first : first + ACROSS]
                places_told = f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0])
                words = tuple(show_token(model, chunk.ids[place]) for place in part)
                rows.append(Row(tower, number, places_told, weight, words))
        if chunk.used == 0:
            rows.append(Row(tower, number, "none", 1.0, ()))
    return rows


def show_token(model: Model, token: int) -> str:
    """A token as text; what goes on in the next one ends in a dash."""
    symbol = model.tokenizer.symbols[token]
    text = model.tokenizer.decode([token])
    return text if symbol.endswith("</w>") or symbol.startswith("<") else text + "-"
