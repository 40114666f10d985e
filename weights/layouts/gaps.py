"""UNets in ldm's names whose numbers have gaps.

The scripts that lead from diffusers to ldm (convert_diffusers_to_original_stable_diffusion.py, its twin for SDXL, and
those of kohya that follow them) count three blocks to every level. A distilled UNet has two, one resnet and what
changes the size, so that their files lack every third number; ComfyUI counts on. One script knows no attention on the
coarsest level of the way up either, and leaves it under diffusers' name. stable-diffusion.cpp reads such files too.
"""

import re
from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")
IN = re.compile(r"input_blocks\.(\d+)\.")
OUT = re.compile(r"output_blocks\.(\d+)\.")
UPSAMPLE = re.compile(r"output_blocks\.(\d+)\.[12]\.conv\.")
LEFT = re.compile(r"up_blocks\.0\.attentions\.(\d+)\.")


def has_gaps(unet: Mapping[str, T]) -> bool:
    """Whether the first level has one resnet, and its second number is left out."""
    return "input_blocks.3.0.op.weight" in unet and not any(key.startswith("input_blocks.2.") for key in unet)


def close_gaps(unet: Mapping[str, T]) -> dict[str, T]:
    """The same tensors by the names that count on."""
    if not has_gaps(unet):
        return dict(unet)
    attends = {int(match[1]) // 3 for match in map(re.compile(r"output_blocks\.(\d+)\.1\.norm\.").match, unet) if match}
    if any(map(LEFT.match, unet)):
        attends.add(0)
    return {close_gap(key, attends): held for key, held in unet.items()}


def close_gap(key: str, attends: set[int]) -> str:
    """attends: the levels of the way up that have attention, in the order in which they run."""
    found = UPSAMPLE.match(key)
    if found:
        level = int(found[1]) // 3
        place = 2 if level in attends else 1  # in its block it stands behind resnet and attention
        return f"output_blocks.{2 * level + 1}.{place}.conv.{key[found.end() :]}"
    key = LEFT.sub(r"output_blocks.\1.1.", key)
    key = IN.sub(lambda match: f"input_blocks.{int(match[1]) - int(match[1]) // 3}.", key)
    return OUT.sub(lambda match: f"output_blocks.{int(match[1]) - int(match[1]) // 3}.", key)
