"""Round what a network computes with, so that no sum leaves fp32's exact range (docs/exact.md).

weights, biases of all layers in one sum     -->  multiples of 2^g, the finest g that fits
leak·v (ALIF: beta·a, tau_a·a; relu: y)      -->  rounded to multiples of the neuron's own 2^g
v_threshold                                  -->  the multiple of 2^g below it, or it itself
costs and what is interpolated of them       -->  rounded to multiples of a 2^g of their own
exp(-x) of the soft argmin                   -->  looked up in a table of whole numbers

The second pass leaves neurons that other programs have, for as many steps as the graph has:

leak                                         -->  the nearest of 0, 1/4, 1/2, 3/4
v_threshold                                  -->  halfway between two values of the membrane
"""

from __future__ import annotations

from math import ceil, floor, log2
from typing import TYPE_CHECKING, Final

from snnir.errors import SnnirError
from snnir.ir.estimator import COST_BITS
from snnir.ir.graph import Graph
from snnir.ir.nodes import Conv, Linear, Neuron, Resize, SoftArgmin
from snnir.passes.base import Pass
from snnir.passes.intervals import (
    EXACT_BITS,
    Bounds,
    bound_membrane,
    bound_node,
    bound_rise,
    lowest_bit,
)
from snnir.weights import Weights

if TYPE_CHECKING:
    import numpy as np

FINEST_GRID: Final = -32
"""Where the search for a layer's grid begins, where its weights are not smaller still."""

RELU_BITS: Final = 10
"""What the output of a relu may take of the 24: the layer that reads it needs the rest."""

LEAKS: Final = 4
"""Steps from 0 to 1 of a leak factor that is itself rounded. Each halving of the step would take a
bit more of the weights at each of the network's steps."""

MOST_ROUNDING: Final = 0.1
"""How much of its weights (root mean square) a layer may lose to rounding."""


def round_to_grid(graph: Graph, weights: Weights) -> bool:
    """Raises SnnirError: naming the sums that only too coarse a grid would fit."""
    if weights:
        _Rounding(graph, weights).run()
    return bool(weights)


def round_with_leaks(graph: Graph, weights: Weights) -> bool:
    """Raises SnnirError: as `round_to_grid`."""
    if weights:
        _RoundingWithLeaks(graph, weights).run()
    return bool(weights)


