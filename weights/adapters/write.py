"""ldm.adapters.lora.Adapter -> a file that kohya's tools, LyCORIS, diffusers and this program read."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ldm.adapters.deltas import Delta, DoRA, Full, LoHa, LoKr, LoRA, Product, Replacement
from ldm.adapters.lora import Adapter, check, networks, parameters
from ldm.adapters.products import IA3, InputOFT, KohyaOFT
from ldm.model import Model

from ..disk.safetensors import read_header
from ..disk.write import atomic_path, write_tensors
from ..errors import CheckpointError
from ..layouts.names import rename, unet_table
from .algorithms import algorithm_fields
from .embedding import read_file
from .names import kohya_heads, words_in
from .read import group_tensors
from .tensors import read_all


def save_adapter(adapter: Adapter, path: str | Path, model: Model, layout: str = "diffusers") -> None:
    """Write an adapter of this model as a .safetensors file, which appears under its name when it is complete.

    layout: "diffusers", which holds LoRA and DoRA of linear and convolutional layers; or "kohya", which holds every
    kind. A DoRA follows the rule of the layout for strengths other than 1. The adapter's metadata go with it.
    CheckpointError if the path is taken or the layout cannot hold a change; ValueError for another layout, or if the
    adapter is of another model.
    """
    path = Path(path)
    layouts = {"diffusers": diffusers, "kohya": kohya}
    if layout not in layouts:
        raise ValueError(f"unknown layout {layout!r}: choose one of {', '.join(layouts)}")
    with atomic_path(path) as part:
        check(adapter, parameters(model))
        tensors, own = layouts[layout](adapter, model)
        metadata = {key: text for key, text in adapter.metadata.items() if key != "lora_adapter_metadata"}
        copies = {key: tensor.clone() for key, tensor in tensors.items()}
        write_tensors(part, copies, None, {**metadata, **own})


def convert_adapter(source: str | Path, path: str | Path, dtype: torch.dtype | None = None) -> None:
    """Write the .safetensors file of an adapter or embedding again, with its keys and metadata. dtype: of all tensors;
    None leaves each as it is. CheckpointError if it is none, or the path is taken."""
    if not is_adapter(source):
        raise CheckpointError(f"{source} is no adapter and no embedding")
    tensors, metadata = read_all(Path(source))
    with atomic_path(Path(path)) as part:
        write_tensors(part, tensors, dtype, metadata)


def is_adapter(source: str | Path) -> bool:
    """Whether a .safetensors file is added to a model and is none itself. CheckpointError for a damaged one."""
    path = Path(source)
    keys = read_header(path).entries
    if group_tensors(path, keys)[0]:
        return True
    return (bool(words_in(keys)) or len(keys) <= 2) and bool(read_file(path))


def kohya(adapter: Adapter, model: Model) -> tuple[dict[str, Tensor], dict[str, str]]:
    sgm = unet_table(model.unet.config) if model.facts.family.has_sizes else {}
    heads = kohya_heads(model)
    targets = parameters(model)
    tensors = {}
    for name, delta in adapter.deltas.items():
        part, rest = name.split(".", 1)
        path, kind = rest.rsplit(".", 1)
        spelling = rename(path, sgm) if part == "unet" else path
        stem = heads[part] + spelling.replace(".", "_")
        of_norm = targets[f"{part}.{path}.weight"].ndim == 1
        if isinstance(delta, Full) and kind == "bias":
            field = "b_norm" if of_norm else "diff_b"
            tensors[f"{stem}.{field}"] = delta.change
        elif isinstance(delta, Full) and of_norm:
            tensors[f"{stem}.w_norm"] = delta.change
        elif isinstance(delta, IA3) and (kind == "bias" or of_norm):
            raise CheckpointError(f"kohya's layout cannot hold the factors of {name}: only those of a layer's weight")
        elif type(delta) is InputOFT:
            raise CheckpointError(f"kohya's layout cannot hold peft's OFT, which changes {name}")
        else:
            if isinstance(delta, KohyaOFT):
                stem = stem.replace("lora_unet_", "oft_unet_", 1)
            fields = kohya_fields(delta, is_kernel=targets[name].ndim == 4)
            tensors |= {f"{stem}.{field}": tensor for field, tensor in fields.items()}
    return tensors, {}


def kohya_fields(delta: Delta, is_kernel: bool) -> dict[str, Tensor]:
    """is_kernel: the layer is a convolution, whose 1x1 factors have four axes in these files."""

    def shaped(factor: Tensor) -> Tensor:
        return factor[:, :, None, None] if is_kernel and factor.ndim == 2 else factor

    match delta:
        case DoRA(inner, magnitude):
            return kohya_fields(inner, is_kernel) | {"dora_scale": shaped(magnitude)}
        case Full(change):
            return {"diff": change}
        case Replacement(weight):
            return {"set_weight": weight}
        case LoKr(Full(first), Full() as second, scale):  # LyCORIS applies no alpha to this one
            return factor_fields(Full(scale * first), "lokr_w1") | factor_fields(second, "lokr_w2")
        case LoKr(first, second):
            return factor_fields(first, "lokr_w1") | factor_fields(second, "lokr_w2") | alpha_field(delta)
        case LoHa(first, second):
            return factor_fields(first, "hada_w1") | factor_fields(second, "hada_w2") | alpha_field(delta)
        case LoRA(up, down, core):
            fields = {"lora_up.weight": shaped(up), "lora_down.weight": shaped(down)}
            if core is not None:
                fields["lora_mid.weight"] = core
            return fields | alpha_field(delta)
        case _:
            return algorithm_fields(delta, is_kernel)


def alpha_field(delta: LoRA | LoHa | LoKr) -> dict[str, Tensor]:
    return {"alpha": torch.tensor(delta.scale * (delta.rank or 1), dtype=torch.float64)}


def factor_fields(factor: Full | Product, name: str) -> dict[str, Tensor]:
    """LyCORIS' names of a factor; Tucker's form has `up` transposed there."""
    if isinstance(factor, Full):
        return {name: factor.change}
    if factor.core is None:
        return {f"{name}_a": factor.up, f"{name}_b": factor.down}
    return {f"{name}_a": factor.up.T, f"{name}_b": factor.down, name.replace("w", "t"): factor.core}


def diffusers(adapter: Adapter, model: Model) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The scales go into the metadata, as the configuration of peft from which diffusers makes its layers."""
    tensors = {}
    settings = {}
    for part, network in networks(model).items():
        changes = {}
        for name, delta in adapter.deltas.items():
            if name.startswith(f"{part}."):
                path = name.removeprefix(f"{part}.").removesuffix(".weight")
                changes[path] = split_magnitude(delta, f"{part}.{path}")
        for path, (change, magnitude) in changes.items():
            is_kernel = network.get_parameter(f"{path}.weight").ndim == 4
            for field, tensor in diffusers_fields(change, magnitude, is_kernel).items():
                tensors[f"{part}.{path}.{field}"] = tensor
        if changes:
            settings |= {f"{part}.{key}": value for key, value in configuration(part, changes).items()}
    return tensors, {"lora_adapter_metadata": json.dumps(settings, indent=2, sort_keys=True)}


