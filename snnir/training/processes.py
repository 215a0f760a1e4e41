"""One process or several: `torchrun` starts them, gloo joins them on CPU, nccl on CUDA."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from weakref import WeakSet

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
    _parallel: WeakSet[DistributedDataParallel] = field(default_factory=WeakSet, repr=False)

    @property
    def first(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def parallel(self, module: SpikingModule) -> nn.Module:
        """The module with gradients averaged over the processes and common batch statistics."""
        if self.count == 1:
            return module
        module.synchronised = True
        parallel = DistributedDataParallel(module, forward_sync_buffers=False)
        self._parallel.add(parallel)
        return parallel

    def total(self, *values: float) -> list[float]:
        """The sums over the processes."""
        return self.reduced(dist.ReduceOp.SUM, *values)

    def any(self, value: bool) -> bool:
        """Whether any process says yes."""
        return bool(self.reduced(dist.ReduceOp.MAX, float(value))[0])

    def first_alone(self, action: Callable[[], object]) -> None:
        """Run `action` in the first process while the others wait; where it fails, all fail.

        Raises:
            SnnirError: what the action raised; in the other processes, that it did.
        """
        error: SnnirError | None = None
        if self.first:
            try:
                action()
            except SnnirError as raised:
                error = raised
        if self.any(error is not None):
            raise error or SnnirError("the first process cannot go on; its message says why")

    def reduced(self, how: dist.ReduceOp.RedOpType, *values: float) -> list[float]:
        if self.count == 1:
            return list(values)
        tensor: Tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor, how)
        return tensor.tolist()

    def _let_go(self) -> None:
        """Make DDP, which may live on, let go of the group. The group's threads take Python's lock
        to free a tensor: whoever is last to hold it waits for them, DDP with the lock held. Were it
        held to Python's end, they would abort the process."""
        for parallel in self._parallel:
            del parallel.logger, parallel.reducer, parallel.process_group


@contextmanager
def joined_processes(device: str) -> Iterator[Processes]:
    """This process, joined with the others that torchrun started, until the end of the block.

    `device`: `auto` (CUDA where there is one), or what torch calls it. Under torchrun each process
    takes the CUDA device of its local rank.

    Raises:
        SnnirError: a device that is not there.
    """
    count = _environment("WORLD_SIZE") if "RANK" in os.environ else 1
    rank = _environment("RANK") if count > 1 else 0
    chosen = usable_device(device, _environment("LOCAL_RANK") if count > 1 else None)
    if count == 1:
        yield Processes(chosen)
        return
    started = not dist.is_initialized()
    if started:
        # before there is a group: DDP imports it, and its functions' defaults would hold the group
        importlib.import_module("torch.distributed.nn.functional")
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    processes = Processes(chosen, rank, count)
    try:
        yield processes
    finally:
        processes._let_go()
        if started:
            dist.destroy_process_group()


def _environment(name: str) -> int:
    """A number that torchrun sets. Raises SnnirError."""
    found = os.environ.get(name, "")
    if not found.isdecimal():
        raise SnnirError(f"{name}: found {found!r} in the environment, expected torchrun's number")
    return int(found)


def usable_device(name: str, local_rank: int | None = None) -> torch.device:
    """`auto` (CUDA where there is one), or what torch calls it. Raises SnnirError for a device that
    is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and local_rank is not None:
        name = f"cuda:{local_rank}"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise SnnirError(f"found device '{name}', which cannot be used: {reason}") from None
    return device
