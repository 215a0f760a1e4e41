"""Fused layers: the same function as node by node, at the speed of compiled loops."""

from __future__ import annotations

import gc
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import as_float64, calibrated, genotype
from torch import Tensor

import snnir.lower
from snnir.errors import SnnirError
from snnir.ir import build
from snnir.ir.nodes import BatchNorm, Concat, Neuron, Resize
from snnir.lower import SpikingModule, fused
from snnir.lower.neurons import run_neuron
from snnir.lower.surrogates import SURROGATES
from snnir.passes import TRAINING, run_passes

pytestmark = pytest.mark.skipif(not fused.available(), reason="numba is not installed")

STEPS, BATCH, EPS = 3, 2, 1e-5


def neuron(kind: str = "lif", **settings) -> Neuron:
    return Neuron(path="n", kind=kind, **{"tau": 0.3, "surrogate": "arctan", "b": 2.0} | settings)


class Layer:
    """Inputs and parameters of `terms` batch norms, seeded; every run starts from the same."""

    def __init__(
        self, terms: int = 2, channels: int = 5, size: tuple[int, int] = (7, 3), *,
        stepped: bool = True, dtype: torch.dtype = torch.float64,
    ):  # fmt: skip
        torch.manual_seed(channels + terms)
        n = BATCH * STEPS if stepped else BATCH
        self.stepped = stepped
        self.xs = [_leaf(torch.randn(n, channels, *size) * 2 + 1, dtype) for _ in range(terms)]
        number = torch.float64 if dtype == torch.float64 else torch.float32
        self.weights = [_leaf(torch.rand(channels) + 0.5, number) for _ in range(terms)]
        self.biases = [_leaf(torch.randn(channels) * 0.3, number) for _ in range(terms)]
        self.running = [
            (torch.zeros(channels, dtype=number), torch.ones(channels, dtype=number))
            for _ in range(terms)
        ]

    @property
    def leaves(self) -> list[Tensor]:
        return [*self.xs, *self.weights, *self.biases]

    def normalised(self) -> fused.Normalised:
        values = zip(self.xs, self.weights, self.biases, self.running, strict=True)
        return fused.add([
            fused.Normalised(tuple(normalise(x, [fused.Parameters(*p, *running)])), self.stepped)
            for x, *p, running in values
        ])  # fmt: skip

    def fused(self, node: Neuron, *extents: fused.Extent) -> list[Tensor]:
        return fire(node, self.normalised(), *extents or [fused.Extent(0, self.xs[0].shape[1])])

    def node_by_node(self, node: Neuron) -> Tensor:
        total = sum(
            F.batch_norm(x.to(w.dtype), *running, w, b, True, 0.1, EPS)
            for x, w, b, running in zip(
                self.xs, self.weights, self.biases, self.running, strict=True
            )
        )
        current = (
            total.unflatten(0, (-1, BATCH)) if self.stepped else total.expand(STEPS, *total.shape)
        )
        return run_neuron(node, current, {})[0].flatten(0, 1)


def normalise(x: Tensor, owners, sizes=None, **settings) -> list[fused.Term]:
    sizes = sizes or [x.shape[1]]
    return fused.normalise(x, owners, EPS, sizes, momentum=0.1, synchronised=False, **settings)


def fire(node: Neuron, current: fused.Normalised, *extents: fused.Extent) -> list[Tensor]:
    """The spikes of those extents."""
    parts = [fused.Part(str(number), extent) for number, extent in enumerate(extents)]
    return list(fused.fire(node, current, STEPS, parts, {}).values())


def _leaf(x: Tensor, dtype: torch.dtype) -> Tensor:
    x = x.to(dtype)
    if x.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    return x.requires_grad_()


