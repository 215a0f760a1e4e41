"""NIR in real clients, as shipped: our files there, theirs here, spike for spike.

pip install -e ".[dev,peers]"  and  pytest -m peers
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import assert_all_fire, calibrated, run_recorded, small, whole
from torch import nn

from snnir import models
from snnir.analysis.certificate import certify
from snnir.errors import SnnirError
from snnir.export.nir import export_nir, nir_bytes
from snnir.importers.nir import read_nir
from snnir.ir import build
from snnir.ir.nodes import Conv
from snnir.lower import SpikingModule
from snnir.passes import (
    FOLDING,
    LEGALISING_FOR_NIR,
    NIR_DEPLOYMENT,
    ROUNDING_WITH_LEAKS,
    WHOLE_NUMBERS,
    run_passes,
)
from snnir.passes.quantise_images import eight_bit
from snnir.weights import read_weights

nir = pytest.importorskip("nir")
pytestmark = pytest.mark.peers


# --- clients: outputs [T, N, …] and spikes by node of the file ----------------------------------


def watch(module, kinds):
    """Record what the children of some kinds give, by name, step by step."""
    seen: dict[str, list[torch.Tensor]] = {}

    def keep(name):
        def hook(_, inputs, output):
            spikes = output[0] if isinstance(output, tuple) else output
            seen.setdefault(name, []).append(spikes.detach())

        return hook

    for name, child in module.named_children():
        if type(child).__name__ in kinds:
            child.register_forward_hook(keep(name))
    return seen


def run_steps(module, x, steps):
    """A stateful nirtorch module, step by step."""
    outputs, state = [], None
    for _ in range(steps):
        y, state = module(x, state)
        outputs.append(y)
    return torch.stack(outputs)


def in_spikingjelly(path, x, steps):
    exchange = pytest.importorskip("spikingjelly.activation_based.nir_exchange.from_nir")
    module = exchange.import_from_nir(nir.read(path), dt=1e-4, dtype=x.dtype)
    spikes = watch(module, {"_NIRStatefulModule"})
    return run_steps(module, x, steps), spikes


def in_snntorch(path, x, steps):
    snntorch = pytest.importorskip("snntorch")
    from snntorch import utils
    from snntorch.import_nir import import_from_nir

    module = import_from_nir(nir.read(path)).to(x.dtype)
    for child in module.children():  # spikes leave snnTorch's neurons in fp32, whatever they are in
        if isinstance(child, snntorch.Synaptic):
            child.register_forward_hook(lambda _, inputs, spikes: spikes.to(x.dtype))
    spikes = watch(module, {"Synaptic"})
    utils.reset(module)
    return torch.stack([module(x)[0] for _ in range(steps)]), spikes


def in_norse(path, x, steps):
    norse = pytest.importorskip("norse.torch.utils.import_nir")
    import nirtorch

    def mapped(node):
        return norse._import_norse_module(node, dt=1e-4)

    kinds = dict.fromkeys((nir.Affine, nir.Conv2d, nir.CubaLIF), mapped)
    module = nirtorch.nir_to_torch(nir.read(path), kinds, dtype=x.dtype)
    spikes = watch(module, {"CubaLIF"})
    return run_steps(module, x, steps), spikes


CLIENTS = {"spikingjelly": in_spikingjelly, "snntorch": in_snntorch, "norse": in_norse}


def in_client(client, path, x, steps):
    with torch.no_grad():
        outputs, spikes = CLIENTS[client](path, x, steps)
    return outputs, {name: torch.stack(by_step) for name, by_step in spikes.items()}


# --- our files there ----------------------------------------------------------------------------


SQUARE = "input=2x8x8"
"""NIR has no convolutions over other than square kernels, as exact mode has for a global pool."""

NETWORKS = ("fashion_small", "layered", "spikes")
"""A trained network of four cells over three levels; skips of joined and halved maps; one that
mixes at the spike."""


def network(name, passes=FOLDING, settings=()):
    """A folded graph and the legal one with their weights, and an input."""
    if name == "fashion_small":
        graph = build(models.load(name))
        weights = read_weights(models.trained_weights(name), graph)
        x = models.fashion_mnist_sample()[0][::20]
    else:
        graph, weights, (x,) = calibrated(name, 3, *settings)
    folded = run_passes(passes, graph, weights)
    legal = run_passes(LEGALISING_FOR_NIR, folded.graph, folded.weights)
    return folded, legal, x


def assert_spikes_there_as_here(path, client, legal, spikes, expected, x):
    """Every spike of every layer, and the output."""
    assert_all_fire(spikes)
    outputs, found = in_client(client, path, torch.from_numpy(x), legal.graph.steps)
    named = {n.path: found[n.path.replace(".", "_")] for n in legal.graph.neurons}
    for layer, fired in spikes.items():
        assert torch.equal(whole(named, layer).to(fired.dtype), fired), layer
    mean = outputs.to(expected.dtype).mean(0)
    torch.testing.assert_close(mean, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(
    ("client", "written_for"),
    [*((client, "spikingjelly") for client in CLIENTS), ("snntorch",) * 2, ("norse",) * 2],
)
def test_our_file_spikes_there_as_here_in_float64(tmp_path, name, client, written_for):
    folded, legal, x = network(name)
    path = tmp_path / "network.nir"
    path.write_bytes(nir_bytes(export_nir(legal.graph, legal.weights, client=written_for)))
    wide = x.astype(np.float64)
    weights = {key: array.astype(wide.dtype) for key, array in folded.weights.items()}
    expected, spikes = run_recorded(folded.graph, weights, (wide,))
    assert_spikes_there_as_here(path, client, legal, spikes, expected, wide)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("client", CLIENTS)
def test_an_exact_network_in_fp32_here_spikes_there_in_float64(tmp_path, name, client):
    """One file for all clients, which fire at the threshold or above it. In fp32 here, whatever
    the order of the sums; there they are shown an image's whole numbers."""
    passes = (*FOLDING, *WHOLE_NUMBERS, *ROUNDING_WITH_LEAKS)
    folded, legal, x = network(name, passes, [SQUARE] if name == "layered" else [])
    assert certify(legal.graph, legal.weights, for_others=True).holds
    path = tmp_path / "network.nir"
    path.write_bytes(nir_bytes(export_nir(legal.graph, legal.weights, client="any")))
    expected, spikes = run_recorded(folded.graph, folded.weights, (eight_bit(x),))
    pixels = np.rint(255 * x).clip(0, 255)
    assert_spikes_there_as_here(path, client, legal, spikes, expected, pixels.astype(np.float64))


