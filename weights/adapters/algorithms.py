"""The tensors of GLoRA, (IA)^3, OFT and BOFT in a file <-> the change of one module.

Names and shapes: KohakuBlueleaf/LyCORIS (lycoris/modules: glora, ia3, diag_oft, boft), kohya-ss/sd-scripts
(networks/oft.py) and peft (tuners/ia3). Each reader takes out of `fields` what it uses; ValueError for shapes that make
up no change.
"""

from collections.abc import Mapping
from math import sqrt

import torch
from torch import Tensor

from ldm.adapters.deltas import GLoRA, Multiplied, Product
from ldm.adapters.products import BOFT, IA3, OFT, InputOFT, KohyaOFT, OFTDiag, OneTrainerOFT

from ..disk.settings import Settings

ENDINGS = {  # how keys end -> what the tensor is
    **{f"{name}.weight": name for name in ("a1", "a2", "b1", "b2", "bm")},
    **{name: name for name in ("oft_blocks", "oft_diag", "rescale", "on_input", "ia3_l")},
    "oft_R.weight": "triangles",
    "oft_R.scaled_oft": "scaled_oft",
}
GLORA = ("a1", "a2", "b1", "b2")


def read_algorithm(
    fields: dict[str, Tensor], scale: float, alpha: float | None, config: Settings | None
) -> GLoRA | Multiplied | None:
    """scale: alpha over rank. alpha: None where the file has none. config: peft's, whose rules may differ. None if the
    fields are of another algorithm."""
    if fields.keys() & set(GLORA):
        return read_glora(fields, scale)
    if "on_input" in fields:
        return IA3(vector(fields.pop("weight")), bool(one(fields.pop("on_input"), "on_input")))
    if "ia3_l" in fields:
        return read_ia3_of_peft(fields)
    if "oft_diag" in fields:
        return OFTDiag(fields.pop("oft_diag"))
    if "triangles" in fields:
        return read_input_oft(fields, config)
    if "kohya_blocks" in fields and alpha is not None:
        return KohyaOFT(fields.pop("kohya_blocks"), alpha)
    if fields.keys() & {"oft_blocks", "kohya_blocks"}:
        return read_oft(fields, alpha or 0.0)
    return None


def read_glora(fields: dict[str, Tensor], scale: float) -> GLoRA:
    """LyCORIS since 3.0: a1 (i r), a2 (r i), b1 (o r), b2 (r i h w). Before that the other way round, without kernels:
    a1 (r i), a2 (i r), b1 (r i), b2 (o r)."""
    old = is_old_glora(fields)
    a1, a2, b1, b2 = (matrix(fields.pop(name)) for name in GLORA)
    if old:
        return GLoRA(Product(a2, a1), Product(b2, b1), scale)
    return GLoRA(Product(a1, a2), Product(b1, b2, fields.pop("bm", None)), scale)


def is_old_glora(fields: Mapping[str, Tensor]) -> bool:
    """A weight (i i) has factors of equal shapes in both generations: the smaller number is taken for the rank."""
    for name in GLORA:
        if fields[name].ndim < 2:
            raise ValueError(f"factors of the shape {tuple(fields[name].shape)} are no matrices or kernels")
    (a1, _), (a2, wide), (b1, _), (_, b2) = (fields[name].shape[:2] for name in GLORA)
    is_old = a1 == wide == b1 == b2
    is_new = fields["a1"].shape[1] == a2 == fields["b1"].shape[1] == fields["b2"].shape[0]
    if is_old and is_new:
        return a2 > wide
    return is_old


def glora_rank(fields: Mapping[str, Tensor]) -> int | None:
    """None where the factors make up no GLoRA."""
    if any(name not in fields or fields[name].ndim < 2 for name in GLORA):
        return None
    return fields["a1"].shape[0 if is_old_glora(fields) else 1]


