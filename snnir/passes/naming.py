"""Names of merged nodes, from the names of their parts."""

from __future__ import annotations

from collections.abc import Sequence


def merged_path(paths: Sequence[str]) -> str:
    """The parts side by side where they differ.

    `trunk.layers.3.n0.prev.conv`, `trunk.layers.3.n1.prev.conv` -> `trunk.layers.3.n0+n1.prev.conv`
    """
    parts = [path.split(".") for path in paths]
    shortest = min(map(len, parts))
    head = 0
    while head < shortest - 1 and len({p[head] for p in parts}) == 1:
        head += 1
    tail = 0
    while tail < shortest - head - 1 and len({p[-1 - tail] for p in parts}) == 1:
        tail += 1
    middle = "+".join(".".join(p[head : len(p) - tail]) for p in parts)
    return ".".join([*parts[0][:head], middle, *parts[0][len(parts[0]) - tail :]])
