"""Make snnir/data/digits.npz: `make_digits.py OUT.npz`, where scikit-learn is installed."""

import sys
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits


def main() -> None:
    out = Path(sys.argv[1])
    digits = load_digits()
    images, labels = digits.images.astype(np.uint8), digits.target.astype(np.uint8)
    np.savez_compressed(out, images=images, labels=labels)
    print(f"{out}: {len(images)} images, {out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
