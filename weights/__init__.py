"""Weights on disk: strict loading of published models.

    load(source)         a folder in diffusers' layout -> ldm.model.Model
    file_hashes(model)   SHA-256 of the files it came from
    MINIATURE            the small trained model that ships with this package
    CheckpointError      whatever is wrong with a file, in one line
"""

from pathlib import Path

from .errors import CheckpointError
from .load import file_hashes, load

MINIATURE = Path(__file__).parent / "miniature"

__all__ = ["MINIATURE", "CheckpointError", "file_hashes", "load"]
