"""The weights of a search's candidates: all softmaxes of a run in one vector."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from snnir.ir.graph import Graph
from snnir.ir.nodes import BatchNorm, Gate, Mixed

if TYPE_CHECKING:
    from snnir.lower.module import SpikingModule


class GateTable:
    """Where each gate of a graph lies in the vector of all their weights; its last value is 1."""

    def __init__(self, graph: Graph):
        gates = [
            gate for node in graph.nodes() if isinstance(node, Mixed | BatchNorm)
            for gate in node.gates if gate is not None
        ]  # fmt: skip
        self.sizes = {gate.owner: gate.size for gate in gates}
        starts, count = {}, 0
        for owner, size in self.sizes.items():
            starts[owner], count = count, count + size
        self._places: dict[Gate | None, int] = {g: starts[g.owner] + g.entry for g in gates}
        self._places[None] = count
        self._channels: dict[tuple[str, torch.device], Tensor] = {}

    def __getitem__(self, gate: Gate | None) -> int:
        return self._places[gate]

    def channels(self, node: BatchNorm, device: torch.device) -> Tensor:
        """For each channel of a gated batch norm, the place of its gate: int64 [C]."""
        key = node.path, device
        if key not in self._channels:
            places = torch.tensor([self[gate] for gate in node.gates], device=device)
            counts = torch.tensor([owner.channels for owner in node.owners], device=device)
            self._channels[key] = places.repeat_interleave(counts)
        return self._channels[key]


class Gates:
    """The weights of one run: the softmax of the module's logits, or `mixing` in its place."""

    def __init__(
        self, table: GateTable, module: SpikingModule, mixing: Mapping[str, Tensor] | None
    ):
        self._table = table
        self._given = mixing is not None
        if not table.sizes:
            return
        if mixing is None:
            logits = (module.parameter(f"{owner}.logits") for owner in table.sizes)
            parts = [torch.softmax(x, 0) for x in logits]
        else:
            parts = [mixing[owner] for owner in table.sizes]
        self._weights = torch.cat([*parts, parts[0].new_ones(1)])

    def __getitem__(self, gate: Gate) -> Tensor:
        return self._weights[self._table[gate]]

    def per_channel(self, node: BatchNorm) -> Tensor:
        """The weight of each channel of a gated batch norm: [C]."""
        return self._weights[self._table.channels(node, self._weights.device)]

    def open(self, gate: Gate) -> bool:
        """Whether a candidate takes part: not where `mixing` gives it no weight at all."""
        return not self._given or bool(self[gate] != 0)
