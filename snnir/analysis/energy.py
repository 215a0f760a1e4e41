"""What operations cost, by cost models that are data: the TOML files in `cost_models`, or a user's.

A price that a model does not have counts nothing; multiplications without a price are reported
(`Energy.unpriced_macs`).
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Final, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from snnir.analysis.operations import LayerOperations, Operations
from snnir.errors import SnnirError, did_you_mean, explain

PICOJOULES_PER_MILLIJOULE: Final = 1e9
WORD_BYTES: Final = 4

Price = Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False, strict=True)]


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Prices(_Data):
    """Picojoules per operation; the names are those of `Operations`."""

    synop: Price | None = None
    mac: Price | None = None
    addition: Price | None = None
    """Of skips, average pools and the mean over time."""
    update: Price | None = None
    """A membrane, one step."""
    spike: Price | None = None
    """A spike fired."""


class Memory(_Data):
    """Traffic of 32-bit words between arithmetic and SRAM, after Lemaire et al. 2022.

    Per SynOp: a weight read, the membrane read and written. Per MAC: input and weight read. Per
    membrane update: read and written. Per spike: written and read once, through a FIFO. Biases are
    read once per output and step. Addressing: an addition per SynOp and two multiplications per
    spike read. A memory is as large as what it holds; its price is linear between the given ones.
    """

    access_pj: tuple[tuple[Price, Price], ...] = Field(min_length=2)
    """[bytes, picojoules per access], ascending."""
    fifo_words: Annotated[int, Field(gt=0, le=10**9)]
    multiply_pj: Price
    add_pj: Price

    @model_validator(mode="after")
    def _ascending(self) -> Memory:
        sizes = [size for size, _ in self.access_pj]
        if sizes != sorted(set(sizes)):
            raise ValueError("expected sizes in ascending order")
        return self

    def access(self, words: int) -> float:
        """Picojoules of one access to a memory of that many words."""
        sizes, prices = zip(*self.access_pj, strict=True)
        return float(np.interp(words * WORD_BYTES, sizes, prices))


class CostModel(_Data):
    """What operations cost, and who says so."""

    name: Annotated[str, Field(min_length=1)]
    about: str
    """What is priced."""
    source: str
    synops: Literal["exact", "rate"] = "exact"
    """Which of the two counts is priced (`snnir.analysis.operations`)."""
    energy_pj: Prices
    memory: Memory | None = None


@dataclass(frozen=True)
class Energy:
    """Of one sample, in millijoules."""

    arithmetic_mj: float
    memory_mj: float
    """Traffic and addressing."""
    unpriced_macs: float
    """Multiply-accumulates that the model has no price for."""

    @property
    def total_mj(self) -> float:
        return self.arithmetic_mj + self.memory_mj


def energy(found: Sequence[LayerOperations], model: CostModel) -> Energy:
    """Of some layers, or all."""
    operations = sum((one.operations for one in found), Operations())
    memory = sum(_memory_pj(one, model.memory) for one in found) if model.memory else 0.0
    return Energy(
        arithmetic_mj=arithmetic_pj(operations, model) / PICOJOULES_PER_MILLIJOULE,
        memory_mj=memory / PICOJOULES_PER_MILLIJOULE,
        unpriced_macs=operations.macs if model.energy_pj.mac is None else 0.0,
    )


def arithmetic_pj(operations: Operations, model: CostModel) -> float:
    """Picojoules of the operations themselves."""
    exact = model.synops == "exact"
    price = model.energy_pj
    priced = (
        (operations.synops if exact else operations.synops_by_rate, price.synop),
        (operations.macs_exact if exact else operations.macs, price.mac),
        (operations.additions, price.addition),
        (operations.updates, price.update),
        (operations.spikes, price.spike),
    )
    return sum(count * (pj or 0.0) for count, pj in priced)


def _memory_pj(one: LayerOperations, memory: Memory) -> float:
    """Traffic and addressing of one layer."""
    did, fifo = one.operations, memory.access(memory.fifo_words)
    if one.layer.op == "neuron":
        return 2 * did.updates * memory.access(one.values) + did.spikes * fifo
    weights = memory.access(one.parameters)
    biases = one.values * one.runs * weights if one.biased else 0.0
    if did.macs:
        return did.macs_exact * (memory.access(one.inputs) + weights) + biases
    traffic = did.synops * (weights + 2 * memory.access(one.values)) + one.events * fifo
    addressing = did.synops * memory.add_pj
    addressing += 2 * one.events * (memory.multiply_pj + memory.add_pj)
    return traffic + addressing + biases


def _in_the_box() -> dict[str, CostModel]:
    folder = resources.files("snnir.analysis") / "cost_models"
    names = ("45nm", "memory", "loihi", "truenorth")
    return {name: _parsed((folder / f"{name}.toml").read_text("utf-8"), name) for name in names}


def cost_model(name_or_path: str) -> CostModel:
    """One of the box by name, or a user's TOML file.

    Raises:
        SnnirError: an unknown name, an unreadable file, unknown or missing fields, negative prices.
    """
    known = _in_the_box()
    if name_or_path in known:
        return known[name_or_path]
    if not name_or_path.endswith(".toml"):
        hint = did_you_mean(name_or_path, known)
        expected = f"one of {', '.join(known)} or a .toml file"
        raise SnnirError(f"found cost model '{name_or_path}', expected {expected} {hint}".rstrip())
    try:
        text = Path(name_or_path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SnnirError(f"{name_or_path}: found no readable file: {error}") from None
    return _parsed(text, name_or_path)


def cost_models() -> list[CostModel]:
    """Those in the box."""
    return list(_in_the_box().values())


def _parsed(text: str, where: str) -> CostModel:
    try:
        content = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # numbers too long to read, brackets too deep
        raise SnnirError(f"{where}: found no readable TOML: {error}") from None
    try:
        return CostModel.model_validate(content)
    except ValidationError as error:
        known = [*CostModel.model_fields, *Prices.model_fields, *Memory.model_fields]
        lines = [f"{where}: {explain(e, known, 'the cost model')}" for e in error.errors()]
        raise SnnirError("\n".join(lines)) from None