class _Rounding:
    """The graph and weights as far as they are rounded, node by node in topological order. Where a
    sum does not fit, the layers that feed it take a coarser grid, and it goes on from them."""

    remedy = (
        "give it fewer channels to read; a relu before it makes them cost more, an if neuron, "
        "which forgets nothing, its steps"
    )

    def __init__(self, graph: Graph, weights: Weights):
        self.graph = graph
        self.weights = weights
        self.given = dict(weights)
        self.layers = [n for n in graph.nodes() if isinstance(n, Conv | Linear)]
        self.grids: dict[str, int] = {}
        self.bounds: dict[str, Bounds] = {}
        self.refused: dict[str, str] = {}

    def run(self) -> None:
        order = [node.path for node in self.graph.nodes()]
        for layer in self.layers:
            self.round(layer, self.finest(layer))
        at = 0
        while at < len(order):
            path = order[at]
            at += 1
            excess = self.excess(path)
            if excess > 0 and isinstance(self.graph[path], SoftArgmin):
                self.refused[path] = self.refused_estimator(path)
            elif excess > 0 and path not in self.refused:
                at = min([at, *map(order.index, self.coarsen(path, excess))])
        for layer in self.layers:
            if not self.refused and self.lost(layer) > MOST_ROUNDING:
                self.refused[layer.path] = self.refusal(layer.path, self.lost(layer))
        if self.refused:
            raise SnnirError("\n".join(self.refused.values()))

    def excess(self, path: str) -> int:
        """How many bits a node's sums take beyond those that there are."""
        node = self.graph[path]
        if isinstance(node, Neuron):
            self.round_neuron(node)
        elif isinstance(node, Resize | SoftArgmin):
            self.round_estimator(node)
        node = self.graph[path]
        bounds = bound_node(node, self.graph, self.weights, self.bounds)
        self.bounds[path] = bounds
        return ceil(bounds.bits) - EXACT_BITS

    # --- weights ----------------------------------------------------------------------------

    def coarsen(self, path: str, excess: int) -> list[str]:
        """Take `excess` bits from the layers that feed a node; returns those that changed."""
        feeding = self.feeding(path)
        owners = {owner for layer in feeding for owner in layer.owners}
        changed = [layer for layer in self.layers if owners.intersection(layer.owners)]
        grid = min((self.grids[owner.path] for owner in owners), default=0) + excess
        for layer in changed:
            self.round(layer, grid)
        lost = max(map(self.lost, changed), default=1.0)
        if lost > MOST_ROUNDING:
            self.refused[path] = self.refusal(path, lost)
        return [layer.path for layer in changed]

    def finest(self, layer: Conv | Linear) -> int:
        """A grid on which fp32 has all of the layer's weights that matter."""
        import numpy as np

        largest = max(float(np.abs(self.given[f"{o.path}.weight"]).max()) for o in layer.owners)
        return min(FINEST_GRID, floor(log2(largest)) - EXACT_BITS) if largest else FINEST_GRID

    def feeding(self, path: str) -> list[Conv | Linear]:
        """The nearest weight layers upstream of a node's sum, the node itself if it is one."""
        node = self.graph[path]
        if isinstance(node, Conv | Linear):
            return [node]
        sources = [s for s in self.graph.inputs(path) if not isinstance(self.graph[s], Neuron)]
        return [layer for source in sources for layer in self.feeding(source)]

    def round(self, layer: Conv | Linear, grid: int) -> None:
        """Round the layer's parameters to multiples of 2^grid, those on a coarser one excepted."""
        import numpy as np

        for owner in layer.owners:
            self.grids[owner.path] = max(grid, self.grids.get(owner.path, grid))
            for name in _parameters(layer, owner.path):
                steps = np.ldexp(self.given[name].astype("float64"), -self.grids[owner.path])
                rounded = np.ldexp(np.rint(steps), self.grids[owner.path])
                self.weights[name] = rounded.astype(self.given[name].dtype)

    def lost(self, layer: Conv | Linear) -> float:
        """The root mean square of what rounding changed, as a share of that of the weights."""
        return max(
            rounding_error(self.given[f"{o.path}.weight"], self.weights[f"{o.path}.weight"])
            for o in layer.owners
        )

    def refusal(self, path: str, lost: float) -> str:
        bounds = self.bounds[path]
        worst = max(x.magnitude for x in (*bounds.sums, bounds.value) if x is not None)
        return (
            f"{self.place(path)}: found a sum of up to {worst:.4g} over {self.graph.steps} "
            f"steps, which fits fp32's exact range only on a grid that changes its weights by "
            f"{lost:.0%} (root mean square), expected at most {MOST_ROUNDING:.0%}: {self.remedy}"
        )

    def place(self, path: str) -> str:
        """A node as errors call it."""
        node = self.graph[path]
        at = f"{self.graph.source.locate(node.span)}: " if self.graph.source else ""
        return f"{at}{path} ({node.op})"

    # --- the estimator ----------------------------------------------------------------------

    def refused_estimator(self, path: str) -> str:
        worst = max(x.magnitude for x in self.bounds[path].sums)
        depth = self.graph.input_shapes(path)[0][1]
        return (
            f"{self.place(path)}: found a sum of up to {worst:.4g} over its support in {depth} "
            f"disparities, expected at most {2**EXACT_BITS:.4g}: give the head a smaller support "
            "or max_disparity"
        )

    def round_estimator(self, node: Resize | SoftArgmin) -> None:
        """Interpolate on a grid, and look exponentials up."""
        if isinstance(node, SoftArgmin):
            self.graph.replace(node.model_copy(update={"exact": True}))
            return
        cost = self.bounds[self.graph.inputs(node.path)[0]].value
        if node.mode == "linear" and cost is not None:
            grid = ceil(log2(cost.magnitude or 1)) - COST_BITS
            self.graph.replace(node.model_copy(update={"grid": grid}))

    # --- neurons ----------------------------------------------------------------------------

    def round_neuron(self, node: Neuron) -> None:
        """Give a leaky neuron the finest grid that holds its membrane, a relu that of its output;
        move thresholds down to a multiple of the grid, which changes no comparison."""
        current = self.bounds[self.graph.inputs(node.path)[0]].value
        if current is None:
            return
        grid = current.finest
        if node.kind == "relu":
            grid = max(grid, ceil(log2(current.magnitude or 1)) - RELU_BITS)
            self.graph.replace(node.model_copy(update={"grid": grid}))
            return
        if node.states and node.leak < 1:
            node = node.model_copy(update={"grid": grid})
            largest = bound_membrane(node, current, self.graph.steps).magnitude
            if node.kind == "alif":
                largest = max(largest, bound_rise(node, self.graph.steps).magnitude)
            grid = ceil(log2(largest)) - EXACT_BITS
            node = node.model_copy(update={"grid": grid})
        below = floor(node.v_threshold * 2.0**-grid) * 2.0**grid
        self.graph.replace(node.model_copy(update={"v_threshold": below or node.v_threshold}))