@pytest.mark.parametrize("client", CLIENTS)
def test_a_leak_of_a_half_is_exact_there_in_fp32_too(tmp_path, client):
    """tau_mem and r are then powers of two, and a client rounds nothing."""
    graph, weights, (x,) = calibrated("layered", 3, SQUARE)
    graph = graph.copy()
    for neuron in graph.neurons:
        graph.replace(neuron.model_copy(update={"tau": 0.5}))
    folded = run_passes((*FOLDING, *WHOLE_NUMBERS, *ROUNDING_WITH_LEAKS), graph, weights)
    legal = run_passes(LEGALISING_FOR_NIR, folded.graph, folded.weights)
    path = tmp_path / "network.nir"
    path.write_bytes(nir_bytes(export_nir(legal.graph, legal.weights, client="any")))
    expected, spikes = run_recorded(folded.graph, folded.weights, (eight_bit(x),))
    pixels = np.rint(255 * x).clip(0, 255).astype(np.float32)
    assert_spikes_there_as_here(path, client, legal, spikes, expected, pixels)


AT_THRESHOLD = """
input image: frame[1, 2, 2]
steps 2
neuron lif(tau=0.5, v_threshold=0.5)
backbone trunk(image) { stem conv1x1(1, bn=false) }
head classify(trunk, classes=2)
"""


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("written_for", ["spikingjelly", "snntorch"])
def test_a_membrane_at_the_threshold_stays_silent(tmp_path, client, written_for):
    """u = v_threshold exactly does not fire here. Without the threshold one float up it fires in
    SpikingJelly."""
    legal = run_passes(NIR_DEPLOYMENT, build(small(AT_THRESHOLD))).graph
    weights = SpikingModule(legal).weights()
    (conv,) = legal.of_type(Conv)
    weights[f"{conv.path}.weight"][:] = 0.5
    weights[f"{conv.path}.bias"][:] = 0
    path = tmp_path / "network.nir"
    path.write_bytes(nir_bytes(export_nir(legal, weights, client=written_for)))
    x = torch.tensor([[[[1.0, 1.25], [0.5, 0.0]]]])
    _, spikes = in_client(client, path, x, 2)
    fired = spikes["trunk_stem_0_neuron"][0].flatten().tolist()
    fires_at = client == "spikingjelly" and written_for != "spikingjelly"
    assert fired == [float(fires_at), 1, 0, 0]


# --- their files here ---------------------------------------------------------------------------


def compare(path, client, module, kinds, x, steps=4):
    """Their module on x, step by step, against what we read: every spike, and the mean output."""
    graph, weights = read_nir(path, steps=steps, client=client)
    theirs = watch(module, kinds)
    with torch.no_grad():
        outputs = torch.stack([module(x) for _ in range(steps)])
    wide = {key: array.astype(x.numpy().dtype) for key, array in weights.items()}
    found, spikes = run_recorded(graph, wide, (x.numpy(),))
    assert_all_fire(spikes, least=0.02)
    assert set(spikes) == set(theirs)
    for name, fired in spikes.items():
        assert torch.equal(fired, torch.stack(theirs[name])), name
    torch.testing.assert_close(found, outputs.mean(0), rtol=0, atol=1e-6)


