"""The one error of this package."""


class CheckpointError(ValueError):
    """A file that cannot be used, described in one line: the file, the key, what was expected, what was found and what
    to do. Line breaks and control codes that come from a file appear escaped.
    """

    def __init__(self, message: str):
        super().__init__("".join(c if c.isprintable() else ascii(c)[1:-1] for c in message))


def shown(value: object) -> str:
    """A value from a file, as an error quotes it: never longer than a line can hold."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:60]}...{text[-30:]}"


def listed(names: list[str]) -> str:
    """The first few names and the count of the others."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(shown(name) for name in names[:3]) + more
