"""A Model to disk, in any published layout: what `load` reads back is equal, tensor by tensor. Nothing is left half
written: files appear under their names when they are complete.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from ldm.clip import CLIPText
from ldm.config import ModelConfig, TinyVAEConfig
from ldm.model import Model
from ldm.taesd import TinyVAE
from ldm.unet import UNet

from .errors import CheckpointError, shown
from .files import Held, Stored
from .fill import is_finite
from .layouts import SINGLE_FILES, Section, pieces
from .notes import KEY, note
from .recognize import describe, recognize_stored
from .safetensors_file import Entry
from .write_folder import write_facts, write_json

NEW = Path("the new file")
SPEC = {"eps": "epsilon", "v": "v", "x0": "sample"}  # our prediction -> modelspec.prediction_type, in the metadata


def save(
    model: Model,
    path: str | Path,
    layout: str | None = None,
    dtype: torch.dtype | None = None,
    variant: str | None = None,
    shard_size: int | None = None,
    metadata: Mapping[str, str] = {},
) -> None:
    """Write a model as a folder ("diffusers") or as one file ("ldm" for SD 1 and 2, "sgm" for SDXL and SD 2).

    layout: where not given, by the path: .safetensors stands for the family's single file. dtype: of all tensors, else
    as they are. variant: a word in the file names of a folder, such as fp16. shard_size: bytes of the largest file of a
    folder. metadata: texts to put into every file.
    Raises CheckpointError if the path is taken, cannot be written or the model has no such layout.
    """
    path = Path(path)
    if model.tokenizer.added:
        raise CheckpointError(
            f"{path}: no layout holds added words, {shown(next(iter(model.tokenizer.added)))}: save "
            "the model that they were added to"
        )
    metadata = unnoted(metadata)
    networks = {"unet": model.unet, "vae": model.vae, **model.texts}
    if layout is None:
        layout = model.facts.family.layouts[0] if path.suffix == ".safetensors" else "diffusers"
    with appearing(path) as part:
        if layout == "diffusers":
            write_folder(part, model.facts, networks, dtype, variant, shard_size, metadata)
        else:
            tensors, own = single_file(model.facts, networks, layout)
            write(part, tensors, dtype, {**metadata, **own})


def save_part(
    network: nn.Module,
    path: str | Path,
    names: str = "diffusers",
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, str] = {},
) -> None:
    """Write one network as one file. names: "diffusers"; "ldm", of a UNet or VAE; "open_clip", of a text tower.

    Raises CheckpointError if the path is taken, cannot be written or the network was never published so.
    """
    path = Path(path)
    if (
        names != "diffusers"
        and names != ("open_clip" if isinstance(network, CLIPText) else "ldm")
        or (names == "ldm" and isinstance(network, TinyVAE))
    ):
        raise CheckpointError(f"{path}: a {type(network).__name__} was never published with the names of {names}")
    tensors, metadata = section_tensors(network, Section("", names)), unnoted(metadata)
    with appearing(path) as part:
        write(part, tensors, dtype, {**metadata, **part_note(network, tensors, names)})


def unnoted(metadata: Mapping[str, str]) -> dict[str, str]:
    """Metadata as they may come from another file, whose note is not this one's."""
    return {key: text for key, text in metadata.items() if key != KEY}


def part_note(network: nn.Module, tensors: Mapping[str, Tensor], names: str = "diffusers") -> dict[str, str]:
    """The note of a file with one network."""
    kind = {UNet: "unet", CLIPText: "text"}.get(type(network), "vae")
    return note(network.config, describe(kind, Section("", names), in_memory(tensors), NEW))


@contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """A name to write under; what was written gets its own name at the end, or vanishes."""
    try:
        if path.exists() or path.is_symlink():
            raise CheckpointError(f"{path} exists already: choose another name, or remove it")
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".part-", dir=path.parent, ignore_cleanup_errors=True) as scratch:
            yield Path(scratch) / path.name
            os.replace(Path(scratch) / path.name, path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be written: {getattr(error, 'strerror', None) or error}") from None


def write_folder(
    folder: Path,
    facts: ModelConfig,
    networks: Mapping[str, nn.Module],
    dtype: torch.dtype | None,
    variant: str | None,
    shard_size: int | None,
    metadata: Mapping[str, str],
) -> None:
    write_facts(folder, facts)
    for part, network in networks.items():
        stem = "model" if part.startswith("text_encoder") else "diffusion_pytorch_model"
        tensors = network.state_dict()
        own = {**metadata, **part_note(network, tensors)}
        write_shards(folder / part, stem, tensors, dtype, variant, shard_size, own)


def write_shards(
    folder: Path,
    stem: str,
    tensors: Mapping[str, Tensor],
    dtype: torch.dtype | None,
    variant: str | None,
    size: int | None,
    metadata: Mapping[str, str],
) -> None:
    """One file, or several of at most `size` bytes, unless a tensor is larger, with an index that lists them."""
    shards, sizes = [{}], [0]
    for key, tensor in tensors.items():
        count = tensor.numel() * (dtype or tensor.dtype).itemsize
        if size and shards[-1] and sizes[-1] + count > size:
            shards.append({})
            sizes.append(0)
        shards[-1][key] = tensor
        sizes[-1] += count
    word = f".{variant}" if variant else ""
    if len(shards) == 1:
        return write(folder / f"{stem}{word}.safetensors", tensors, dtype, metadata)
    names = [f"{stem}{word}-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    for name, shard in zip(names, shards):
        write(folder / name, shard, dtype, metadata)
    write_json(
        folder / f"{stem}.safetensors.index{word}.json",
        {
            "metadata": {"total_size": sum(sizes)},
            "weight_map": {key: name for name, shard in zip(names, shards) for key in shard},
        },
    )


def write(path: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype | None, metadata: Mapping[str, str]) -> None:
    converted = {key: tensor.detach().to(dtype or tensor.dtype).contiguous() for key, tensor in tensors.items()}
    for key, tensor in converted.items():
        if tensor.dtype != tensors[key].dtype and not is_finite(tensor):
            raise CheckpointError(
                f"{shown(key)} holds values beyond {str(dtype).removeprefix('torch.')}: choose bfloat16 or float32"
            )
    save_file(converted, path, metadata={"format": "pt", **metadata})
    path.chmod(0o644)  # the library keeps it to its owner


def single_file(
    facts: ModelConfig, networks: Mapping[str, nn.Module], layout: str
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a single file and the metadata that it cannot do without."""
    if isinstance(facts.vae, TinyVAEConfig) or facts.unet.guidance_dim:
        raise CheckpointError("no single file was ever published with TAESD or an LCM UNet: save a folder instead")
    name = facts.family.name
    if layout not in facts.family.layouts:
        offer = ", ".join(facts.family.layouts)
        raise CheckpointError(f"{name} was never published in the layout {layout!r}: choose diffusers or {offer}")
    tensors = marks(facts)
    for part, section in SINGLE_FILES[layout, name].items():
        tensors |= section_tensors(networks[part], section)

    metadata = {"modelspec.prediction_type": SPEC[facts.prediction]}
    recognized = recognize_stored(in_memory(tensors), metadata, NEW, lambda held: tensors[held.key].float())
    return tensors, metadata | note(facts, recognized.facts)


def section_tensors(network: nn.Module, section: Section) -> dict[str, Tensor]:
    """One network's tensors by the keys of a single file; the inverse of fill.take."""
    state, tensors = network.state_dict(), {}
    for name, piece in pieces(state, network.config, section.names).items():
        tensors.setdefault(section.prefix + piece.key, []).append(state[name].T if piece.transposed else state[name])
    return {key: convolved(torch.cat(parts) if len(parts) > 1 else parts[0], key) for key, parts in tensors.items()}


def convolved(tensor: Tensor, key: str) -> Tensor:
    """ldm's VAE attends by 1x1 convolutions."""
    return tensor[:, :, None, None] if ".mid.attn_1." in key and tensor.ndim == 2 else tensor


def marks(facts: ModelConfig) -> dict[str, Tensor]:
    """What tells special models from the plain ones of their shapes, as ComfyUI and diffusers know it too."""
    if facts.latent.mean:
        return {
            f"edm_{key}": torch.tensor(values)[None, :, None, None]
            for key, values in (("mean", facts.latent.mean), ("std", facts.latent.std))
        }
    found = {}
    if facts.noise.edm:
        found |= {
            "edm_vpred.sigma_min": torch.tensor(facts.noise.sigma_min),
            "edm_vpred.sigma_max": torch.tensor(facts.noise.sigma_max),
        }
    elif facts.family.name == "sdxl" and facts.prediction == "v":
        found["v_pred"] = torch.zeros(())
    if facts.noise.zero_snr:
        found["ztsnr"] = torch.zeros(())
    return found


def in_memory(tensors: Mapping[str, Tensor]) -> Stored:
    """As if they lay in a file, for recognition."""
    return {key: Held(NEW, key, Entry("F32", tuple(tensor.shape), 0, 0)) for key, tensor in tensors.items()}