def assert_equal_layers(ours: Layer, theirs: Layer, node: Neuron, **tolerance: float) -> None:
    found, expected = ours.fused(node)[0], theirs.node_by_node(node)
    assert torch.equal(found, expected.to(found.dtype))
    rate = float(found.detach().double().mean())
    assert 0.05 < rate < 0.95, "a neuron that always or never fires proves nothing"
    torch.manual_seed(9)
    weight = torch.randn_like(expected)
    (found * weight).sum().backward()
    (expected * weight).sum().backward()
    for a, b in zip(ours.leaves, theirs.leaves, strict=True):
        assert b.grad.abs().max() > 1e-3
        torch.testing.assert_close(a.grad, b.grad, **tolerance)
    for a, b in zip(ours.running, theirs.running, strict=True):
        torch.testing.assert_close(a, b, **tolerance)


@pytest.mark.parametrize("detach_reset", [False, True])
@pytest.mark.parametrize("surrogate", SURROGATES)
@pytest.mark.parametrize("kind", ["if", "lif"])
def test_spikes_gradients_and_running_statistics_equal_those_node_by_node(
    kind, surrogate, detach_reset
):
    node = neuron(kind, surrogate=surrogate, detach_reset=detach_reset)
    assert_equal_layers(Layer(), Layer(), node, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("stepped", [True, False])
@pytest.mark.parametrize("terms", [1, 2, 3])
@pytest.mark.parametrize(
    ("channels", "size"), [(1, (5, 4)), (16, (1, 5)), (3, (9, 11)), (130, (4, 3)), (600, (2, 2))]
)
def test_any_number_of_terms_channels_and_places(terms, channels, size, stepped):
    layers = (Layer(terms, channels, size, stepped=stepped) for _ in range(2))
    assert_equal_layers(*layers, neuron(), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_fp32(surrogate):
    layers = (Layer(2, 8, (16, 16), dtype=torch.float32) for _ in range(2))
    assert_equal_layers(*layers, neuron(surrogate=surrogate, b=3.0), rtol=1e-4, atol=2e-4)


def test_bfloat16_is_computed_with_in_fp32():
    """As fp32 on the same values; gradients of x are rounded to bfloat16."""
    ours, theirs = (Layer(2, 8, (16, 16), dtype=torch.bfloat16) for _ in range(2))
    node = neuron()
    (found,), expected = ours.fused(node), theirs.node_by_node(node)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found.float(), expected)
    assert 0.05 < float(found.detach().float().mean()) < 0.95
    found.float().square().sum().backward()
    expected.square().sum().backward()
    for a, b in zip(ours.leaves, theirs.leaves, strict=True):
        assert a.grad.dtype == b.grad.dtype
        assert b.grad.abs().max() > 0.1
        rounded = a.dtype == torch.bfloat16  # of currents, then of x
        tolerance = 2e-2 if rounded else 2e-4
        torch.testing.assert_close(a.grad, b.grad, rtol=tolerance, atol=tolerance)


def test_numbers_are_rounded_to_bfloat16_as_torch_does():
    """Halfway cases go to even."""
    from snnir.lower import kernels

    bits = torch.arange(0x3F80_0000, 0x3F82_8000, 0x0000_4000, dtype=torch.int32)
    numbers = torch.cat([bits.view(torch.float32), -bits.view(torch.float32)])
    out = torch.zeros(len(numbers), dtype=torch.bfloat16)
    kernels._store(numbers.data_ptr(), np.float32(0), out.data_ptr(), len(numbers), np.uint16(0))
    assert torch.equal(out.flatten(), numbers.bfloat16())
    assert len(out.unique()) > 4


def test_each_output_has_its_channels_and_gives_its_gradient():
    """Outputs overlap, one is not used, and gradients come in any layout."""
    extents = [fused.Extent(*channels) for channels in ((0, 5), (1, 3), (4, 5), (0, 2))]
    ours, theirs = Layer(), Layer()
    whole, middle, last, unused = ours.fused(neuron(), *extents)
    expected = theirs.node_by_node(neuron())
    for extent, found in zip(extents, (whole, middle, last, unused), strict=True):
        assert torch.equal(found, expected[:, extent.start : extent.stop])
        assert found.is_contiguous(memory_format=torch.channels_last)
    rows = torch.rand(expected.shape, dtype=torch.float64)  # not channels-last

    def loss(whole: Tensor, middle: Tensor, last: Tensor) -> Tensor:
        return (whole * rows).sum() + 3 * middle.sum() + (last**2).mean()

    loss(whole, middle, last).backward()
    loss(expected, expected[:, 1:3], expected[:, 4:5]).backward()
    for a, b in zip(ours.leaves, theirs.leaves, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("stepped", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("channels", [2, 48, 130])
@pytest.mark.parametrize(
    ("size", "strides"),
    [
        ((6, 9), [(2, 3)]),
        ((4, 8), [(2, 2), (1, 4)]),
        ((8, 1), [(4, 1)]),
        ((1, 6), [(1, 2), (1, 1)]),
    ],
)
def test_samples_are_written_alone_and_give_their_gradient(size, strides, channels, dtype, stepped):
    """Of every so many pixels, next to each other; what is not read has no gradient."""
    extents = [fused.Extent(0, channels, *stride) for stride in strides]
    ours, theirs = (Layer(2, channels, size, dtype=dtype, stepped=stepped) for _ in range(2))
    found, whole = ours.fused(neuron(), *extents), theirs.node_by_node(neuron())
    expected = [whole[:, :, ::down, ::across] for down, across in strides]
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b.to(dtype))
        assert 0.05 < float(a.detach().double().mean()) < 0.95
    torch.manual_seed(1)
    weights = [torch.randn(x.shape, dtype=x.dtype) for x in found]
    for outputs in (found, expected):
        sum((x * w.to(x.dtype)).sum() for x, w in zip(outputs, weights, strict=True)).backward()
    tolerance = 1e-9 if dtype == torch.float64 else 1e-2
    for a, b in zip(ours.leaves, theirs.leaves, strict=True):
        assert b.grad.abs().max() > 1e-3
        scale = float(b.grad.abs().max())
        assert float((a.grad.double() - b.grad.double()).abs().max()) <= tolerance * scale


def test_neurons_write_side_by_side():
    """A concatenation and samples of it, of which each neuron gets its gradients."""
    ours, theirs = ([Layer(2, 5, (4, 6)), Layer(1, 3, (4, 6))] for _ in range(2))
    joints: dict[str, fused.Joint] = {}
    for layer, at in zip(ours, (0, 5), strict=True):
        size = layer.xs[0].shape[1]
        extents = {"all": fused.Extent(0, size), "samples": fused.Extent(0, size, 2, 3)}
        parts = [fused.Part(path, extent, at, 8) for path, extent in extents.items()]
        assert fused.fire(neuron(), layer.normalised(), STEPS, parts, joints) == {}
    found = [joints[path].whole() for path in ("all", "samples")]
    whole = torch.cat([layer.node_by_node(neuron()) for layer in theirs], 1)
    expected = [whole, whole[:, :, ::2, ::3]]
    weights = [torch.rand_like(x) for x in expected]
    for outputs in (found, expected):
        sum((x * w).sum() for x, w in zip(outputs, weights, strict=True)).backward()
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)
        assert 0.05 < float(a.detach().mean()) < 0.95
    for layer, other in zip(ours, theirs, strict=True):
        for a, b in zip(layer.leaves, other.leaves, strict=True):
            assert b.grad.abs().max() > 1e-3
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("read", [(0, 1), (1,)])
def test_pieces_of_one_batch_norm_give_one_gradient(read):
    """Each piece to a neuron of its own; the gradient of a piece that is not read is 0."""
    results = []
    for ours in (True, False):
        layer = Layer(1, 5)
        (x,), (w,), (b,) = layer.xs, layer.weights, layer.biases
        hidden = x * 1.0  # what a convolution makes
        if ours:
            owners = [
                fused.Parameters(*parts)
                for parts in zip(*(p.split([2, 3]) for p in (w, b, *layer.running[0])), strict=True)
            ]
            pieces = [fused.Normalised((term,), True) for term in normalise(hidden, owners, [2, 3])]
            outs = [fire(neuron(), pieces[i], fused.Extent(0, 2 + i))[0] for i in read]
        else:
            total = F.batch_norm(hidden, *layer.running[0], w, b, True, 0.1, EPS)
            spikes = run_neuron(neuron(), total.unflatten(0, (-1, BATCH)), {})[0].flatten(0, 1)
            outs = [spikes.split([2, 3], 1)[i] for i in read]
        loss = sum((1 + i) * (out**2).sum() for i, out in enumerate(outs))
        loss.backward(retain_graph=ours)
        results.append([leaf.grad.clone() for leaf in layer.leaves])
        if ours:
            loss.backward()  # adds the same again
            for leaf, once in zip(layer.leaves, results[0], strict=True):
                assert torch.equal(leaf.grad, 2 * once)
    assert results[1][0].abs().max() > 1e-3
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_a_second_backward_pass_knows_nothing_of_the_first():
    """One that reaches all pieces, then one that reaches some."""
    found = []
    for first in (True, False):
        layer = Layer(1, 5)
        (x,), (w,), (b,), running = layer.xs, layer.weights, layer.biases, layer.running[0]
        pieces = normalise(x * 1.0, [fused.Parameters(w, b, *running)], [2, 3])
        outs = [
            fire(neuron(), fused.Normalised((term,), True), fused.Extent(0, size))[0]
            for term, size in zip(pieces, (2, 3), strict=True)
        ]
        if first:
            sum((out**2).sum() for out in outs).backward(retain_graph=True)
            for leaf in layer.leaves:
                leaf.grad = None
        (outs[1] ** 2).sum().backward()
        found.append([leaf.grad for leaf in layer.leaves])
    assert found[0][0].abs().max() > 1e-3
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


def test_a_bias_left_out_moves_the_running_mean_alone():
    """As if it had been added to x: batch norm takes it away again."""
    bias = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64, requires_grad=True)
    results = []
    for left_out in (True, False):
        layer = Layer(1, 3)
        (x,), running = layer.xs, layer.running[0]
        owners = [fused.Parameters(*layer.weights, *layer.biases, *running)]
        hidden = x * 1.0 if left_out else x + bias[:, None, None]
        terms = normalise(hidden, owners, left_out=[bias] if left_out else [])
        current = fused.Normalised(tuple(terms), True)
        (spikes,) = fire(neuron(), current, fused.Extent(0, 3))
        (spikes**2).sum().backward()
        results.append((spikes, *running, *(leaf.grad for leaf in layer.leaves)))
        if left_out:
            assert torch.equal(bias.grad, torch.zeros_like(bias))
    assert torch.equal(results[0][0], results[1][0])
    assert 0.05 < float(results[0][0].detach().mean()) < 0.95
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_results_do_not_depend_on_the_number_of_threads():
    threads = torch.get_num_threads()
    results = []
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            layer = Layer(2, 24, (20, 20), dtype=torch.float32)
            layer.fused(neuron())[0].square().sum().backward()
            results.append([leaf.grad for leaf in layer.leaves])
            assert torch.get_num_threads() == number
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert results[0][0].abs().max() > 1e-3


