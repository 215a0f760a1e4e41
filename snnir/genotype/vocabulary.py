"""The words of the language: neurons, surrogates and operations, with the arguments each takes."""

from __future__ import annotations

from typing import Final

SURROGATES: Final = ("dspike", "triangle", "superspike", "arctan", "rectangular", "sigmoid")

NEURON_ARGUMENTS: Final[dict[str, tuple[str, ...]]] = {
    "if": ("v_threshold", "surrogate", "detach_reset"),
    "lif": ("tau", "v_threshold", "surrogate", "detach_reset"),
    "alif": ("tau", "v_threshold", "tau_a", "beta", "surrogate", "detach_reset"),
    "binary": ("v_threshold", "surrogate"),
    "relu": (),
}

CONVOLUTIONS: Final[dict[str, tuple[int, ...]]] = {
    "conv1x1": (1, 1),
    "conv3x3": (3, 3),
    "conv5x5": (5, 5),
    "conv1x1x1": (1, 1, 1),
    "conv3x3x3": (3, 3, 3),
}
"""Plain convolutions and their kernels."""

CELL_OPERATIONS: Final = (*CONVOLUTIONS, "sepconv3x3", "avgpool3x3", "maxpool3x3", "skip")
"""What a cell's node may apply to a state."""

LAYER_OPERATIONS: Final = (*CONVOLUTIONS, "sepconv3x3")
"""What `stem` and `out` may list (`out` also takes `resize(stem)`)."""

TWO_DIMENSIONAL: Final = ("sepconv3x3", "avgpool3x3", "maxpool3x3")
"""Operations without a 3-D form."""

MIXES: Final = ("membrane", "spike")
INPUT_KINDS: Final = ("frame", "events")
ANNOTATION_KEYS: Final = ("surrogate", "tau", "tau_a", "neuron")

MAX_CHANNELS: Final = 65_536
MAX_SIDE: Final = 65_536
MAX_STEPS: Final = 4_096
MAX_CLASSES: Final = 1_000_000
MAX_LAYERS: Final = 1_024
MAX_LEVEL: Final = 16


def operation_rank(operation: str) -> int | None:
    """The number of spatial dimensions an operation is made for; None when any will do."""
    if operation in CONVOLUTIONS:
        return len(CONVOLUTIONS[operation])
    return 2 if operation in TWO_DIMENSIONAL else None


def candidate_label(operation: str, b: float | None) -> str:
    """What a candidate's path is called within its edge's."""
    return operation if b is None else f"{operation}_b{b:g}"
