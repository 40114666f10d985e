"""The weight files of one part of a model folder: plain, of a variant such as fp16, or in shards with an index."""

import re
from pathlib import Path
from typing import NamedTuple

from .disk import names_in, read_json
from .errors import CheckpointError, listed, shown
from .safetensors_file import Entry, read_header


class Held(NamedTuple):
    """A tensor on disk."""

    file: Path
    key: str
    entry: Entry


Stored = dict[str, Held]  # by key, perhaps without the prefix that it has in the file

FORMS = (
    r"{}(\.[\w-]+)?\.safetensors",
    r"{}\.safetensors\.index(\.[\w-]+)?\.json",
    r"{}(\.[\w-]+)\.safetensors\.index\.json",
)  # the group is the variant; a file comes before an index
SHARD = re.compile(r"-\d+-of-\d+$")
SHARD_NAME = re.compile(r"\w[\w.-]{0,200}\.safetensors", re.ASCII)


def find_weights(folder: Path, stem: str, variant: str | None) -> Path:
    """The file or index to read in a folder."""
    return folder / chosen(str(folder), names_in(folder), stem, variant)


def chosen(where: str, names: list[str], stem: str, variant: str | None) -> str:
    """The file or index to read: that of the variant; without one the plain one, else the only one there is.

    Raises CheckpointError that lists what is offered instead; `where` begins it.
    """
    found = offered(names, stem)
    if not found:
        raise CheckpointError(f"{where} has no {stem}.safetensors: {remedy(names)}")
    if (variant or "") in found:
        return found[variant or ""]
    offer = listed([name or "plain" for name in found])
    if variant:
        raise CheckpointError(f"{where} has no variant {shown(variant)}: it offers {offer}")
    if len(found) > 1:
        raise CheckpointError(f"{where} has no plain {stem}.safetensors: choose a variant, it offers {offer}")
    return found.popitem()[1]


def offered(names: list[str], stem: str) -> dict[str, str]:
    """Variant, or "" for the plain one -> name of its file or index."""
    found = {}
    for form in FORMS:
        for name in names:
            match = re.fullmatch(form.format(stem), name)
            if match and not SHARD.search(match[1] or ""):
                found.setdefault((match[1] or ".")[1:], name)
    return found


def remedy(names: list[str]) -> str:
    pickled = [name for name in names if name.endswith((".bin", ".ckpt", ".pt", ".pth"))]
    if pickled:
        return f"it has {listed(pickled)}, which are pickled Python and never read here: convert them to safetensors"
    if any(SHARD.search(Path(name).stem) for name in names):
        return "it has shards but not the index that lists them: download it"
    return f"it has {listed(names) or 'nothing'}"


def read_stored(path: Path) -> Stored:
    """What a weight file, or all shards of an index, hold."""
    if path.suffix != ".json":
        return {key: Held(path, key, entry) for key, entry in read_header(path).entries.items()}
    listing = read_json(path).get("weight_map")
    if not isinstance(listing, dict) or not listing or not all(isinstance(name, str) for name in listing.values()):
        raise CheckpointError(f"{path} has no weight_map from tensors to shards: download it again")
    stored: Stored = {}
    for name in sorted(set(listing.values())):
        if not SHARD_NAME.fullmatch(name):
            raise CheckpointError(f"{path} lists the shard {shown(name)}: a .safetensors file beside it is expected")
        for key, entry in read_header(path.with_name(name)).entries.items():
            if key in stored:
                raise CheckpointError(f"{path}: {shown(key)} is in two shards, {stored[key].file.name} and {name}")
            stored[key] = Held(path.with_name(name), key, entry)
    for key, name in listing.items():
        if key not in stored or stored[key].file.name != name:
            raise CheckpointError(f"{path}: {shown(key)} is not in {name}, where the index says it is")
    return stored
