"""Adapter files -> ldm.adapters.lora.Adapter, from every layout in which they are published.

kohya       lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight, .lora_up.weight, .alpha; text towers
            lora_te_, in SDXL lora_te1_ and lora_te2_; SDXL's UNet also in sgm's names; LyCORIS adds other kinds
diffusers   unet.<path>.lora_A.weight, .lora_B.weight; before that <path>.lora.down.weight, and at first
            <path>.attn1.processor.to_q_lora.down.weight; text_encoder., text_encoder_2.
peft        base_model.model.<path>.lora_A.weight, and adapter_config.json beside the file; lora_A.<name>.weight where a
            trainer saved the network itself
others      ComfyUI, OneTrainer, LyCORIS, SimpleTuner: docs/adapters.md lists them, names.py reads their names

Beside the changes there may be new words, bundle_emb.<word>.<...>: embedding.py reads them.
"""

import re
import warnings
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, NoReturn, TypeVar

from torch import Tensor

from ldm.adapters.deltas import Delta, DoRA
from ldm.adapters.lora import Adapter, parameters
from ldm.adapters.products import IA3
from ldm.model import Model

from ..checkpoint import read_values
from ..disk.safetensors import read_header, read_stored
from ..disk.settings import Settings, names_in, parse_json, read_json
from ..disk.variants import why_none
from ..errors import CheckpointError, listed, shown
from ..sources import as_written
from .kinds import build, config_of, scale_of, split_key
from .misfits import check_family, check_matched, check_place, without_config
from .names import BUNDLED, UNREAD, names_of, split_adapter, usual_names, without_dots, words_in
from .peft_tables import PeftSettings
from .tensors import read_all, read_as_stored

T = TypeVar("T")
FILES = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")  # as peft and diffusers call them
READS_TEXT = re.compile(r"attn2[._]to_k$")
Group = dict[str, tuple[str, T]]  # what a file holds for one module: field -> key and tensor


def load_adapter(source: str | Path, model: Model, part: str | None = None, partial: bool = False) -> Adapter:
    """The adapter in a .safetensors file, or in a folder that holds one.

    part: "unet", "text_encoder" or "text_encoder_2" looks for places in that network only, and says whose the names
    are where a file does not, as peft's for one of two text towers. partial: keys that have no place are listed in
    Adapter.unmatched; else they are an error, whose __notes__ list them all. Warns of new words beside the adapter,
    Adapter.words, that the model does not know. The tensors stay in the file until they are used: leave it as it is
    meanwhile.
    Raises CheckpointError, one line, for whatever is wrong with the file, or if nothing in it is for this model.
    """
    path = adapter_file(Path(source))
    tensors, metadata = read_all(path)
    groups, unmatched = group_tensors(path, tensors)
    configs = read_configs(path, tensors, metadata)
    table = names_of(model, part)
    usual = usual_names(groups, table)
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters(model).items()}
    deltas: dict[str, Delta] = {}
    unread: list[str] = []
    for module, group in groups.items():
        keys = [key for key, _ in group.values()]
        homes = table.get(usual[module], [])
        changes = read_changes(path, module, group, configs, bool(homes))
        if READS_TEXT.search(module) and "weight" in changes:
            check_family(path, changes["weight"].shape, model)
        if len(homes) > 1:
            raise CheckpointError(f"{path}: {shown(keys[0])} could be of {' or '.join(homes)}: choose one as part")
        if not homes:
            left = unread if usual[module] in UNREAD else unmatched
            left += keys
            continue
        for kind, delta in changes.items():
            name = f"{homes[0]}.{kind}"
            if isinstance(delta, IA3) and kind == "bias" and name not in shapes:
                continue  # it scales what the layer gives, and this one has no bias
            check_place(path, keys[0], name, delta, shapes, deltas)
            deltas[name] = delta
    check_matched(path, deltas, unmatched, partial)
    words = words_in(tensors)
    unknown = [word for word in words if model.tokenizer is None or word not in model.tokenizer.added]
    if unknown:
        how = "add_embedding (txt2img: --embedding FILE:WORD) makes them known"
        warnings.warn(f"{path} also holds the words {listed(unknown)}: {how}", stacklevel=2)
    return Adapter(deltas, str(source), metadata, (*unmatched, *unread), words)


def read_changes(path: Path, module: str, group: Group[Tensor], configs: Mapping, has_home: bool) -> dict[str, Delta]:
    """What a file changes in one module. A module that the model does not have may be of any kind, known or not."""
    key = next(iter(group.values()))[0]
    fields = {field: tensor for field, (_, tensor) in group.items()}
    scale = scale_of(module, fields, configs)
    try:
        return build(fields, scale, config_of(module, configs)[0])
    except ValueError as error:
        if has_home:
            raise CheckpointError(f"{path}: {shown(key)}: {error}") from None
        return {}


class NotAnAdapter(CheckpointError):
    """There is no adapter where one was looked for."""


class Change(NamedTuple):
    """What an adapter does to one module, by the name that its file gives it. kind: a class of ldm.adapters.deltas; its
    rank is 0 where it has none."""

    module: str
    kind: str
    rank: int
    alpha: float


