"""SpikeDHS classifiers that their authors' code or SpikingJelly trained: checkpoint and genotype
arrays to genotype and weights."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from snnir.errors import SnnirError
from snnir.genotype import Genotype, parse
from snnir.genotype.vocabulary import MAX_LEVEL
from snnir.importers.checkpoint import read_checkpoint, read_integers
from snnir.importers.namings import ALWAYS_UNUSED, NAMINGS, Layer, Naming
from snnir.ir import build
from snnir.ir.nodes import BatchNorm
from snnir.search.architecture import CellChoice, Conventions, Edge
from snnir.search.decode import columns_sorted
from snnir.source import Source
from snnir.weights import Weights, check_arrays, expected_shapes

PUBLISHED_CELL: Final = ((1, 1), (0, 1), (3, 2), (2, 1), (7, 1), (8, 1))
"""The cell found on CIFAR-10 as the authors publish it: rows (edge, operation)."""

OPERATIONS: Final = ("conv3x3({})", "conv3x3({})", "conv3x3({}, b=5)")
"""What the authors' operations 0 (skip), 1 (b = 3) and 2 (b = 5) do with a state. Their networks
run a skip as conv3x3 + batch norm, so a checkpoint has weights for it (method §3)."""

AT_THRESHOLD: Final = """
annotate {
  head.neuron  neuron=lif(v_threshold=0.49999997)
}
"""
"""A spike at u = 0.5, as SpikingJelly has it, where ours needs u > v_threshold: the largest float32
below 0.5. Only the neuron behind the pool meets its threshold: it reads multiples of 1/(H·W)."""

WEIGHT: Final = ("weight", "bias")
NORM: Final = ("weight", "bias", "running_mean", "running_var")
NO_NORM: Final = {
    "weight": 1.0,
    "bias": 0.0,
    "running_mean": 0.0,
    "running_var": 1.0 - BatchNorm.model_fields["eps"].default,
}
"""A batch norm that changes nothing, within the rounding of float32."""


def read_spikedhs(
    checkpoint: str | Path,
    cell: str | Path | None = None,
    path: str | Path | None = None,
    *,
    conventions: Conventions = "paper",
    tau: float | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[Genotype, Weights]:
    """The genotype and the weights (float32) of a trained SpikeDHS classifier.

    Args:
        checkpoint: a state_dict, .npz, .pth or .pt; its names tell which code base trained it.
        cell: the authors' cell genotype, .npy [2·nodes, 2]: rows (edge, operation), node j's edges
            counted after node j - 1's. None: the published one.
        path: the level of every cell, .npy [layers]. None: read from the numbers of channels.
        conventions: how the cell is read; `authors` sorts its two columns separately, as their
            code does. Weights go to the same edges in either; only the labels b differ.
        tau: the leak factor; None: the code base's own.
        say: is told what was found and what was left out.

    Channels, classes and input channels are read from the weights. Steps (6) and the input's size
    (32x32), which no checkpoint has, can be changed with `snnir.genotype.retarget`.

    Raises:
        SnnirError: unreadable files, arrays that are no cell or path, weights that are missing,
            left over or of another shape, by their names.
    """
    found = _Checkpoint(str(checkpoint), read_checkpoint(checkpoint))
    naming = found.naming()
    say(f"{checkpoint}: a checkpoint of {naming.code}")
    rows = np.array(PUBLISHED_CELL) if cell is None else read_integers(cell, "[2·nodes, 2]")
    choice = read_cell(rows, conventions, "the published cell" if cell is None else str(cell))
    channels = found.channels(naming, len(choice))
    levels = found.levels(naming, channels) if path is None else _read_levels(path)
    text = _genotype_text(
        stem=channels * len(choice),
        inputs=found.sizes(f"{naming.stem.weights}.weight", 4)[1],
        classes=found.sizes(f"{naming.head.weights}.weight", 2)[0],
        neuron=_neuron_text(naming, tau),
        cell=_cell_text(choice),
        layers=f"channels={channels} {{ {' '.join(f'normal@{level}' for level in levels)} }}",
        annotate=AT_THRESHOLD if naming.spikingjelly_neurons else "",
    )
    genotype = parse(Source(f"the genotype of {checkpoint}", text))
    layers = list(_layers(naming, choice, len(levels)))
    weights = found.weights(genotype, layers, naming)
    unused = len(found.state) - len(list(_names(layers)))
    say(f"left out {unused} arrays that inference does not read: auxiliary head, copies, counters")
    if naming.spiking_logits:
        say("left out the neuron after the classifier: logits are the mean of what it reads")
    return genotype, weights


# --- genotype arrays ----------------------------------------------------------------------------


def read_cell(rows: np.ndarray, conventions: Conventions, name: str = "cell") -> CellChoice:
    """The authors' cell genotype [2·nodes, 2], rows (edge, operation), as a choice of edges.

    Raises:
        SnnirError: when it is not two edges per node, with operations 0, 1 and 2.
    """
    nodes = len(rows) // 2
    if rows.shape != (2 * nodes, 2):
        raise SnnirError(f"{name}: found shape {rows.shape}, expected (2·nodes, 2)")
    count = nodes * (nodes + 3) // 2
    read: list[list[Edge]] = [[] for _ in range(nodes)]
    for number, (edge, operation) in enumerate(rows.tolist()):
        if not (0 <= edge < count and 0 <= operation < len(OPERATIONS)):
            raise SnnirError(
                f"{name}: row {number}: found edge {edge}, operation {operation}, expected an edge "
                f"below {count} ({nodes} nodes have as many), an operation below {len(OPERATIONS)}"
            )
        node, state = _ends(edge)
        read[node].append(Edge(state, operation))
    for node, kept in enumerate(read):
        states = sorted(edge.state for edge in kept)
        if len(states) != 2 or states[0] == states[1]:
            raise SnnirError(f"{name}: node {node}: found states {states}, expected two to read")
    choice = [tuple(sorted(kept)) for kept in read]
    return columns_sorted(choice) if conventions == "authors" else tuple(choice)


def _ends(edge: int) -> tuple[int, int]:
    """The node that reads an edge and the state it comes from: node j has 2 + j edges."""
    node = 0
    while edge >= 2 + node:
        edge -= 2 + node
        node += 1
    return node, edge


def _read_levels(path: str | Path) -> list[int]:
    levels: list[int] = read_integers(path, "[layers]").tolist()
    if not all(0 <= level <= MAX_LEVEL for level in levels):
        raise SnnirError(f"{path}: found levels {levels}, expected levels from 0 to {MAX_LEVEL}")
    return levels


# --- the genotype's text ------------------------------------------------------------------------


def _genotype_text(
    *, stem: int, inputs: int, classes: int, neuron: str, cell: str, layers: str, annotate: str
) -> str:
    return f"""snn 1
