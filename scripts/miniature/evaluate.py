"""Does the miniature draw what its captions say? Draws captions of the training set and looks for the nearest training
picture: the smallest mean squared difference of pixels, after halving both pictures, over all training pictures.
A picture counts as right if the nearest one shows the emoji of its caption.

Writes evaluation.json to the model's folder.

    python scripts/miniature/evaluate.py --from build/miniature --model weights/miniature
"""

import argparse
import json
import random
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image

import weights
from ldm import tasks


def full_caption(record: dict) -> str:
    """All that the caption of a training picture can say."""
    subject = f"small {record['label']}" if record["small"] else record["label"]
    return f"{subject}, {record['style']} style, on a {record['background']} background"


def halved(pictures: torch.Tensor) -> torch.Tensor:
    """Pictures (n h w 3) uint8 -> (n d) float32, half as high and as wide."""
    x = rearrange(pictures.float() / 255, "n h w c -> n c h w")
    return rearrange(F.avg_pool2d(x, 2), "n c h w -> n (c h w)")


def nearest(drawn: torch.Tensor, pictures: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """For each drawn picture (n d) the index of the nearest training picture and their mean squared difference."""
    distances = (
        torch.cat(
            [
                torch.cdist(drawn, halved(torch.tensor(pictures[start : start + 1024])))
                for start in range(0, len(pictures), 1024)
            ],
            dim=1,
        ).square()
        / drawn.shape[1]
    )
    found = distances.min(dim=1)
    return found.indices, found.values


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="build", type=Path, default=Path("build/miniature"))
    parser.add_argument("--model", type=Path, default=weights.MINIATURE)
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--picture", type=Path, help="write drawn, nearest and meant pictures side by side")
    args = parser.parse_args()

    pictures = np.load(args.build / "pictures.npy", mmap_mode="r")
    records = json.loads((args.build / "pictures.json").read_text())
    model = weights.load(args.model)
    learned = json.loads((args.model / "training.json").read_text())["learned"]
    captions = [i for i, r in enumerate(records) if r["label"] in learned]
    small = [i for i in captions if records[i]["small"]]
    plain = [i for i in captions if records[i]["background"] == "white" and not records[i]["small"]]
    colored = [i for i in captions if records[i]["background"] != "white" and not records[i]["small"]]
    results = {}
    for name, rows in (("plain", plain), ("colored", colored), ("small", small)):
        chosen = random.Random(args.seed).sample(rows, args.count)
        images = tasks.text_to_image(
            model,
            [full_caption(records[i]) for i in chosen],
            seeds=range(args.count),
            guidance=args.guidance,
            steps=args.steps,
        )
        drawn = rearrange(((images + 1) * 127.5).round().byte(), "n c h w -> n h w c")
        found, distances = nearest(halved(drawn), pictures)
        hits = [records[i]["label"] == records[j]["label"] for i, j in zip(chosen, found.tolist())]
        background = [records[i]["background"] == records[j]["background"] for i, j in zip(chosen, found.tolist())]
        results[name] = dict(
            right=sum(hits), of=len(hits), background_right=sum(background), distance=round(distances.mean().item(), 4)
        )
        if args.picture and name == "plain":
            rows = [drawn.numpy(), pictures[found.numpy()], pictures[chosen]]
            grid = rearrange(np.stack(rows), "kind (r n) h w c -> (r kind h) (n w) c", n=20)
            Image.fromarray(grid).save(args.picture)
    (args.model / "evaluation.json").write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
