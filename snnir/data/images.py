"""Small image sets, held in memory: CIFAR, Fashion-MNIST, digits."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import numpy as np

from snnir.data.folders import open_folder
from snnir.data.idx import read_idx
from snnir.data.request import Place, Request, Sources
from snnir.data.samples import Sample
from snnir.data.vision import torchvision_module
from snnir.errors import SnnirError

DEBIAN: Final = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist puts the published files."""

FASHION_MNIST_CLASSES: Final = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag",
    "Ankle boot",
)  # fmt: skip

DIGITS_TEST = 360
"""The last so many of the 1,797 digits are the test set: a fifth."""


@dataclass(frozen=True)
class Images:
    """Images uint8 [N, C, H, W] and their labels int64 [N]."""

    images: np.ndarray
    labels: np.ndarray
    maximum: int = 255

    @property
    def shape(self) -> tuple[int, ...]:
        return self.images.shape[1:]

    def read(self, index: int, rng: np.random.Generator | None) -> Sample:
        return self.images[index], self.labels[index]


def open_fashion_mnist(place: Place, request: Request) -> Sources:
    """The four published idx files, plain or gzipped, also in the folders torchvision makes."""
    folder = place.folder(DEBIAN, download=request.download)
    raw = folder / "FashionMNIST" / "raw"
    if request.download and not any(folder.glob("t10k-*")):
        _download("FashionMNIST", folder)
    folder = raw if raw.is_dir() else folder
    train, test = (_idx_images(folder, part) for part in ("train", "t10k"))
    return Sources(train, test, FASHION_MNIST_CLASSES)


def _idx_images(folder: Path, part: str) -> Images:
    images = read_idx(folder, f"{part}-images-idx3-ubyte")
    labels = read_idx(folder, f"{part}-labels-idx1-ubyte")
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise SnnirError(
            f"{folder}: found {part} images of {list(images.shape)} and labels of "
            f"{list(labels.shape)}, expected [N, H, W] and [N]"
        )
    return Images(images[:, None], labels.astype(np.int64))


def open_digits(place: Place, request: Request) -> Sources:
    """The 8x8 digits that come with snnir (DATA.md), values 0 to 16."""
    if place.path:
        raise SnnirError(f"digits: found path {place.path}, expected none: they come with snnir")
    with (files("snnir.data") / "digits.npz").open("rb") as file, np.load(file) as stored:
        images, labels = stored["images"][:, None], stored["labels"].astype(np.int64)
    train, test = slice(None, -DIGITS_TEST), slice(-DIGITS_TEST, None)
    return Sources(
        Images(images[train], labels[train], maximum=16),
        Images(images[test], labels[test], maximum=16),
        tuple("0123456789"),
    )


def open_cifar(place: Place, request: Request) -> Sources:
    """CIFAR-10 or CIFAR-100 as torchvision stores them, or as images in train/CLASS and test/CLASS.

    The published files are pickles: torchvision compares their MD5 sums with the published ones
    before it opens them, so no other pickle is ever read.
    """
    folder = place.folder(download=request.download)
    if (folder / "train").is_dir():
        return open_folder(Place(place.name, folder), request)
    if request.download:
        _download(place.name.upper(), folder)
    data_set = getattr(torchvision_module("datasets"), place.name.upper())
    try:
        train, test = (data_set(folder, train=train) for train in (True, False))
    except RuntimeError:
        raise SnnirError(
            f"{folder}: found neither train/CLASS nor an intact {data_set.base_folder}, expected "
            f"{place.remedy}"
        ) from None
    return Sources(_images(train), _images(test), tuple(train.classes))


def _images(data_set: Any) -> Images:
    """[N, H, W, C] to [N, C, H, W]."""
    images = np.ascontiguousarray(data_set.data.transpose(0, 3, 1, 2))
    return Images(images, np.asarray(data_set.targets, np.int64))


def _download(name: str, folder: Path) -> None:
    try:
        getattr(torchvision_module("datasets"), name)(folder, download=True)
    except (OSError, RuntimeError) as error:
        raise SnnirError(f"{folder}: the download of {name} failed: {error}") from None
