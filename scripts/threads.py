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

SMALL = 20_000_000  # parameters of the UNet, up to which one thread is as fast as two on an idle machine
SMALL_PIXELS = 256 * 256  # of a batch; more pixels keep several threads busy
VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")  # by which users choose


def add_threads_flag(parser: argparse._ActionsContainer):
    parser.add_argument("--threads", type=int, metavar="N", help="of the CPU (default: by the size of the model)")


def set_threads(asked: int | None, parameters: int, pixels: int):
    """For a UNet with so many parameters and a batch with so many pixels: what --threads or the environment asks for,
    else one thread for what is small, else all."""
    if asked is not None:
        if not 1 <= asked <= 1024:
            fail(f"--threads {asked}: choose 1 to 1024")
        torch.set_num_threads(asked)
    elif parameters <= SMALL and pixels <= SMALL_PIXELS and not any(name in os.environ for name in VARIABLES):
        torch.set_num_threads(1)
