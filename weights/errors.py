"""The one error of this package."""

LINE = 1000  # characters of an error, at most


class CheckpointError(ValueError):
    """A file that cannot be used, described in one line: the file, the key, what was expected, what was found and what
    to do. Line breaks and control codes that come from a file appear escaped, and what is longer than LINE characters
    loses its middle: it begins with the file and ends with what to do.
    """

    def __init__(self, message: str):
        escaped = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in shortened(message, LINE))
        super().__init__(shortened(escaped, LINE))


def shortened(text: str, length: int) -> str:
    """The beginning and the end of a text of more than `length` characters."""
    if len(text) <= length:
        return text
    end = length // 3
    return f"{text[: length - end - 3]}...{text[-end:]}"


def shown(value: object) -> str:
    """A value from a file, as an error quotes it: never longer than a line can hold."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # lists in lists in lists; a number of thousands of digits
        text = f"{type(value).__name__} too large to be shown"
    return shortened(text, 100)


def listed(names: list[str]) -> str:
    """The first few names and the count of the others."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(shown(name) for name in names[:3]) + more