network spikedhs

input image: frame[{inputs}, 32, 32]
steps 6

neuron {neuron}

cell normal(prev_prev, prev) {{
{cell}
}}

backbone trunk(image) {{
  stem conv3x3({stem})
  layers {layers}
}}

head classify(trunk, classes={classes})
{annotate}"""


def _neuron_text(naming: Naming, tau: float | None) -> str:
    reset = ", detach_reset=true" if naming.spikingjelly_neurons else ""
    tau = naming.tau if tau is None else tau
    return f"lif(tau={tau}, v_threshold=0.5, surrogate=dspike(b=3){reset})"


def _state_names(choice: CellChoice) -> list[str]:
    return ["prev_prev", "prev", *(f"n{node}" for node in range(len(choice)))]


def _cell_text(choice: CellChoice) -> str:
    states = _state_names(choice)
    return "\n".join(
        f"  n{node} = " + " + ".join(OPERATIONS[e.candidate].format(states[e.state]) for e in edges)
        for node, edges in enumerate(choice)
    )


# --- weights ------------------------------------------------------------------------------------


def _layers(naming: Naming, choice: CellChoice, cells: int) -> Iterator[tuple[Layer, Layer]]:
    """Every layer's paths, the network's and the checkpoint's."""
    yield Layer("trunk.stem.0.conv", "trunk.stem.0.bn"), naming.stem
    states = _state_names(choice)
    for cell in range(cells):
        for node, edges in enumerate(choice):
            for place, edge in enumerate(edges):
                ours = f"trunk.layers.{cell}.n{node}.{states[edge.state]}"
                row = 2 * node + place
                theirs = naming.edge.at(cell=cell, node=node, place=place + 1, row=row)
                yield Layer(f"{ours}.conv", f"{ours}.bn"), theirs
    yield Layer("head.linear", "head.bn"), naming.head


