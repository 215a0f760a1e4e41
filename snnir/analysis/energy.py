"""Energy from operation counts and measured firing rates (method §7)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from snnir.analysis.counts import Layer
from snnir.ir.types import Time

PICOJOULES_PER_MILLIJOULE: Final = 1e9


@dataclass(frozen=True)
class CostModel:
    """Energy per operation, in picojoules."""

    name: str
    addition_pj: float
    mac_pj: float
    source: str


COST_MODELS: Final = (
    CostModel(
        "45nm",
        addition_pj=0.9,
        mac_pj=4.6,
        source="Horowitz 2014, 45 nm CMOS, fp32 arithmetic alone, no memory traffic; "
        "as the paper's Table 8",
    ),
)


@dataclass(frozen=True)
class Operations:
    """Operations of one sample over all its steps."""

    additions: float
    macs: float


def count_operations(layers: Sequence[Layer], rates: Mapping[str, float], steps: int) -> Operations:
    """Operations of the weight layers: reading spikes, firing rate · T · A additions (A: dense MACs
    of one step); reading anything else, MACs. Stepped layers count T times, static ones once.

    `rates` has, by layer path, the mean firing rate of the tensor the layer reads.
    """
    additions = macs = 0.0
    for layer in layers:
        times = steps if layer.time == Time.STEPPED else 1
        if layer.reads.multiplies:
            macs += layer.macs * times
        elif layer.macs:
            additions += rates[layer.path] * layer.macs * times
    return Operations(additions, macs)


def energy_mj(operations: Operations, model: CostModel) -> float:
    """Energy of one sample in millijoules."""
    picojoules = operations.additions * model.addition_pj + operations.macs * model.mac_pj
    return picojoules / PICOJOULES_PER_MILLIJOULE
