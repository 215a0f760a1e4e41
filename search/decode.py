"""From the weights of a relaxed space to the architecture they stand for (method §3, decode)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from snnir.genotype import Genotype, ast
from snnir.ir.build import edge_owner
from snnir.ir.trellis import levels_after, transition_owner
from snnir.search.architecture import (
    Architecture,
    CellChoice,
    Conventions,
    Edge,
    searchable_cells,
    state_names,
    trellises,
)

Logits = Mapping[str, np.ndarray]
"""alpha and beta before their softmax, by the owner that the graph names: alpha of an edge
`cells.NAME.NODE.STATE` [candidates], beta `BACKBONE.transitions.LAYER.levelK` [levels it leads to].
"""


def decode(space: Genotype, logits: Logits, conventions: Conventions = "paper") -> Architecture:
    """The architecture that the logits favour.

    Each node keeps its strongest edges, an edge being as strong as the largest softmax weight of
    its operations, with the operation of that weight; of equals the first. The levels are the most
    probable path. `authors` follows their code where it differs: operation 0 does not count for an
    edge's strength, a cell's table of (edge, operation) has its two columns sorted separately, and
    the transitions at the border levels weigh 2/3.
    """
    cells = {
        name: _decode_cell(cell, logits, conventions)
        for name, cell in searchable_cells(space).items()
    }
    paths = {}
    for name, trellis in trellises(space).items():
        probabilities = transition_probabilities(name, trellis, logits, conventions)
        paths[name] = most_probable_path(probabilities)
    return Architecture(cells, paths)


def softmax(logits: np.ndarray) -> np.ndarray:
    """In float64, whatever the logits are."""
    shifted = np.exp(logits.astype(np.float64) - logits.max())
    return shifted / shifted.sum()


# --- cells --------------------------------------------------------------------------------------


def _decode_cell(cell: ast.SearchCell, logits: Logits, conventions: Conventions) -> CellChoice:
    names = state_names(cell)
    left_out = 1 if conventions == "authors" and len(cell.candidates) > 1 else 0
    choice = []
    for number in range(cell.nodes):
        weights = [
            softmax(logits[edge_owner(cell.name, names[2 + number], state)])
            for state in names[: 2 + number]
        ]
        strongest = sorted(range(len(weights)), key=lambda i: -weights[i][left_out:].max())
        edges = [Edge(i, int(weights[i].argmax())) for i in strongest[: cell.keep]]
        choice.append(tuple(edges if conventions == "authors" else sorted(edges)))
    return columns_sorted(choice) if conventions == "authors" else tuple(choice)


def columns_sorted(choice: list[tuple[Edge, ...]]) -> CellChoice:
    """The cell as the authors read it back: edges in order, operations in order, paired anew.

    Edges are counted through the cell, node j's after node j - 1's.
    """
    operations = iter(sorted(edge.candidate for edges in choice for edge in edges))
    states = [sorted(edge.state for edge in edges) for edges in choice]
    return tuple(tuple(Edge(state, next(operations)) for state in row) for row in states)


# --- levels -------------------------------------------------------------------------------------


def transition_probabilities(
    backbone: str, trellis: ast.Trellis, logits: Logits, conventions: Conventions = "paper"
) -> list[dict[tuple[int, int], float]]:
    """Per layer, the probability of each transition (from level, to level): a softmax over those
    that leave a level. The authors scale it by 2/3 where a level has a neighbour less."""
    layers = []
    for layer in range(trellis.depth):
        probabilities = {}
        for level in range(min(layer + 1, trellis.levels)):
            after = levels_after(level, layer, trellis)
            weights = softmax(logits[transition_owner(backbone, layer, level)])
            border = conventions == "authors" and level in (0, trellis.levels - 1)
            for target, weight in zip(after, weights, strict=True):
                probabilities[level, target] = float(weight) * (2 / 3 if border else 1)
        layers.append(probabilities)
    return layers


def most_probable_path(probabilities: list[dict[tuple[int, int], float]]) -> tuple[int, ...]:
    """The levels of all layers whose transitions have the largest product (Viterbi 1967); of equals
    the finer level. In logarithms, so that deep trellises do not underflow."""
    scores, before = {0: 0.0}, []
    for layer in probabilities:
        best: dict[int, tuple[float, int]] = {}
        for (level, target), probability in layer.items():
            score = scores[level] + (np.log(probability) if probability > 0 else -np.inf)
            if target not in best or score > best[target][0]:
                best[target] = score, level
        before.append({target: level for target, (_, level) in best.items()})
        scores = {target: score for target, (score, _) in best.items()}
    path = [max(sorted(scores), key=scores.__getitem__)]
    for step in reversed(before[1:]):
        path.append(step[path[-1]])
    return tuple(reversed(path))
