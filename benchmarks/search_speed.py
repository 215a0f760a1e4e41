"""A bi-level search step of SpikeDHS's supernet for CIFAR beside a plain build of the authors'
structure and beside the bare convolutions: time and memory.

    python benchmarks/search_speed.py                   # C = 8, batch 8 and C = 16, batch 4
    python benchmarks/search_speed.py --case 8 8 --rounds 5 --no-memory
    python benchmarks/search_speed.py --check           # the plain networks compute what ours does

All have 8 cells of 4 nodes and the auxiliary head, T = 6, 32x32, one alpha per edge shared by all
cells, and the same convolutions. A step is two halves. Weights: forward on batch A, loss, backward,
gradients clipped, fused SGD. Architecture: forward on batch B, loss, backward, Adam on alpha.

- `snnir`: the graph after the passes of `snnir search`; each half makes only the gradients that it
  steps by. `bf16` is autocast.
- `plain`: a module per candidate, a sum of weighed candidates per edge, and a Python loop that runs
  the whole network once per step, so that batch norm has statistics of each step. Both halves make
  all gradients. The authors' search code does so; like theirs, a skip from a cell's input is a
  convolution. Unlike theirs the layout is fixed (no trellis) and maps are resized to the nearest.
- `plain batched`: the same modules on all steps at once, with a loop over the steps in neurons
  alone.
- `convolutions`: forward and backward of our graph's convolutions alone, to inputs and weights for
  the first half and to inputs for the second.

Time and memory are measured as in training_speed.py. The goals are for `plain`. Exits 1 when a
number is short of its goal.
"""

from __future__ import annotations

import math
import sys
from argparse import Namespace
from collections.abc import Sequence
from statistics import median
from typing import Any

import sides
import torch
import torch.nn.functional as F
from sides import Case, Convolutions, Step, print_ratio, ratio, reached
from torch import Tensor, nn

from snnir import models
from snnir.genotype import parse, retarget
from snnir.ir import build
from snnir.ir.graph import Graph
from snnir.lower import SpikingModule
from snnir.lower.initialise import calibrate_batch_norm, calibrated_weights
from snnir.lower.memory import keep_freed_memory
from snnir.passes import TRAINING, run_passes

STEPS, CLASSES, IN_CHANNELS = 6, 10, 3
SIDES = ("snnir", "snnir bf16", "plain", "plain batched", "convolutions")
CASES: tuple[Case, ...] = ((8, 8), (16, 4))
SPEED, MEMORY = 2.0, 0.5
"""Goals: least speed over the plain build, most memory over its."""

# --- ours -----------------------------------------------------------------------------------


def our_graph(channels: int) -> Graph:
    space = retarget(parse(models.source("cifar_space")), [f"channels={channels}"])
    return run_passes(TRAINING, build(space)).graph


def our_alpha(net: SpikingModule) -> list[nn.Parameter]:
    return [p for name, p in net.named_parameters() if name.endswith(".logits")]


# --- plain ----------------------------------------------------------------------------------

LEVELS = (0, 0, 1, 1, 1, 2, 2, 2)
NODES = 4
EDGES = sum(2 + node for node in range(NODES))
AUXILIARY_CELL = 5
CANDIDATES = 3
TAU, THRESHOLD, TEMPERATURE = 0.2, 0.5, 3.0


