"""What searching neurons costs beside plain training, on SpikeDHS-CLA at 32x32, T = 6.

    python benchmarks/tune_speed.py                     # C = 16, batch 8
    python benchmarks/tune_speed.py --rounds 3

A pass is forward, loss (auxiliary head too) and backward; the sides take turns, a pass each, and a
ratio is the median of the rounds'. `weights` passes give the gradients of the weights, `logits`
those of the candidates' logits. All neurons of the network are searched; goals: at most 1.6 plain
passes.

A DGS batch makes five candidates of the first stem layer and one step of their logits. At the
paper's settings 100 of them come before every fifth epoch, and an epoch of CIFAR at batch 50 has
1,000 steps: training takes 1 + 100·c/5000 of the plain time, c being what a DGS batch costs in
plain passes. Goal: at most 1.3. Beside it, with triangles as surrogates, a batch whose candidates
come from one gradient (`--linear-estimate`). Exits 1 when a number is short of its goal.
"""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any, cast

import sides
import torch
import torch.nn.functional as F
from sides import Case, Step, ratio, reached
from torch import Tensor, nn

from snnir import models
from snnir.genotype import parse, retarget
from snnir.ir import build
from snnir.lower import SpikingModule
from snnir.lower.memory import keep_freed_memory
from snnir.passes import TRAINING, run_passes
from snnir.search.dgs import SurrogateSearch
from snnir.search.hns import HybridSearch
from snnir.search.neurons import tunable
from snnir.search.tps import TemporalParameterSearch
from snnir.search.tune_config import TuneConfig
from snnir.training.processes import Processes

CLASSES = 10
PASSES = ("plain", "tps weights", "tps logits", "hns weights", "hns logits")
SIDES = (*PASSES, "dgs batch", "dgs linear")
CASE: Case = (16, 8)
PASS, DGS = 1.6, 1.3
"""Goals: a pass of TPS or HNS over a plain one; training with DGS over plain training."""
BATCHES_OF_A_SEARCH, STEPS_BETWEEN = 100, 5000
"""Of DGS in the paper: batches of a search, steps of training from one to the next."""


def loss_of(net: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    logits, (auxiliary,) = net(x)
    return F.cross_entropy(logits, target) + 0.4 * F.cross_entropy(auxiliary, target)


def make_step(side: str, channels: int, batch: int) -> Step:
    keep_freed_memory()
    torch.manual_seed(0)
    linear = side == "dgs linear"
    text = models.source("spikedhs_cla").text
    genotype = parse(text.replace("dspike(", "triangle(") if linear else text)
    network = build(retarget(genotype, [f"channels={channels}"]))
    if side.startswith("dgs"):
        return dgs_step(network, linear=linear)
    method, _, what = side.partition(" ")
    if method == "plain":
        graph = run_passes(TRAINING, network).graph
    else:
        kind = TemporalParameterSearch if method == "tps" else HybridSearch
        config = TuneConfig(method=cast(Any, method))
        graph = kind(network, tunable(network, (), ("lif", "alif")), config).graph
    net = SpikingModule(graph)
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name.endswith(".logits") == (what == "logits"))

    def step(batch: int) -> None:
        loss_of(net, *data(batch)).backward()
        net.zero_grad()

    return step


def dgs_step(network: Any, *, linear: bool) -> Step:
    config = TuneConfig(method="dgs", nodes=("trunk.stem[0]",), linear_estimate=linear)
    search = SurrogateSearch(network, tunable(network, config.nodes, ("lif",)), config)
    net = SpikingModule(search.graph)
    search.start(net, Processes(torch.device("cpu")))
    net.batch_norm_momentum = 0.0
    trainer: Any = SimpleNamespace(
        config=config, epoch=0, loss=lambda x, target, parallel: (loss_of(parallel, x, target), 0)
    )

    def step(batch: int) -> None:
        given = data(batch)
        search._place_candidates(trainer, given)
        search._weighed(trainer, given)

    return step


def data(batch: int) -> tuple[Tensor, Tensor]:
    return torch.rand(batch, 3, 32, 32), torch.randint(0, CLASSES, (batch,))


def main() -> int:
    options = sides.parser(__doc__).parse_args()
    case = tuple(options.case) if options.case else CASE
    seconds = sides.times(make_step, SIDES, case, options.rounds, options.threads)
    sides.print_times(case, 6, options.threads, seconds)
    met = [
        reached(f"{side} / plain", ratio(seconds, side, "plain"), most=PASS) for side in PASSES[1:]
    ]
    cost = ratio(seconds, "dgs batch", "plain")
    sides.print_ratio("dgs batch / plain", cost)
    sides.print_ratio("dgs linear / dgs batch", ratio(seconds, "dgs linear", "dgs batch"))
    training = 1 + BATCHES_OF_A_SEARCH * cost / STEPS_BETWEEN
    met.append(reached("training with DGS / without", training, most=DGS))
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
