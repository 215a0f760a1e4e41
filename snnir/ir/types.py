"""The types of edges: what values flow (domain), how they change (time), and their shape."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from snnir.errors import SnnirError

Shape = tuple[int, ...]
"""Without steps and batch: (C,), (C, H, W) or (C, D, H, W)."""


class ShapeError(SnnirError):
    """Shapes that a node cannot take; the message says what was found and expected."""


class Domain(StrEnum):
    """What values an edge carries; inferred, never declared."""

    SPIKE = "spike"
    """{0, 1}"""
    SIGNED = "signed"
    """{-1, 0, 1}: SBT events"""
    COUNT = "count"
    """whole numbers from 0: sums of spikes"""
    REAL = "real"

    @property
    def multiplies(self) -> bool:
        """Whether a weight layer that reads this domain has to multiply."""
        return self not in (Domain.SPIKE, Domain.SIGNED)


class Time(StrEnum):
    """How an edge changes over the steps of one sample."""

    STATIC = "static"
    """the same at every step: [N, …], computed once"""
    STEPPED = "stepped"
    """one value per step: [T, N, …]"""


@dataclass(frozen=True, slots=True)
class TensorType:
    """What is known of an edge; None until the pass that infers it has run."""

    shape: Shape | None = None
    domain: Domain | None = None
    time: Time | None = None

    def __str__(self) -> str:
        if self.shape is None:
            return "?"
        sizes = ", ".join(map(str, self.shape))
        return " ".join(filter(None, [f"{self.domain or ''}[{sizes}]", self.time]))


def join_domains(domains: list[Domain]) -> Domain:
    """The smallest domain holding all of `domains` (concatenation)."""
    found = set(domains)
    if len(found) == 1:
        return domains[0]
    if found == {Domain.SPIKE, Domain.SIGNED}:
        return Domain.SIGNED
    if found == {Domain.SPIKE, Domain.COUNT}:
        return Domain.COUNT
    return Domain.REAL


def volume(shape: Shape) -> int:
    """The number of values in a shape."""
    total = 1
    for size in shape:
        total *= size
    return total
