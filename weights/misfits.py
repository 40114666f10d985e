"""Why the networks of a model do not make up one, or the tensors of a file no network, in words."""

from collections.abc import Mapping
from typing import Any, NoReturn

from ldm.config import FAMILIES, ModelConfig

from .errors import CheckpointError, listed

TOKENS = 49408  # in the one vocabulary of all these models
READS_TEXT = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"  # in every UNet; (width, text width)
TOGETHER = "put the files of one model together"


def refuse_parts(facts: ModelConfig, where: str, vector: int) -> NoReturn:
    """vector: what the pooled text and the numbers make."""
    unet = facts.unet
    made_of = f"pooled text and {facts.family.numbers} numbers make"
    pairs = [
        ("cross_attention_dim", unet.context_dim, "reads text", "text towers give", sum(t.width for t in facts.texts)),
        ("out_channels", unet.out_channels, "makes latents", "VAE has", facts.vae.latent_channels),
        ("projection_class_embeddings_input_dim", unet.vector_dim, "adds a vector", made_of, vector),
    ]
    for key, found, takes, gives, expected in pairs:
        if found != expected:
            what = f"its UNet {takes} of width {found} and its {gives} {expected}: these are parts of different models"
            raise CheckpointError(f"{where}: {key} is {found}: {what}")
    if unet.in_channels < unet.out_channels:
        what = f"at least the {unet.out_channels} of the latents are expected"
        raise CheckpointError(f"{where}: in_channels is {unet.in_channels}: {what}")
    lengths = [text.length for text in facts.texts]
    vocabularies = [text.vocab for text in facts.texts]
    what = f"equal numbers of tokens, from at least the {TOKENS} of CLIP, are expected"
    raise CheckpointError(
        f"{where}: the text encoders take {lengths} tokens from vocabularies of {vocabularies}: {what}"
    )


def mismatch(needed: Mapping, places: Mapping, extra: list[str], wrong: list[str], part: Any) -> str:
    """Why the tensors of a part do not make up its network. A file of quite another network deserves a better word than
    its thousand differences."""
    if extra and not places:
        asks = "is it a single-file checkpoint, an adapter or another part?"
        return f"{part.path} holds no tensor of this network but {listed(extra)}: {asks}"
    if READS_TEXT in wrong:
        shape = places[READS_TEXT].held.entry.shape
        if len(shape) == 2 and shape[1] != needed[READS_TEXT][1]:
            return (
                f"{part.path} is of another family: it reads text of width {text_width(shape[1])}, and "
                f"{part.described_by} says {text_width(needed[READS_TEXT][1])}: {TOGETHER}"
            )
    faults = []
    missing = [name for name in needed if name not in places]
    if missing:
        faults.append(f"of {len(needed)} tensors {len(missing)} are missing, {listed(missing)}")
    if extra:
        faults.append(f"{len(extra)} unexpected tensors, {listed(extra)}")
    if faults:
        return f"{part.path} is not the network of {part.described_by}: {'; '.join(faults)}: {TOGETHER}"
    shapes = [f"{places[name].held.key} {places[name].held.entry.shape} for {needed[name]}" for name in wrong]
    what = f"{len(wrong)} tensors of another shape than {part.described_by} describes"
    return f"{part.path} has {what}, {listed(shapes)}: {TOGETHER}"


def text_width(width: int) -> str:
    """A width of text, with the family that has it."""
    for family in FAMILIES.values():
        if sum(family.widths) == width:
            return f"{width} ({family.title})"
    return str(width)
