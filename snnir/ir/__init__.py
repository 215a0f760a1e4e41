"""The typed graph IR: nodes, graph, building, verification and serialisation."""

from snnir.ir.build import build
from snnir.ir.graph import Edge, Graph
from snnir.ir.types import Domain, TensorType, Time
from snnir.ir.verify import VerifyError, verify

__all__ = ["Domain", "Edge", "Graph", "TensorType", "Time", "VerifyError", "build", "verify"]