def _names(layers: Sequence[tuple[Layer, Layer]]) -> Iterator[tuple[str, str]]:
    """Every array's names, the network's and the checkpoint's."""
    for ours, theirs in layers:
        for leaf in WEIGHT:
            yield f"{ours.weights}.{leaf}", f"{theirs.weights}.{leaf}"
        for leaf in NORM if theirs.batch_norm else ():
            yield f"{ours.batch_norm}.{leaf}", f"{theirs.batch_norm}.{leaf}"


@dataclass(frozen=True)
class _Checkpoint:
    name: str
    state: dict[str, np.ndarray]

    def naming(self) -> Naming:
        """The naming whose stem the checkpoint has."""
        stems = {f"{naming.stem.weights}.weight": naming for naming in NAMINGS}
        for stem, naming in stems.items():
            if stem in self.state:
                return naming
        raise SnnirError(f"{self.name}: found no SpikeDHS network, expected {' or '.join(stems)}")

    def sizes(self, key: str, dimensions: int) -> tuple[int, ...]:
        """The shape of an array of so many dimensions."""
        if key not in self.state:
            raise SnnirError(f"{self.name}: {key}: found nothing, expected weights")
        shape = self.state[key].shape
        if len(shape) != dimensions or 0 in shape:
            raise SnnirError(
                f"{self.name}: {key}: found shape {shape}, expected {dimensions} sizes, none 0"
            )
        return shape

    def channels(self, naming: Naming, nodes: int) -> int:
        """C: what a node at level 0 has; the stem has as many as a cell of them."""
        key = f"{naming.stem.weights}.weight"
        stem = self.sizes(key, 4)[0]
        if stem % nodes:
            raise SnnirError(
                f"{self.name}: {key}: found {stem} channels, expected a multiple of the {nodes} "
                "nodes of a cell (--cell gives another cell)"
            )
        return stem // nodes

    def levels(self, naming: Naming, channels: int) -> list[int]:
        """The level of every cell: its nodes have channels · 2^level channels."""
        numbers = [re.match(r"feature\.cells\.(\d{1,4})\.", key) for key in self.state]
        cells = 1 + max((int(number[1]) for number in numbers if number), default=0)
        level_of = {channels << level: level for level in range(MAX_LEVEL + 1)}
        levels = []
        for cell in range(cells):
            key = f"{naming.edge.at(cell=cell, node=0, place=1, row=0).weights}.weight"
            width = self.sizes(key, 4)[0]
            if width not in level_of:
                raise SnnirError(
                    f"{self.name}: {key}: found {width} channels, expected {channels} times a "
                    "power of two (--path gives the levels, --cell another cell)"
                )
            levels.append(level_of[width])
        return levels

    def weights(
        self, genotype: Genotype, layers: Sequence[tuple[Layer, Layer]], naming: Naming
    ) -> Weights:
        """The network's weights, after every array of the checkpoint is checked."""
        graph = build(genotype)
        shapes = expected_shapes(graph)
        names = dict(_names(layers))
        unused = re.compile(f"{ALWAYS_UNUSED}|{naming.unused}")
        read = {key: _float32(x) for key, x in self.state.items() if not unused.match(key)}
        expected = {theirs: shapes[ours] for ours, theirs in names.items()}
        check_arrays(expected, read, name=self.name, network=graph.name)
        return {
            ours: read[names[ours]]
            if ours in names
            else np.full(shape, NO_NORM[ours.rsplit(".", 1)[1]], np.float32)
            for ours, shape in shapes.items()
        }


def _float32(array: np.ndarray) -> np.ndarray:
    """What is too large becomes infinite, which no weight may be; whole numbers stay."""
    with np.errstate(over="ignore"):
        return array.astype(np.float32) if array.dtype.kind == "f" else array
