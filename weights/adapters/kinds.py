"""What an adapter file holds for one module -> the change of its weight, for every kind of adapter and its spellings.

Endings of the keys and shapes: kohya-ss/sd-scripts (networks/lora.py), KohakuBlueleaf/LyCORIS (lycoris/modules), peft
(tuners/lora, loha, lokr) and diffusers (loaders). algorithms.py has GLoRA and the kinds that multiply.
"""

import re
from collections.abc import Mapping
from math import sqrt

import torch
from torch import Tensor

from ldm.adapters.deltas import Added, Delta, DoRA, Full, LoHa, LoKr, LoRA, Multiplied, PeftDoRA, Product, Replacement
from ldm.adapters.products import IA3

from ..disk.settings import WIDTH, Settings
from .algorithms import ENDINGS, check_oft_of_peft, glora_rank, matrix, one, read_algorithm
from .peft_tables import by_pattern

FIELDS = {  # how keys end -> what the tensor is
    **{f"{name}.weight": "down" for name in ("lora_down", "lora_A", "lora.down", "lora_linear_layer.down")},
    **{f"{name}.weight": "up" for name in ("lora_up", "lora_B", "lora.up", "lora_linear_layer.up")},
    "lora_mid.weight": "core",
    "alpha": "alpha",
    "scalar": "scalar",
    "diff": "diff",
    "w_norm": "diff",
    "set_weight": "new",  # ComfyUI's
    "diff_b": "bias",
    "bias.diff": "bias",
    "b_norm": "bias",
    "lora_B.bias": "up_bias",
    "dora_scale": "dora_scale",
    "lora_magnitude_vector": "magnitude",
    "lora_magnitude_vector.weight": "magnitude",
    **{
        name: name
        for name in (
            "hada_w1_a",
            "hada_w1_b",
            "hada_t1",
            "hada_w2_a",
            "hada_w2_b",
            "hada_t2",
            "lokr_w1",
            "lokr_w1_a",
            "lokr_w1_b",
            "lokr_w2",
            "lokr_w2_a",
            "lokr_w2_b",
            "lokr_t2",
        )
    },
    **ENDINGS,
}
REFUSED = {  # how keys end -> the kind of adapter, which is not implemented
    **dict.fromkeys(("oft_R", "oft_r"), "OFT of peft before 0.15"),
    **dict.fromkeys(("boft_R", "boft_s"), "BOFT of peft"),
    **dict.fromkeys(("q_layer.weight", "p_layer.weight", "lambda_layer"), "T-LoRA"),
    "reshape_weight": "a change of a weight's shape, as of control LoRA for Flux,",
}
IMPLEMENTED = "LoRA, LoHa, LoKr, DoRA, GLoRA, (IA)^3, OFT, BOFT and full differences"
FIRST = re.compile(r"(?:\.processor)?\.to_([qkv]|out)_lora\.(down|up)\.weight$")  # of the first diffusers files
WRAPPERS = re.compile(r"\bbase_model\.model\.|\b_orig_mod\.|^module\.")  # of peft, of torch.compile, of many GPUs
RANKED = ("down", "hada_w1_b", "lokr_w1_b", "lokr_w2_b")  # (r i); the last is missing where LoKr is not factored
CONFIG = {  # peft's settings -> the values that we implement, or that concern its training only
    "peft_type": ("LORA", "LOHA", "LOKR", "IA3", "OFT"),
    "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal"),
    "fan_in_fan_out": (False,),
    "layer_replication": (None,),
    "use_qalora": (False,),
    "use_bdlora": (None,),
}


def split_key(key: str) -> tuple[str, str]:
    """Key -> module, as the file spells it, and field; the field is "" for an ending that no adapter has. ValueError
    with the kind of adapter if it is one of REFUSED."""
    key = FIRST.sub(r".to_\1.lora.\2.weight", WRAPPERS.sub("", key))
    for n in (3, 2, 1):
        module, *rest = key.rsplit(".", n)
        ending = ".".join(rest)
        if ending in REFUSED:
            raise ValueError(f"{REFUSED[ending]} is not implemented; {IMPLEMENTED} are")
        if ending == "oft_blocks" and module.startswith("oft_unet_"):
            return module, "kohya_blocks"
        if ending in FIELDS:
            return module, FIELDS[ending]
    return key, ""


def scale_of(module: str, fields: Mapping[str, Tensor], configs: Mapping[str, Settings]) -> float:
    """alpha / rank: from the file's alpha, from peft's configuration of this network, or else 1. An alpha of 0 stands
    for the rank, as in kohya's tools and LyCORIS. LyCORIS does not scale a LoKr that is not factored, and multiplies by
    `scalar`, where a file has one. CheckpointError for a configuration that cannot be followed."""
    rank = next((len(fields[name]) for name in RANKED if name in fields and fields[name].ndim), None)
    if "a1" in fields:
        rank = glora_rank(fields)
    scalar = fields.get("scalar")
    factor = scalar.item() if scalar is not None and scalar.numel() == 1 else 1.0
    if "alpha" in fields and fields["alpha"].numel() == 1:
        alpha = fields["alpha"].item()
        if rank and alpha:
            return factor * alpha / rank
        return factor
    config, path = config_of(module, configs)
    return factor if config is None else factor * scale_from_config(config, path, rank)


