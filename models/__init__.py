"""The box: genotypes by name, and a sample of real images to try them on."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from snnir.errors import SnnirError, did_you_mean
from snnir.source import Source, read_source

if TYPE_CHECKING:
    import numpy as np

    from snnir.genotype import Genotype


def names() -> list[str]:
    """The names of the genotypes in the box."""
    found = (Path(entry.name) for entry in files(__name__).iterdir())
    return sorted(path.stem for path in found if path.suffix == ".snn")


def source(name: str) -> Source:
    """The text of a genotype in the box. Raises SnnirError for an unknown name."""
    if name not in names():
        hint = did_you_mean(name, names())
        expected = f"a file or one of the models: {', '.join(names())}"
        raise SnnirError(f"found '{name}', expected {expected}. {hint}".rstrip())
    text = files(__name__).joinpath(f"{name}.snn").read_text(encoding="utf-8")
    return Source(f"{name}.snn", text)


def load(name: str) -> Genotype:
    """A genotype of the box, parsed. Raises SnnirError for an unknown name."""
    from snnir.genotype import parse

    return parse(source(name))


def resolve(path_or_name: str | Path) -> Source:
    """The genotype text that a user means: a file, a run's folder, or a name of the box. Raises
    SnnirError."""
    given = str(path_or_name)
    if run := run_folder(given):
        return read_source(run / "genotype.snn")
    if Path(given).is_file() or Path(given).suffix or "/" in given:
        return read_source(given)
    return source(given)


def trained_weights(path_or_name: str | Path) -> Path | None:
    """The best weights of a run's folder, or the safetensors file that the box has for one of its
    models."""
    given = str(path_or_name)
    if run := run_folder(given):
        path = run / "best.safetensors"
    elif given in names() and not Path(given).is_file():
        path = Path(str(files(__name__).joinpath(f"{given}.safetensors")))
    else:
        return None
    return path if path.exists() else None


def run_folder(path_or_name: str | Path) -> Path | None:
    """The folder of a run, if that is meant: a name of the box wins over one of the same name."""
    given = str(path_or_name)
    if given in names() or not Path(given, "genotype.snn").is_file():
        return None
    return Path(given)


def fashion_mnist_sample() -> tuple[np.ndarray, np.ndarray]:
    """1,000 test images of Fashion-MNIST: [1000, 1, 28, 28] float32 in [0, 1], and labels [1000].

    The first hundred of each class of the real test set (MIT licence, Zalando SE; see
    models/DATA.md).
    """
    import numpy as np

    with files(__name__).joinpath("fashion_mnist_sample.npz").open("rb") as file:
        arrays = np.load(file, allow_pickle=False)
        images, labels = arrays["images"], arrays["labels"]
    return images[:, None].astype(np.float32) / 255, labels.astype(np.int64)
