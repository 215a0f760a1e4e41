"""Data sets by name, as seeded batches: `open_data("cifar10:PATH", request)`, then `batches`."""

from snnir.data.augmentation import Augmentation
from snnir.data.events import Events, bin_events, stack_events
from snnir.data.loader import Batches, batches
from snnir.data.registry import DATA_SETS, open_data
from snnir.data.request import Request, Splits
from snnir.data.samples import Samples, Source

__all__ = [
    "DATA_SETS",
    "Augmentation",
    "Batches",
    "Events",
    "Request",
    "Samples",
    "Source",
    "Splits",
    "batches",
    "bin_events",
    "open_data",
    "stack_events",
]
