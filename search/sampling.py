"""Architectures drawn at random, and small random changes of one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from snnir.errors import SnnirError
from snnir.genotype import Genotype, ast
from snnir.ir.trellis import levels_after
from snnir.search.architecture import (
    Architecture,
    CellChoice,
    Edge,
    count_paths,
    searchable_cells,
    trellises,
)


def random_architecture(space: Genotype, rng: np.random.Generator) -> Architecture:
    """An architecture, each of the space as likely as any other."""
    return Architecture(
        {name: _random_cell(cell, rng) for name, cell in searchable_cells(space).items()},
        {name: _random_path(trellis, rng) for name, trellis in trellises(space).items()},
    )


def mutated(space: Genotype, architecture: Architecture, rng: np.random.Generator) -> Architecture:
    """The architecture with one thing changed, as regularised evolution does (Real et al. 2019).

    Drawn first is what changes: the operation of a kept edge, the state that one reads, or the
    level of a layer of a trellis; then what it becomes. Whatever can change is equally likely.

    Raises:
        SnnirError: a space of one architecture.
    """
    mutable = [others for others in _alternatives(space, architecture) if others]
    if not mutable:
        raise SnnirError(
            f"network '{space.name}': found a space of one architecture, expected several"
        )
    others = mutable[rng.integers(len(mutable))]
    return others[rng.integers(len(others))]


def _random_cell(cell: ast.SearchCell, rng: np.random.Generator) -> CellChoice:
    choice = []
    for node in range(cell.nodes):
        states = sorted(rng.choice(2 + node, cell.keep, replace=False).tolist())
        candidates = rng.integers(len(cell.candidates), size=cell.keep).tolist()
        choice.append(tuple(map(Edge, states, candidates)))
    return tuple(choice)


def _random_path(trellis: ast.Trellis, rng: np.random.Generator) -> tuple[int, ...]:
    """Level by level, each as likely as the share of the paths that go on from there."""
    path: list[int] = []
    for layer in range(trellis.depth):
        after = levels_after(path[-1] if path else 0, layer, trellis)
        counts = [count_paths(trellis, layer, level) for level in after]
        path.append(int(rng.choice(after, p=[count / sum(counts) for count in counts])))
    return tuple(path)


def _alternatives(space: Genotype, architecture: Architecture) -> Iterator[list[Architecture]]:
    """For each thing that may change, the architectures in which it alone differs."""
    for name, cell in searchable_cells(space).items():
        for choices in _other_cells(cell, architecture.cells[name]):
            yield [replace(architecture, cells={**architecture.cells, name: c}) for c in choices]
    for name, trellis in trellises(space).items():
        for paths in _other_paths(trellis, architecture.paths[name]):
            yield [replace(architecture, paths={**architecture.paths, name: p}) for p in paths]


def _other_cells(cell: ast.SearchCell, choice: CellChoice) -> Iterator[list[CellChoice]]:
    for node, edges in enumerate(choice):
        unread = set(range(2 + node)) - {edge.state for edge in edges}
        for edge in edges:
            others = set(range(len(cell.candidates))) - {edge.candidate}
            operations = [edge._replace(candidate=candidate) for candidate in sorted(others)]
            sources = [edge._replace(state=state) for state in sorted(unread)]
            for changes in (operations, sources):
                rows = [sorted({*edges} - {edge} | {changed}) for changed in changes]
                yield [(*choice[:node], tuple(row), *choice[node + 1 :]) for row in rows]


def _other_paths(trellis: ast.Trellis, path: tuple[int, ...]) -> Iterator[list[tuple[int, ...]]]:
    for layer, level in enumerate(path):
        after = levels_after(path[layer - 1] if layer else 0, layer, trellis)
        following = path[layer + 1 : layer + 2]
        yield [
            (*path[:layer], other, *path[layer + 1 :])
            for other in after
            if other != level and all(abs(other - later) <= 1 for later in following)
        ]
