"""One network of any source: a sub-folder or prefix of a whole model, or a folder or file that holds nothing else."""

import re
from pathlib import Path

from ldm.config import CLIPConfig, TinyVAEConfig, UNetConfig, VAEConfig

from .configs import part_config
from .disk import names_in, read_json
from .errors import CheckpointError, shown
from .files import Stored, read_stored
from .folder import read_part as read_folder_part
from .notes import with_notes
from .parts import Part
from .recognize import WORDS, describe, is_whole, networks, recognize, under, what_else
from .safetensors_file import read_header
from .settings import Settings

SEQUENCE = re.compile(r"\d+\.")  # as the keys of TAESD's original files begin
KINDS = {"unet": UNetConfig, "vae": VAEConfig | TinyVAEConfig, "text": CLIPConfig}
PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")


def read_part(path: Path, part: str | None = None, variant: str | None = None) -> Part:
    """The network at a path, described and not yet read. part: which, where there are several.

    Raises CheckpointError where it is not there.
    """
    if part not in (None, *PARTS):
        raise CheckpointError(f"unknown part {shown(part)}: choose one of {', '.join(PARTS)}")
    return in_folder(path, part, variant) if path.is_dir() else in_file(path, part)


def in_folder(folder: Path, part: str | None, variant: str | None) -> Part:
    names = names_in(folder)
    if part in names and (folder / part).is_dir():
        folder = folder / part
    elif "model_index.json" in names:
        offer = ", ".join(name for name in PARTS if name in names)
        raise CheckpointError(f"{folder} is a whole model: choose its part, it has {offer}")
    elif "config.json" not in names:
        raise CheckpointError(f"{folder} has neither config.json nor {shown(part or 'unet')}: it holds no network")
    config = part_config(Settings(str(folder / "config.json"), read_json(folder / "config.json")))
    held = next(kind for kind, configs in KINDS.items() if isinstance(config, configs))
    if part and not part.startswith(held):
        raise CheckpointError(f"{folder} holds {WORDS[held]}, not a {part}")
    return read_folder_part(folder, config, variant)


def in_file(path: Path, part: str | None) -> Part:
    stored = read_stored(path)
    if all(SEQUENCE.match(key) for key in stored):
        stored = both_halves(path, stored)
    if is_whole(stored):
        checkpoint = recognize(path)
        if part not in checkpoint.parts:
            raise CheckpointError(f"{path} is a whole model: choose its part, it has {', '.join(checkpoint.parts)}")
        return checkpoint.parts[part]
    found = networks(stored)
    kind = "text" if part and part.startswith("text") else part or next(iter(found), None)
    if kind not in found:
        raise CheckpointError(f"{path} has no {part or 'network'}: it {what_else(stored, path)}")
    place = found[kind]
    inside = under(stored, place.prefix)
    config, _ = with_notes(describe(kind, place, inside, path), read_header(path).metadata, path)
    return Part(config, inside, path, place.names, place.prefix, "its own shapes")


def both_halves(path: Path, stored: Stored) -> Stored:
    """TAESD in its original two files, taesd_encoder and taesd_decoder, by the names of diffusers. The numbers of the
    decoder begin at 1: its first layer has no parameters."""
    here = "decoder" if "0.weight" not in stored else "encoder"
    other = "encoder" if here == "decoder" else "decoder"
    beside = path.with_name(path.name.replace(here, other))
    if here not in path.name or not beside.exists():
        raise CheckpointError(
            f"{path} is one half of TAESD, its {here}: its {other} is expected beside it, and "
            f"{shown(here)} and {shown(other)} in their names"
        )
    halves = {here: stored, other: read_stored(beside)}
    return {
        f"{half}.layers.{int(key.split('.')[0]) - (half == 'decoder')}.{key.split('.', 1)[1]}": held
        for half in ("encoder", "decoder")
        for key, held in halves[half].items()
    }
