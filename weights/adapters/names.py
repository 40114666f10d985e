"""What adapter files call the modules of a model.

kohya's underscores cannot be turned back into dots, so names are looked up in a table made from the model's own paths.
"""

from collections import defaultdict

from torch import nn

from ldm.adapters.lora import networks
from ldm.model import Model

from ..layouts.names import Table, rename, unet_table

FIRST_NAMES = {"to_out.0": "to_out", "q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}


def names_of(model: Model, part: str | None) -> dict[str, list[str]]:
    """What a file may call a module -> the modules, by path, that it can mean: one, except for names without a part."""
    table: dict[str, list[str]] = defaultdict(list)
    sgm = unet_table(model.unet.config)
    heads = kohya_heads(model)
    for name, network in networks(model).items():
        for path, module in network.named_modules():
            if part in (None, name) and isinstance(getattr(module, "weight", None), nn.Parameter):
                for spelling in spellings(name, path, sgm):
                    flat = spelling.replace(".", "_")
                    for form in (f"{name}.{spelling}", spelling, heads[name] + flat):
                        table[form].append(f"{name}.{path}")
                    if name == "unet":
                        table[f"oft_unet_{flat}"].append(f"{name}.{path}")  # kohya's OFT
    return table


def kohya_heads(model: Model) -> dict[str, str]:
    """How kohya's names of a network begin; those of SD's tower do not fit SDXL's, whose shapes are the same."""
    return {
        "unet": "lora_unet_",
        "text_encoder": "lora_te1_" if len(model.texts) > 1 else "lora_te_",
        "text_encoder_2": "lora_te2_",
    }


def spellings(name: str, path: str, sgm: Table) -> set[str]:
    """diffusers' path of a module and sgm's; for text towers also transformers' since 5.6; those of the first files."""
    names = {path, rename(path, sgm)} if name == "unet" else {path, path.removeprefix("text_model.")}
    return names | {
        spelling.removesuffix(new) + old
        for spelling in names
        for new, old in FIRST_NAMES.items()
        if spelling.endswith("." + new)
    }
