"""Count what a reader must read: the source lines of every function that a run executes.

    python scripts/lines_to_read.py                  # the figures of the README
    python scripts/lines_to_read.py --functions      # and every function with its lines

A line counts if it is not blank and belongs to a function of this project that ran, its signature and its documentation
included. Pictures are drawn with SDXL, with tiny widths and random weights: two prompts, guidance, four steps. That of
euler and leading is the second picture of its process, so the tokenizer knows the words and the noise table is made.
"""

import inspect
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import CodeType, FrameType
from typing import TypeVar

import torch
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import weights  # noqa: E402
from common import make_parser  # noqa: E402
from ldm import stopping, tasks  # noqa: E402
from ldm.clip import CLIPText  # noqa: E402
from ldm.config import CLIPS, MODELS, UNETS, VAES  # noqa: E402
from ldm.model import Model  # noqa: E402
from ldm.tokenizer import Tokenizer  # noqa: E402
from ldm.unet import UNet  # noqa: E402
from ldm.vae import VAE  # noqa: E402

OURS = ("ldm", "samplers", "weights")
PROMPTS = ["a red fox in the snow", "two boats, oil painting"]
Network = TypeVar("Network", bound=nn.Module)
Functions = dict[CodeType, int]  # the functions that a run executed -> their lines


@dataclass(frozen=True)
class Case:
    """prepare() -> the run that is counted. lines, files: that a reader should need at most."""

    title: str
    prepare: Callable[[], Callable[[], object]]
    lines: int
    files: int


def main():
    parser = make_parser(__doc__)
    parser.add_argument("--functions", action="store_true", help="list every function too")
    listed = parser.parse_args().functions
    for case in CASES.values():
        functions = count(case)
        files = lines_of_files(functions)
        print(f"{case.title}: {sum(functions.values())} lines, {len(functions)} functions, {len(files)} files")
        for file, lines in files.items():
            print(f"  {lines:4} of {length(file)} {file}")
            if listed:
                print_functions(functions, file)


def print_functions(functions: Functions, file: str):
    for code, lines in sorted(functions.items(), key=lambda item: item[0].co_firstlineno):
        if file_of(code) == file:
            print(f"       {lines:4} {code.co_qualname}")


def count(case: Case) -> Functions:
    """The functions of a case, as if nothing had run before it but its `prepare`."""
    forget()
    run = case.prepare()
    return executed(run)


def forget():
    """Empty the caches of functions of this project: what they hold would not be executed again."""
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] in OURS:
            for value in vars(module).values():
                if hasattr(value, "cache_clear"):
                    value.cache_clear()


def executed(run: Callable[[], object]) -> Functions:
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
    return path.is_relative_to(ROOT) and path.relative_to(ROOT).parts[0] in OURS


def lies_within(code: CodeType, other: CodeType) -> bool:
    if code.co_filename != other.co_filename:
        return False
    first = other.co_firstlineno
    return first < code.co_firstlineno < first + len(inspect.getsourcelines(other)[0])


def file_of(code: CodeType) -> str:
    return Path(code.co_filename).relative_to(ROOT).as_posix()


def length(file: str) -> int:
    """All lines of the file."""
    return len((ROOT / file).read_text(encoding="utf-8").splitlines())


def lines_of_files(functions: Functions) -> dict[str, int]:
    """The files that hold the functions -> the lines of them that ran, most first."""
    files: Counter[str] = Counter()
    for code, lines in functions.items():
        files[file_of(code)] += lines
    return dict(files.most_common())


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


def frozen(network: Network) -> Network:
    return network.eval().requires_grad_(False)


def draw(model: Model, sampler: str, schedule: str):
    tasks.text_to_image(
        model, PROMPTS, height=64, width=64, steps=4, guidance=5.0, sampler=sampler, schedule=schedule, seeds=[0, 1]
    )


def prepare_first_picture() -> Callable[[], object]:
    model = tiny_sdxl()
    return lambda: draw(model, "dpmpp_2m", "karras")


def prepare_second_picture() -> Callable[[], object]:
    model = tiny_sdxl()
    draw(model, "euler", "leading")
    return lambda: draw(model, "euler", "leading")


def prepare_unet() -> Callable[[], object]:
    unet = tiny_sdxl().unet
    x = torch.randn(2, 4, 8, 8)
    context = torch.randn(2, 77, unet.config.context_dim)
    vector = torch.randn(2, unet.config.vector_dim)
    return lambda: unet(x, 500, context, vector)


def prepare_load() -> Callable[[], object]:
    return lambda: weights.load(weights.MINIATURE)


CASES = {
    "dpmpp_2m": Case("SDXL, text to picture, dpmpp_2m on karras", prepare_first_picture, lines=600, files=12),
    "euler": Case("the same, euler on leading", prepare_second_picture, lines=480, files=12),
    "unet": Case("the UNet alone", prepare_unet, lines=141, files=2),
    "load": Case("weights.load of the miniature's folder", prepare_load, lines=800, files=12),
}

if __name__ == "__main__":
    stopping.listen()
    stopping.run(main)
