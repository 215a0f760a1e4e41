"""What a search costs to train, in multiply-accumulates, so that searches can be compared.

Counted are those of the layers, in the forward pass and, as many again each, for the gradients of
what a layer reads and of its weights.
"""

from __future__ import annotations

from snnir.analysis.counts import layers
from snnir.genotype import Genotype
from snnir.ir import build
from snnir.ir.types import Time
from snnir.passes import ANALYSIS, SIMPLIFICATION, run_passes
from snnir.passes.hoist_static import HOIST_STATIC
from snnir.search.bilevel import WATCHED
from snnir.search.config import SearchConfig

WEIGHT_STEP = 3
"""Forward passes that a step of the weights costs."""
ARCHITECTURE_STEP = 2
"""A step of alpha and beta needs no gradients of the weights."""


def search_macs(space: Genotype, config: SearchConfig, samples: int) -> int:
    """Of the bi-level search with a training set of `samples`."""
    moving = max(0, config.epochs - config.warmup_epochs)
    passes = WEIGHT_STEP * config.epochs + ARCHITECTURE_STEP * moving
    watched = config.epochs * min(WATCHED, samples // 2)
    return (passes * _seen(config, samples) + watched) * forward_macs(space)


def trial_macs(genotype: Genotype, config: SearchConfig, samples: int) -> int:
    """Of training one architecture of a baseline on half of `samples`, and judging it on the other
    half after every epoch."""
    seen = WEIGHT_STEP * _seen(config, samples) + samples // 2
    return config.trial_epochs * seen * forward_macs(genotype)


def forward_macs(genotype: Genotype) -> int:
    """Of all steps of one sample, a space's with every candidate; auxiliary heads included."""
    graph = run_passes((*ANALYSIS, *SIMPLIFICATION, HOIST_STATIC), build(genotype)).graph
    return sum(
        layer.macs * (graph.steps if layer.time == Time.STEPPED else 1) for layer in layers(graph)
    )


def _seen(config: SearchConfig, samples: int) -> int:
    """Samples that an epoch through half of them shows: whole batches."""
    half = samples // 2
    return half - half % config.batch_size
