"""The package: every folder listed, rooms import only what they may, a wheel works elsewhere."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAPPED = ("export", "grammars", "models", "search")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def packages_on_disk() -> set[str]:
    inner = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in (ROOT / "snnir").rglob("__init__.py")
    }
    return inner | {f"snnir.{name}" for name in MAPPED}


def test_every_package_is_in_the_wheel():
    listed = set(PROJECT["tool"]["setuptools"]["packages"])
    assert listed == packages_on_disk()
    assert set(PROJECT["tool"]["setuptools"]["package-dir"]) == {f"snnir.{name}" for name in MAPPED}


def imports(path: Path) -> set[str]:
    """Modules that a file imports at its top level (type checking aside)."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


@pytest.mark.parametrize("room", ["genotype", "ir", "passes", "analysis"])
def test_rooms_without_torch(room):
    for path in (ROOT / "snnir" / room).glob("*.py"):
        heavy = {name.split(".")[0] for name in imports(path)} & {"torch", "onnx", "onnxruntime"}
        assert not heavy, path


MAY_IMPORT = {
    "genotype": {"genotype", "grammars", "errors", "source"},
    "ir": {"ir", "genotype", "errors", "source"},
    "passes": {"passes", "ir", "genotype", "errors", "source", "weights"},
    "lower": {"lower", "analysis", "ir", "errors", "weights"},
    "data": {"data", "errors", "files"},
    "analysis": {"analysis", "passes", "ir", "genotype", "weights", "errors", "__version__", ""},
    "importers": {"importers", "search", "analysis", "export", "lower", "passes", "ir"}
    | {"genotype", "errors", "source", "files", "weights"},
}


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_rooms_import_in_one_direction(room):
    for path in (ROOT / "snnir" / room).glob("*.py"):
        ours = {name for name in imports(path) if name.split(".")[0] == "snnir"}
        rooms = {([*name.split("."), ""])[1] for name in ours}
        assert rooms <= MAY_IMPORT[room], f"{path}: {rooms - MAY_IMPORT[room]}"


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The built wheel, unpacked away from the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    quiet = {"check": True, "capture_output": True, "text": True}
    pip = [sys.executable, "-m", "pip"]
    subprocess.run(
        [*pip, "wheel", str(ROOT), "--no-deps", "--no-build-isolation", "-w", str(folder)], **quiet
    )
    (wheel,) = folder.glob("*.whl")
    subprocess.run(
        [*pip, "install", "--no-deps", "--target", str(folder / "site"), str(wheel)], **quiet
    )
    return folder


def test_an_installed_wheel_works_outside_the_checkout(installed):
    code = """
import pathlib, sys
import snnir, snnir.export.web, snnir.search
from snnir import models
site = sys.argv[1]
assert snnir.__file__.startswith(site), snnir.__file__
assert snnir.export.__path__[0].startswith(site), snnir.export.__path__
assert "search" not in [p.name for p in pathlib.Path(site).iterdir()]
assert models.fashion_mnist_sample()[0].shape == (1000, 1, 28, 28)
compiled = snnir.compile("fashion_small", "out")
assert compiled.passed
snnir.export.web.write_web_page("page", compiled)
"""
    work = installed / "work"
    work.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(installed / "site")}
    done = subprocess.run(
        [sys.executable, "-c", code, str(installed / "site")],
        cwd=work, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (work / "out" / "network.onnx").exists()
    assert (work / "out" / "report.html").exists()
    assert (work / "page" / "index.html").exists()
