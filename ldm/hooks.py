"""Look into a network from outside: what its layers are given, what they return, where its attention looks.

    with watch(model.unet, "*.attn2", keep=lambda path, inputs, output: output.std().item()) as found:
        tasks.text_to_image(model, "a red fox")
    with attention_maps(model.unet, "mid_block.*.attn2", tokens=[2, 3]) as maps:
        tasks.text_to_image(model, "a red fox")

Layers are named by their paths in the network, which are those of the published files, or by patterns of fnmatch. The
network computes the same bits as before, and at the end of the block no hook is left. A compiled network is refused.
"""

import difflib
import inspect
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from einops import einsum, rearrange
from torch import Tensor, nn

from .ops import Attend

GIGABYTE = 2**30
SCORES = 2**24  # numbers of an attention map that are computed at a time: 64 MB in float32

Keep = Callable[[str, dict[str, Any], Any], Any]  # (path, inputs, output) -> what to store, or None


@dataclass(frozen=True)
class Call:
    """One call of a layer. inputs: its arguments by the names that they have in its `forward`."""

    inputs: dict[str, Any]
    output: Any


def copy_call(path: str, inputs: dict[str, Any], output: Any) -> Call:
    """What `watch` keeps if not told otherwise: copies on the CPU, without gradients."""
    return Call(copy_to_cpu(inputs), copy_to_cpu(output))


@contextmanager
def watch(
    network: nn.Module, layers: str | Sequence[str], keep: Keep = copy_call, limit: int = GIGABYTE
) -> Generator[dict[str, list[Any]]]:
    """Record every call of the layers whose path fits one of the patterns: path -> what was kept of each call.

    keep(path, inputs, output) returns what to store, or None to store nothing of this call. It is given the tensors
    of the network themselves, inputs by the names that they have in the layer's `forward`; it must not change them.
    What it returns may hold on to gradients. Without it a `Call` with copies on the CPU is stored.

    ValueError if a pattern fits no layer. RuntimeError if the network is compiled, or if none of the layers was called
    by the end of the block. MemoryError when the tensors that are kept exceed `limit` bytes: what was kept until then
    remains, and the forward pass ends there.
    """
    refuse_compiled(network)
    recorder = Recorder(keep, limit, "choose fewer layers, or a `keep` that returns less")
    with record(find_layers(network, layers), recorder) as found:
        yield found


@contextmanager
def attention_maps(
    network: nn.Module,
    layers: str | Sequence[str] = "*.attn2",
    heads: Sequence[int] | None = None,
    tokens: Sequence[int] | None = None,
    limit: int = GIGABYTE,
) -> Generator[dict[str, list[Tensor]]]:
    """The weights of every call of attention layers: path -> tensors (b heads n m) on the CPU, one for each call.

    "*.attn2" are the layers of a UNet that attend to the prompt, "*.attn1" those that attend to the picture itself,
    "*.self_attn" those of a text tower. heads and tokens choose which heads and which of the m keys are kept, numbered
    from 0, in the order given; all are by default. A row sums to 1 over all keys. Values are float32 (float64 if the
    network is), and are computed a second time, from q and k, by the formula of `ops.attention_reference`.

    ValueError if a pattern fits no attention layer, or for a head or token that a layer does not have. RuntimeError
    and MemoryError as in `watch`.
    """
    refuse_compiled(network)
    patterns = [layers] if isinstance(layers, str) else layers
    attends = find_attends(network, [f"{pattern}.attend" for pattern in patterns])
    # A head that a layer does not have is refused now. Tokens can be checked only when a layer is called.
    for path, attend in attends.items():
        choose(heads, attend.heads, "head", path)
    advice = "choose fewer layers, heads or tokens"

    def keep(path: str, inputs: dict[str, Any], output: Tensor) -> Tensor:
        q = inputs["q"]
        k = inputs["k"]
        chosen_heads = choose(heads, attends[path].heads, "head", path)
        chosen_tokens = choose(tokens, k.shape[1], "token", path)
        # One map can be larger than all memory, so it is refused before it is computed.
        count = len(q) * len(chosen_heads) * q.shape[1] * len(chosen_tokens)
        check_limit(path, count * map_dtype(q).itemsize, limit, advice)
        return attention_map(q, k, attends[path], chosen_heads, chosen_tokens)

    with record(attends, Recorder(keep, limit, advice)) as found:
        yield {path.removesuffix(".attend"): maps for path, maps in found.items()}


