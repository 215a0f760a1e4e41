"""Files of other code bases as arrays. They are never trusted: nothing in them runs."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from snnir.errors import SnnirError

STATE = "sd/"
"""What begins the names of a checkpoint's arrays in an .npz file that holds other arrays too."""


def read_checkpoint(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a checkpoint by name: an .npz file, or a state_dict that torch saved (.pth,
    .pt, read with `weights_only`).

    The prefix `module.` that torch's DataParallel puts before every name is taken off.

    Raises:
        SnnirError: unreadable file, pickled objects, an entry that is no array.
    """
    path = Path(path)
    readers = {".npz": _read_npz, ".pth": _read_torch, ".pt": _read_torch}
    if path.suffix not in readers:
        raise SnnirError(
            f"{path}: found suffix '{path.suffix}', expected a checkpoint: {', '.join(readers)}"
        )
    state = readers[path.suffix](path)
    if all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): array for key, array in state.items()}
    return state


def read_integers(path: str | Path, form: str) -> np.ndarray:
    """A table of whole numbers (.npy) with as many dimensions as `form` has names: "[layers]".

    Raises:
        SnnirError: unreadable file, objects, other numbers or dimensions.
    """
    expected = f"expected whole numbers {form} (.npy)"
    try:
        array = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise SnnirError(f"{path}: found no such file, {expected}") from None
    except (OSError, ValueError, EOFError):
        raise SnnirError(f"{path}: found no readable array, {expected}") from None
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "iu":
        found = array.dtype if isinstance(array, np.ndarray) else "several arrays"
        raise SnnirError(f"{path}: found {found}, {expected}")
    if array.ndim != form.count(",") + 1 or array.size == 0:
        raise SnnirError(f"{path}: found shape {array.shape}, {expected}")
    return array.astype(np.int64)


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    broken = (OSError, ValueError, AttributeError, EOFError, zipfile.BadZipFile, zlib.error)
    try:
        file = np.load(path, allow_pickle=False)
        names = list(file.files)
    except FileNotFoundError:
        raise SnnirError(f"{path}: no such checkpoint") from None
    except broken:
        raise SnnirError(f"{path}: found no readable .npz file") from None
    if any(name.startswith(STATE) for name in names):
        names = [name for name in names if name.startswith(STATE)]
    state = {}
    with file:
        for name in names:
            try:
                state[name.removeprefix(STATE)] = file[name]
            except broken:
                raise SnnirError(
                    f"{path}: {name}: found pickled objects or damaged data, expected an array"
                ) from None
    return state


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    import torch

    expected = "expected a state_dict: torch.save(model.state_dict(), …)"
    try:
        content: Any = torch.load(path, weights_only=True, map_location="cpu")
    except FileNotFoundError:
        raise SnnirError(f"{path}: no such checkpoint") from None
    except Exception:  # the loader raises many kinds for what is no checkpoint
        raise SnnirError(f"{path}: found pickled objects or a damaged file, {expected}") from None
    if not isinstance(content, dict):
        raise SnnirError(f"{path}: found a {type(content).__name__}, {expected}")
    state = {}
    for key, tensor in content.items():
        if not isinstance(tensor, torch.Tensor):
            raise SnnirError(f"{path}: {key}: found a {type(tensor).__name__}, {expected}")
        try:
            state[str(key)] = tensor.detach().numpy()
        except (TypeError, RuntimeError):
            raise SnnirError(
                f"{path}: {key}: found a tensor that is no plain array ({tensor.dtype}, "
                f"{tensor.layout}), expected one"
            ) from None
    return state
