"""What can be compared: the networks of a model folder, or one of a published shape with random weights."""

import json
import runpy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from torch import Tensor

import weights
from comparison.blocks import Case
from ldm import conditioning, ops
from ldm.clip import EOT, CLIPText
from ldm.config import CLIPS, TAESD, UNETS, VAES
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


def random_cases(name: str, dtype: torch.dtype, device: str, height: int, width: int, seed: int) -> Iterator[Case]:
    """A network of published shape, by the name of its manifest, with random weights that ours will share."""
    ours, reference = random_pair(name, seed)
    reference.to(device, dtype)
    generator = torch.Generator().manual_seed(seed)
    if name.startswith("unet"):
        context = torch.randn(2, 77, ours.config.context_dim, generator=generator)
        pooled = torch.randn(2, POOLED, generator=generator)
        yield unet_case(ours, reference, dtype, height // 8, width // 8, context, pooled, generator)
    elif name.startswith("vae"):
        yield from vae_cases(ours, reference, dtype, height, width, generator)
    else:
        ids = torch.randint(1, EOT - 1, (2, 77), generator=generator)
        ids[:, 0] = EOT - 1  # the first token of every prompt
        ids[0, 9:] = EOT
        ids[1, 76:] = EOT
        yield text_case(name, ours, reference, dtype, ids)


def random_pair(name: str, seed: int) -> tuple[Network, Network]:
    published = runpy.run_path(str(Path(__file__).parents[1] / "write_manifests.py"))  # settings that are not ours
    kind, _, size = name.partition("_")
    with torch.device("meta"):
        match kind:
            case "unet":
                ours = UNet(UNETS[size])
            case "vae":
                ours = TinyVAE(TAESD) if size == "taesd" else VAE(VAES[size])
            case "clip":
                ours = CLIPText(CLIPS[size])
    match kind:
        case "unet":
            reference = diffusers.UNet2DConditionModel(**published["UNETS"][size])
        case "vae" if size == "taesd":
            reference = diffusers.AutoencoderTiny(**published["TAESD"])
        case "vae":
            reference = diffusers.AutoencoderKL(**published["VAES"][size])
        case "clip":
            tower, settings = published["CLIPS"][size]
            settings = settings | dict(
                vocab_size=49408,
                max_position_embeddings=77,
                eos_token_id=2,
                hidden_act="quick_gelu" if size == "l" else "gelu",
            )
            reference = tower(transformers.CLIPTextConfig(**settings))
    return ours, randomize(reference, seed).eval()


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
    source: Path,
    parts: Sequence[str] = (),
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    height: int = 128,
    width: int = 192,
    seed: int = 0,
    variant: str | None = None,
    prompt: str = "a red apple",
) -> Iterator[Case]:
    """The networks of a model folder, each loaded by us and by diffusers or transformers; all of them without parts."""
    if not source.is_dir():
        raise ValueError(f"{source} is no folder: give one in the diffusers layout, which diffusers can load too")
    model = weights.load(source, dtype=dtype, device=device, variant=variant)
    networks: dict[str, Network] = {"unet": model.unet, "vae": model.vae, **model.texts}
    for part in parts or networks:
        if part not in networks:
            raise ValueError(f"{source} has no {part}: its parts are {', '.join(networks)}")
        ours = networks[part]
        generator = torch.Generator().manual_seed(seed)
        own = next(ours.parameters()).dtype  # float32 for a VAE that overflows in float16
        reference = load_reference(source, part, own, variant).to(device).eval()
        if part == "unet":
            cond = conditioning.encode(model, [prompt, None], SIZES)
            pooled = None if cond.vector is None else cond.vector[:, : model.facts.texts[-1].projection]
            factor = model.facts.vae.factor
            yield unet_case(ours, reference, own, height // factor, width // factor, cond.context, pooled, generator)
        elif part == "vae":
            yield from vae_cases(ours, reference, own, height, width, generator)
        else:
            ids = model.tokenizer([prompt, ""], model.facts.pad_ids[list(model.texts).index(part)]).ids
            yield text_case(part, ours, reference, own, ids)


def load_reference(source: Path, part: str, dtype: torch.dtype, variant: str | None) -> Network:
    name = json.loads((source / "model_index.json").read_text())[part][1]
    stored = torch.float32 if dtype == torch.float64 else dtype  # no file holds more
    return CLASSES[name].from_pretrained(
        source, subfolder=part, torch_dtype=stored, variant=variant, local_files_only=True
    )


def unet_case(
    ours: UNet,
    reference: Network,
    dtype: torch.dtype,
    height: int,
    width: int,
    context: Tensor,
    pooled: Tensor | None,
    generator: torch.Generator,
) -> Case:
    """height, width: of the latents. context (2 m d) and pooled (2 p) stand for two texts."""
    cfg = ours.config
    t = torch.tensor(TIMES)
    x = torch.randn(2, cfg.in_channels, height, width, generator=generator)
    given: dict[str, Any] = dict(x=x, t=t, context=context)
    theirs: dict[str, Any] = dict(sample=x, timestep=t, encoder_hidden_states=context)
    if cfg.vector_dim and pooled is not None:
        size_dim = reference.config.addition_time_embed_dim
        # SDXL is told three sizes, its refiner two sizes and a score
        numbers = SIZES.base() if cfg.vector_dim == pooled.shape[1] + 6 * size_dim else SIZES.refiner()
        embedded = ops.sinusoid(torch.tensor(numbers), size_dim).flatten().expand(2, -1)
        given["vector"] = torch.cat([pooled, embedded.to(pooled)], dim=1)
        theirs["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": torch.tensor([numbers] * 2)}
    if cfg.class_dim:
        given["vector"] = theirs["class_labels"] = torch.randn(2, cfg.class_dim, generator=generator)
    if cfg.class_count:
        given["vector"] = theirs["class_labels"] = torch.tensor([20, 3])
    if cfg.guidance_dim:
        given["guidance"] = theirs["timestep_cond"] = torch.randn(2, cfg.guidance_dim, generator=generator)
    return Case(
        "unet",
        ours,
        reference,
        lambda net, **inputs: [net(**inputs)],
        lambda net, **inputs: [net(**inputs, return_dict=False)[0]],
        given,
        theirs,
        dtype,
    )


def vae_cases(
    ours: VAE | TinyVAE, reference: Network, dtype: torch.dtype, height: int, width: int, generator: torch.Generator
) -> Iterator[Case]:
    cfg = ours.config
    image = torch.rand(2, cfg.image_channels, height, width, generator=generator) * 2 - 1
    z = torch.randn(2, cfg.latent_channels, height // cfg.factor, width // cfg.factor, generator=generator)
    z = z / reference.config.scaling_factor
    yield Case("vae encode", ours, reference, encode, encode_reference, dict(image=image), dict(x=image), dtype)
    yield Case(
        "vae decode",
        ours,
        reference,
        lambda net, z: [net.decode(z)],
        lambda net, z: [net.decode(z).sample],
        dict(z=z),
        dict(z=z),
        dtype,
    )


def encode(network: VAE | TinyVAE, image: Tensor) -> list[Tensor]:
    posterior = network.encode(image)
    return [posterior.mean] if isinstance(network, TinyVAE) else [posterior.mean, posterior.logvar]


def encode_reference(network: Network, x: Tensor) -> list[Tensor]:
    found = network.encode(x)
    return [found.latents] if "latents" in found else [found.latent_dist.mean, found.latent_dist.logvar]


def text_case(name: str, ours: CLIPText, reference: Network, dtype: torch.dtype, ids: Tensor) -> Case:
    return Case(name, ours, reference, read, read_reference, dict(ids=ids), dict(input_ids=ids), dtype)


def read(network: CLIPText, ids: Tensor) -> list[Tensor]:
    features = network(ids)
    return [features.last, features.pooled]


def read_reference(network: Network, input_ids: Tensor) -> list[Tensor]:
    found = network(input_ids)
    return [found.last_hidden_state, found.text_embeds if "text_embeds" in found else found.pooler_output]