def find_attends(network: nn.Module, patterns: Sequence[str]) -> dict[str, Attend]:
    """The `Attend` modules whose path fits a pattern, by path. Raises ValueError for a module of another class."""
    found: dict[str, Attend] = {}
    for path, layer in find_layers(network, patterns).items():
        if not isinstance(layer, Attend):
            raise ValueError(f"{path} is {type(layer).__name__}, not ldm.ops.Attend: how it attends is unknown")
        found[path] = layer
    return found


def choose(numbers: Sequence[int] | None, count: int, what: str, path: str) -> list[int]:
    """The numbers, or all that there are. ValueError for one that the layer at this path does not have."""
    if numbers is None:
        return list(range(count))
    if not numbers:
        raise ValueError(f"no {what} of {path} is chosen: None chooses all")
    for number in numbers:
        if not 0 <= number < count:
            raise ValueError(f"{path} has {count} {what}s, numbered from 0: it has no {what} {number}")
    return list(numbers)


def map_dtype(q: Tensor) -> torch.dtype:
    """The dtype of an attention map: float32, or float64 if q is."""
    return torch.promote_types(q.dtype, torch.float32)


@torch.no_grad()
def attention_map(q: Tensor, k: Tensor, attend: Attend, heads: list[int], tokens: list[int]) -> Tensor:
    """softmax(q k' / sqrt(d)) of what `attend` is given, q (b n heads*d) and k (b m heads*d) -> (b heads n m) on the
    CPU, of the chosen heads and keys. Rows are computed SCORES numbers at a time, on the device of q."""
    dtype = map_dtype(q)
    q = rearrange(q.to(dtype), "b n (heads d) -> b heads n d", heads=attend.heads)[:, heads]
    k = rearrange(k.to(dtype), "b m (heads d) -> b heads m d", heads=attend.heads)[:, heads]
    b, _, n, d = q.shape
    m = k.shape[2]
    weights = torch.empty(b, len(heads), n, len(tokens), dtype=dtype)
    keys = torch.arange(m, device=q.device)
    rows = max(1, SCORES // (b * len(heads) * m))
    for start in range(0, n, rows):
        queries = q[:, :, start : start + rows]
        scores = einsum(queries, k, "b heads n d, b heads m d -> b heads n m") / math.sqrt(d)
        if attend.causal:
            positions = torch.arange(start, start + queries.shape[2], device=q.device)
            scores = scores.masked_fill(keys[None, :] > positions[:, None], -torch.inf)
        weights[:, :, start : start + rows] = scores.softmax(-1)[..., tokens]
    return weights


def refuse_compiled(network: nn.Module) -> None:
    """Raises RuntimeError if the network or a part of it is compiled: compiled code skips hooks that were added later.

    A compiled function or module around the network cannot be seen from here.
    """
    for path, part in network.named_modules():
        # torch.compile(part) is a module around "_orig_mod"; part.compile() sets an attribute of the part itself.
        if part._compiled_call_impl is not None or "_orig_mod" in part._modules:
            where = f" at {path}" if path else ""
            raise RuntimeError(
                f"the network is compiled{where}: compiled code passes hooks over. Use a network that is not compiled"
            )


def find_layers(network: nn.Module, patterns: str | Sequence[str]) -> dict[str, nn.Module]:
    """The layers whose path fits a pattern, by path. ValueError, which names near paths, for a pattern without one."""
    if isinstance(patterns, str):
        patterns = [patterns]
    if not patterns:
        raise ValueError("no layer is named: give at least one path or pattern")
    modules = dict(network.named_modules())
    found: dict[str, nn.Module] = {}
    for pattern in patterns:
        fitting = {path: module for path, module in modules.items() if fnmatchcase(path, pattern)}
        if not fitting:
            near = ", ".join(near_paths(pattern, modules))
            raise ValueError(f"no layer has a path like {pattern!r}; near it are {near}")
        found |= fitting
    return found


def near_paths(pattern: str, paths: Mapping[str, nn.Module]) -> list[str]:
    """Three paths whose last names look most like the pattern. As many names are compared as the pattern has."""
    count = len(pattern.split("."))
    by_ending: dict[str, str] = {}
    for path in paths:
        ending = ".".join(path.split(".")[-count:])
        by_ending.setdefault(ending, path)
    return [by_ending[ending] for ending in difflib.get_close_matches(pattern, by_ending, n=3, cutoff=0.0)]


@dataclass
class Recorder:
    """What one `with` block keeps. keep: what to store of a call. limit: of bytes. advice: what to do beyond the limit,
    for the message. used: bytes of all tensors stored so far. calls: how many so far, also those not stored."""

    keep: Keep
    limit: int
    advice: str
    used: int = 0
    calls: int = 0

    def store(self, path: str, entries: list[Any], inputs: dict[str, Any], output: Any) -> None:
        """Append to entries what is kept of one call. Raises MemoryError beyond the limit."""
        self.calls += 1
        value = self.keep(path, inputs, output)
        if value is None:
            return
        used = self.used + count_bytes(value)
        check_limit(path, used, self.limit, self.advice)
        self.used = used
        entries.append(value)


@contextmanager
def record(layers: Mapping[str, nn.Module], recorder: Recorder) -> Generator[dict[str, list[Any]]]:
    """Hooks on the layers during the `with` block: path -> what was stored of each call. Raises RuntimeError at its
    end if no layer was called."""
    found: dict[str, list[Any]] = {path: [] for path in layers}
    handles = []
    try:
        for path, layer in layers.items():
            hook = make_hook(recorder, path, found[path], layer)
            handles.append(layer.register_forward_hook(hook, with_kwargs=True))
        yield found
    finally:
        for handle in handles:
            handle.remove()
    if not recorder.calls:
        raise RuntimeError(
            f"no watched layer was called, such as {next(iter(layers))}: run the network itself in the block; "
            "a copy of it, or a compiled function around it, passes the hooks over"
        )


def make_hook(recorder: Recorder, path: str, entries: list[Any], layer: nn.Module) -> Callable[..., None]:
    """A forward hook that stores each call in entries. It returns nothing, so the output stays as it is."""
    signature = inspect.signature(layer.forward)

    def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        inputs = dict(signature.bind(*args, **kwargs).arguments)
        recorder.store(path, entries, inputs, output)

    return hook


def check_limit(path: str, needed: int, limit: int, advice: str) -> None:
    """Raises MemoryError if more bytes are needed than the limit."""
    if needed > limit:
        raise MemoryError(
            f"what is kept of {path} would bring the record to {needed / 1e6:.1f} MB, more than its limit of "
            f"{limit / 1e6:.1f} MB: {advice}, or raise the limit"
        )


def count_bytes(value: Any) -> int:
    """Bytes of memory that the tensors inside a value hold; a view holds all of the tensor that it is a view of."""
    if isinstance(value, Tensor):
        return value.untyped_storage().nbytes()
    if isinstance(value, Mapping):
        return sum(count_bytes(part) for part in value.values())
    if isinstance(value, tuple | list):
        return sum(count_bytes(part) for part in value)
    if is_dataclass(value):
        return sum(count_bytes(getattr(value, field.name)) for field in fields(value))
    return 0


def copy_to_cpu(value: Any) -> Any:
    """The same tuples, lists, mappings and dataclasses, with copies of their tensors; other things are not copied."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: copy_to_cpu(part) for key, part in value.items()}
    if isinstance(value, tuple):
        return tuple(copy_to_cpu(part) for part in value)
    if isinstance(value, list):
        return [copy_to_cpu(part) for part in value]
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: copy_to_cpu(getattr(value, field.name)) for field in fields(value)})
    return value
