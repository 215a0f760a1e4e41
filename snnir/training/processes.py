"""One process or several: `torchrun` starts them, gloo joins them on CPU, nccl on CUDA."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from snnir.errors import SnnirError
from snnir.lower import SpikingModule


@dataclass(frozen=True)
class Processes:
    """This process among those that train one network together."""

    device: torch.device
    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def parallel(self, module: SpikingModule) -> nn.Module:
        """The module with gradients averaged over the processes and common batch statistics."""
        if self.count == 1:
            return module
        module.synchronised = True
        return DistributedDataParallel(module, broadcast_buffers=False)

    def total(self, *values: float) -> list[float]:
        """The sums over the processes."""
        return self.reduced(dist.ReduceOp.SUM, *values)

    def any(self, value: bool) -> bool:
        """Whether any process says yes."""
        return bool(self.reduced(dist.ReduceOp.MAX, float(value))[0])

    def reduced(self, how: dist.ReduceOp.RedOpType, *values: float) -> list[float]:
        if self.count == 1:
            return list(values)
        tensor: Tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor, how)
        return tensor.tolist()


@contextmanager
def joined_processes(device: str) -> Iterator[Processes]:
    """This process, joined with the others that torchrun started, until the end of the block.

    `device`: `auto` (CUDA where there is one), or what torch calls it. Under torchrun each process
    takes the CUDA device of its local rank.

    Raises:
        SnnirError: a device that is not there.
    """
    count, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    chosen = _device(device, int(os.environ.get("LOCAL_RANK", 0)) if count > 1 else None)
    if count == 1:
        yield Processes(chosen)
        return
    started = not dist.is_initialized()
    if started:
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield Processes(chosen, rank, count)
    finally:
        if started:
            dist.destroy_process_group()


def _device(name: str, local_rank: int | None) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and local_rank is not None:
        name = f"cuda:{local_rank}"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise SnnirError(f"found device '{name}', which cannot be used: {reason}") from None
    return device