def test_a_spikingjelly_network_with_skips_runs_here(tmp_path):
    pytest.importorskip("spikingjelly")
    from spikingjelly.activation_based import functional, layer, neuron
    from spikingjelly.activation_based.nir_exchange.to_nir import export_to_nir

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = layer.Conv2d(1, 6, 3, stride=2, padding=1, bias=False)
            self.first = neuron.LIFNode(tau=2.0, v_threshold=0.25)
            self.spread = layer.Conv2d(6, 6, 3, padding=2, dilation=2)
            self.second = neuron.LIFNode(tau=1.25, decay_input=False, v_threshold=0.5)
            self.close = layer.Conv2d(6, 6, 3, padding="same")
            self.third = neuron.IFNode()
            self.pool = layer.AvgPool2d(2)
            self.fourth = neuron.CUBALIFNode(c_decay=0.0, v_decay=0.3, v_threshold=0.6)
            self.flatten = layer.Flatten()
            self.readout = layer.Linear(6 * 49, 10)

        def forward(self, x):
            x = self.first(self.stem(x))
            y = self.second(self.spread(x))
            z = self.third(self.close(y) + x)
            return self.readout(self.flatten(self.fourth(self.pool(z + y))))

    torch.manual_seed(0)
    module = Network().double().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(2)
    x = 2 * torch.rand(3, 1, 28, 28, dtype=torch.float64)
    export_to_nir(module, x, save_path=tmp_path / "theirs.nir")
    functional.reset_net(module)
    kinds = {"LIFNode", "IFNode", "CUBALIFNode"}
    compare(tmp_path / "theirs.nir", "spikingjelly", module, kinds, x)


def test_a_snntorch_network_runs_here(tmp_path):
    """Those that reset to zero at once: their files do not say what else a reset may be."""
    snntorch = pytest.importorskip("snntorch")
    from snntorch import utils
    from snntorch.export_nir import export_to_nir

    def fields(shape, beta, threshold):
        return {
            "beta": torch.full(shape, beta), "threshold": torch.full(shape, threshold),
            "init_hidden": True, "reset_mechanism": "zero", "reset_delay": False,
        }  # fmt: skip

    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(1, 6, 3, stride=2, padding=1),
        snntorch.Leaky(**fields((6, 14, 14), 0.9, 0.5)),
        nn.AvgPool2d((2, 2), (2, 2)),
        nn.Conv2d(6, 8, 3, padding=1),
        snntorch.Synaptic(alpha=torch.zeros(8, 7, 7), **fields((8, 7, 7), 0.3, 0.25)),
        nn.Flatten(),
        nn.Linear(8 * 49, 10),
        snntorch.Leaky(**fields((10,), 0.5, 0.05)),
    )
    x = 2 * torch.rand(3, 1, 28, 28)
    nir.write(tmp_path / "theirs.nir", export_to_nir(module, x, ignore_dims=[0]))
    utils.reset(module)
    compare(tmp_path / "theirs.nir", "snntorch", module, {"Leaky", "Synaptic"}, x)


def test_a_recurrent_snntorch_network_is_refused_by_node(tmp_path):
    snntorch = pytest.importorskip("snntorch")
    from snntorch.export_nir import export_to_nir

    module = nn.Sequential(
        nn.Linear(8, 5),
        snntorch.RLeaky(
            beta=torch.full((5,), 0.5), linear_features=5, init_hidden=True, all_to_all=True
        ),
        nn.Linear(5, 2),
    )
    graph = export_to_nir(module, torch.rand(2, 8), ignore_dims=[0])
    nir.write(tmp_path / "theirs.nir", graph)
    with pytest.raises(SnnirError, match=r"1\.lif \(LIF\).*found a recurrent connection"):
        read_nir(tmp_path / "theirs.nir", steps=2, client="snntorch")


# --- the documentation --------------------------------------------------------------------------

DOCUMENT = Path(__file__).parents[1] / "docs" / "nir.md"


@pytest.mark.parametrize("client", CLIENTS)
def test_the_documented_code_runs(tmp_path, monkeypatch, client):
    blocks = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.S)
    (code,) = [block for block in blocks if re.search(rf"^(import|from) .*{client}", block, re.M)]
    pytest.importorskip(client)
    folded, legal, images = network("fashion_small")
    monkeypatch.chdir(tmp_path)
    Path("network").mkdir()
    Path("network/network.nir").write_bytes(nir_bytes(export_nir(legal.graph, legal.weights)))
    x = torch.from_numpy(images).double()
    names = {"x": x}
    with torch.no_grad():
        exec(code, names)
        expected = SpikingModule(folded.graph, folded.weights).double().eval()(x)
    torch.testing.assert_close(names["logits"], expected, rtol=0, atol=1e-12)
