"""Does the miniature draw what its captions say? Draws captions of the training set and looks for the nearest training
picture: the smallest mean squared difference of pixels, after halving both pictures, over all training pictures.
A picture counts as right if the nearest one shows the emoji of its caption.

Writes evaluation.json to the model's folder.

    python scripts/miniature/evaluate.py --from build/miniature --model weights/miniature
"""

if __name__ == "__main__":
    from ldm import stopping

    stopping.listen()

import argparse
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from torch import Tensor

import weights
from captions import Record, write_full_caption
from ldm import tasks
from ldm.model import Model

PICTURES_AT_ONCE = 1024  # training pictures whose distances are computed together


@dataclass(frozen=True)
class TrainingSet:
    """The pictures of the training (n h w 3) uint8, and a record of each."""

    pictures: np.ndarray
    records: list[Record]


class Judgement(NamedTuple):
    """What a model drew for captions. rows: the training pictures whose captions they are. drawn: (n h w 3) uint8.
    nearest: the training picture that each is nearest to. distances: to it, mean squared difference of a pixel."""

    rows: list[int]
    drawn: Tensor
    nearest: list[int]
    distances: Tensor


def halve(pictures: Tensor) -> Tensor:
    """Pictures (n h w 3) uint8 -> (n d) float32, half as high and as wide."""
    x = rearrange(pictures.float() / 255, "n h w c -> n c h w")
    return rearrange(F.avg_pool2d(x, 2), "n c h w -> n (c h w)")


def find_nearest(drawn: Tensor, pictures: np.ndarray) -> tuple[Tensor, Tensor]:
    """For each drawn picture (n d) the number of the nearest training picture and their mean squared difference."""
    parts = []
    for start in range(0, len(pictures), PICTURES_AT_ONCE):
        some = torch.tensor(pictures[start : start + PICTURES_AT_ONCE])
        parts.append(torch.cdist(drawn, halve(some)))
    distances = torch.cat(parts, dim=1).square() / drawn.shape[1]
    found = distances.min(dim=1)
    return found.indices, found.values


def sort_captions(records: list[Record], learned: list[str]) -> dict[str, list[int]]:
    """The pictures of learned emoji, by number, in three groups whose captions differ in difficulty."""
    groups = {"plain": [], "colored": [], "small": []}
    for row, record in enumerate(records):
        if record["label"] not in learned:
            continue
        if record["small"]:
            groups["small"].append(row)
        elif record["background"] == "white":
            groups["plain"].append(row)
        else:
            groups["colored"].append(row)
    return groups


def judge(model: Model, training: TrainingSet, rows: list[int], guidance: float | None, steps: int | None) -> Judgement:
    """Draw the captions of these training pictures, and find what each comes nearest to."""
    prompts = [write_full_caption(training.records[row]) for row in rows]
    images = tasks.text_to_image(model, prompts, seeds=range(len(rows)), guidance=guidance, steps=steps)
    drawn = rearrange(((images + 1) * 127.5).round().byte(), "n c h w -> n h w c")
    nearest, distances = find_nearest(halve(drawn), training.pictures)
    return Judgement(rows, drawn, nearest.tolist(), distances)


def count_hits(judgement: Judgement, records: list[Record], field: str) -> int:
    """In how many the nearest picture has this field of its record as the caption has it."""
    pairs = zip(judgement.rows, judgement.nearest)
    return sum(records[row][field] == records[near][field] for row, near in pairs)


def write_comparison(path: Path, judgement: Judgement, pictures: np.ndarray) -> None:
    """A picture of what was drawn, of what it is nearest to, and of what was meant, in rows of 20."""
    kinds = [judgement.drawn.numpy(), pictures[judgement.nearest], pictures[judgement.rows]]
    grid = rearrange(np.stack(kinds), "kind (r n) h w c -> (r kind h) (n w) c", n=20)
    Image.fromarray(grid).save(path)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="build", type=Path, default=Path("build/miniature"))
    parser.add_argument("--model", type=Path, default=weights.MINIATURE)
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--picture", type=Path, help="write drawn, nearest and meant pictures side by side")
    return parser.parse_args()


def main():
    args = parse_arguments()
    pictures = np.load(args.build / "pictures.npy", mmap_mode="r")
    training = TrainingSet(pictures, json.loads((args.build / "pictures.json").read_text()))
    model = weights.load(args.model)
    learned = json.loads((args.model / "training.json").read_text())["learned"]
    results = {}
    for name, rows in sort_captions(training.records, learned).items():
        chosen = random.Random(args.seed).sample(rows, args.count)
        judgement = judge(model, training, chosen, args.guidance, args.steps)
        results[name] = dict(
            right=count_hits(judgement, training.records, "label"),
            of=len(chosen),
            background_right=count_hits(judgement, training.records, "background"),
            distance=round(judgement.distances.mean().item(), 4),
        )
        if args.picture and name == "plain":
            write_comparison(args.picture, judgement, training.pictures)
    (args.model / "evaluation.json").write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    stopping.run(main)
