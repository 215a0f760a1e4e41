"""One architecture of a space: which edges and operations its cells keep, at which levels they lie.

A space is a genotype with `search` cells or a trellis of layers; an architecture is a choice for
each of them, and `genotype_of` writes it as an ordinary genotype.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from snnir.genotype import Genotype, ast
from snnir.genotype.vocabulary import operation_rank
from snnir.ir.trellis import levels_after

Conventions = Literal["paper", "authors"]


class Edge(NamedTuple):
    """An edge that a node keeps."""

    state: int
    """What it reads: 0 and 1 are the cell's inputs, 2 is its first node, and so on."""
    candidate: int
    """Number of its operation among the cell's candidates."""


CellChoice = tuple[tuple[Edge, ...], ...]
"""The kept edges of each node, by state."""


@dataclass(frozen=True)
class Architecture:
    """A choice for everything that a space leaves open."""

    cells: Mapping[str, CellChoice]
    """By name of the searchable cell."""
    paths: Mapping[str, tuple[int, ...]]
    """By name of the backbone whose layers are a trellis: the level of every layer."""


def searchable_cells(space: Genotype) -> dict[str, ast.SearchCell]:
    return {cell.name: cell for cell in space.all(ast.SearchCell)}


def trellises(space: Genotype) -> dict[str, ast.Trellis]:
    """The trellises of layers, by backbone."""
    return {
        name: backbone.layers
        for name, backbone in space.backbones.items()
        if isinstance(backbone.layers, ast.Trellis)
    }


def state_names(cell: ast.SearchCell) -> list[str]:
    """The inputs of a searchable cell and its nodes, in order."""
    return [*cell.states, *(f"n{number}" for number in range(cell.nodes))]


def count_architectures(space: Genotype) -> int:
    """How many architectures a space has."""
    count = 1
    for cell in searchable_cells(space).values():
        for node in range(cell.nodes):
            count *= math.comb(2 + node, cell.keep) * len(cell.candidates) ** cell.keep
    for trellis in trellises(space).values():
        count *= count_paths(trellis)
    return count


def count_paths(trellis: ast.Trellis, layer: int = -1, level: int = 0) -> int:
    """How many ways lead from `level` of layer `layer` (-1: the stem) to the last layer."""
    counts = dict.fromkeys(range(trellis.levels), 1)
    for before in range(trellis.depth - 2, layer - 1, -1):
        reached = range(min(before + 2, trellis.levels))
        counts = {k: sum(counts[t] for t in levels_after(k, before + 1, trellis)) for k in reached}
    return counts[level]


def genotype_of(
    space: Genotype, architecture: Architecture, conventions: Conventions = "paper"
) -> Genotype:
    """The architecture as a genotype, everything else as the space says it.

    A cell that mixes at the spike still does (method §3). By the `authors`' conventions a skip is
    the conv3x3 that their retraining makes of it.
    """
    statements: list[ast.Statement] = []
    for statement in space.statements:
        if isinstance(statement, ast.SearchCell):
            statement = _cell(statement, architecture.cells[statement.name], conventions)
        elif isinstance(statement, ast.Backbone) and isinstance(statement.layers, ast.Trellis):
            statement = _backbone(statement, statement.layers, architecture.paths[statement.name])
        statements.append(statement)
    name = f"{space.name.removesuffix('_space')}_searched"
    return Genotype(name=name, statements=tuple(statements))


def _cell(cell: ast.SearchCell, choice: CellChoice, conventions: Conventions) -> ast.Cell:
    names = state_names(cell)
    nodes = []
    for number, edges in enumerate(choice):
        operations = []
        for edge in edges:
            candidate = cell.candidates[edge.candidate]
            operation = candidate.operation
            if operation == "skip" and conventions == "authors":
                operation = _skip_as_convolution(cell)
            operations.append(
                ast.CellOperation(operation=operation, state=names[edge.state], b=candidate.b)
            )
        nodes.append(ast.CellNode(name=names[2 + number], operations=tuple(operations)))
    mix = cell.mix if cell.mix == "spike" else None
    return ast.Cell(name=cell.name, states=cell.states, mix=mix, nodes=tuple(nodes))


def _skip_as_convolution(cell: ast.SearchCell) -> str:
    ranks = {operation_rank(candidate.operation) for candidate in cell.candidates}
    return "conv3x3x3" if 3 in ranks else "conv3x3"


def _backbone(backbone: ast.Backbone, trellis: ast.Trellis, path: tuple[int, ...]) -> ast.Backbone:
    cells = tuple(ast.PlacedCell(cell=trellis.cell, level=level) for level in path)
    layers = ast.Layers(channels=trellis.channels, cells=cells)
    return backbone.model_copy(update={"layers": layers})
