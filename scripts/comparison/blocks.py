"""Our blocks run on what those of diffusers and transformers are given: their arguments have other names and shapes."""

import inspect
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

import ldm.compare
from ldm import ops
from ldm.compare import Comparison, Expected, Rules
from ldm.compare.calls import Call, named_arguments, tensors
from ldm.unet import TokenConv


class Case(NamedTuple):
    """Two networks and what each is given. run and run_reference return the tensors to compare."""

    name: str
    ours: nn.Module  # on the meta device if it shall have the reference's own weights
    reference: nn.Module
    run: Callable[..., list[Tensor]]
    run_reference: Callable[..., list[Tensor]]
    inputs: dict[str, Any]
    reference_inputs: dict[str, Any]
    dtype: torch.dtype


def expect(case: Case, progress: Callable[[list[str]], Iterable[str]] = iter) -> Expected:
    """What each block of the reference is given, and what it returns."""
    return ldm.compare.expect(
        case.reference, case.reference_inputs, dtype=case.dtype, run=case.run_reference, progress=progress
    )


def compare(case: Case, expected: Expected, backend: str = "torch") -> Comparison:
    """A row for every block that both networks have, ours computed by a backend of ldm.ops."""
    with ops.backend(backend):
        return ldm.compare.compare(
            case.ours, expected, find_names(case), inputs=case.inputs, run=case.run, rules=DiffusersRules()
        )


def find_names(case: Case) -> dict[str, str]:
    """Of blocks that are called otherwise in the reference.

    transformers >= 5.6 drops the level "text_model" of CLIPTextModel in memory; every published file has it.
    """
    if hasattr(case.ours, "text_model") and not hasattr(case.reference, "text_model"):
        return {"text_model": ""}
    return {}


class DiffusersRules(Rules):
    def compares(self, block: nn.Module) -> bool:
        """Blocks that hold parameters: activations and attention stand elsewhere in the references."""
        return len(list(block.parameters())) > 0

    def arguments(self, block: nn.Module, call: Call) -> tuple[tuple, dict[str, Any]]:
        """x first, then the others by our names for them."""
        given = named_arguments(call)
        x = tensors(given)[0]
        if isinstance(block, TokenConv) and x.ndim == 4:
            x = rearrange(x, "b c h w -> b (h w) c")
        if isinstance(block, nn.GroupNorm) and x.ndim == 3:
            x = rearrange(x, "b c n -> b c n 1")
        context = given.get("encoder_hidden_states")
        size = given.get("output_size") or given.get("upsample_size") or [2 * n for n in x.shape[2:]]
        like = x.new_empty(1, 1, *size) if x.ndim == 4 else None
        others = dict(
            emb=given.get("temb"),
            context=x if context is None else context,
            guidance=given.get("condition"),
            like=like,
            skips=[like, *given.get("res_hidden_states_tuple", ())],
        )
        parameters = inspect.signature(block.forward).parameters
        return (x,), {name: others[name] for name in parameters if name in others}

    def run(self, block: nn.Module, call: Call) -> Any:
        """Norms are computed by ops, as in our networks."""
        args, kwargs = self.arguments(block, call)
        if isinstance(block, nn.GroupNorm):
            return ops.group_norm(args[0], block)
        if isinstance(block, nn.LayerNorm):
            return ops.layer_norm(args[0], block)
        return block(*args, **kwargs)

    def input_error(self, name: str, given: Any, wanted: Any) -> float:
        """Of `like` only the size counts, and of a list of skips its end."""
        if name == "like":
            return 0.0 if given.shape[2:] == wanted.shape[2:] else math.inf
        if name == "skips":
            return super().input_error(name, given[1 - len(wanted) :], wanted[1:])
        return super().input_error(name, given, wanted)
