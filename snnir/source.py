"""Source text and the places in it that nodes and errors point to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from snnir.errors import SnnirError

MAX_SOURCE_BYTES = 16 * 2**20


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """A stretch of source text: 1-based lines and columns, the end exclusive."""

    line: int
    column: int
    end_line: int
    end_column: int


@dataclass(frozen=True, slots=True)
class Source:
    """The text of one genotype and the name that errors show for it."""

    name: str
    text: str

    def line(self, number: int) -> str:
        """The text of line `number` (1-based), empty when there is no such line."""
        lines = self.text.split("\n")
        return lines[number - 1] if 0 < number <= len(lines) else ""

    def locate(self, span: Span | None) -> str:
        """`file:line:column`, or the file alone when there is no span."""
        return self.name if span is None else f"{self.name}:{span.line}:{span.column}"

    def excerpt(self, span: Span) -> str:
        """The span's first line with carets under it."""
        text = self.line(span.line).expandtabs(1)
        one_line = span.end_line == span.line
        width = (span.end_column if one_line else len(text) + 1) - span.column
        number = f"{span.line:5d}"
        carets = " " * (span.column - 1) + "^" * max(1, width)
        return f"{number} | {text}\n{' ' * len(number)} | {carets}"


def read_source(path: str | Path) -> Source:
    """Read a genotype file. Raises SnnirError when it cannot be read as UTF-8 text."""
    path = Path(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise SnnirError(f"{path}: no such file, and no model of that name in the box") from None
    except OSError as error:
        raise SnnirError(f"{path}: cannot be read: {error.strerror}") from None
    if len(data) > MAX_SOURCE_BYTES:
        raise SnnirError(
            f"{path}: found {len(data)} bytes, expected a genotype of at most {MAX_SOURCE_BYTES}"
        )
    try:
        text = data.decode("utf-8")
        if "\0" in text:
            raise UnicodeDecodeError("utf-8", data, data.index(0), data.index(0) + 1, "NUL byte")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise SnnirError(
            f"{path}:{line}: found byte 0x{data[error.start]:02x} at offset {error.start}, "
            "expected UTF-8 text (is this a binary file?)"
        ) from None
    return Source(str(path), text.replace("\r\n", "\n"))
