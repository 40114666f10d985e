"""A checkpoint that was found and described, and not read yet: its parts, whether they fit, and how the tensors of each
fill its network, with every tensor accounted for.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ldm.clip import CLIPText
from ldm.config import CLIPConfig, ModelConfig, TinyVAEConfig, UNetConfig, VAEConfig
from ldm.taesd import TinyVAE
from ldm.unet import UNet
from ldm.vae import VAE

from .disk.safetensors import FLOATS, Held, Stored, check_floats, read_value
from .errors import CheckpointError, shown
from .layouts.names import Piece, pieces
from .leftovers import inside_network
from .misfits import TOKENS, mismatch, refuse_parts

Network = UNet | VAE | TinyVAE | CLIPText
NetworkConfig = UNetConfig | VAEConfig | TinyVAEConfig | CLIPConfig
NETWORKS: dict[type, Callable[[Any], Network]] = {
    UNetConfig: UNet,
    VAEConfig: VAE,
    TinyVAEConfig: TinyVAE,
    CLIPConfig: CLIPText,
}
PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")
# A network of more parameters than its file has tensors is not built, whatever a config.json asks for. In open_clip's
# names a tensor can hold three, and what a file lacks of a published network is told by name: hence the slack.
SLACK = 2000
MOST = 10_000  # parameters of a network; to build as many takes half a second

SPELLINGS = tuple(
    (re.compile(old), new)
    for old, new in (  # of older or newer libraries -> as published
        (r"^(.*mid_block\.attentions\.0)\.query\.", r"\1.to_q."),
        (r"^(.*mid_block\.attentions\.0)\.key\.", r"\1.to_k."),
        (r"^(.*mid_block\.attentions\.0)\.value\.", r"\1.to_v."),
        (r"^(.*mid_block\.attentions\.0)\.proj_attn\.", r"\1.to_out.0."),
        (r"^(?=embeddings\.|final_layer_norm\.|encoder\.layers\.\d+\.(self_attn|mlp|layer_norm))", "text_model."),
    )
)


class Place(NamedTuple):
    """Where one parameter lies: a tensor on disk, and which piece of it."""

    held: Held
    piece: Piece


Places = dict[str, Place]  # by the names of the network


@dataclass(frozen=True)
class Part:
    """One network of a checkpoint: its sizes, and the tensors that should be its own.

    stored: by their keys without `prefix`. names: whose these are, "diffusers", "ldm" or "open_clip". path: the file or
    index that the errors name. described_by: where the sizes come from. root: the folder or file that the network was
    taken from; label: its source, where that is not the model's. metadata: of its file, where it stands alone.
    """

    config: NetworkConfig
    stored: Stored
    path: Path
    root: Path
    names: str = "diffusers"
    prefix: str = ""
    described_by: str = "config.json"
    label: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)

    def match(self) -> tuple[Network, Places]:
        """The network without memory for its parameters, and where each of them lies; else CheckpointError."""
        network = build(self)
        return network, match_tensors(network, self)

    def parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Name and value, as float32, of each parameter; read one by one."""
        network, places = self.match()
        for name, tensor in network.state_dict().items():
            held, piece = places[name]
            yield name, take(piece, read_value(held), tensor.shape)

    def values(self) -> Iterator[tuple[str, Tensor]]:
        """Key and value, as float32, of each stored tensor that holds floating-point numbers; read one by one."""
        return read_values(self.stored.values())

    def left_out(self) -> list[tuple[str, str]]:
        """The keys of tensors that the network is published with and ours has no place for, and what they are."""
        used = {place.held.key for place in self.match()[1].values()}
        rest = [(held.key, harmless(published_name(key), self)) for key, held in self.stored.items()]
        return [(key, what) for key, what in rest if what and key not in used]


@dataclass(frozen=True)
class Checkpoint:
    """facts: of the model. parts: by the names of diffusers' folders, in the order of PARTS. path: where it lies.
    source: as the user named it. evidence: what decided which model it is. warnings: what the files leave open and the
    user should know. metadata: that of a single file. extras: its tensors, or the components of its folder, outside all
    networks -> what they are. revisions: source -> the commit of its repository."""

    facts: ModelConfig
    parts: dict[str, Part]
    path: Path
    layout: str
    source: str = ""
    evidence: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    extras: Mapping[str, str] = field(default_factory=dict)
    revisions: Mapping[str, str] = field(default_factory=dict)

    def left_out(self) -> list[tuple[str, str]]:
        """The keys and components at `path` that our networks have no place for, and what they are. What was swapped in
        from elsewhere does not count."""
        own = [part for part in self.parts.values() if not part.label]
        taken = {held.key for part in own for held in part.stored.values()}
        found = [(key, what) for key, what in self.extras.items() if key not in taken]
        for part in own:
            found += part.left_out()
        return found


def tokenizer_of(tower: str) -> str:
    return tower.replace("text_encoder", "tokenizer")