def read_ia3_of_peft(fields: dict[str, Tensor]) -> IA3:
    """(1 i) or (o 1), which multiplies: 1 changes nothing."""
    factor = fields.pop("ia3_l")
    if factor.ndim != 2 or 1 not in factor.shape:
        raise ValueError(
            f"ia3_l of the shape {tuple(factor.shape)}: peft's (IA)^3 is read for linear layers only, where it is "
            "(1, inputs) or (outputs, 1)"
        )
    exact = factor.to(torch.promote_types(factor.dtype, torch.float32))
    return IA3(vector(exact) - 1, on_input=factor.shape[0] == 1)


def read_oft(fields: dict[str, Tensor], alpha: float) -> OFT | BOFT:
    """Blocks (k n n) are OFT's, (m k n n) BOFT's; rescale is (o 1) or (o 1 1 1)."""
    name = "oft_blocks" if "oft_blocks" in fields else "kohya_blocks"
    blocks = fields.pop(name)
    rescale = fields.pop("rescale", None)
    if rescale is not None:
        rescale = vector(rescale)
    kind = BOFT if blocks.ndim == 4 else OFT
    return kind(blocks, alpha, rescale)


def read_input_oft(fields: dict[str, Tensor], config: Settings | None) -> InputOFT:
    """peft's has a configuration. OneTrainer's has none; where "scaled_oft" stands beside it, Q is divided by the root
    of the number of its elements."""
    triangles = fields.pop("triangles")
    if config is not None:
        return InputOFT(triangles, is_exact=not config.flag("use_cayley_neumann", True))
    if "scaled_oft" in fields:
        one(fields.pop("scaled_oft"), "scaled_oft")
        exact = triangles.to(torch.promote_types(triangles.dtype, torch.float32))
        triangles = exact / sqrt(triangles.shape[-1])
    return OneTrainerOFT(triangles)


def check_oft_of_peft(config: Settings) -> None:
    """CheckpointError for the rules of peft that are not implemented, and for those before 0.18, which were others."""
    config.only({"coft": (False,), "num_cayley_neumann_terms": (5,)})
    if config.flag("use_cayley_neumann", True) and "peft_version" not in config.values:
        config.refuse("peft_version", "the rule of OFT was another one before peft 0.18: train it again")


def vector(tensor: Tensor) -> Tensor:
    """(n), (1 n), (n 1), (1 n 1 1) or (n 1 1 1) as (n)."""
    if tensor.ndim not in (1, 2, 4) or tensor.numel() != max(tensor.shape):
        raise ValueError(f"a tensor of the shape {tuple(tensor.shape)} is no factor for each channel")
    return tensor.reshape(-1)


def one(tensor: Tensor, name: str) -> float:
    if tensor.numel() != 1:
        raise ValueError(f"{name} must be one number")
    return tensor.item()


def matrix(tensor: Tensor) -> Tensor:
    """A 1x1 convolution as a matrix."""
    return tensor[:, :, 0, 0] if tensor.ndim == 4 and tensor.shape[2:] == (1, 1) else tensor


def algorithm_fields(delta: GLoRA | Multiplied, is_kernel: bool) -> dict[str, Tensor]:
    """What LyCORIS calls the tensors. is_kernel: the layer is a convolution, whose factors have four axes in files."""

    def shaped(factor: Tensor) -> Tensor:
        return factor[:, :, None, None] if is_kernel and factor.ndim == 2 else factor

    match delta:
        case GLoRA(inner, added, scale):
            fields = {"a1.weight": inner.up, "a2.weight": inner.down, "b1.weight": added.up, "b2.weight": added.down}
            fields = {name: shaped(factor) for name, factor in fields.items()}
            if added.core is not None:
                fields["bm.weight"] = added.core
            return fields | {"alpha": torch.tensor(scale * added.rank, dtype=torch.float64)}
        case IA3(factor, on_input):
            weight = factor[None, :, None, None] if is_kernel else factor
            return {"weight": weight, "on_input": torch.tensor(int(on_input))}
        case OFTDiag(blocks):
            return {"oft_diag": blocks}
        case InputOFT(triangles):
            return {"oft_R.weight": triangles}
        case OFT() | BOFT():
            fields = {"oft_blocks": delta.blocks, "alpha": torch.tensor(delta.alpha, dtype=torch.float64)}
            if delta.rescale is not None:
                fields["rescale"] = shaped(delta.rescale[:, None])
            return fields
