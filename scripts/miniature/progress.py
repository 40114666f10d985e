"""What the two training programs share: the time of a run, its log of losses, and checkpoints that appear whole."""

import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm


class Progress:
    """How long a run has trained, shown as a bar, and its losses, one line of JSON each in NAME.jsonl.

    total: seconds to train. done: those that earlier runs have trained; they count.
    """

    def __init__(self, folder: Path, name: str, total: float, done: float):
        self.total = total
        self.log = (folder / f"{name}.jsonl").open("a")
        self.bar = tqdm(total=round(total), initial=round(done), unit="s", desc=name, disable=None)
        self.started = time.time() - done
        self.saved = time.time()

    def seconds(self) -> float:
        """Of training, all resumed runs together."""
        return time.time() - self.started

    def report(self, record: dict[str, float]) -> None:
        """A line of the log, which the bar shows too. record: `seconds` and whatever else there is to tell."""
        print(json.dumps(record), file=self.log, flush=True)
        self.bar.set_postfix(record)
        self.bar.n = record["seconds"]
        self.bar.refresh()

    def seconds_since_save(self) -> float:
        return time.time() - self.saved

    def save(self, path: Path, state: dict[str, Any]) -> None:
        """Write a checkpoint on the way."""
        save(path, state)
        self.saved = time.time()


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a file whole or not at all, so that a program that is stopped here can be resumed."""
    part = path.with_suffix(".part")
    torch.save(state, part)
    os.replace(part, path)
