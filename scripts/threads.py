"""How many threads a program computes with on the CPU.

Threads of a small network wait for each other more than they compute. Where other work keeps the cores busy they wait
long, and by the usual policy of OpenMP each burns a core meanwhile: one step of the miniature took 520 to 650 ms of
processor time with two threads, and takes 39 ms if they wait without spinning, 25 ms with one. So programs ask for the
first before PyTorch loads (`ldm.stopping.listen`), and small networks get one thread. Both are of programs alone: the
library leaves threads as they are.
"""

import argparse
import os

import torch

from common import fail
from ldm.model import Model

SMALL = 12_000_000  # parameters of the UNet; one of 16 million, the smallest SD 1.5 tried, gains from two threads
SMALL_PIXELS = 256 * 256  # of a batch; more pixels keep several threads busy
MOST = 1024
VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")  # by which users choose


def add_threads_flag(parser: argparse._ActionsContainer):
    of_threads = "to compute with on the CPU (default: 1 for a small model, else one for each core)"
    parser.add_argument("--threads", type=parse_threads, metavar="N", help=of_threads)


def parse_threads(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 1 <= int(text[:9]) <= MOST):
        fail(f"--threads {text[:40]}: choose 1 to {MOST}")
    return int(text)


def set_threads(asked: int | None, model: Model, pixels: int):
    """For a model, and pictures of so many pixels that are drawn at once: the threads that --threads or the environment
    asks for, else one if both are small, else all."""
    if asked is not None:
        torch.set_num_threads(asked)
        return
    chosen = any(name in os.environ for name in VARIABLES)
    parameters = sum(parameter.numel() for parameter in model.unet.parameters())
    if not chosen and parameters <= SMALL and pixels <= SMALL_PIXELS:
        torch.set_num_threads(1)
