"""Graph rewrites, one file each, and the pipelines they form."""

from typing import Final

from snnir.passes.apply_annotations import APPLY_ANNOTATIONS
from snnir.passes.base import Pass, PassResult, run_passes
from snnir.passes.convolve_skips import CONVOLVE_SKIPS
from snnir.passes.drop_auxiliary_heads import DROP_AUXILIARY_HEADS
from snnir.passes.drop_dead_nodes import DROP_DEAD_NODES
from snnir.passes.drop_identities import DROP_IDENTITIES
from snnir.passes.expand_groups import EXPAND_GROUPS
from snnir.passes.flatten_sums import FLATTEN_SUMS
from snnir.passes.fold_batch_norm import FOLD_BATCH_NORM
from snnir.passes.gate_batch_norm import GATE_BATCH_NORM
from snnir.passes.hoist_static import HOIST_STATIC
from snnir.passes.infer_types import INFER_DOMAINS, INFER_SHAPES
from snnir.passes.merge_duplicates import MERGE_DUPLICATES
from snnir.passes.merge_parallel_nodes import MERGE_PARALLEL_NODES
from snnir.passes.merge_resizes import MERGE_RESIZES
from snnir.passes.merge_same_sum import MERGE_SAME_SUM
from snnir.passes.merge_shared_input import MERGE_SHARED_INPUT
from snnir.passes.pools_to_convolutions import POOLS_TO_CONVOLUTIONS
from snnir.passes.quantise_images import QUANTISE_IMAGES
from snnir.passes.round_to_grid import ROUND_TO_GRID, ROUND_WITH_LEAKS
from snnir.passes.sink_concats import SINK_CONCATS

ANALYSIS: Final = (INFER_SHAPES, INFER_DOMAINS, APPLY_ANNOTATIONS)
"""What every graph needs: types on the edges, annotations in the neurons."""

SIMPLIFICATION: Final = (DROP_IDENTITIES, MERGE_DUPLICATES, DROP_DEAD_NODES)
"""What the naive builder leaves behind."""

WIDENING: Final = (
    *SIMPLIFICATION,
    GATE_BATCH_NORM,
    FLATTEN_SUMS,
    MERGE_PARALLEL_NODES,
    MERGE_SHARED_INPUT,
    HOIST_STATIC,
)
"""Fewer and wider nodes, candidates of a search weighed where that costs least."""

TRAINING: Final = (*ANALYSIS, *WIDENING)
"""To a graph that trains: the same function of the same parameters, computed faster."""

FOLDING: Final = (
    *ANALYSIS,
    DROP_AUXILIARY_HEADS,
    FOLD_BATCH_NORM,
    *SIMPLIFICATION,
    HOIST_STATIC,
)
"""To the folded graph, layer for layer as in the genotype: what reports count."""

MERGING: Final = (MERGE_SAME_SUM, MERGE_SHARED_INPUT)
"""From the folded graph to fewer convolutions."""

DEPLOYMENT: Final = (*FOLDING, *MERGING)
"""To the folded graph that is exported."""

LEGALISING_FOR_NIR: Final = (EXPAND_GROUPS, CONVOLVE_SKIPS, SINK_CONCATS, MERGE_RESIZES)
"""From the folded graph to one without groups, concatenations and resizes, which NIR lacks."""

NIR_DEPLOYMENT: Final = (*FOLDING, *LEGALISING_FOR_NIR)
"""To the folded graph that is exported to NIR."""

WHOLE_NUMBERS: Final = (QUANTISE_IMAGES, POOLS_TO_CONVOLUTIONS)
"""From the folded graph to the same function of 8-bit images, all of it sums of weights."""

ROUNDING: Final = (ROUND_TO_GRID,)
"""From there to a graph whose every sum is exact in fp32."""

ROUNDING_WITH_LEAKS: Final = (ROUND_WITH_LEAKS,)
"""As `ROUNDING`, with neurons that other programs have: nothing in them is rounded."""

__all__ = [
    "ANALYSIS",
    "DEPLOYMENT",
    "FOLDING",
    "LEGALISING_FOR_NIR",
    "MERGING",
    "NIR_DEPLOYMENT",
    "ROUNDING",
    "ROUNDING_WITH_LEAKS",
    "TRAINING",
    "WHOLE_NUMBERS",
    "WIDENING",
    "Pass",
    "PassResult",
    "run_passes",
]
