"""Fixtures: genotypes, golden files (`--update-golden` rewrites them), calibrated networks."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings

# The same examples in every run: a test that fails fails everywhere. New ones: --hypothesis-seed=N
# with --hypothesis-profile=default.
settings.register_profile("seeded", derandomize=True)
settings.load_profile("seeded")

# One thread per process, those that tests start included: tests run side by side (pytest-xdist),
# and threads that wait for a core are slower than none.
os.environ.setdefault("OMP_NUM_THREADS", "1")

SHARED = Path(__file__).parents[2] / "shared"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite the expected texts")


@pytest.fixture
def golden(request: pytest.FixtureRequest):
    """`golden(path, text)`: the text must be the file's, or becomes it with --update-golden."""
    update = request.config.getoption("--update-golden")

    def compare(path: Path, text: str) -> None:
        if update:
            path.write_text(text, encoding="utf-8")
        assert path.exists(), f"{path} is missing: run pytest --update-golden"
        assert text == path.read_text(encoding="utf-8")

    return compare


@pytest.fixture
def shared() -> Path:
    """The shared folder beside the checkout, where there is one."""
    if not SHARED.exists():
        pytest.skip("no shared folder beside this checkout")
    return SHARED


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """`run(*arguments)`: the command in an empty folder; returns (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def command(*arguments):
        from snnir import cli

        monkeypatch.setattr(sys, "argv", ["snnir", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code or 0
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return command
