"""Weights on disk: strict loading of every published layout, and saving.

load(source)         a folder, a single file or a repository of the hub -> ldm.model.Model
load_part(source)    one of its networks, or a network that was published alone
save(model, path)    in any layout; save_part(network, path) alone
load_adapter(source, model)     LoRA and its kin, for ldm.adapters.lora to merge or attach; save_adapter writes it
add_embedding(model, source)    textual inversion: the model with a new word
located(source, one_file)       where such a file lies, or lies now that the hub has been asked
file_hashes(model)   SHA-256 of the files it came from
MINIATURE            the small trained model that ships with this package
CheckpointError      whatever is wrong with a file, in one line
"""

from pathlib import Path

from .errors import CheckpointError
from .hub_files import one_file
from .load import file_hash, file_hashes, load, load_part, located
from .lora_files import adapter_file, load_adapter
from .lora_save import save_adapter
from .save import save, save_part
from .textual_inversion import add_embedding

MINIATURE = Path(__file__).parent / "miniature"

__all__ = [
    "MINIATURE",
    "CheckpointError",
    "adapter_file",
    "add_embedding",
    "file_hash",
    "file_hashes",
    "load",
    "load_adapter",
    "load_part",
    "located",
    "one_file",
    "save",
    "save_adapter",
    "save_part",
]
