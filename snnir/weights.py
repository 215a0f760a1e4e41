"""Weights: arrays by parameter name (`trunk.stem.0.conv.weight`), in safetensors files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from snnir.errors import SnnirError, did_you_mean

if TYPE_CHECKING:
    import numpy as np

    from snnir.ir.graph import Graph
    from snnir.ir.types import Shape

Weights = dict[str, "np.ndarray"]
"""Parameters and running statistics by name; empty where only the structure matters."""


def expected_shapes(graph: Graph) -> dict[str, Shape]:
    """The shapes of everything `graph` reads from its weights."""
    return graph.parameter_shapes() | graph.buffer_shapes()


def read_weights(path: str | Path, graph: Graph | None = None) -> Weights:
    """Read a safetensors file, checked against `graph` when one is given.

    Raises:
        SnnirError: unreadable file, or weights of another network, naming the first differences.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        weights = dict(load_file(path))
    except FileNotFoundError:
        raise SnnirError(f"{path}: no such weights file") from None
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise SnnirError(f"{path}: found no readable safetensors file: {error}") from None
    if graph is not None:
        check_weights(graph, weights, name=str(path))
    return weights


def check_weights(
    graph: Graph, weights: Mapping[str, np.ndarray], *, name: str = "weights"
) -> None:
    """Check names, shapes and finiteness against `graph`; auxiliary heads' weights may be left out.

    Raises:
        SnnirError: with the first few differences.
    """
    expected = {
        key: shape
        for key, shape in expected_shapes(graph).items()
        if key in weights or not key.startswith("auxiliary.")
    }
    check_arrays(expected, weights, name=name, network=graph.name)


def check_arrays(
    expected: Mapping[str, Shape], arrays: Mapping[str, np.ndarray], *, name: str, network: str
) -> None:
    """Check that `arrays` are those expected: names, shapes, finite floating-point numbers.

    Raises:
        SnnirError: with the first few differences.
    """
    import numpy as np

    wrong = []
    for key, shape in expected.items():
        if key not in arrays:
            wrong.append(f"{key}: found nothing, expected {shape}")
        elif tuple(arrays[key].shape) != shape:
            wrong.append(f"{key}: found shape {tuple(arrays[key].shape)}, expected {shape}")
        elif arrays[key].dtype.kind != "f":
            wrong.append(f"{key}: found {arrays[key].dtype}, expected floating-point numbers")
        elif not np.isfinite(arrays[key]).all():
            wrong.append(f"{key}: found NaN or infinity, expected finite numbers")
    unknown = f"found a weight that network '{network}' does not have"
    wrong += [
        f"{key}: {unknown} {did_you_mean(key, expected)}".rstrip()
        for key in sorted(set(arrays) - set(expected))[:3]
    ]
    if wrong:
        more = f"\n  … and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        listed = "\n  ".join(wrong[:5])
        raise SnnirError(f"{name}: these are not weights of network '{network}':\n  {listed}{more}")


def weights_bytes(weights: Weights) -> bytes:
    """The content of a safetensors file."""
    import numpy as np
    from safetensors.numpy import save

    return save({name: np.ascontiguousarray(weights[name]) for name in sorted(weights)})


def weights_hash(weights: Weights) -> str:
    """SHA-256 over names, types, shapes and values, independent of order."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        array = weights[name]
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
