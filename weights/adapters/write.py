"""ldm.adapters.lora.Adapter -> a file that kohya's tools, LyCORIS, diffusers and this program read."""

import json
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor

from ldm.adapters.deltas import Delta, DoRA, Full, LoHa, LoKr, LoRA, Product
from ldm.adapters.lora import Adapter, check, networks, parameters
from ldm.model import Model

from ..disk.safetensors import read_header
from ..disk.write import atomic_path, write_tensors
from ..errors import CheckpointError
from ..layouts.names import rename, unet_table
from .embedding import read_embedding
from .names import kohya_heads
from .read import group_tensors, read_all


def save_adapter(adapter: Adapter, path: str | Path, model: Model, layout: str = "diffusers") -> None:
    """Write an adapter of this model as a .safetensors file, which appears under its name when it is complete.

    layout: "diffusers", which holds LoRA and DoRA of linear and convolutional layers; or "kohya", which holds every
    kind. The adapter's metadata go with it. CheckpointError if the path is taken or the layout cannot hold a change;
    ValueError for another layout, or if the adapter is of another model.
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
    return len(keys) <= 2 and bool(read_embedding(path))


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
        if kind == "bias":
            field = "b_norm" if of_norm else "diff_b"
            tensors[f"{stem}.{field}"] = delta.change
        elif of_norm:
            tensors[f"{stem}.w_norm"] = delta.change
        else:
            fields = kohya_fields(delta, kernel=targets[name].ndim == 4)
            tensors |= {f"{stem}.{field}": tensor for field, tensor in fields.items()}
    return tensors, {}


def kohya_fields(delta: Delta, kernel: bool) -> dict[str, Tensor]:
    """kernel: the layer is a convolution, whose 1x1 factors have four axes in these files."""

    def shaped(factor: Tensor) -> Tensor:
        return factor[:, :, None, None] if kernel and factor.ndim == 2 else factor

    match delta:
        case DoRA(inner, magnitude):
            return kohya_fields(inner, kernel) | {"dora_scale": shaped(magnitude)}
        case Full(change):
            return {"diff": change}
        case LoKr(Full(first), Full() as second, scale):  # LyCORIS applies no alpha to this one
            return factors(Full(scale * first), "lokr_w1") | factors(second, "lokr_w2")
        case LoKr(first, second):
            fields = factors(first, "lokr_w1") | factors(second, "lokr_w2")
        case LoHa(first, second):
            fields = factors(first, "hada_w1") | factors(second, "hada_w2")
        case LoRA(up, down, core):
            fields = {"lora_up.weight": shaped(up), "lora_down.weight": shaped(down)}
            fields |= {} if core is None else {"lora_mid.weight": core}
    return fields | {"alpha": torch.tensor(delta.scale * delta.rank, dtype=torch.float64)}


def factors(part: Full | Product, name: str) -> dict[str, Tensor]:
    """LyCORIS' names of a factor; Tucker's form has `up` transposed there."""
    match part:
        case Full(change):
            return {name: change}
        case Product(up, down, None):
            return {f"{name}_a": up, f"{name}_b": down}
        case Product(up, down, core):
            return {f"{name}_a": up.T, f"{name}_b": down, name.replace("w", "t"): core}


def diffusers(adapter: Adapter, model: Model) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The scales go into the metadata, as the configuration of peft from which diffusers makes its layers."""
    tensors, settings = {}, {}
    for part, network in networks(model).items():
        changes = {
            name.removeprefix(f"{part}.").removesuffix(".weight"): delta
            for name, delta in adapter.deltas.items()
            if name.startswith(f"{part}.")
        }
        for path, delta in changes.items():
            inner, magnitude = (delta.direction, delta.magnitude) if isinstance(delta, DoRA) else (delta, None)
            if not isinstance(inner, LoRA) or inner.core is not None or magnitude is not None and len(magnitude) == 1:
                raise CheckpointError(
                    f"diffusers' layout cannot hold the {type(inner).__name__} of {part}.{path}: save it in kohya's"
                )
            axes = (..., None, None) if network.get_parameter(f"{path}.weight").ndim == 4 else ...
            tensors[f"{part}.{path}.lora_A.weight"] = inner.down[axes] if inner.down.ndim == 2 else inner.down
            tensors[f"{part}.{path}.lora_B.weight"] = inner.up[axes]
            if magnitude is not None:
                tensors[f"{part}.{path}.lora_magnitude_vector"] = magnitude[:, 0] if axes is ... else magnitude.T[axes]
        if changes:
            settings |= {f"{part}.{key}": value for key, value in configuration(part, changes).items()}
    return tensors, {"lora_adapter_metadata": json.dumps(settings, indent=2, sort_keys=True)}


def configuration(part: str, changes: dict[str, LoRA | DoRA]) -> dict:
    """Rank and alpha of most layers, and those of the others by name; transformers 5.6 dropped "text_model."."""
    with_magnitude = {isinstance(delta, DoRA) for delta in changes.values()}
    if len(with_magnitude) > 1:
        raise CheckpointError(f"diffusers' layout cannot hold DoRA in some layers of {part} only: save it in kohya's")
    names = {path: f"^{path}" if part == "unet" else path.removeprefix("text_model.") for path in changes}
    inner = {names[path]: delta.direction if isinstance(delta, DoRA) else delta for path, delta in changes.items()}
    ranks = {name: delta.rank for name, delta in inner.items()}
    alphas = {name: delta.scale * delta.rank for name, delta in inner.items()}
    ((rank, _),) = Counter(ranks.values()).most_common(1)
    ((alpha, _),) = Counter(alphas.values()).most_common(1)
    return {
        "r": rank,
        "lora_alpha": alpha,
        "use_dora": with_magnitude == {True},
        "rank_pattern": {name: other for name, other in ranks.items() if other != rank},
        "alpha_pattern": {name: other for name, other in alphas.items() if other != alpha},
        "target_modules": sorted(name.removeprefix("^") for name in names.values()),
    }
