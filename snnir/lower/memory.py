"""What the C library does with memory that a training step frees."""

from __future__ import annotations

import ctypes
import sys

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1
"""Names of options in glibc's malloc.h."""


def keep_freed_memory() -> bool:
    """Have this process keep the memory it frees, for its next allocations.

    By default glibc returns large tensors to the system at once, and every training step takes them
    back page by page: 5 to 10 % of a step on a processor. The process then holds its peak until it
    ends. Returns whether it took effect: elsewhere than under glibc it does nothing.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    largest = 32 << 20  # the largest that glibc takes
    return bool(mallopt(_MMAP_THRESHOLD, largest) and mallopt(_TRIM_THRESHOLD, 2**31 - 1))
