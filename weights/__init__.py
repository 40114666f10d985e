"""Weights on disk: strict loading of every published layout, and saving.

    load(source)         a folder, a single file or a repository of the hub -> ldm.model.Model
    load_part(source)    one of its networks, or a network that was published alone
    save(model, path)    in any layout; save_part(network, path) alone
    load_adapter(source, model)     LoRA and its kin, for ldm.lora to merge or attach
    add_embedding(model, source)    textual inversion: the model with a new word
    file_hashes(model)   SHA-256 of the files it came from
    MINIATURE            the small trained model that ships with this package
    CheckpointError      whatever is wrong with a file, in one line
"""

from pathlib import Path

from .errors import CheckpointError
from .load import file_hash, file_hashes, load, load_part
from .lora_files import load_adapter
from .save import save, save_part
from .textual_inversion import add_embedding

MINIATURE = Path(__file__).parent / "miniature"

__all__ = ["MINIATURE", "CheckpointError", "add_embedding", "file_hash", "file_hashes", "load", "load_adapter",
           "load_part", "save", "save_part"]
