"""Make models/fashion_mnist_sample.npz: `make_fashion_sample.py IDX_FOLDER OUT.npz`."""

import gzip
import sys
from pathlib import Path

import numpy as np

PER_CLASS = 100


def read_idx(folder: Path, name: str) -> np.ndarray:
    """An idx file of bytes, gzipped or not."""
    path = folder / name
    data = path.read_bytes() if path.exists() else gzip.decompress(Path(f"{path}.gz").read_bytes())
    rank = data[3]
    shape = np.frombuffer(data, ">u4", rank, 4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(shape)


def main() -> None:
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    images = read_idx(folder, "t10k-images-idx3-ubyte")
    labels = read_idx(folder, "t10k-labels-idx1-ubyte")
    chosen = np.sort(np.concatenate([np.flatnonzero(labels == k)[:PER_CLASS] for k in range(10)]))
    np.savez_compressed(out, images=images[chosen], labels=labels[chosen])
    print(f"{out}: {len(chosen)} images, {out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