def test_batch_norm_of_one_value_is_refused():
    layer = Layer(1, 4, (1, 1), stepped=False)
    layer.xs = [x[:1] for x in layer.xs]
    with pytest.raises(ValueError, match="one value per channel"):
        layer.fused(neuron())


# --- modules ------------------------------------------------------------------------------------


def modules(name: str, monkeypatch, *settings: str) -> tuple[SpikingModule, SpikingModule, list]:
    """One that fuses and one that does not, float64, on which every layer fires."""
    graph, weights, inputs = calibrated(name, 2, *settings)
    result = run_passes(TRAINING, graph, as_float64(weights))
    ours = SpikingModule(result.graph, result.weights)
    with monkeypatch.context() as patch:
        patch.setattr(fused, "available", lambda: False)
        theirs = SpikingModule(result.graph, result.weights)
    assert ours.fuses
    assert not theirs.fuses
    return ours, theirs, [torch.from_numpy(x.astype(np.float64)) for x in inputs]


def tensors(output) -> list[Tensor]:
    return [output] if isinstance(output, Tensor) else [output[0], *output[1]]


@pytest.mark.parametrize(
    ("name", "settings"),
    [("menu", ()), ("hybrid", ()), ("spikedhs_cla", ("channels=4", "input=3x8x8")),
     ("small_stereo", ()), ("cifar_space", ("channels=2", "input=3x8x8", "steps=2"))],
)  # fmt: skip
def test_a_training_step_equals_that_node_by_node(name, settings, monkeypatch):
    ours, theirs, inputs = modules(name, monkeypatch, *settings)
    found, expected = tensors(ours(*inputs)), tensors(theirs(*inputs))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    sum((x**2).mean() for x in found).backward()
    sum((x**2).mean() for x in expected).backward()
    gradients = 0
    for (path, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), path
        if b.grad is not None:
            gradients += int(b.grad.abs().max() > 1e-9)
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-7, atol=1e-10)
    assert gradients > 10
    for a, b in zip(ours.buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_what_is_fused():
    """All batch norms of SpikeDHS-CLA but those of the logits, which no neuron reads."""
    graph = run_passes(TRAINING, build(genotype("spikedhs_cla"))).graph
    module = SpikingModule(graph)
    left = {n.path for n in graph.of_type(BatchNorm)} - module._fusion.deferred
    assert left == {"auxiliary.0.bn", "head.bn"}


def test_concatenations_that_samples_alone_are_read_of_are_not_written():
    """Before each reduction one such, and one that the next cell reads too."""
    graph = run_passes(TRAINING, build(genotype("spikedhs_cla"))).graph
    written = SpikingModule(graph)._fusion.written
    paths = {part.path for parts in written.values() for part in parts}
    concatenations = {node.path for node in graph.of_type(Concat)}
    assert concatenations - paths == {"trunk.layers.1.concat", "trunk.layers.4.concat"}
    samples = {node.path for node in graph.of_type(Resize)}
    assert len(samples) == 4
    assert samples <= paths


def test_a_step_leaves_nothing_that_only_the_collector_would_free():
    """Memory would grow by a step's at every step until it ran."""
    module = SpikingModule(run_passes(TRAINING, build(genotype("small_space"))).graph)
    assert module.fuses
    assert any(part.channels for parts in module._fusion.written.values() for part in parts)
    (node,) = module.graph.network_inputs
    gc.collect()
    gc.disable()
    try:
        output = module(torch.rand(2, *node.shape))
        sum(x.sum() for x in tensors(output)).backward()
        del output
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        assert not [x for x in gc.garbage if isinstance(x, Tensor | fused.Joint)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


def test_values_that_are_looked_at_and_states_are_computed_node_by_node(monkeypatch):
    ours, _, inputs = modules("menu", monkeypatch)
    seen = []
    ours.run(*inputs, observe=lambda node, value: seen.append(node.path) or value)
    assert set(seen) == {node.path for node in ours.graph.nodes()}
    _, state = ours.run(*inputs)
    assert state.keys() == {
        f"{n.path}.{name}" for n in ours.graph.of_type(Neuron) for name in n.states
    }
    called, fire = [], fused.fire
    monkeypatch.setattr(fused, "fire", lambda *a, **k: called.append(1) or fire(*a, **k))
    ours.eval()(*inputs)
    with torch.no_grad():
        ours.train()(*inputs)
    assert not called
    ours(*inputs)
    assert called


def test_gradients_do_not_share_memory(monkeypatch):
    """Clipping scales gradients in place: none may be scaled twice."""
    ours, _, inputs = modules("menu", monkeypatch)
    sum((x**2).mean() for x in tensors(ours(*inputs))).backward()
    spans = sorted(
        (p.grad.data_ptr(), p.grad.data_ptr() + p.grad.numel() * p.grad.element_size())
        for p in ours.parameters() if p.grad is not None
    )  # fmt: skip
    assert len(spans) > 10
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))


def test_numba_that_cannot_be_used_is_an_error(monkeypatch):
    """Else the first fused step of a run ends it with a traceback."""
    monkeypatch.delattr(snnir.lower, "kernels", raising=False)
    monkeypatch.setitem(sys.modules, "snnir.lower.kernels", None)
    with pytest.raises(
        SnnirError, match=r"found numba installed but not usable \(.*\), expected a"
    ):
        fused.must_compile(torch.float32)
