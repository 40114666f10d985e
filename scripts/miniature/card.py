"""Write the model card of the miniature from what export.py and evaluate.py left in its folder.

python scripts/miniature/card.py --model weights/miniature
"""

if __name__ == "__main__":
    from ldm import stopping

    stopping.listen()

import argparse
import json
from pathlib import Path
from typing import Any

CARD = """---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
---
# The miniature

A small latent diffusion model, really trained, in the layout of Stable Diffusion's published folders. It draws emoji
of {size} x {size} pixels from English captions. It is here so that commands, lessons and tests run on real weights
without a download; **it is not Stable Diffusion**, and real checkpoints load with the same commands.

| part | parameters | what |
|---|---|---|
{parts}

`weights.load("weights/miniature")` loads it, and so does diffusers' `StableDiffusionPipeline.from_pretrained`, which
draws the same pictures. Latents are {latent} x {latent} x 4, the objective is v-prediction on Stable Diffusion's
noise levels, the default sampler DPM-Solver++(2M) on Karras' schedule with {steps} steps and guidance {guidance}.

## What it can and cannot do

It knows {learned} emoji by their Unicode names, in two styles ("flat style", "3d style"), on ten background colors
("on a blue background"), in two sizes ("small"). Its autoencoder has seen {emoji} emoji. Captions follow one pattern:

    a small red apple, 3d style, on a blue background

The names: {names}.

It was tested on captions of its training set, one seed each, sampled with its defaults. A picture counts as right if
the nearest of all {pictures} pictures (smallest mean squared difference of pixels, both halved first) shows the emoji
of the caption:

| captions | right emoji | right background |
|---|---|---|
{evaluation}

It cannot draw what is not an emoji, count, write, or place things; words outside emoji names mean nothing to it, and
pairs that it never saw ("a blue cat") come out as mixtures at best. Its pictures are close to its training pictures:
it remembers more than it invents. Sizes other than {size} x {size} work and look worse. Prompts end after
{length} tokens. There are no people's photographs and no brands in its data, and nothing was filtered beyond the choice
of emoji in `data.py` (no flags, letters, clock faces, or variants of skin, gender and direction).

## How it was trained

{training}

`make miniature` runs the recipe again (`scripts/miniature/`): on a GPU if there is one, else on the CPU.

![losses](loss.png)

## Data and licences

| package | version | licence | SHA-256 of the archive |
|---|---|---|---|
{sources}

Noto emoji are by Google (Apache-2.0), Fluent emoji by Microsoft (MIT), the names and keywords by emojibase (MIT), from
Unicode's CLDR. `tokenizer/` is CLIP's vocabulary (MIT, OpenAI). The weights are under Apache-2.0, as this project.
"""


def group_digits(number: int) -> str:
    return f"{number:,}"


def name_parts(text: dict[str, Any]) -> dict[str, str]:
    """What each network is. text: the configuration of the text tower."""
    tower = f"CLIP-style text tower, {text['num_hidden_layers']} layers of width {text['hidden_size']}"
    return {
        "vae": "KL autoencoder, f8, 4 channels",
        "unet": "UNet with cross-attention, three levels",
        "text": f"{tower}, CLIP's own vocabulary",
    }


def list_parts(parameters: dict[str, int], names: dict[str, str]) -> str:
    return "\n".join(f"| {part} | {group_digits(count)} | {names[part]} |" for part, count in parameters.items())


def list_results(evaluation: dict[str, dict[str, Any]]) -> str:
    rows = []
    for name, result in evaluation.items():
        of = result["of"]
        rows.append(f"| {name} | {result['right']} of {of} | {result['background_right']} of {of} |")
    return "\n".join(rows)


def describe_training(facts: dict[str, Any], names: dict[str, str]) -> str:
    """A list of what was trained for how long, and on what."""
    lines = []
    for part in ("vae", "unet"):
        name, _, _ = names[part].partition(",")
        run = facts[part]
        steps = group_digits(run["steps"])
        lines.append(f"* {name}: {steps} steps of {run['batch']} pictures in {run['minutes']} minutes.")
    lines.append(
        f"* On {facts['device']}, torch {facts['torch']}; the text tower is trained "
        "together with the UNet, and both are moving averages of their weights."
    )
    return "\n".join(lines)


def list_sources(sources: list[dict[str, str]]) -> str:
    rows = []
    for source in sources:
        rows.append(f"| {source['package']} | {source['version']} | {source['licence']} | `{source['sha256']}` |")
    return "\n".join(rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("weights/miniature"))
    folder = parser.parse_args().model

    facts = json.loads((folder / "training.json").read_text())
    evaluation = json.loads((folder / "evaluation.json").read_text())
    defaults = json.loads((folder / "model_index.json").read_text())["_defaults"]
    text = json.loads((folder / "text_encoder/config.json").read_text())
    names = name_parts(text)
    card = CARD.format(
        size=facts["size"],
        latent=facts["size"] // 8,
        length=text["max_position_embeddings"] - 2,  # beside the marks of start and end
        learned=len(facts["learned"]),
        names=", ".join(facts["learned"]),
        emoji=group_digits(facts["emoji"]),
        pictures=group_digits(facts["pictures"]),
        **defaults,
        parts=list_parts(facts["parameters"], names),
        evaluation=list_results(evaluation),
        training=describe_training(facts, names),
        sources=list_sources(facts["sources"]),
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


if __name__ == "__main__":
    stopping.run(main)
