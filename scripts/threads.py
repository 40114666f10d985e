"""How many threads a program computes with on the CPU.

Threads of a small network wait for each other more than they compute. On a machine whose cores are busy with other work
they wait long, and by OpenMP's usual policy they burn a core while they do: a picture of the miniature took 20 times the
processor time. So programs wait without spinning (`ldm.stopping.listen` asks for that before PyTorch loads), and small
networks get one thread. Both are of programs alone: the library leaves threads as they are.
"""

import argparse
import os

import torch

from common import fail
from ldm.model import Model

SMALL = 20_000_000  # parameters of the UNet, up to which one thread is as fast as two on an idle machine
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
