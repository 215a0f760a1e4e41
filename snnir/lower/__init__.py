"""The graph in PyTorch: neurons, surrogates and the module."""

from snnir.lower.module import SpikingModule
from snnir.lower.operations import State, Value

__all__ = ["SpikingModule", "State", "Value"]