class _RoundingWithLeaks(_Rounding):
    """Neurons stay u = leak·v + I, nothing rounded in between. The grid of the membrane is then
    finer by the leak's bits at every step, and has to fit at the last; thresholds lie half a step
    of it away from every membrane, so that whoever errs by less, fires alike."""

    remedy = (
        "give it fewer channels to read or fewer steps, which take a bit each where the leak is "
        "1/2 and two where it is 1/4 or 3/4"
    )

    def excess(self, path: str) -> int:
        found, node = super().excess(path), self.graph[path]
        if isinstance(node, Neuron) and node.spiking and self.reachable(node):
            bits = ceil(log2(node.v_threshold) - int(lowest_bit(node.v_threshold)))
            found = max(found, bits - EXACT_BITS)
        return found

    def reachable(self, node: Neuron) -> bool:
        """Whether a membrane comes near the threshold at all."""
        current = self.bounds[self.graph.inputs(node.path)[0]].value
        if current is None:
            return False
        membrane = bound_membrane(node, current, self.graph.steps)
        return node.v_threshold <= float(membrane.high.max()) + 2.0**membrane.finest

    def round_neuron(self, node: Neuron) -> None:
        if not node.spiking:
            return
        if 0 < node.leak < 1:
            nearest = min(round(node.leak * LEAKS), LEAKS - 1)
            node = node.model_copy(update={"tau": nearest / LEAKS})
        current = self.bounds[self.graph.inputs(node.path)[0]].value
        if current is not None and self.reachable(node):
            grid = bound_membrane(node, current, self.graph.steps).finest
            between = (floor(node.v_threshold * 2.0**-grid) + 0.5) * 2.0**grid
            node = node.model_copy(update={"v_threshold": between})
        self.graph.replace(node)


def rounding_error(given: np.ndarray, rounded: np.ndarray) -> float:
    """The root mean square of the change, as a share of that of the weights."""
    import numpy as np

    whole = np.square(given, dtype="float64").sum()
    changed = np.square(rounded - given, dtype="float64").sum()
    return float((changed / whole) ** 0.5) if whole else 0.0


def _parameters(layer: Conv | Linear, owner: str) -> list[str]:
    return [f"{owner}.weight", *([f"{owner}.bias"] if layer.bias else [])]


ROUND_TO_GRID = Pass("round_to_grid", round_to_grid)
ROUND_WITH_LEAKS = Pass("round_with_leaks", round_with_leaks)