def config_of(module: str, configs: Mapping[str, Settings]) -> tuple[Settings | None, str]:
    """peft's configuration of the module's network, and the module's path in it."""
    part, _, path = module.partition(".")
    if part in configs:
        return configs[part], path
    return configs.get(""), module


def scale_from_config(config: Settings, path: str, rank: int | None) -> float:
    config.only(CONFIG)
    if config.values.get("peft_type") == "OFT":
        check_oft_of_peft(config)
        return 1.0
    name = "lora_alpha" if config.values.get("peft_type", "LORA") == "LORA" else "alpha"
    alpha = by_pattern(config, "alpha_pattern", path, config.number(name, 8))
    r = by_pattern(config, "rank_pattern", path, config.one("r", 8, WIDTH))
    if r <= 0 or rank not in (None, r):
        config.refuse("r", f"a rank of {r} is configured for {path}, and {rank} is in the file")
    return alpha / (sqrt(r) if config.flag("use_rslora") else r)


def build(fields: Mapping[str, Tensor], scale: float, config: Settings | None = None) -> dict[str, Delta]:
    """Changes of a module's "weight" and "bias". config: peft's, if there is one. ValueError if the tensors do not make
    up a change."""
    left = dict(fields)
    changes: dict[str, Delta] = {}
    if "bias" in left:
        changes["bias"] = Full(left.pop("bias"))
    if left:
        change = read_direction(left, scale, config)
        if "up_bias" in left and "bias" not in changes:
            bias = left.pop("up_bias")
            changes["bias"] = Full(scale * bias.to(torch.promote_types(bias.dtype, torch.float32)))
        if isinstance(change, Added) and "magnitude" in left:
            change = PeftDoRA(change, column(left.pop("magnitude"), "magnitude"))
        elif isinstance(change, Added) and "dora_scale" in left:
            change = DoRA(change, column(left.pop("dora_scale"), "dora_scale"))
        if isinstance(change, IA3) and "ia3_l" in fields and not change.on_input and "bias" not in changes:
            changes["bias"] = change  # peft scales the outputs as they leave the layer, after its bias
        changes["weight"] = change
    if left:
        used = sorted(fields.keys() - left.keys())
        raise ValueError(f"{', '.join(sorted(left))} cannot stand with {', '.join(used)}")
    return changes


def read_direction(fields: dict[str, Tensor], scale: float, config: Settings | None) -> Added | Multiplied:
    """Takes out of fields what it uses."""
    try:
        if "diff" in fields:
            return Full(fields.pop("diff"))
        if "new" in fields:
            return Replacement(fields.pop("new"))
        alpha = None
        if "alpha" in fields:
            alpha = one(fields.pop("alpha"), "alpha")
        change = read_algorithm(fields, scale, alpha, config)
        if change is None or isinstance(change, Added):
            one(fields.pop("scalar", torch.ones(1)), "scalar")  # it is part of the scale
        return change or read_factors(fields, scale)
    except KeyError as error:
        raise ValueError(f"{error.args[0]} is missing") from None


def read_factors(fields: dict[str, Tensor], scale: float) -> LoRA | LoHa | LoKr:
    if fields.keys() & {"lokr_w1", "lokr_w1_a"}:
        return LoKr(factor(fields, "lokr_w1"), factor(fields, "lokr_w2"), scale)
    if "hada_w1_a" in fields:
        return LoHa(product(fields, "hada_w1"), product(fields, "hada_w2"), scale)
    up = fields.pop("up")
    down = fields.pop("down")
    core = fields.pop("core", None)
    return LoRA(matrix(up), down if core is None else matrix(down), core, scale)


def factor(fields: dict[str, Tensor], name: str) -> Full | Product:
    """A factor of LoKr: itself, or a product."""
    if name in fields:
        return Full(fields.pop(name))
    return product(fields, name)


def product(fields: dict[str, Tensor], name: str) -> Product:
    """A factor of LoHa or LoKr as the product of w_a (o r) and w_b; with a core t, w_a is (r o)."""
    core = fields.pop(name.replace("w", "t"), None)
    first = fields.pop(f"{name}_a")
    second = fields.pop(f"{name}_b")
    if core is not None and first.ndim == 2:
        first = first.T
    return Product(first, second, core)


def column(magnitude: Tensor, name: str) -> Tensor:
    """DoRA's magnitudes as (o 1) or (1 i). peft's are always of the outputs, stored (o) or (1 o 1 1); LyCORIS' are
    (o 1), (1 i) and the like."""
    if name == "magnitude" or magnitude.ndim == 1:
        return magnitude.reshape(-1, 1)
    return matrix(magnitude)
