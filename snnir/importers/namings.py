"""How the code bases that train SpikeDHS classifiers name their arrays.

All run one structure (method §3): a stem conv3x3, cells at levels, a classifier.
"""

from __future__ import annotations

from typing import Final, NamedTuple


class Layer(NamedTuple):
    """The paths of a convolution or linear layer and of the batch norm after it, if it has one."""

    weights: str
    batch_norm: str | None

    def at(self, **numbers: int) -> Layer:
        """With numbers in the place of {cell}, {node}, …."""
        norm = self.batch_norm
        return Layer(self.weights.format(**numbers), norm and norm.format(**numbers))


class Naming(NamedTuple):
    """One code base: its names, and what of its neurons differs.

    In `edge`, {cell} counts the cells, {node} a cell's nodes, {place} a node's edges from 1 and
    {row} all edges of a cell, in the order of their edge numbers.
    """

    code: str
    stem: Layer
    edge: Layer
    head: Layer
    unused: str
    """Names that inference does not read, beside `ALWAYS_UNUSED`: a pattern."""
    tau: float
    """The share of the membrane kept per step."""
    spikingjelly_neurons: bool
    """Whether SpikingJelly runs its neurons: they fire at the threshold too, and their reset has no
    gradient."""
    spiking_logits: bool = False
    """Whether a neuron follows the classifier: a genotype has no place for it."""


ALWAYS_UNUSED: Final = r"feature\.auxiliary_head\.|.*\.num_batches_tracked$"

NAMINGS: Final = (
    Naming(
        code="Huawei-BIC/SpikeDHS",
        stem=Layer("feature.stem0.snn_optimal.conv1", "feature.stem0.snn_optimal.bn"),
        edge=Layer("feature.cells.{cell}._ops.{row}.conv1", "feature.cells.{cell}._ops.{row}.bn"),
        head=Layer("classifier.fc1", "classifier.bn"),
        unused=r"feature\.stem0\.(alpha_diffb$|snn_\d+\.)",
        tau=0.2,
        spikingjelly_neurons=False,
    ),
    Naming(
        code="CheKaiWei/SpikeDHS",
        stem=Layer("feature.stem0.conv", "feature.stem0.bn"),
        edge=Layer("feature.cells.{cell}._ops.{row}", None),
        head=Layer("classifier.linear", "classifier.bn.0"),
        unused=r"feature\.stem0_original\.",
        tau=0.8,
        spikingjelly_neurons=True,
        spiking_logits=True,
    ),
    Naming(
        code="SpikingJelly",
        stem=Layer("feature.stem0.conv_m", "feature.stem0.bn_m"),
        edge=Layer(
            "feature.cells.{cell}._ops.{node}.conv{place}_m",
            "feature.cells.{cell}._ops.{node}.bn{place}_m",
        ),
        head=Layer("classifier.linear", "classifier.bn.0"),
        unused=r"feature\..*(\.dgs_alpha$|\.(conv|bn)[12]?_[bs]\.)",
        tau=0.2,
        spikingjelly_neurons=True,
    ),
)
