"""A training step of SpikeDHS-CLA beside SpikingJelly 2.0's own `SpikeDHS` and beside the bare
convolutions: time and memory.

    pip install 'snnir[fast]' && pip install --no-deps spikingjelly==2.0.0 && pip install loguru
    python benchmarks/training_speed.py                 # C = 16, batch 8 and C = 32, batch 2
    python benchmarks/training_speed.py --case 16 8 --rounds 5 --no-memory

Both networks have the auxiliary head, T = 6, 32x32, the reset detached (as in SpikingJelly's port)
and one fused SGD with momentum and weight decay. A step is forward, loss, backward, update, and the
peer's reset. `bf16` is autocast. `unfused` is snnir without numba (`snnir.lower.fused`).
`convolutions` is the forward and backward of our graph's convolutions alone, each on spikes and
gradients of its shape: what a step cannot go below.

Every side has a process of its own, with freed memory kept (`snnir.lower.memory`; the peer gains
nothing by it).

- Time: the sides take turns, a step each. A time is the median over the rounds, a ratio the median
  of the rounds' ratios.
- Memory, in fp32, over what is there between steps (parameters, their gradients, momentum):
  `tensors`, the peak of what torch has allocated, which a run repeats to the byte and the goal is
  for; and `resident`, the peak resident set, with the fragments that malloc leaves and what
  convolutions allocate themselves. The memory that was free before is given back first.

Exits 1 when a number is short of its goal.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable
from typing import NamedTuple

import sides
import torch
import torch.nn.functional as F
from sides import Case, Convolutions, Step, ratio, reached
from torch import nn

import snnir
from snnir import models
from snnir.data.vision import torchvision_module
from snnir.genotype import parse, retarget
from snnir.lower import SpikingModule, fused
from snnir.lower.memory import keep_freed_memory
from snnir.source import Source

STEPS, CLASSES = 6, 10
SIDES = (
    *("snnir", "snnir bf16", "unfused", "unfused bf16"),
    *("peer", "peer bf16", "convolutions", "convolutions bf16"),
)


class Goals(NamedTuple):
    """Least speed over the peer in fp32, and in bf16 over its fp32; most time over the bare
    convolutions and memory over the peer's."""

    speed: float
    speed_bf16: float
    convolutions: float
    memory: float


GOALS = {(16, 8): Goals(1.5, 2.2, 1.25, 0.65), (32, 2): Goals(1.4, 2.2, 1.25, 0.65)}
"""By case: (C, batch)."""


def our_module(channels: int) -> SpikingModule:
    text = models.source("spikedhs_cla").text
    detached = text.replace("surrogate=", "detach_reset=true, surrogate=")
    genotype = parse(Source("spikedhs_cla.snn", detached))
    return snnir.load(retarget(genotype, [f"channels={channels}"]))


def peer_module(channels: int) -> nn.Module:
    """SpikingJelly's SpikeDHS, multi-step; its hard-coded widths (C = 48) replaced."""
    torchvision_module("transforms")  # SpikingJelly imports torchvision
    from spikingjelly.activation_based import functional
    from spikingjelly.activation_based.model import spike_dhs

    arguments = Namespace(
        fea_step=3, fea_num_layers=8, fea_block_multiplier=3, fea_filter_multiplier=channels
    )
    wide = spike_dhs.AuxiliaryHeadCIFAR
    spike_dhs.AuxiliaryHeadCIFAR = lambda _, __: wide(12 * channels, CLASSES)
    net = spike_dhs.SpikeDHS(3, arguments)
    spike_dhs.AuxiliaryHeadCIFAR = wide
    net.classifier = spike_dhs.SpikingLinear(12 * channels, CLASSES, spiking=False)
    functional.set_step_mode(net, "m")
    return net


def training_step(
    net: nn.Module, *, bf16: bool, reset: Callable[[nn.Module], None] | None = None
) -> Step:
    optimizer = torch.optim.SGD(
        net.parameters(), lr=0.025, momentum=0.9, weight_decay=3e-4, fused=True
    )

    def step(batch: int) -> None:
        x, target = torch.rand(batch, 3, 32, 32), torch.randint(0, CLASSES, (batch,))
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits, auxiliary = net(x)
        auxiliary = auxiliary[0] if isinstance(auxiliary, list) else auxiliary
        loss = F.cross_entropy(logits.float(), target)
        loss = loss + 0.4 * F.cross_entropy(auxiliary.float(), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if reset is not None:
            reset(net)

    return step


def convolutions_step(net: SpikingModule, batch: int, *, bf16: bool) -> Step:
    convolutions = Convolutions(net, batch, bf16=bf16)
    return lambda _: convolutions.run()


def make_step(side: str, channels: int, batch: int) -> Step:
    keep_freed_memory()
    torch.manual_seed(0)
    name, _, precision = side.partition(" ")
    bf16 = precision == "bf16"
    if name == "unfused":
        fused.available = lambda: False
    if name in ("snnir", "unfused"):
        module = our_module(channels)
        if module.fuses != (name == "snnir"):
            raise SystemExit("numba is not installed: pip install 'snnir[fast]'")
        return training_step(module, bf16=bf16)
    if name == "convolutions":
        return convolutions_step(our_module(channels), batch, bf16=bf16)
    net = peer_module(channels)
    from spikingjelly.activation_based.functional import reset_net

    return training_step(net, bf16=bf16, reset=reset_net)


def measure(case: Case, options: Namespace) -> bool:
    """Print one case; returns whether it met its goals."""
    goals = GOALS[case]
    seconds = sides.times(make_step, SIDES, case, options.rounds, options.threads)
    sides.print_times(case, STEPS, options.threads, seconds)
    speed, bf16 = ratio(seconds, "peer", "snnir"), ratio(seconds, "peer", "snnir bf16")
    floor = ratio(seconds, "snnir", "convolutions")
    for a, b in (("peer", "unfused"), ("peer", "unfused bf16"), ("unfused", "convolutions")):
        sides.print_ratio(f"{a} / {b}", ratio(seconds, a, b))
    met = [
        reached("peer / snnir", speed, least=goals.speed),
        reached("peer / snnir bf16", bf16, least=goals.speed_bf16),
        reached("snnir / convolutions", floor, most=goals.convolutions),
    ]
    if not options.no_memory:
        found = sides.memory(make_step, ("snnir", "peer", "unfused"), case, options.threads)
        met.append(sides.print_memory(found, most=goals.memory))
    return all(met)


def main() -> int:
    parser = sides.parser(__doc__)
    options = parser.parse_args()
    cases = [tuple(options.case)] if options.case else list(GOALS)
    unknown = [case for case in cases if case not in GOALS]
    if unknown:
        parser.error(f"found case {unknown[0]}, expected one of {', '.join(map(str, GOALS))}")
    met = [measure(case, options) for case in cases]  # all, also after one that falls short
    return int(not all(met))


if __name__ == "__main__":
    sys.exit(main())
