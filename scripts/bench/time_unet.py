"""Time one UNet forward pass, ours against diffusers': the same random weights, in turn, medians of several rounds.

    python scripts/bench/time_unet.py                       # SD 1.5, 64x64 latents, float32 and bfloat16, on the CPU
    python scripts/bench/time_unet.py --unet sdxl --size 128 --device cuda --dtype float16

Needs the `test` extra. Prints a table; --out appends it to a Markdown file.
"""

if __name__ == "__main__":
    from ldm import stopping

    stopping.listen()

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from tqdm import tqdm

from ldm.config import UNETS
from ldm.unet import UNet

BLOCKS: dict[str, dict[str, Any]] = {  # what diffusers must be told to build the same networks
    "sd15": dict(attention_head_dim=8, cross_attention_dim=768),
    "sd2": dict(attention_head_dim=[5, 10, 20, 20], cross_attention_dim=1024, use_linear_projection=True),
    "sdxl": dict(
        attention_head_dim=[5, 10, 20],
        cross_attention_dim=2048,
        use_linear_projection=True,
        block_out_channels=[320, 640, 1280],
        transformer_layers_per_block=[1, 2, 10],
        down_block_types=["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        up_block_types=["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    ),
}
Call = Callable[[], Tensor]


def make_pair(name: str, dtype: torch.dtype, device: str, channels_last: bool) -> tuple[UNet, Any]:
    """Both networks, holding the very same tensors."""
    with torch.device("meta"):
        ours = UNet(UNETS[name])
        theirs: Any = UNet2DConditionModel(**BLOCKS[name])
    generator = torch.Generator().manual_seed(0)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    state = {}
    for key, value in theirs.state_dict().items():
        weight = torch.randn(value.shape, generator=generator) / max(value[0].numel(), 1) ** 0.5
        if value.ndim == 1:
            # A norm's weight lies around 1, and every bias around 0
            centre = 1.0 if "norm" in key and key.endswith("weight") else 0.0
            weight = 0.1 * weight + centre
        weight = weight.to(device, dtype)
        state[key] = weight.to(memory_format=layout) if value.ndim == 4 else weight
    for network in (ours, theirs):
        network.load_state_dict(state, assign=True)
        network.eval().requires_grad_(False)
    return ours, theirs


def make_calls(args: argparse.Namespace, dtype: torch.dtype) -> dict[str, Call]:
    """One forward pass of each network, on the same inputs."""
    ours, theirs = make_pair(args.unet, dtype, args.device, args.channels_last)
    cfg = UNETS[args.unet]
    x = torch.randn(args.batch, cfg.in_channels, args.size, args.size).to(args.device, dtype)
    if args.channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    context = torch.randn(args.batch, 77, cfg.context_dim).to(args.device, dtype)
    vector = None
    added = None
    if cfg.vector_dim:
        pooled = torch.randn(args.batch, 1280)
        ids = torch.tensor([[1024.0, 1024, 0, 0, 1024, 1024]] * args.batch)
        added = dict(text_embeds=pooled.to(args.device, dtype), time_ids=ids.to(args.device, dtype))
        vector = torch.randn(args.batch, cfg.vector_dim).to(args.device, dtype)
    return {
        "ours": lambda: ours(x, 500, context, vector),
        "diffusers": lambda: theirs(x, 500, context, added_cond_kwargs=added, return_dict=False)[0],
    }


@torch.inference_mode()
def measure(calls: dict[str, Call], rounds: int, device: str, title: str) -> dict[str, list[float]]:
    """Seconds of each call, in turn."""
    seconds: dict[str, list[float]] = {who: [] for who in calls}
    for turn in tqdm(range(rounds + 1), desc=title, disable=None):
        # Neither is always first
        order = list(calls) if turn % 2 else list(reversed(calls))
        for who in order:
            synchronize(device)
            start = time.perf_counter()
            calls[who]()
            synchronize(device)
            if turn > 0:  # the first one warms up
                seconds[who].append(time.perf_counter() - start)
    return seconds


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--unet", choices=BLOCKS, default="sd15")
    parser.add_argument("--size", type=int, default=64, help="height and width of the latents")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def main():
    args = parse_arguments()
    rows = []
    for name in args.dtype:
        calls = make_calls(args, getattr(torch, name))
        seconds = measure(calls, args.rounds, args.device, name)
        medians = {who: statistics.median(values) for who, values in seconds.items()}
        ratio = statistics.median(a / b for a, b in zip(seconds["ours"], seconds["diffusers"]))
        rows.append(
            f"| {args.unet} | {args.batch}x{args.size}x{args.size} | {name} | {medians['ours']:.3f} | "
            f"{medians['diffusers']:.3f} | {ratio:.3f} |"
        )

    where = torch.cuda.get_device_name() if args.device == "cuda" else f"{platform.machine()} CPU"
    table = [
        f"{date.today()}, {where}, {torch.get_num_threads()} threads, torch {torch.__version__}, diffusers "
        f"{diffusers.__version__}, {'channels-last' if args.channels_last else 'contiguous'}, eager, "
        f"medians of {args.rounds} interleaved rounds:",
        "",
        "| UNet | latents | dtype | ours, s | diffusers, s | ratio, median of pairs |",
        "|---|---|---|---|---|---|",
        *rows,
        "",
    ]
    print("\n".join(table))
    if args.out:
        with args.out.open("a") as file:
            file.write("\n" + "\n".join(table))


if __name__ == "__main__":
    stopping.run(main)
