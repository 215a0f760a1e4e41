"""Make models/fashion_mnist_sample.npz: `make_fashion_sample.py IDX_FOLDER OUT.npz`."""

import sys
from pathlib import Path

import numpy as np

from snnir.data.idx import read_idx

PER_CLASS = 100


def main() -> None:
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    images = read_idx(folder, "t10k-images-idx3-ubyte")
    labels = read_idx(folder, "t10k-labels-idx1-ubyte")
    chosen = np.sort(np.concatenate([np.flatnonzero(labels == k)[:PER_CLASS] for k in range(10)]))
    np.savez_compressed(out, images=images[chosen], labels=labels[chosen])
    print(f"{out}: {len(chosen)} images, {out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