def split_magnitude(delta: Delta, name: str) -> tuple[LoRA, Tensor | None]:
    """A LoRA, and the magnitudes (o 1) of a DoRA; CheckpointError for a change that this layout cannot hold."""
    inner = delta
    magnitude = None
    if isinstance(delta, DoRA):
        inner = delta.direction
        magnitude = delta.magnitude
    of_inputs = magnitude is not None and len(magnitude) == 1
    if not isinstance(inner, LoRA) or inner.core is not None or of_inputs:
        raise CheckpointError(f"diffusers' layout cannot hold the {type(inner).__name__} of {name}: save it in kohya's")
    return inner, magnitude


def diffusers_fields(change: LoRA, magnitude: Tensor | None, is_kernel: bool) -> dict[str, Tensor]:
    up = change.up
    down = change.down
    if is_kernel:
        up = up[..., None, None]
        down = down[..., None, None] if down.ndim == 2 else down
    fields = {"lora_A.weight": down, "lora_B.weight": up}
    if magnitude is not None:
        fields["lora_magnitude_vector"] = magnitude.T[..., None, None] if is_kernel else magnitude[:, 0]
    return fields


def configuration(part: str, changes: Mapping[str, tuple[LoRA, Tensor | None]]) -> dict:
    """Rank and alpha of most layers, and those of the others by name; transformers 5.6 dropped "text_model."."""
    with_magnitude = {magnitude is not None for _, magnitude in changes.values()}
    if len(with_magnitude) > 1:
        raise CheckpointError(f"diffusers' layout cannot hold DoRA in some layers of {part} only: save it in kohya's")
    ranks = {}
    alphas = {}
    targets = []
    for path, (change, _) in changes.items():
        target = path if part == "unet" else path.removeprefix("text_model.")
        name = f"^{target}" if part == "unet" else target
        targets.append(target)
        ranks[name] = change.rank
        alphas[name] = change.scale * change.rank
    ((rank, _),) = Counter(ranks.values()).most_common(1)
    ((alpha, _),) = Counter(alphas.values()).most_common(1)
    return {
        "r": rank,
        "lora_alpha": alpha,
        "use_dora": with_magnitude == {True},
        "rank_pattern": {name: other for name, other in ranks.items() if other != rank},
        "alpha_pattern": {name: other for name, other in alphas.items() if other != alpha},
        "target_modules": sorted(targets),
    }
