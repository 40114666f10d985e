"""The processes that share a training, one on each GPU or core, as torchrun starts them."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Workers:
    """All processes as one of them sees them. rank: its number, from 0. device: where it computes."""

    device: str
    rank: int
    count: int

    @property
    def is_first(self) -> bool:
        """The first process alone writes files."""
        return self.rank == 0

    def wait(self) -> None:
        """Until all are here."""
        if self.count > 1:
            dist.barrier()

    def agree(self, number: float) -> float:
        """The number that the first process holds, so that all stop at the same step."""
        if self.count == 1:
            return number
        shared = torch.tensor([number], dtype=torch.float64, device=self.device)
        dist.broadcast(shared, 0)
        return shared.item()

    def average(self, gradients: Sequence[Tensor]) -> None:
        """Average each gradient over all processes, in place."""
        if self.count == 1:
            return
        # One message with all of them takes less time than many
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        means = (flat / self.count).split([gradient.numel() for gradient in gradients])
        for gradient, mean in zip(gradients, means):
            gradient.copy_(mean.view_as(gradient))

    def describe(self) -> str:
        """For the model card."""
        name = torch.cuda.get_device_name() if self.device == "cuda" else f"{torch.get_num_threads()} CPU thread"
        return f"{self.count} x {name}"


def join_workers() -> Workers:
    """This process among those that torchrun started; alone without it."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rank = int(os.environ.get("RANK", 0))
    count = int(os.environ.get("WORLD_SIZE", 1))
    if count > 1:
        dist.init_process_group("nccl" if device == "cuda" else "gloo")
        if device == "cuda":
            torch.cuda.set_device(rank % torch.cuda.device_count())
    return Workers(device, rank, count)
