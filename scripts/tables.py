"""Rows of values as a table of text."""

from ldm.terminal import printable


def cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, dict):
        return " ".join(f"{key}:{count}" for key, count in value.items())
    return f"{value:,}" if isinstance(value, int) else printable(str(value))


def table(rows: list[dict]) -> str:
    """Columns under their names, numbers to the right."""
    cells = [list(rows[0])] + [[cell(value) for value in row.values()] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    is_number = [isinstance(value, int | float) for value in rows[0].values()]
    lines = []
    for row in cells:
        padded = []
        for text, width, to_right in zip(row, widths, is_number):
            padded.append(text.rjust(width) if to_right else text.ljust(width))
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)