def read_values(tensors: Iterable[Held]) -> Iterator[tuple[str, Tensor]]:
    """Key and value, as float32, of those tensors that hold floating-point numbers."""
    for held in tensors:
        if held.entry.dtype in FLOATS:
            yield held.key, read_value(held)


def check_fit(facts: ModelConfig, where: str, number_width: int = 0) -> None:
    """The networks of one model take what the others give, else CheckpointError, which begins with `where`.
    number_width: of each embedded size; 0 where the files do not say it, and any that divides the rest will do."""
    unet = facts.unet
    vector = unet.vector_dim
    if facts.family.numbers:
        pooled = facts.texts[-1].projection
        numbers = facts.family.numbers
        vector = pooled + numbers * (number_width or max((unet.vector_dim - pooled) // numbers, 1))
    fits = (
        unet.context_dim == sum(text.width for text in facts.texts)
        and unet.vector_dim == vector
        and unet.in_channels >= unet.out_channels == facts.vae.latent_channels
        and len({text.length for text in facts.texts}) == 1
        and min(text.vocab for text in facts.texts) >= TOKENS
    )
    if not fits:
        refuse_parts(facts, where, vector)


class Uninitialised(TorchFunctionMode):
    """No initial values: on the meta device they are nothing, and PyTorch would load its compiler to compute them. And
    no more than `most` parameters."""

    def __init__(self, most: int):
        super().__init__()
        self.left = most

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.empty:
            self.left -= 1
        if self.left < 0:
            raise ValueError("it has more parameters than the file has tensors for")
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def build(part: Part) -> Network:
    """The network without memory for its parameters, frozen and in evaluation mode."""
    try:
        with torch.device("meta"), Uninitialised(min(SLACK + 2 * len(part.stored), MOST)):
            return NETWORKS[type(part.config)](part.config).eval().requires_grad_(False)
    except (ValueError, RuntimeError) as error:
        raise CheckpointError(f"{part.path}: what {part.described_by} describes cannot be built: {error}") from None


def match_tensors(network: nn.Module, part: Part) -> Places:
    """A place for each parameter, and a parameter or a known leftover for each tensor; else CheckpointError."""
    needed = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    places = {name: Place(part.stored[name], Piece(name)) for name in needed if name in part.stored}
    extra: list[str] = []
    if part.names != "diffusers" or part.stored.keys() != needed.keys():
        places, extra = find_places(needed, part)
    wrong = [name for name, place in places.items() if not fits_shape(place, needed[name])]
    if extra or wrong or len(places) < len(needed):
        raise CheckpointError(mismatch(needed, places, extra, wrong, part))
    check_floats(held for held, _ in places.values())
    return places


def find_places(needed: Mapping, part: Part) -> tuple[Places, list[str]]:
    """Where the parameters lie, as far as they do, and the keys of tensors that nobody needs."""
    stored: Stored = {}
    for key, held in part.stored.items():
        name = key if key in needed else published_name(key)
        if name in stored:
            refuse_twin(part, held, stored[name])
        stored[name] = held
    found = {name: Piece(name) for name in needed}
    if part.names != "diffusers":
        found = other_pieces(needed, stored, part)
    places = {name: Place(stored[piece.key], piece) for name, piece in found.items() if piece.key in stored}
    used = {piece.key for piece in found.values()}
    extra = [held.key for key, held in stored.items() if key not in used and not harmless(key, part)]
    return places, extra


def refuse_twin(part: Part, held: Held, first: Held) -> NoReturn:
    raise CheckpointError(f"{part.path}: {shown(held.key)} and {shown(first.key)} are two names of one tensor")


def other_pieces(needed: Mapping, stored: Stored, part: Part) -> dict[str, Piece]:
    """Where the parameters lie in a single file."""
    found = pieces(needed, part.config, part.names)
    if "text_projection.weight" in stored and "text_projection.weight" in needed:
        found["text_projection.weight"] = Piece("text_projection.weight")  # Playground v2's first file
    return found


def published_name(key: str) -> str:
    """A parameter in the spelling of the published diffusers and transformers files."""
    for old, new in SPELLINGS:
        key = old.sub(new, key)
    return key


def harmless(key: str, part: Part) -> str | None:
    """What a tensor is that no parameter of ours needs; None if nobody knows."""
    return inside_network(key, part.names, part.config)


def fits_shape(place: Place, needed: tuple[int, ...]) -> bool:
    return place.held.entry.shape == needed or shape_of(place, needed) == needed


def shape_of(place: Place, needed: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a piece of a tensor; a 1x1 convolution can serve as a linear layer."""
    shape = place.held.entry.shape
    if place.piece.third is not None and shape and shape[0] % 3 == 0:
        shape = (shape[0] // 3, *shape[1:])
    if place.piece.transposed:
        shape = shape[::-1]
    return shape[:-2] if shape == (*needed, 1, 1) else shape


def take(piece: Piece, tensor: Tensor, shape: torch.Size) -> Tensor:
    """A view: it needs no memory of its own."""
    if piece.third is not None:
        tensor = tensor.chunk(3)[piece.third]
    return tensor.T if piece.transposed else tensor.view(shape)
