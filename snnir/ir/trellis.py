"""The searchable layer level: a trellis of cells over resolutions (method §3, layer level)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from snnir.genotype import ast
from snnir.ir import nodes as ir

if TYPE_CHECKING:
    from snnir.ir.build import Scope, _Builder


def levels_after(level: int, layer: int, trellis: ast.Trellis) -> list[int]:
    """The levels that layer `layer` may have after `level`: the next finer, the same, the next
    coarser, as far as layers have come from the stem, which is layer -1 at level 0."""
    reached = min(layer + 2, trellis.levels)
    return [after for after in (level - 1, level, level + 1) if 0 <= after < reached]


def transition_owner(backbone: str, layer: int, level: int) -> str:
    """Under what name the betas of the transitions from `level` to layer `layer` are stored."""
    return f"{backbone}.transitions.{layer}.level{level}"


def is_transition(owner: str) -> bool:
    """Whether a name is `transition_owner`'s; an edge's has a node where this has a layer."""
    parts = owner.split(".")
    return len(parts) == 4 and parts[1] == "transitions" and parts[2].isdecimal()


def build_trellis(
    builder: _Builder, trellis: ast.Trellis, scope: Scope, stem: str
) -> tuple[str, ...]:
    """Add all cells (layer, level) and return the last layer's maps, lowest level first.

    Every transition (from a level or its neighbour) is a cell with its own weights; a state is the
    sum of its transitions, weighted by a softmax over the transitions that leave their level.
    The stem is layers -1 and -2, at level 0.
    """
    size = builder.shapes[stem][1:]
    cell = builder.genotype.cells[trellis.cell]
    before: dict[int, str] = {0: stem}
    previous: dict[int, str] = {0: stem}
    for layer in range(trellis.depth):
        targets = range(min(max(previous) + 2, trellis.levels))
        current: dict[int, str] = {}
        for level in targets:
            here = scope / "layers" / layer / f"level{level}"
            channels = trellis.channels * 2**level
            at = builder.level_size(size, level, trellis.span)
            sources = [k for k in (level - 1, level, level + 1) if k in previous]
            maps, gates = [], []
            for k in sources:
                inputs = (before.get(level), previous[k])
                own = here / f"from{k}"
                maps.append(builder.cell(cell, own, inputs, channels, at, trellis.span))
                leaving = levels_after(k, layer, trellis)
                owner = transition_owner(scope.owner, layer, k)
                gates.append(ir.Gate(owner, leaving.index(level), len(leaving)))
            mixed = ir.Mixed(path=f"{here.path}.mixed", gates=tuple(gates), span=trellis.span)
            current[level] = builder.add(mixed, *maps)
        before, previous = previous, current
    return tuple(previous.values())
