"""Searches that write genotypes: SpikeDHS and its baselines over architectures."""

from snnir.search.architecture import Architecture, Edge, count_architectures, genotype_of
from snnir.search.config import PRESETS, SearchConfig
from snnir.search.decode import decode
from snnir.search.run import Search, Searched

__all__ = [
    "PRESETS",
    "Architecture",
    "Edge",
    "Search",
    "SearchConfig",
    "Searched",
    "count_architectures",
    "decode",
    "genotype_of",
]
