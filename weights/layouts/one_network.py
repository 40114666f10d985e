"""One network by itself: a sub-folder or prefix of a whole model, a folder with its config.json, or a file that holds
just its tensors, in the names of diffusers, ldm or open_clip.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ldm.clip import CLIPText
from ldm.config import CLIPConfig, UNetConfig
from ldm.taesd import TinyVAE

from ..checkpoint import PARTS, Network, NetworkConfig, Part
from ..disk.safetensors import Stored, read_header, read_stored
from ..disk.settings import Settings, among, names_in
from ..disk.variants import nearest
from ..errors import CheckpointError, shown
from . import overrides
from .diffusers import INDEX
from .diffusers import read_part as read_folder_part
from .diffusers_configs import read_clip, read_unet, read_vae
from .gaps import close_gaps
from .incomplete import outline
from .landmarks import TITLES, describe_other, find_networks
from .names import Section, pieces, strip_prefix
from .shapes import sizes_of

SEQUENCE = re.compile(r"\d+\.")  # as the keys of TAESD's original files begin


def read(path: Path, part: str | None, variant: str | None = None) -> Part:
    """part: one of PARTS, or None where the path holds one network. CheckpointError where it is not there."""
    return read_folder(path, part, variant) if path.is_dir() else read_file(path, part)


def read_folder(folder: Path, part: str | None, variant: str | None) -> Part:
    root = folder
    names = names_in(folder)
    if part in names and (folder / part).is_dir():
        folder = folder / part
    elif INDEX in names:
        offer = ", ".join(name for name in PARTS if name in names)
        raise CheckpointError(f"{folder} is a whole model: choose its part, it has {offer}")
    elif "config.json" not in names:
        raise CheckpointError(f"{folder} has neither config.json nor {shown(part or 'unet')}: it holds no network")
    config = read_network(Settings.read(folder / "config.json"))
    check_kind(folder, config, part)
    return read_folder_part(folder, config, variant, root)


def check_kind(path: Path, config: NetworkConfig, part: str | None) -> None:
    kind = kind_of(config)
    if part and not part.startswith(kind):
        raise CheckpointError(f"{path} holds {TITLES[kind]}, not a {part}")


def nearest_variant(path: Path, part: str, variant: str | None) -> str | None:
    """The variant of a part at a path where it is there; None, for the plain file, where there is that alone."""
    if not path.is_dir():
        return variant
    folder = path / part if (path / part).is_dir() else path
    stem = "model" if part.startswith("text") else "diffusion_pytorch_model"
    return nearest(names_in(folder), stem, variant)


def read_file(path: Path, part: str | None) -> Part:
    stored = read_stored(path)
    if path.suffix == ".json" and (path.parent / "config.json").is_file():  # an index of shards
        config = read_network(Settings.read(path.parent / "config.json"))
        check_kind(path, config, part)
        return Part(config, stored, path, path, described_by=str(path.parent / "config.json"))
    if all(SEQUENCE.match(key) for key in stored):
        stored = join_halves(path, stored)
    found = find_networks(stored)
    kind = part or next(iter(found), None)
    if part and part.startswith("text"):
        kind = "text"
    if kind not in found:
        raise CheckpointError(f"{path} has no {part or 'network'}: it {describe_other(stored, path)}")
    section = found[kind]
    if kind == "text":
        section = tower_section(stored, path, part, section)
    inside = close_gaps(strip_prefix(stored, section.prefix))
    metadata = {} if path.suffix == ".json" else read_header(path).metadata
    config, _ = overrides.read(sizes_of(kind, section, inside, path), metadata, path)
    return Part(config, inside, path, path, section.names, section.prefix, "its own shapes", metadata=metadata)


def tower_section(stored: Stored, path: Path, part: str | None, found: Section) -> Section:
    """Where a text tower lies in a file that may hold two. found: the first of them, which may be the only one."""
    model = outline(stored, path)
    if part and model and part in model.sections:
        return model.sections[part]
    return found._replace(tower="bigg") if part == "text_encoder_2" else found


def kind_of(config: object) -> str:
    """Of a network: "unet", "vae" or "text"."""
    if isinstance(config, UNetConfig):
        return "unet"
    return "text" if isinstance(config, CLIPConfig) else "vae"


def join_halves(path: Path, stored: Stored) -> Stored:
    """TAESD in its original two files, taesd_encoder and taesd_decoder, by the names of diffusers. The numbers of the
    decoder begin at 1: its first layer has no parameters."""
    here, other = ("encoder", "decoder") if "0.weight" in stored else ("decoder", "encoder")
    beside = path.with_name(path.name.replace(here, other))
    if here not in path.name or not beside.exists():
        raise CheckpointError(
            f"{path} is one half of TAESD, its {here}: its {other} is expected beside it, and "
            f"{shown(here)} and {shown(other)} in their names"
        )
    halves = {here: stored, other: read_stored(beside)}
    joined = {}
    for half, first in (("encoder", 0), ("decoder", 1)):
        for key, held in halves[half].items():
            number, rest = key.split(".", 1)
            joined[f"{half}.layers.{int(number) - first}.{rest}"] = held
    return joined


def write(network: Network, path: Path, names: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file with one network and the metadata that it needs. CheckpointError, which begins with `path`,
    if such a network was never published with these names."""
    published = ["diffusers"]
    if isinstance(network, CLIPText):
        published.append("open_clip")
    elif not isinstance(network, TinyVAE):
        published.append("ldm")
    if names not in published:
        raise CheckpointError(f"{path}: a {type(network).__name__} was never published with the names of {names}")
    tensors = tensors_of(network, Section("", names))
    return tensors, overrides_of(network, tensors, names)


def overrides_of(network: Network, tensors: Mapping[str, Tensor], names: str = "diffusers") -> dict[str, str]:
    """What the shapes in a file with one network cannot say: it is described as if it had been opened."""
    seen = sizes_of(kind_of(network.config), Section("", names), overrides.in_memory(tensors), overrides.NEW)
    return overrides.write(network.config, seen)


def tensors_of(network: Network, section: Section) -> dict[str, Tensor]:
    """One network's tensors by the keys of a file; the inverse of checkpoint.take."""
    state = network.state_dict()
    tensors: dict[str, list[Tensor]] = {}
    for name, piece in pieces(state, network.config, section.names).items():
        tensor = state[name].T if piece.transposed else state[name]
        tensors.setdefault(section.prefix + piece.key, []).append(tensor)
    joined = {}
    for key, thirds in tensors.items():
        tensor = torch.cat(thirds) if len(thirds) > 1 else thirds[0]
        if ".mid.attn_1." in key and tensor.ndim == 2:  # ldm's VAE attends by 1x1 convolutions
            tensor = tensor[:, :, None, None]
        joined[key] = tensor
    return joined


def read_network(json: Settings) -> NetworkConfig:
    """A network by its config.json alone, which names its class."""
    architectures = str(json.values.get("architectures"))
    if json.values.get("model_type") == "clip" and isinstance(json.values.get("text_config"), dict):
        return read_clip(Settings(f"{json.file}: text_config", json.values["text_config"]), False)  # the whole of CLIP
    if "CLIPTextModel" in architectures or json.values.get("model_type") == "clip_text_model":
        return read_clip(json, "WithProjection" in architectures)
    name = json.one("_class_name", None, among(["UNet2DConditionModel", "AutoencoderKL", "AutoencoderTiny"]))
    return read_unet(json) if name == "UNet2DConditionModel" else read_vae(json)
