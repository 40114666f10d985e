"""Why the networks of a model do not make up one, in words."""

from typing import NoReturn

from ldm.config import ModelConfig

from .errors import CheckpointError

TOKENS = 49408  # in the one vocabulary of all these models


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
