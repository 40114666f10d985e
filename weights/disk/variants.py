"""The variants of a weight file in a folder, by their names: float16 beside float32, shards with their index."""

import re
import shlex
from collections.abc import Mapping
from pathlib import Path

from ..errors import CheckpointError, listed, shown
from .kinds import PICKLED

FORMS = (  # of the names of weight files; the group is the variant, and a file comes before an index
    r"{}(\.[\w-]+)?\.safetensors",
    r"{}\.safetensors\.index(\.[\w-]+)?\.json",
    r"{}(\.[\w-]+)\.safetensors\.index\.json",
)
SHARD = re.compile(r"-\d+-of-\d+$")


def choose_variant(where: str, names: list[str], stem: str, variant: str | None) -> str:
    """CheckpointError lists what is offered instead; `where` begins it."""
    found = variants(names, stem)
    if (variant or "") in found:
        return found[variant or ""]
    if len(found) == 1 and not variant:
        return found.popitem()[1]
    raise CheckpointError(
        f"{where} has no {missing_file(names, stem, variant, found)}{command_for(where, names, found)}"
    )


def without_variant(parts: Mapping[str, tuple[list[str], str]], variant: str) -> list[str]:
    """The parts of a model that lack a variant and have a plain file, if other parts have the variant, as diffusers
    has it: a model without any file of it was not meant. parts: by name, the names in its folder and the stem."""
    offers = {part: variants(names, stem) for part, (names, stem) in parts.items()}
    if not any(variant in offer for offer in offers.values()):
        return []
    return [part for part, offer in offers.items() if variant not in offer and "" in offer]


def nearest(names: list[str], stem: str, variant: str | None) -> str | None:
    """The variant where there is one; None, for the plain file, where there is that alone."""
    found = variants(names, stem)
    return None if variant not in found and "" in found else variant


def command_for(where: str, names: list[str], found: dict[str, str]) -> str:
    """How to convert a model's folder of pickled files, where that is what is missing."""
    home = Path(where).parent
    if found or not any(name.endswith(PICKLED) for name in names) or not (home / "model_index.json").is_file():
        return ""
    target = f"{home}-converted"
    return f", by `ldm convert {shlex.quote(str(home))} --to {shlex.quote(target)}`"


def missing_file(names: list[str], stem: str, variant: str | None, found: dict[str, str]) -> str:
    offer = listed([name or "plain" for name in found])
    if not found:
        return f"{stem}.safetensors: {why_none(names)}"
    if variant:
        return f"variant {shown(variant)}: it offers {offer}"
    return f"plain {stem}.safetensors: choose a variant, it offers {offer}"


def variants(names: list[str], stem: str) -> dict[str, str]:
    """Variant, or "" for the plain one -> name of its file or index."""
    found = {}
    for form in FORMS:
        for name in names:
            match = re.fullmatch(form.format(stem), name)
            if match and not SHARD.search(match[1] or ""):
                found.setdefault((match[1] or ".")[1:], name)
    return found


def why_none(names: list[str]) -> str:
    """What a folder without the wanted weights has instead, and what to do."""
    pickled = [name for name in names if name.endswith(PICKLED)]
    if pickled:
        return f"it has {listed(pickled)}, which are pickled Python and never read here: convert them to safetensors"
    if any(SHARD.search(Path(name).stem) for name in names):
        return "it has shards but not the index that lists them: download it"
    return f"it has {listed(names) or 'nothing'}"
