"""Which files of a repository on the hub are needed, by their names alone: for a model, a network or an adapter."""

import re
from collections.abc import Collection

from ..disk.safetensors import choose_file
from ..disk.variants import nearest, variants, without_variant
from ..errors import CheckpointError, listed, shown

WEIGHT_FILES = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "text_encoder_2": "model",
}  # folder -> its weight file, without the ending
SETTINGS = (
    "model_index.json",
    "scheduler/scheduler_config.json",
    *(f"{part}/config.json" for part in WEIGHT_FILES),
    *(
        f"{folder}/{file}.json"
        for folder in ("tokenizer", "tokenizer_2")
        for file in ("special_tokens_map", "tokenizer_config")
    ),
)


def model_files(names: list[str], variant: str | None = None, without: Collection[str] = ()) -> list[str]:
    """Of a repository in diffusers' layout, the files that weights.load reads, but the weights of the parts `without`.
    CheckpointError if a part lacks any."""
    if "model_index.json" not in names:
        raise CheckpointError(
            f"it has no model_index.json, so it is no model in diffusers' layout: {what_instead(names)}"
        )
    files = [name for name in SETTINGS if name in names]
    parts = {part: inside(names, part) for part in WEIGHT_FILES if part not in without}
    parts = {part: found for part, found in parts.items() if found}
    plain = []
    if variant:
        plain = without_variant({part: (found, WEIGHT_FILES[part]) for part, found in parts.items()}, variant)
    for part in parts:
        files += weight_files(names, part, part, None if part in plain else variant)
    return files


def part_files(
    names: list[str], part: str | None = None, variant: str | None = None, is_mixed: bool = False
) -> list[str]:
    """Of one network: config.json and weights from its folder, or from the root of a repository that holds no other.
    part: "unet", "vae" or a text tower; None: the one at the root. is_mixed: the variant is that of another model, and
    a plain file will do."""
    if part and is_mixed:
        variant = nearest(inside(names, part if f"{part}/config.json" in names else ""), WEIGHT_FILES[part], variant)
    if part and f"{part}/config.json" in names:
        training = [name for name in names if part == "unet" and name == "scheduler/scheduler_config.json"]
        return [f"{part}/config.json", *training, *weight_files(names, part, part, variant)]
    if "config.json" not in names or "model_index.json" in names:
        raise CheckpointError(f"it has no {part or 'network'}, neither in a folder nor alone: {what_instead(names)}")
    at_root = [name for name in names if "/" not in name]
    part = part or ("unet" if variants(at_root, WEIGHT_FILES["unet"]) else "text_encoder")
    return ["config.json", *weight_files(names, "", part, variant)]


def text_files(names: list[str], variant: str | None = None) -> list[str]:
    """Of all text towers of a repository."""
    towers = [part for part in WEIGHT_FILES if part.startswith("text") and f"{part}/config.json" in names]
    files = []
    for part in towers or ["text_encoder"]:
        files += part_files(names, part, variant, is_mixed=True)
    return files


def any_files(names: list[str], variant: str | None = None) -> list[str]:
    """Of a repository of any kind: a model, a network alone or an adapter."""
    if "model_index.json" in names:
        return model_files(names, variant)
    if "config.json" in names:
        return part_files(names, variant=variant)
    beside = [name for name in names if name == "adapter_config.json"]
    return [*one_file(names), *beside]


def one_file(names: list[str], file: str | None = None) -> list[str]:
    """The file of that name, or the only .safetensors file at the root."""
    found = [file] if file else weights_at_root(names)
    if len(found) != 1 or found[0] not in names:
        wanted = f"no file {shown(file)}" if file else "not one .safetensors file at its root"
        raise CheckpointError(f"it has {wanted}: {what_instead(names)}")
    return found


def weight_files(names: list[str], folder: str, part: str, variant: str | None) -> list[str]:
    """The weight file in a folder, "" for the root, or an index and its shards; chosen as in a folder."""
    path = f"{folder}/" if folder else ""
    stem = WEIGHT_FILES[part]
    here = inside(names, folder)
    file = choose_file(folder or "its root", here, stem, variant)
    if file.endswith(".safetensors"):
        return [path + file]
    kind = next(kind for kind, name in variants(here, stem).items() if name == file)
    tag = re.escape(f".{kind}") if kind else ""
    numbers = r"-\d+-of-\d+"
    shard = re.compile(rf"{stem}({tag}{numbers}|{numbers}{tag})\.safetensors")
    return [path + name for name in here if shard.fullmatch(name) or name == file]


def inside(names: list[str], folder: str) -> list[str]:
    """The names below a folder, "" for the root, without it."""
    path = f"{folder}/" if folder else ""
    return [name.removeprefix(path) for name in names if name.startswith(path)]


def weights_at_root(names: list[str]) -> list[str]:
    return [name for name in names if "/" not in name and name.endswith(".safetensors")]


def what_instead(names: list[str]) -> str:
    single = weights_at_root(names)
    if single:
        return f"name one of its files, as owner/name/FILE: {listed(single)}"
    return f"it has {listed(names) or 'nothing'}"
