"""What is wrong with a space or a recipe, said before anything is trained or written."""

from __future__ import annotations

import numpy as np

from snnir.errors import SnnirError
from snnir.genotype import Genotype, ast, parse, print_genotype, retarget
from snnir.ir import build
from snnir.passes import ANALYSIS, run_passes
from snnir.search.architecture import (
    count_architectures,
    genotype_of,
    searchable_cells,
    trellises,
)
from snnir.search.config import SearchConfig
from snnir.search.sampling import random_architecture
from snnir.source import Source


def check_search(space: Genotype, config: SearchConfig) -> None:
    """Raises SnnirError where there is nothing to search, the method cannot search it, or what it
    finds could not be written; GenotypeError with its place in the text where there is one."""
    _refuse_decided(space)
    if config.method == "spikedhs":
        _refuse_unweighable(space)
        if config.warmup_epochs >= config.epochs:
            raise SnnirError(
                f"warmup_epochs: found {config.warmup_epochs} of {config.epochs} epochs, expected "
                "fewer: the architecture moves after them"
            )
    elif config.method == "evolution" and (config.trials or np.inf) <= config.population:
        raise SnnirError(
            f"population: found {config.population} of {config.trials} trials, expected fewer: "
            "evolution begins after as many random ones"
        )
    if trellises(space) and space.annotations:
        raise SnnirError(
            f"network '{space.name}': found annotations in a space whose levels are searched, "
            "expected none: what is found can be annotated"
        )
    architecture = random_architecture(space, np.random.default_rng(0))
    found = widened(genotype_of(space, architecture, config.conventions), config)
    text = Source(f"{space.name}, decoded", print_genotype(found))
    run_passes(ANALYSIS, build(parse(text)))


def widened(found: Genotype, config: SearchConfig) -> Genotype:
    """The genotype with the channels that the recipe asks for.

    Raises:
        SnnirError: a stem that does not scale; backbones whose channels differ.
    """
    if config.channels is None:
        return found
    layers = {name: b.layers.channels for name, b in found.backbones.items() if b.layers}
    if len(set(layers.values())) > 1:
        listed = ", ".join(f"{name} {channels}" for name, channels in layers.items())
        raise SnnirError(
            f"channels: found backbones of different channels ({listed}), expected equal ones: "
            "--set NAME.channels=C scales each, of the result"
        )
    return retarget(found, [f"{name}.channels={config.channels}" for name in layers])


def _refuse_decided(space: Genotype) -> None:
    name = f"network '{space.name}'"
    if not space.searchable:
        raise SnnirError(
            f"{name}: found nothing to search, expected a cell with `search` or "
            "`layers … search depth=L levels=K { cell }`"
        )
    used = {cell for backbone in space.backbones.values() for cell in _cells(backbone)}
    for cell in searchable_cells(space):
        if cell not in used:
            raise SnnirError(f"{name}: found cell '{cell}' to search, which no layers use")
    if count_architectures(space) == 1:
        raise SnnirError(
            f"{name}: found a space of one architecture, expected several: more candidates, more "
            "edges than are kept, or more levels"
        )


def _refuse_unweighable(space: Genotype) -> None:
    """A search by gradient ranks edges by the weights of their operations, and one operation always
    weighs 1."""
    for name, cell in searchable_cells(space).items():
        if len(cell.candidates) == 1 and cell.nodes + 1 > cell.keep:
            raise SnnirError(
                f"cell '{name}': found one candidate per edge, expected two or more to weigh "
                "(--method random and evolution choose edges without)"
            )


def _cells(backbone: ast.Backbone) -> set[str]:
    layers = backbone.layers
    if isinstance(layers, ast.Trellis):
        return {layers.cell}
    return {placed.cell for placed in layers.cells} if layers else set()
