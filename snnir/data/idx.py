"""The idx format of MNIST and its successors."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np

from snnir.errors import SnnirError


def read_idx(folder: Path, name: str) -> np.ndarray:
    """Unsigned bytes from an idx file, plain or gzipped (`NAME.gz`), in the shape it states.

    Layout: two zero bytes, a type code (8: unsigned byte), the rank, one big-endian 32-bit length
    per dimension, the values.

    Raises:
        SnnirError: no such file, or another content.
    """
    path, data = _content(folder, name)
    if len(data) < 4 or data[:3] != b"\x00\x00\x08":
        raise SnnirError(f"{path}: found bytes {data[:4].hex(' ')}, expected 00 00 08 and the rank")
    start = 4 + 4 * data[3]
    if len(data) < start:
        raise SnnirError(f"{path}: found {len(data)} bytes, expected a header of {start}")
    shape = tuple(int(length) for length in np.frombuffer(data, ">u4", data[3], offset=4))
    values = np.frombuffer(data, np.uint8, offset=start)
    if len(values) != np.prod(shape):
        raise SnnirError(f"{path}: found {len(values)} values, expected {list(shape)}")
    return values.reshape(shape)


def _content(folder: Path, name: str) -> tuple[Path, bytes]:
    path = folder / name
    if path.exists():
        return path, path.read_bytes()
    path = folder / f"{name}.gz"
    try:
        return path, gzip.decompress(path.read_bytes())
    except FileNotFoundError:
        raise SnnirError(f"{folder}: found neither {name} nor {name}.gz, expected one") from None
    except (OSError, EOFError, zlib.error) as error:
        raise SnnirError(f"{path}: found no readable gzip file: {error}") from None
