"""Files written whole: under a temporary name, then renamed."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from snnir.errors import SnnirError


def write_whole(path: str | Path, content: str | bytes) -> None:
    """Put `content` into a file that appears whole or not at all; what was there stays on failure.

    Raises:
        SnnirError: no such folder, no permission, no space left.
    """
    path = Path(path)
    data = content.encode() if isinstance(content, str) else content
    temporary: str | None = None
    try:
        mode = path.stat().st_mode if path.exists() else 0o644
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".snnir-", delete=False) as file:
            temporary = file.name
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, mode)
        os.replace(temporary, path)
    except BaseException as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        raise SnnirError(f"{path}: cannot be written: {error.strerror or error}") from None


def write_together(folder: str | Path, contents: Mapping[str, bytes]) -> Path:
    """Put files into `folder`, created if need be; each appears whole, and none before all are
    written.

    Raises:
        SnnirError: when the folder cannot be written to.
    """
    folder = writable_folder(folder)
    for name in contents:
        if (folder / name).is_dir():
            raise SnnirError(f"{folder / name}: found a folder, expected a file or nothing")
    try:
        with tempfile.TemporaryDirectory(prefix=".snnir-", dir=folder) as temporary:
            for name, content in contents.items():
                Path(temporary, name).write_bytes(content)
            for name in contents:
                os.replace(Path(temporary, name), folder / name)
    except OSError as error:
        raise SnnirError(f"{folder}: cannot be written: {error.strerror}") from None
    return folder


def refuse_unwritable(*folders: str | Path) -> None:
    """Raise SnnirError where a folder is not writable, or cannot be made: before the work that is
    to go there. What is made to find out is taken away again."""
    for folder in map(Path, folders):
        missing = [p for p in (folder, *folder.parents) if not os.path.lexists(p)]
        writable_folder(folder)
        for path in missing:
            with suppress(OSError):
                path.rmdir()


def writable_folder(folder: str | Path) -> Path:
    """Create `folder` if need be. Raises SnnirError when nothing can be written there."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise SnnirError(f"{folder}: found no writable folder, expected one: {reason}") from None
    return folder
