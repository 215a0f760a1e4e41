"""The data sets that have a name."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from snnir.data.folders import open_folder, open_imagenet
from snnir.data.images import open_cifar, open_digits, open_fashion_mnist
from snnir.data.mvsec import open_mvsec
from snnir.data.recordings import open_cifar10_dvs, open_dvs_gesture, open_n_mnist
from snnir.data.request import (
    Kind,
    Place,
    Request,
    Sources,
    Splits,
    check_request,
    check_sources,
    split,
)
from snnir.data.synthetic_stereo import open_synthetic_stereo
from snnir.errors import SnnirError, did_you_mean


@dataclass(frozen=True)
class DataSet:
    """What a data set's samples are, and its reader."""

    kind: Kind
    open: Callable[[Place, Request], Sources]
    options: bool = False
    """Whether its reader knows any."""


DATA_SETS: Final[dict[str, DataSet]] = {
    "cifar10": DataSet("frame", open_cifar),
    "cifar100": DataSet("frame", open_cifar),
    "imagenet": DataSet("frame", open_imagenet),
    "fashion-mnist": DataSet("frame", open_fashion_mnist),
    "digits": DataSet("frame", open_digits),
    "folder": DataSet("frame", open_folder),
    "n-mnist": DataSet("events", open_n_mnist),
    "dvs-gesture": DataSet("events", open_dvs_gesture),
    "cifar10-dvs": DataSet("events", open_cifar10_dvs),
    "mvsec": DataSet("stereo", open_mvsec, options=True),
    "synthetic-stereo": DataSet("stereo", open_synthetic_stereo, options=True),
}


SPEC: Final = r"([^:]*?)(?::(.*?))?((?:,[a-z_]+=[^,]*)*)"
"""NAME:PATH,KEY=VALUE,…"""


def open_data(spec: str, request: Request) -> Splits:
    """The splits of data set `NAME` or `NAME:PATH`, with options `NAME:PATH,KEY=VALUE,…` where it
    has any, checked against what the network takes.

    Raises:
        SnnirError: unknown name or option, missing or unreadable data, data that do not fit the
            network.
    """
    found = re.fullmatch(SPEC, spec, re.DOTALL)
    assert found is not None, "the pattern takes every text"
    name, path, settings = found.groups()
    if name not in DATA_SETS:
        known, hint = ", ".join(DATA_SETS), did_you_mean(name, DATA_SETS)
        raise SnnirError(
            f"found data set '{name}', expected one of {known}" + (f"; {hint}" if hint else "")
        )
    check_request(request)
    data_set = DATA_SETS[name]
    if data_set.kind != request.kind:
        others = [known for known, entry in DATA_SETS.items() if entry.kind == request.kind]
        raise SnnirError(
            f"{name}: found data of kind {data_set.kind}, expected {request.kind} as the network "
            f"takes: one of {', '.join(others)}"
        )
    options = dict(setting.split("=", 1) for setting in settings.split(",")[1:])
    if options and not data_set.options:
        raise SnnirError(f"{name}: found option {next(iter(options))}, expected none")
    place = Place(name, _expanded(path) if path else None, options)
    sources = data_set.open(place, request)
    check_sources(name, sources, request)
    return split(name, sources, request)


def _expanded(path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise SnnirError(f"{path}: found no such home folder, expected a path: {error}") from None
