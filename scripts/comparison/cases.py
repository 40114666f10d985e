"""What can be compared: the networks of a model folder, or one of a published shape with random weights."""

import json
import runpy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import torch
import transformers
from torch import Tensor

import weights
from comparison.blocks import Case
from ldm import conditioning, ops
from ldm.clip import EOT, CLIPText
from ldm.config import CLIPS, TAESD, UNETS, VAES
from ldm.model import Model
from ldm.taesd import TinyVAE
from ldm.unet import UNet
from ldm.vae import VAE

NETWORKS = [
    *(f"unet_{name}" for name in UNETS),
    "vae_sd",
    "vae_sd_x4",
    "vae_taesd",
    *(f"clip_{name}" for name in CLIPS),
]  # as in weights/manifests
PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")
CLASSES = {
    "UNet2DConditionModel": diffusers.UNet2DConditionModel,
    "AutoencoderKL": diffusers.AutoencoderKL,
    "AutoencoderTiny": diffusers.AutoencoderTiny,
    "CLIPTextModel": transformers.CLIPTextModel,
    "CLIPTextModelWithProjection": transformers.CLIPTextModelWithProjection,
}
Network = Any  # ours, or one of diffusers or transformers: their attributes have no types
POOLED = 1280  # width of the pooled text of every published SDXL
SIZES = conditioning.Sizes(original=(1024, 768), crop=(16, 0), target=(896, 1152))  # exact in bfloat16
TIMES = (981, 17)  # one for each of two pictures


@dataclass(frozen=True)
class Setting:
    """What networks are run with. height, width: of the picture, in pixels. seed: of inputs and of random weights."""

    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    height: int = 128
    width: int = 192
    seed: int = 0


class Text(NamedTuple):
    """Two texts as a UNet is given them: context (2 m d), and pooled (2 p) if the model pools."""

    context: Tensor
    pooled: Tensor | None


def random_cases(name: str, setting: Setting) -> Iterator[Case]:
    """A network of published shape, by the name of its manifest, with random weights that ours will share."""
    kind, _, size = name.partition("_")
    reference = randomize(make_reference(kind, size), setting.seed).eval().to(setting.device, setting.dtype)
    ours = make_ours(kind, size)
    generator = torch.Generator().manual_seed(setting.seed)
    if kind == "unet":
        context = torch.randn(2, 77, ours.config.context_dim, generator=generator)
        text = Text(context, torch.randn(2, POOLED, generator=generator))
        latent_size = setting.height // 8, setting.width // 8
        yield unet_case(ours, reference, setting.dtype, latent_size, text, generator)
    elif kind == "vae":
        yield from vae_cases(ours, reference, setting.dtype, setting.height, setting.width, generator)
    else:
        ids = torch.randint(1, EOT - 1, (2, 77), generator=generator)
        ids[:, 0] = EOT - 1  # the first token of every prompt
        ids[0, 9:] = EOT
        ids[1, 76:] = EOT
        yield text_case(name, ours, reference, setting.dtype, ids)


def make_ours(kind: str, size: str) -> Network:
    """A network without weights."""
    with torch.device("meta"):
        if kind == "unet":
            return UNet(UNETS[size])
        if kind == "clip":
            return CLIPText(CLIPS[size])
        return TinyVAE(TAESD) if size == "taesd" else VAE(VAES[size])


def make_reference(kind: str, size: str) -> Network:
    """The same of diffusers or transformers, from the settings that they are published with."""
    published = runpy.run_path(str(Path(__file__).parents[1] / "write_manifests.py"))  # settings that are not ours
    if kind == "unet":
        return diffusers.UNet2DConditionModel(**published["UNETS"][size])
    if kind == "vae":
        if size == "taesd":
            return diffusers.AutoencoderTiny(**published["TAESD"])
        return diffusers.AutoencoderKL(**published["VAES"][size])
    tower, settings = published["CLIPS"][size]
    settings = settings | dict(vocab_size=49408, max_position_embeddings=77, eos_token_id=2)
    settings["hidden_act"] = "quick_gelu" if size == "l" else "gelu"
    return tower(transformers.CLIPTextConfig(**settings))


