"""Weights on disk: strict loading of every published layout, and saving.

load(source)         a folder, a single file or a repository of the hub -> ldm.model.Model
load_part(source)    one of its networks, or a network that was published alone
describe(source)     what such a source is, without reading it: its facts, parts, evidence and what is left out;
                     describe_part and describe_adapter do so for one network and for an adapter
save(model, path)    in any layout; save_part(network, path) alone
load_adapter(source, model)     LoRA and its kin, to merge or attach; save_adapter writes it
add_embedding(model, source)    textual inversion: the model with a new word
locate(source, one_file)        where such a file lies, fetched from the hub if need be
file_hashes(model)   SHA-256 of the files it came from
MINIATURE            the small trained model that ships with this package
MARK                 what `left_out` says of tensors that mark how a model was trained, and are written anew
CheckpointError      whatever is wrong with a file, in one line

What takes a source shares these arguments:

    source      a folder of diffusers' layout, a single .safetensors file, or a repository of the Hugging Face hub,
                "owner/name", "owner/name@revision", "owner/name/file.safetensors" or the address of its page; for
                `load` also what `describe` returned.
    part        "unet", "vae", "text_encoder" or "text_encoder_2"; needed where a source has several.
    dtype       of all networks; also by name, "float16" or "fp16". None takes that of the UNet's file for UNet and
                texts, and the VAE keeps its own; so does a part that is read alone. A VAE that overflows in float16
                (SDXL's and the x4 upscaler's, unless its config.json denies it) gets float32 in its place. "stored"
                leaves each tensor in the dtype of its file, to be saved again. On the CPU, tensors that have the dtype
                in the file stay there until they are used: leave the files as they are.
    device      where the parameters go.
    variant     "fp16" takes the files named so; a part of a model that has none so named gives its plain file.
    revision    a branch, tag or commit of the repository; it comes before one in `source`.
    offline     True takes only what was downloaded before.
    unet, vae   the source of another UNet or VAE to put in place of the model's own, or of one that it lacks.
    text        the same for its text towers: a source that holds them all, or a source for each, by name:
                {"text_encoder_2": "clip_g.safetensors"}.
    prediction  "eps" or "v", for a model whose files do not say which, or say it wrongly.
    zero_snr    True, for a model of v that was trained until nothing of the picture is left, if no file says so.
    ema         True takes a single file's averaged UNet.
    check_finite    False accepts NaN and infinity.

Rooms: layouts/ (each matches, reads and writes itself), disk/ (files), hub/ (downloads), adapters/; sources (the names
that people write), leftovers (known tensors that no network needs), swap (networks from elsewhere).
"""

from pathlib import Path

from .adapters.embedding import add_embedding, embedding_file
from .adapters.read import AdapterFile, NotAnAdapter, adapter_file, describe_adapter, load_adapter
from .adapters.write import convert_adapter, is_adapter, save_adapter
from .errors import CheckpointError
from .hub.wanted import one_file
from .layouts.training import MARK
from .load import describe, describe_part, file_hash, file_hashes, load, load_part, locate
from .save import save, save_part

MINIATURE = Path(__file__).parent / "miniature"

__all__ = [
    "MARK",
    "MINIATURE",
    "AdapterFile",
    "CheckpointError",
    "NotAnAdapter",
    "adapter_file",
    "add_embedding",
    "convert_adapter",
    "describe",
    "describe_adapter",
    "describe_part",
    "embedding_file",
    "file_hash",
    "file_hashes",
    "is_adapter",
    "load",
    "load_adapter",
    "load_part",
    "locate",
    "one_file",
    "save",
    "save_adapter",
    "save_part",
]
