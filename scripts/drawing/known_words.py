"""What the small model that ships knows by name, and the nearest of it to what it does not know."""

import json
import re
from collections.abc import Collection, Iterable
from difflib import get_close_matches
from pathlib import Path

import weights
from ldm.model import Model

COLORS = ("white", "black", "gray", "grey", "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown")
CAPTION = ("a", "an", "the", "and", "of", "with", "on", "in", "small", "style", "flat", "3d", "background", *COLORS)

SHOWN = 5  # unknown words of a message


def known_names(model: Model | None = None) -> list[str]:
    """What a model was trained to draw, where its folder lists that; the names of the miniature for None."""
    folder = weights.MINIATURE if model is None else Path(model.source or ".")
    try:
        record = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    names = record.get("learned", []) if isinstance(record, dict) else []
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def find_unknown(texts: Iterable[str], names: Collection[str], added: Collection[str] = ()) -> dict[str, list[str]]:
    """The words of these texts that stand in no name and no caption -> the nearest names, of the first few. added:
    learned words."""
    of_names = {word for name in names for word in split_words(name)}
    known = of_names | set(CAPTION) | {word.casefold() for word in added}
    unknown = {}
    for text in texts:
        for word in split_words(text):
            if len(word) > 1 and word not in known and word not in unknown:
                unknown[word] = nearest(word, names) if len(unknown) < SHOWN else []
    return unknown


def split_words(text: str) -> list[str]:
    return re.findall(r"[\w'-]+", text.casefold())


def nearest(word: str, names: Collection[str]) -> list[str]:
    """At most three names with a word like this one, the nearest first."""
    words: dict[str, list[str]] = {}
    for name in names:
        for part in split_words(name):
            words.setdefault(part, []).append(name)
    near = [name for match in get_close_matches(word[:40], words, n=3, cutoff=0.6) for name in words[match]]
    return list(dict.fromkeys(near))[:3]


def tell_unknown(unknown: dict[str, list[str]], names: Collection[str]) -> str:
    """All of it in one line."""
    parts = []
    for word, near in list(unknown.items())[:SHOWN]:
        offer = f" (nearest: {', '.join(near)})" if near else ""
        parts.append(f"{word[:40]!r}{offer}")
    more = f" and {len(unknown) - SHOWN} more words" if len(unknown) > SHOWN else ""
    return (
        f"this model does not know {', '.join(parts)}{more}; it knows {len(names)} names: ldm draw --words lists them"
    )