@torch.no_grad()
def randomize(network: Network, seed: int) -> Network:
    """Weights of which each matters: none is zero or one, and layers keep the size of what passes through."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        parameter.normal_(generator=generator)
        if parameter.ndim > 1:
            parameter /= parameter[0].numel() ** 0.5
        else:
            parameter.mul_(0.1).add_(float("norm" in name and name.endswith("weight")))
    return network


@torch.no_grad()
def model_cases(
    source: Path, parts: Sequence[str], setting: Setting, variant: str | None = None, prompt: str = "a red apple"
) -> Iterator[Case]:
    """The networks of a model folder, each loaded by us and by diffusers or transformers. parts: some of PARTS; none
    means all. variant: weight files to take. prompt: for the text towers, and for the UNet.

    Raises ValueError if the source is no folder, or for a part that the model does not have.
    """
    if not source.is_dir():
        raise ValueError(f"{source} is no folder: give one in the diffusers layout, which diffusers can load too")
    model = weights.load(source, dtype=setting.dtype, device=setting.device, variant=variant)
    networks: dict[str, Network] = {"unet": model.unet, "vae": model.vae, **model.texts}
    for part in parts or networks:
        if part not in networks:
            raise ValueError(f"{source} has no {part}: its parts are {', '.join(networks)}")
        ours = networks[part]
        dtype = next(ours.parameters()).dtype  # float32 for a VAE that overflows in float16
        reference = load_reference(source, part, dtype, variant).to(setting.device).eval()
        generator = torch.Generator().manual_seed(setting.seed)
        if part == "unet":
            factor = model.facts.vae.factor
            latent_size = setting.height // factor, setting.width // factor
            yield unet_case(ours, reference, dtype, latent_size, encode_text(model, prompt), generator)
        elif part == "vae":
            yield from vae_cases(ours, reference, dtype, setting.height, setting.width, generator)
        else:
            pad_id = model.facts.pad_ids[list(model.texts).index(part)]
            yield text_case(part, ours, reference, dtype, model.tokenizer([prompt, ""], pad_id).ids)


def encode_text(model: Model, prompt: str) -> Text:
    """The prompt and the empty text, as the UNet of the model is given them."""
    cond = conditioning.encode(model, [prompt, None], SIZES)
    if cond.vector is None:
        return Text(cond.context, None)
    # Behind the pooled text stand the sizes
    return Text(cond.context, cond.vector[:, : model.facts.texts[-1].projection])


def load_reference(source: Path, part: str, dtype: torch.dtype, variant: str | None) -> Network:
    name = json.loads((source / "model_index.json").read_text())[part][1]
    stored = torch.float32 if dtype == torch.float64 else dtype  # no file holds more
    return CLASSES[name].from_pretrained(
        source, subfolder=part, torch_dtype=stored, variant=variant, local_files_only=True
    )


def unet_case(
    ours: UNet, reference: Network, dtype: torch.dtype, size: tuple[int, int], text: Text, generator: torch.Generator
) -> Case:
    """size: height and width of the latents."""
    cfg = ours.config
    t = torch.tensor(TIMES)
    x = torch.randn(2, cfg.in_channels, *size, generator=generator)
    given: dict[str, Any] = dict(x=x, t=t, context=text.context)
    theirs: dict[str, Any] = dict(sample=x, timestep=t, encoder_hidden_states=text.context)
    if cfg.vector_dim and text.pooled is not None:
        size_dim = reference.config.addition_time_embed_dim
        # SDXL is told three sizes, its refiner two sizes and a score
        is_base = cfg.vector_dim == text.pooled.shape[1] + 6 * size_dim
        numbers = SIZES.base() if is_base else SIZES.refiner()
        embedded = ops.sinusoid(torch.tensor(numbers), size_dim).flatten().expand(2, -1)
        given["vector"] = torch.cat([text.pooled, embedded.to(text.pooled)], dim=1)
        theirs["added_cond_kwargs"] = {"text_embeds": text.pooled, "time_ids": torch.tensor([numbers] * 2)}
    if cfg.class_dim:
        given["vector"] = theirs["class_labels"] = torch.randn(2, cfg.class_dim, generator=generator)
    if cfg.class_count:
        given["vector"] = theirs["class_labels"] = torch.tensor([20, 3])
    if cfg.guidance_dim:
        given["guidance"] = theirs["timestep_cond"] = torch.randn(2, cfg.guidance_dim, generator=generator)
    return Case("unet", ours, reference, predict, predict_reference, given, theirs, dtype)


def predict(network: UNet, **inputs: Any) -> list[Tensor]:
    return [network(**inputs)]


def predict_reference(network: Network, **inputs: Any) -> list[Tensor]:
    return [network(**inputs, return_dict=False)[0]]


def vae_cases(
    ours: VAE | TinyVAE, reference: Network, dtype: torch.dtype, height: int, width: int, generator: torch.Generator
) -> Iterator[Case]:
    """Encoding a picture of this size in pixels, and decoding latents of the size that belongs to it."""
    cfg = ours.config
    image = torch.rand(2, cfg.image_channels, height, width, generator=generator) * 2 - 1
    z = torch.randn(2, cfg.latent_channels, height // cfg.factor, width // cfg.factor, generator=generator)
    z = z / reference.config.scaling_factor
    yield Case("vae encode", ours, reference, encode, encode_reference, dict(image=image), dict(x=image), dtype)
    yield Case("vae decode", ours, reference, decode, decode_reference, dict(z=z), dict(z=z), dtype)


def encode(network: VAE | TinyVAE, image: Tensor) -> list[Tensor]:
    posterior = network.encode(image)
    return [posterior.mean] if isinstance(network, TinyVAE) else [posterior.mean, posterior.logvar]


def encode_reference(network: Network, x: Tensor) -> list[Tensor]:
    found = network.encode(x)
    return [found.latents] if "latents" in found else [found.latent_dist.mean, found.latent_dist.logvar]


def decode(network: VAE | TinyVAE, z: Tensor) -> list[Tensor]:
    return [network.decode(z)]


def decode_reference(network: Network, z: Tensor) -> list[Tensor]:
    return [network.decode(z).sample]


def text_case(name: str, ours: CLIPText, reference: Network, dtype: torch.dtype, ids: Tensor) -> Case:
    return Case(name, ours, reference, read, read_reference, dict(ids=ids), dict(input_ids=ids), dtype)


def read(network: CLIPText, ids: Tensor) -> list[Tensor]:
    features = network(ids)
    return [features.last, features.pooled]


def read_reference(network: Network, input_ids: Tensor) -> list[Tensor]:
    found = network(input_ids)
    return [found.last_hidden_state, found.text_embeds if "text_embeds" in found else found.pooler_output]