class Dspike(torch.autograd.Function):
    """A spike above the threshold, with dspike for its derivative (method §2)."""

    @staticmethod
    def forward(ctx: Any, u: Tensor) -> Tensor:
        ctx.save_for_backward(u)
        return (u > THRESHOLD).to(u.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (u,) = ctx.saved_tensors
        b = TEMPERATURE
        slope = (1 - torch.tanh(b * (u - THRESHOLD)) ** 2) * b / 2 / math.tanh(b / 2)
        return gradient * slope * ((u >= 0) & (u <= 1))


class Lif(nn.Module):
    """LIF over the steps [steps·N, …] of one call, its membrane kept from call to call."""

    def __init__(self, steps: int):
        super().__init__()
        self.steps = steps
        self.membrane: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.steps == 1:
            return self.step(x)
        return torch.cat([self.step(current) for current in x.chunk(self.steps)])

    def step(self, current: Tensor) -> Tensor:
        membrane = current if self.membrane is None else self.membrane + current
        spikes = Dspike.apply(membrane)
        self.membrane = membrane * TAU * (1 - spikes)
        return spikes


class ConvBatchNorm(nn.Module):
    def __init__(self, in_channels: int, channels: int, kernel: int = 3, padding: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, kernel, padding=padding)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


class SpikingConv(ConvBatchNorm):
    def __init__(self, steps: int, *sizes: int):
        super().__init__(*sizes)
        self.neuron = Lif(steps)

    def forward(self, x: Tensor) -> Tensor:
        return self.neuron(super().forward(x))


class MixedOp(nn.ModuleDict):
    """An edge: the weighed sum of its candidates; a skip is a convolution from a cell's input."""

    def __init__(self, in_channels: int, channels: int, *, from_cell: bool):
        skip = ConvBatchNorm(in_channels, channels) if from_cell else nn.Identity()
        super().__init__(
            {
                "conv3x3_b3": ConvBatchNorm(in_channels, channels),
                "conv3x3_b5": ConvBatchNorm(in_channels, channels),
                "skip": skip,
            }
        )

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        return sum(w * op(x) for w, op in zip(weights, self.values(), strict=True))


class Cell(nn.ModuleDict):
    """Each node is the LIF of the sum of its edges, which read all states before it."""

    def __init__(self, in_channels: Sequence[int], channels: int, steps: int):
        super().__init__()
        widths = dict(zip(("prev_prev", "prev"), in_channels, strict=True))
        for number in range(NODES):
            edges = {
                state: MixedOp(width, channels, from_cell=state.startswith("prev"))
                for state, width in widths.items()
            }
            self[f"n{number}"] = nn.ModuleDict({**edges, "neuron": Lif(steps)})
            widths[f"n{number}"] = channels

    def forward(self, states: list[Tensor], weights: Tensor) -> Tensor:
        edge = 0
        for node in self.values():
            *operations, neuron = node.values()
            rows = weights[edge : edge + len(states)]
            edge += len(states)
            currents = [op(x, row) for op, x, row in zip(operations, states, rows, strict=True)]
            states = [*states, neuron(sum(currents))]
        return torch.cat(states[-NODES:], 1)


class Head(nn.Module):
    """A pool and its LIF, hidden layers, a linear layer with batch norm."""

    def __init__(
        self, pool: nn.Module, hidden: Sequence[nn.Module], features: int, classes: int, steps: int
    ):
        super().__init__()
        self.pool, self.neuron = pool, Lif(steps)
        self.hidden = nn.Sequential(*hidden)
        self.linear, self.bn = nn.Linear(features, classes), nn.BatchNorm1d(classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.linear(self.hidden(self.neuron(self.pool(x))).flatten(1)))


class PlainSupernet(nn.Module):
    """[N, C, H, W] to (logits, [auxiliary logits]), in evaluation to logits as ours; `batched` runs
    all steps in one call."""

    def __init__(
        self, channels: int, steps: int, classes: int, in_channels: int, *, batched: bool = False
    ):
        super().__init__()
        self.steps, self.batched = steps, batched
        together = steps if batched else 1
        self.alpha = nn.Parameter(torch.full((EDGES, CANDIDATES), 1e-3))
        self.stem = SpikingConv(together, in_channels, 3 * channels)
        widths = [3 * channels, 3 * channels]
        self.cells = nn.ModuleList()
        for level in LEVELS:
            self.cells.append(Cell(widths[-2:], channels * 2**level, together))
            widths.append(NODES * channels * 2**level)
        self.head = Head(nn.AdaptiveAvgPool2d(1), [], widths[-1], classes, together)
        hidden = [
            SpikingConv(together, widths[2 + AUXILIARY_CELL], 128, 1, 0),
            SpikingConv(together, 128, 768, 2, 0),
        ]
        self.auxiliary = Head(nn.AvgPool2d(5, 3), hidden, 768, classes, together)

    def forward(self, x: Tensor) -> Any:
        for module in self.modules():
            if isinstance(module, Lif):
                module.membrane = None
        if self.batched:
            outputs = self.run(x.repeat(self.steps, 1, 1, 1))
            logits, auxiliary = (y.unflatten(0, (self.steps, -1)).mean(0) for y in outputs)
        else:
            outputs = [self.run(x) for _ in range(self.steps)]
            logits, auxiliary = (torch.stack(y).mean(0) for y in zip(*outputs, strict=True))
        return (logits, [auxiliary]) if self.training else logits

    def run(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The whole network on the steps of one call."""
        weights = self.alpha.softmax(1)
        x = self.stem(x)
        height, width = x.shape[2:]
        history = [x, x]
        for level, cell in zip(LEVELS, self.cells, strict=True):
            size = height // 2**level, width // 2**level
            history.append(cell([resized(state, size) for state in history[-2:]], weights))
        return self.head(history[-1]), self.auxiliary(history[2 + AUXILIARY_CELL])


def resized(x: Tensor, size: tuple[int, int]) -> Tensor:
    return x if x.shape[2:] == size else F.interpolate(x, size, mode="nearest")


# --- a step ---------------------------------------------------------------------------------


def search_step(
    net: nn.Module, alpha: list[nn.Parameter], *, bf16: bool = False, apart: bool = False
) -> Step:
    """`apart`: each half asks only for the gradients of what it moves."""
    own = {id(p) for p in alpha}
    weights = [p for p in net.parameters() if id(p) not in own]
    sgd = torch.optim.SGD(weights, lr=0.025, momentum=0.9, weight_decay=3e-4, fused=True)
    adam = torch.optim.Adam(alpha, lr=1e-3, weight_decay=1e-3)

    def gradients(batch: int, moved: list[nn.Parameter], others: list[nn.Parameter]) -> None:
        for parameters, wanted in ((others, not apart), (moved, True)):
            for parameter in parameters:
                parameter.requires_grad_(wanted)
        x, target = torch.rand(batch, IN_CHANNELS, 32, 32), torch.randint(0, CLASSES, (batch,))
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits, (auxiliary,) = net(x)
        loss_of(logits.float(), auxiliary.float(), target).backward()

    def clear() -> None:
        sgd.zero_grad()
        adam.zero_grad()

    def step(batch: int) -> None:
        gradients(batch, weights, alpha)
        nn.utils.clip_grad_norm_(net.parameters(), 5)
        sgd.step()
        clear()
        gradients(batch, alpha, weights)
        adam.step()
        clear()

    return step


def loss_of(logits: Tensor, auxiliary: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(logits, target) + 0.4 * F.cross_entropy(auxiliary, target)


def convolutions_step(net: SpikingModule, batch: int) -> Step:
    convolutions = Convolutions(net, batch, bf16=False)

    def step(_: int) -> None:
        convolutions.run()
        convolutions.run(weights=False)

    return step


def make_step(side: str, channels: int, batch: int) -> Step:
    keep_freed_memory()
    torch.manual_seed(0)
    if side.startswith("plain"):
        plain = plain_module(channels, batched=side == "plain batched")
        return search_step(plain, [plain.alpha])
    net = SpikingModule(our_graph(channels))
    if side == "convolutions":
        return convolutions_step(net, batch)
    return search_step(net, our_alpha(net), bf16=side == "snnir bf16", apart=True)


def plain_module(channels: int, *, batched: bool) -> PlainSupernet:
    return PlainSupernet(channels, STEPS, CLASSES, IN_CHANNELS, batched=batched)


# --- check ----------------------------------------------------------------------------------

PLAIN_NAMES = (
    ("trunk.stem.0.", "stem."),
    ("trunk.layers.", "cells."),
    ("auxiliary.0.0.", "auxiliary.hidden.0."),
    ("auxiliary.0.1.", "auxiliary.hidden.1."),
    ("auxiliary.0.", "auxiliary."),
)
"""How our names begin and what the plain networks have instead."""

TOLERANCE = 1e-9


def check() -> None:
    """Assert that the plain networks compute what ours does, in float64 and with layers that fire:
    in training the batched one, whose statistics are over T and N as ours are; in evaluation, where
    statistics are given, the looped one."""
    torch.manual_seed(0)
    channels, batch = 2, 4
    graph = our_graph(channels)
    x, target = torch.rand(batch, IN_CHANNELS, 32, 32), torch.randint(0, CLASSES, (batch,))
    net = SpikingModule(graph, calibrated_weights(graph, [x], seed=0)).double()
    x = x.double()
    for logits in our_alpha(net):
        nn.init.normal_(logits)
    rates = calibrate_batch_norm(net, [x])
    low, middle, high = min(rates.values()), median(rates.values()), max(rates.values())
    print(f"{len(rates)} neurons fire at {low:.3f} to {high:.3f}, median {middle:.3f}")
    for batched in (False, True):
        plain = plain_module(channels, batched=batched).double()
        copy_weights(net, plain)
        assert weight_count(plain, [plain.alpha]) == weight_count(net, our_alpha(net))
        net.train(batched)
        plain.train(batched)
        ours = computed(net, our_alpha(net), x, target)
        theirs = computed(plain, [plain.alpha], x, target)
        print("plain batched, training" if batched else "plain, evaluation")
        for name, value in ours.items():
            difference = float((value - theirs[name]).abs().max())
            print(f"  {name:15} within {difference:.1e}, largest {float(value.abs().max()):.3f}")
            assert difference <= TOLERANCE, f"{name}: found {difference}, expected {TOLERANCE}"


def copy_weights(net: SpikingModule, plain: PlainSupernet) -> None:
    state = {"alpha": torch.stack(our_alpha(net))}
    for name, value in net.state_dict().items():
        if not name.endswith(".logits"):
            state[plain_name(name)] = value
    missing, unexpected = plain.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name.endswith(".num_batches_tracked") for name in missing)


def plain_name(name: str) -> str:
    for ours, plain in PLAIN_NAMES:
        if name.startswith(ours):
            return plain + name.removeprefix(ours)
    return name


def computed(
    net: nn.Module, alpha: list[nn.Parameter], x: Tensor, target: Tensor
) -> dict[str, Tensor]:
    """Logits and the gradient of alpha; the auxiliary head takes part in training alone."""
    if net.training:
        logits, (auxiliary,) = net(x)
        loss = loss_of(logits, auxiliary, target)
        found = {"logits": logits, "auxiliary": auxiliary}
    else:
        logits = net(x)
        loss = F.cross_entropy(logits, target)
        found = {"logits": logits}
    gradients = torch.autograd.grad(loss, alpha)
    found["alpha gradient"] = torch.cat([g.flatten() for g in gradients])
    return {name: value.detach() for name, value in found.items()}


def weight_count(net: nn.Module, alpha: list[nn.Parameter]) -> int:
    return sum(p.numel() for p in net.parameters()) - sum(p.numel() for p in alpha)


# --- report ---------------------------------------------------------------------------------


def measure(case: Case, options: Namespace) -> bool:
    """Print one case; returns whether it met its goals."""
    net, plain = SpikingModule(our_graph(case[0])), plain_module(case[0], batched=False)
    assert weight_count(net, our_alpha(net)) == weight_count(plain, [plain.alpha])
    del net, plain
    seconds = sides.times(make_step, SIDES, case, options.rounds, options.threads)
    sides.print_times(case, STEPS, options.threads, seconds)
    met = [reached("plain / snnir", ratio(seconds, "plain", "snnir"), least=SPEED)]
    for a, b in (
        ("plain", "snnir bf16"),
        ("plain batched", "snnir"),
        ("snnir", "convolutions"),
        ("plain", "convolutions"),
    ):
        print_ratio(f"{a} / {b}", ratio(seconds, a, b))
    if not options.no_memory:
        compared = ("snnir", "plain", "plain batched")
        # two images: batch norm has statistics of one step
        found = sides.memory(make_step, compared, case, options.threads, first=2)
        met.append(sides.print_memory(found, most=MEMORY))
    return all(met)


def main() -> int:
    parser = sides.parser(__doc__)
    parser.add_argument("--check", action="store_true", help="compare what is computed instead")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.check:
        check()
        return 0
    cases = [tuple(options.case)] if options.case else CASES
    met = [measure(case, options) for case in cases]  # all, also after one that falls short
    return int(not all(met))


if __name__ == "__main__":
    sys.exit(main())
