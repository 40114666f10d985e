"""A checkpoint that was found and described, and not read yet: what load, convert and inspect_checkpoint begin with."""

from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from ldm.clip import CLIPText
from ldm.config import CLIPConfig, ModelConfig, TinyVAEConfig, UNetConfig, VAEConfig
from ldm.taesd import TinyVAE
from ldm.unet import UNet
from ldm.vae import VAE

from .errors import CheckpointError
from .files import Stored

NETWORKS: dict[type, type[nn.Module]] = {UNetConfig: UNet, VAEConfig: VAE, TinyVAEConfig: TinyVAE, CLIPConfig: CLIPText}


@dataclass(frozen=True)
class Part:
    """One network of a checkpoint: its sizes, and the tensors that should be its own.

    stored: by their keys without `prefix`. names: whose these are, "diffusers", "ldm" or "open_clip". path: the file or
    index that the errors name. described_by: where the sizes come from.
    """

    config: UNetConfig | VAEConfig | TinyVAEConfig | CLIPConfig
    stored: Stored
    path: Path
    names: str = "diffusers"
    prefix: str = ""
    described_by: str = "config.json"

    @property
    def network(self) -> type[nn.Module]:
        return NETWORKS[type(self.config)]


@dataclass(frozen=True)
class Checkpoint:
    """parts: by the names of diffusers' folders, text towers in the order of facts.texts. reasons: what was told by
    what. guesses: what the files do not say and the user should know. metadata: that of a single file. extras: its
    tensors outside all networks -> what they are."""

    facts: ModelConfig
    parts: dict[str, Part]
    layout: str = "diffusers"
    reasons: tuple[str, ...] = ()
    guesses: tuple[str, ...] = ()
    metadata: dict[str, str] = field(default_factory=dict)
    extras: dict[str, str] = field(default_factory=dict)


TOKENS = 49408  # in the one vocabulary of all these models


def check_numbers(facts: ModelConfig, where: str) -> None:
    """No division by 0 and no root of a negative number comes of what a single file says."""
    unet, vae, noise, latent = facts.unet, facts.vae, facts.noise, facts.latent
    shares = [
        *((width, count) for width, heads in zip(unet.channels, unet.heads) for count in (heads, unet.groups)),
        *((width, vae.groups) for width in (vae.channels if isinstance(vae, VAEConfig) else ())),
        *((text.width, text.heads) for text in facts.texts),
    ]
    sound = {
        "counts of heads and groups": all(count > 0 and width % count == 0 for width, count in shares),
        "counts of pixels and steps": facts.size > 0 and facts.steps > 0,
        "tokens that fill up prompts": all(0 <= token < TOKENS for token in facts.pad_ids),
        "noise": 0 < noise.sigma_min < noise.sigma_max if noise.edm else 0 < noise.beta_start <= noise.beta_end < 1,
        "scale, mean and deviation of latents": latent.scale > 0
        and min(latent.std, default=1) > 0
        and len(latent.mean) == len(latent.std) in (0, vae.latent_channels),
    }
    for what, good in sound.items():
        if not good:
            raise CheckpointError(f"{where} says impossible things of the {what} of its model")


def check_fit(facts: ModelConfig, where: str) -> None:
    """The networks of one model take what the others give."""
    unet, numbers = facts.unet, facts.family.numbers
    text_width = sum(text.width for text in facts.texts)
    pairs = [
        ("its UNet reads text of width", unet.context_dim, "its text towers give", text_width),
        ("its UNet makes latents of channels", unet.out_channels, "its VAE has", facts.vae.latent_channels),
    ]
    if numbers:
        pooled = facts.texts[-1].projection
        sizes = max((unet.vector_dim - pooled) // numbers, 1) * numbers
        pairs.append(
            ("its UNet adds a vector of width", unet.vector_dim, f"text and {numbers} numbers make", pooled + sizes)
        )
    if len({text.length for text in facts.texts}) > 1 or min(text.vocab for text in facts.texts) < TOKENS:
        raise CheckpointError(
            f"{where}: the text encoders take {[text.length for text in facts.texts]} tokens from "
            f"vocabularies of {[text.vocab for text in facts.texts]}: equal numbers of tokens, from "
            f"at least the {TOKENS} of CLIP, are expected"
        )
    for what, found, other, expected in pairs:
        if found != expected:
            raise CheckpointError(
                f"{where}: {what} {found} and {other} {expected}: these are parts of different models"
            )
