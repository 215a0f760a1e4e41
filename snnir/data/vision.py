"""torchvision, also beside a torch of another build."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from types import ModuleType

import torch


def torchvision_module(name: str) -> ModuleType:
    """`torchvision.NAME`.

    The package registry's torchvision is built for CUDA. Beside a torch without CUDA its operators
    do not load, and its import fails where it describes two of them. Data sets and transforms use
    none, so it is enough to declare these two.
    """
    try:
        return import_module(f"torchvision.{name}")
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
    _declare_operators()
    return import_module(f"torchvision.{name}")


@cache  # a declaration lasts as long as its library is referred to
def _declare_operators() -> torch.library.Library:
    library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library
