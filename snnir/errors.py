"""Errors that a user can act on: where, what was found, what was expected."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from snnir.source import Source, Span


class SnnirError(Exception):
    """The user's input is wrong; commands print the message and exit with 2."""


class CheckFailed(SnnirError):
    """The input is well-formed, but what was made of it does not hold: exit code 1."""


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One finding in a source text; `hint` is an optional "did you mean"."""

    message: str
    span: Span | None = None
    hint: str = ""

    def render(self, source: Source) -> str:
        """`file:line:column: message`, the line, carets under the span, the hint."""
        head = f"{source.locate(self.span)}: {self.message}"
        hint = f" {self.hint}" if self.hint else ""
        if self.span is None:
            return head + hint
        return f"{head}\n{source.excerpt(self.span)}{hint}"


class GenotypeError(SnnirError):
    """Everything found wrong in one genotype, in source order."""

    def __init__(self, source: Source, diagnostics: Iterable[Diagnostic]):
        self.source = source
        self.diagnostics: Sequence[Diagnostic] = sorted(
            dict.fromkeys(diagnostics), key=lambda d: (d.span is None, d.span)
        )
        super().__init__("\n".join(d.render(source) for d in self.diagnostics))


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint naming the closest known word, or an empty string."""
    close = get_close_matches(word, list(known), n=1)
    return f"did you mean '{close[0]}'?" if close else ""


def explain(detail: Mapping[str, Any], known: Iterable[str], owner: str) -> str:
    """One error of pydantic's as ours: which field of `owner`, what was found and expected."""
    name = ".".join(map(str, detail["loc"]))
    if detail["type"] == "extra_forbidden":
        word = str(detail["loc"][-1])
        hint = did_you_mean(word, (name for name in known if name != word))
        return f"{name}: found an unknown setting, expected one of {owner}'s {hint}".rstrip()
    if detail["type"] == "missing":
        return f"{name}: found nothing, expected a value"
    expected = detail["msg"].replace("Input should be", "expected a value").rstrip(".")
    return f"{name}: found {detail['input']!r}, {expected}"
