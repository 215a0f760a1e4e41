"""Images in one folder per class, read when they are needed."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from PIL import Image

from snnir.data.kept import Kept
from snnir.data.request import Place, Request, Sources, check_shape
from snnir.data.samples import Sample, Source
from snnir.data.vision import torchvision_module
from snnir.errors import SnnirError

SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp")
CHANNELS: Final = {"L": 1, "RGB": 3}
"""Channels of the image modes that are read; others, such as palettes, would need a conversion."""

Reader = Callable[[list[str], np.ndarray, tuple[int, ...]], Source]
"""(paths, labels, [C, H, W]) -> source."""


@dataclass
class FolderImages:
    """Image files that must have the network's shape, kept once read; labels int64 [N]."""

    paths: list[str]
    labels: np.ndarray
    shape: tuple[int, ...]
    maximum = 255

    def __post_init__(self) -> None:
        self._kept = Kept(len(self.paths), int(np.prod(self.shape)))

    def read(self, index: int, rng: np.random.Generator | None) -> Sample:
        """uint8 [C, H, W] and the class number.

        Raises:
            SnnirError: an unreadable image, or one of another size or mode.
        """
        pixels = self._kept.get(index)
        if pixels is None:
            pixels = self._decode(self.paths[index]).ravel()
            self._kept.put(index, pixels)
        return pixels.reshape(self.shape), self.labels[index]

    def _decode(self, path: str) -> np.ndarray:
        image = read_image(path)
        if image.mode not in CHANNELS:
            known = " or ".join(CHANNELS)
            raise SnnirError(f"{path}: found an image of mode {image.mode}, expected {known}")
        check_shape(path, (CHANNELS[image.mode], image.height, image.width), self.shape)
        return _array(image)


@dataclass
class ImageNetImages:
    """Photographs of any size, read anew every time; labels int64 [N]."""

    paths: list[str]
    labels: np.ndarray
    shape: tuple[int, ...]
    maximum = 255

    def read(self, index: int, rng: np.random.Generator | None) -> Sample:
        """uint8 [3, H, W]: in training a random part, half of them mirrored; else the centre. And
        the class number.

        Raises:
            SnnirError: an unreadable image.
        """
        image = read_image(self.paths[index]).convert("RGB")  # some are grey, some CMYK
        return _array(self._cut(image, rng)), self.labels[index]

    def _cut(self, image: Image.Image, rng: np.random.Generator | None) -> Image.Image:
        size, transforms = self.shape[1:], torchvision_module("transforms.v2")
        if rng is None:
            larger = transforms.Resize(max(size) * 256 // 224)
            return transforms.CenterCrop(size)(larger(image))
        crop, flip = transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip()
        with torch.random.fork_rng(devices=[]):  # torchvision draws from torch's own generator
            torch.default_generator.manual_seed(int(rng.integers(2**63)))
            return flip(crop(image))


def read_image(path: str) -> Image.Image:
    """An image, decoded. Raises SnnirError when it is not one."""
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise SnnirError(f"{path}: found no readable image: {error}") from None


def _array(image: Image.Image) -> np.ndarray:
    """[C, H, W]."""
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def open_folder(place: Place, request: Request) -> Sources:
    """PATH/train/CLASS/… and PATH/test/CLASS/… (or val), images of the network's shape."""
    if place.path is None:
        raise SnnirError("folder: found no path, expected folder:PATH")
    folder = place.folder()
    test = "test" if (folder / "test").is_dir() else "val"
    sources = _scan(FolderImages, folder, test, request)
    for source in (sources.train, sources.test):
        source.read(0, None)  # a wrong shape is reported now, not in the middle of an epoch
    return sources


def open_imagenet(place: Place, request: Request) -> Sources:
    """PATH/train/CLASS/… and PATH/val/CLASS/…, as the images of the 2012 challenge are sorted."""
    check_shape(place.name, (3, *request.shape[1:]), request.shape)
    torchvision_module("transforms.v2")  # once, not in every worker
    return _scan(ImageNetImages, place.folder(), "val", request)


def _scan(reader: Reader, folder: Path, test: str, request: Request) -> Sources:
    classes = subfolders(folder / "train")
    differing = sorted({*classes} ^ {*subfolders(folder / test)})
    if differing:
        raise SnnirError(
            f"{folder}: found class {differing[0]} in only one of train and {test}, expected it in "
            "both"
        )
    trained, tested = (
        reader(*labelled_files(folder / part, classes, SUFFIXES), request.shape)
        for part in ("train", test)
    )
    return Sources(trained, tested, tuple(classes))


def subfolders(folder: Path) -> list[str]:
    """The names of the folders in a folder, sorted. Raises SnnirError when there is none."""
    names = []
    if folder.is_dir():
        names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    if not names:
        raise SnnirError(f"{folder}: found no folder per class, expected {folder}/CLASS/…")
    return names


def labelled_files(
    folder: Path, classes: Sequence[str], suffixes: tuple[str, ...]
) -> tuple[list[str], np.ndarray]:
    """The files FOLDER/CLASS/* with these suffixes, sorted by class and name; labels int64 [N].

    Raises:
        SnnirError: a class without files.
    """
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        inside = folder / name
        names = os.listdir(inside) if inside.is_dir() else []
        names = sorted(name for name in names if name.lower().endswith(suffixes))
        if not names:
            raise SnnirError(f"{inside}: found no files, expected names in {', '.join(suffixes)}")
        paths += [os.path.join(inside, name) for name in names]
        labels += [label] * len(names)
    return paths, np.array(labels, np.int64)
