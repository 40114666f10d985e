"""What the pictures of the miniature's training show, in words."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Record = dict[str, Any]  # of a picture, as data.py writes it: label, tags, style, background, small


@dataclass(frozen=True)
class Captions:
    """records: of all pictures. names: of the emoji to learn. learned: the numbers of the pictures that show one of
    them; plain: of these, the ones of full size on white."""

    records: Sequence[Record]
    names: list[str]
    learned: list[int]
    plain: list[int]

    def choose(self, count: int, rng: random.Random) -> list[int]:
        """The numbers of pictures to learn next, half of them plain: what the emoji look like is learned from these."""
        rows = []
        for _ in range(count):
            pool = self.plain if rng.random() < 0.5 else self.learned
            rows.append(rng.choice(pool))
        return rows

    def write(self, rows: Sequence[int], rng: random.Random) -> list[str]:
        """A caption for each of these pictures."""
        return [write_caption(self.records[row], rng) for row in rows]


def read_captions(pictures: Path, emoji: Path) -> Captions:
    """From pictures.json, which data.py wrote, and from a list of names to learn, one a line."""
    records = json.loads(pictures.read_text())
    names = emoji.read_text().splitlines()
    learned = [row for row, record in enumerate(records) if record["label"] in names]
    plain = [row for row in learned if records[row]["background"] == "white" and not records[row]["small"]]
    return Captions(records, names, learned, plain)


def write_caption(record: Record, rng: random.Random) -> str:
    """One of the ways to say what a picture shows; one time in ten the empty text, which guidance needs."""
    if rng.random() < 0.1:
        return ""
    subject = record["label"]
    if record["tags"] and rng.random() < 0.08:
        subject = rng.choice(record["tags"])
    if record["small"]:
        subject = f"small {subject}"
    text = subject
    if rng.random() < 0.5:
        article = "an" if subject[0].lower() in "aeiou" else "a"
        text = f"{article} {subject}"
    if rng.random() < 0.5:
        text += f", {record['style']} style"
    # White is what a picture without a stated background has, so it is seldom stated
    if record["background"] != "white" or rng.random() < 0.2:
        text += f", on a {record['background']} background"
    return text


def write_full_caption(record: Record) -> str:
    """All that the caption of a picture can say."""
    subject = f"small {record['label']}" if record["small"] else record["label"]
    return f"{subject}, {record['style']} style, on a {record['background']} background"
