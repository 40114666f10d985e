"""Count what a reader must read: the source lines of every function that a run executes.

    python scripts/lines_to_read.py                  # the figures of the README
    python scripts/lines_to_read.py --functions      # and every function with its lines

A line counts if it is not blank and belongs to a function of this project that ran, its signature and its documentation
included. The model is SDXL's, with tiny widths and random weights: two prompts, guidance, four steps.
"""

import inspect
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import CodeType, FrameType

from torch import nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from ldm.clip import CLIPText  # noqa: E402
from ldm.config import CLIPS, MODELS, UNETS, VAES  # noqa: E402
from ldm.model import Model  # noqa: E402
from ldm.tokenizer import Tokenizer  # noqa: E402
from ldm.unet import UNet  # noqa: E402
from ldm.vae import VAE  # noqa: E402


def executed(run: Callable[[], object]) -> dict[CodeType, int]:
    """The functions of this project that `run` executes -> their lines that are not blank."""
    seen: set[CodeType] = set()

    def note(frame: FrameType, event: str, argument: object) -> None:
        if event == "call":
            seen.add(frame.f_code)

    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(None)
    # Comprehensions and lambdas have no lines of their own; an inner function lies within the lines of another.
    functions = [code for code in seen if is_ours(code) and not code.co_name.startswith("<")]
    outer = [code for code in functions if not any(lies_within(code, other) for other in functions)]
    return {code: sum(1 for line in inspect.getsourcelines(code)[0] if line.strip()) for code in outer}


def is_ours(code: CodeType) -> bool:
    path = Path(code.co_filename)
    return path.is_relative_to(ROOT) and path.relative_to(ROOT).parts[0] in ("ldm", "samplers", "weights")


def lies_within(code: CodeType, other: CodeType) -> bool:
    if code.co_filename != other.co_filename:
        return False
    first = other.co_firstlineno
    return first < code.co_firstlineno < first + len(inspect.getsourcelines(other)[0])


def tiny_sdxl() -> Model:
    """SDXL with every width divided, and the levels, blocks and towers that it has."""
    unet = replace(UNETS["sdxl"], channels=(32, 64, 64), heads=(2, 4, 4), context_dim=64, vector_dim=32 + 6 * 8)
    vae = replace(VAES["sdxl"], channels=(32, 32, 32, 32))
    towers = {
        "text_encoder": replace(CLIPS["l"], layers=2, width=32, heads=2, hidden=64),
        "text_encoder_2": replace(CLIPS["bigg"], layers=2, width=32, heads=2, hidden=64, projection=32),
    }
    facts = replace(MODELS["sdxl"], unet=unet, vae=vae, texts=tuple(towers.values()))
    texts = {name: frozen(CLIPText(config)) for name, config in towers.items()}
    return Model(frozen(UNet(unet)), frozen(VAE(vae)), texts, Tokenizer(), facts)


def frozen(network: nn.Module) -> nn.Module:
    return network.eval().requires_grad_(False)
