"""Random changes of training samples: shifts, mirror images, blank squares."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

NotNegative = Annotated[int, Field(ge=0)]


class Augmentation(BaseModel):
    """What is drawn anew for every sample and epoch, in this order; lengths in pixels."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    crop_padding: NotNegative = 0
    """Zeros around the image, of which a random window of the image's size is kept."""
    flip: bool = False
    """Left and right are exchanged with probability 1/2."""
    cutout: NotNegative = 0
    """Side of a square of zeros, centred anywhere, cut at the edge (DeVries and Taylor, 2017)."""


def augment(image: np.ndarray, how: Augmentation, rng: np.random.Generator) -> np.ndarray:
    """`image` [..., H, W], changed as `how` says; the same change for all that lies over a pixel.

    A slice or a copy: `image` itself stays as it is.
    """
    if how.crop_padding:
        image = _shift(image, how.crop_padding, rng)
    if how.flip and rng.random() < 0.5:
        image = image[..., ::-1]
    if how.cutout:
        image = _cut_out(image, how.cutout, rng)
    return image


def _shift(image: np.ndarray, padding: int, rng: np.random.Generator) -> np.ndarray:
    *rest, height, width = image.shape
    padded = np.zeros((*rest, height + 2 * padding, width + 2 * padding), image.dtype)
    padded[..., padding : padding + height, padding : padding + width] = image
    top, left = rng.integers(2 * padding + 1, size=2)
    return padded[..., top : top + height, left : left + width]


def _cut_out(image: np.ndarray, side: int, rng: np.random.Generator) -> np.ndarray:
    top, left = rng.integers(image.shape[-2:]) - side // 2
    image = image.copy()
    image[..., max(top, 0) : top + side, max(left, 0) : left + side] = 0
    return image