@dataclass(frozen=True)
class AdapterFile:
    """An adapter without the model that it is for. unknown: keys that no adapter has. problems: one line for each
    module whose tensors do not make up a change. words: new words that lie beside the changes."""

    path: Path
    changes: tuple[Change, ...]
    unknown: tuple[str, ...]
    problems: tuple[str, ...]
    metadata: Mapping[str, str]
    words: tuple[str, ...] = ()

    def values(self) -> Iterator[tuple[str, Tensor]]:
        """Key and value, as float32, of each tensor."""
        return read_values(read_stored(self.path).values())


def describe_adapter(source: str | Path) -> AdapterFile:
    """What a .safetensors file, or the one in a folder, changes and how. NotAnAdapter if it holds none,
    another CheckpointError for whatever is wrong with it."""
    path = adapter_file(Path(source))
    metadata = read_header(path).metadata
    tensors = read_as_stored(path, read_header(path).entries)  # their values stay on the disk
    groups, unknown = group_tensors(path, tensors)
    if not groups:
        raise NotAnAdapter(f"{path} holds no adapter: it has {listed(unknown) or 'nothing'}")
    configs = read_configs(path, tensors, metadata)
    changes = []
    problems = []
    for module, group in groups.items():
        fields = {name: tensor for name, (_, tensor) in group.items()}
        scale = scale_of(module, fields, configs)
        try:
            delta = list(build(fields, scale, config_of(module, configs)[0]).values())[-1]  # a bias comes first
        except ValueError as error:
            problems.append(f"{path}: {shown(module)}: {error}")
            continue
        inner = delta.direction if isinstance(delta, DoRA) else delta
        rank = getattr(inner, "rank", None) or 0
        changes.append(Change(module, type(delta).__name__, rank, round(scale * rank, 6)))
    return AdapterFile(path, tuple(changes), tuple(unknown), tuple(problems), metadata, words_in(tensors))


def adapter_file(source: Path, usual: Collection[str] = FILES, without: Collection[str] = ()) -> Path:
    """The file itself, or the one in a folder: of the usual name, or the only one that is not in `without`."""
    source = as_written(source)
    if not source.is_dir():
        return source
    names = names_in(source)
    found = [name for name in usual if name in names]
    found = found or [name for name in names if name.endswith(".safetensors") and name not in without]
    if len(found) != 1:
        problem = f"several adapters: choose one of {listed(found)}" if found else f"no adapter: {why_none(names)}"
        raise NotAnAdapter(f"{source} holds {problem}")
    return source / found[0]


def group_tensors(path: Path, tensors: Mapping[str, T]) -> tuple[dict[str, Group[T]], list[str]]:
    """The tensors by module, and the keys that are no adapter's; new words beside it count as neither."""
    groups: dict[str, Group[T]] = defaultdict(dict)
    unknown = []
    adapters = set()
    for key, tensor in tensors.items():
        if key.startswith(BUNDLED):
            continue
        plain, adapter = split_adapter(key)
        adapters.add(adapter)
        try:
            module, field = split_key(plain)
        except ValueError as error:
            raise CheckpointError(f"{path}: {shown(key)}: {error}") from None
        module = without_dots(module)
        if field in groups[module]:
            refuse_twice(path, key, groups[module][field][0], adapters)
        if field:
            groups[module][field] = key, tensor
        else:
            unknown.append(key)
    check_alone(path, adapters)
    for key in unknown:  # only beside (IA)^3's "on_input" is a "weight" an adapter's
        group = groups.get(without_dots(key.removesuffix(".weight")), {})
        if "on_input" in group and key.endswith(".weight"):
            group["weight"] = key, tensors[key]
    used = {key for group in groups.values() for key, _ in group.values()}
    return {module: group for module, group in groups.items() if group}, [key for key in unknown if key not in used]


def check_alone(path: Path, adapters: set[str]) -> None:
    """adapters: by the names inside the keys, "" where a key has none."""
    names = sorted(adapters - {""})
    if len(names) > 1:
        raise CheckpointError(f"{path} holds several adapters, {listed(names)}: save each in a file of its own")


def refuse_twice(path: Path, key: str, other: str, adapters: set[str]) -> NoReturn:
    check_alone(path, adapters)
    raise CheckpointError(f"{path}: {shown(key)} and {shown(other)} are two names of one tensor")


def read_configs(path: Path, tensors: Mapping, metadata: Mapping[str, str]) -> dict[str, Settings]:
    """peft's configuration by network, under "" if the file has one network and does not say which."""
    beside = path.with_name("adapter_config.json")
    of_peft = any("base_model.model." in key or split_adapter(key)[1] for key in tensors)
    saved_alone = any(key.startswith("base_model.model.") for key in tensors)
    has_alpha = any(key.endswith(".alpha") for key in tensors)
    if saved_alone and not has_alpha and not beside.exists():
        without_config(path)
    if of_peft and beside.exists():
        return {"": read_beside(beside)}
    configs: dict[str, dict] = defaultdict(dict)
    where = f"{path}: lora_adapter_metadata"
    for key, value in parse_json(metadata.get("lora_adapter_metadata", "{}").encode(), where).items():
        part, _, name = key.rpartition(".")
        configs[part][name] = value
    return {part: PeftSettings(where, values) for part, values in configs.items()}


def read_beside(path: Path) -> PeftSettings:
    return PeftSettings(str(path), read_json(path))
