"""Text to a raw parse tree, with every syntax error of the file reported at once."""

from __future__ import annotations

import re
from functools import cache
from typing import Final, NamedTuple

from lark import Lark, Token, Tree, UnexpectedCharacters, UnexpectedInput, UnexpectedToken

from snnir.errors import Diagnostic, GenotypeError, did_you_mean
from snnir.grammars import grammar_text
from snnir.source import Source, Span

MAX_SYNTAX_ERRORS: Final = 20

KEYWORDS: Final = [
    "input",
    "steps",
    "neuron",
    "cell",
    "backbone",
    "head",
    "auxiliary",
    "annotate",
    "search",
    "stem",
    "layers",
    "out",
    "network",
    "snn",
]

_TOP_LEVEL = re.compile(r"^(?=[A-Za-z_])", re.MULTILINE)


class Comment(NamedTuple):
    """A `#` comment: its text and where it starts."""

    line: int
    column: int
    text: str


@cache
def _lark() -> tuple[Lark, list[Token]]:
    comments: list[Token] = []

    def keep(comment: Token) -> Token:
        comments.append(comment)
        return comment

    parser = Lark(
        grammar_text(),
        parser="lalr",
        start="genotype",
        propagate_positions=True,
        maybe_placeholders=False,
        lexer_callbacks={"COMMENT": keep},
    )
    return parser, comments


def parse_tree(source: Source) -> tuple[Tree, list[Comment]]:
    """The raw tree and the comments of `source`.

    A statement with a syntax error is blanked and the rest parsed again, so that one run reports
    them all. Raises GenotypeError.
    """
    parser, tokens = _lark()
    text, found = source.text, list[Diagnostic]()
    while True:
        tokens.clear()
        try:
            tree = parser.parse(text)
            break
        except UnexpectedInput as error:
            diagnostic, start, end = _explain(parser, text, error)
        except RecursionError:
            raise GenotypeError(source, [Diagnostic("found brackets nested too deeply")]) from None
        found.append(diagnostic)
        blanked = text[:start] + re.sub(r"\S", " ", text[start:end]) + text[end:]
        if blanked == text or len(found) == MAX_SYNTAX_ERRORS or _in_header(text, start):
            break
        text = blanked
    if found:
        raise GenotypeError(source, found)
    return tree, [Comment(t.line, t.column, t.rstrip()) for t in tokens]  # type: ignore[arg-type]


def _explain(parser: Lark, text: str, error: UnexpectedInput) -> tuple[Diagnostic, int, int]:
    """What the error says, and the stretch of text to blank before parsing on."""
    position = error.pos_in_stream if error.pos_in_stream is not None else len(text)
    if isinstance(error, UnexpectedToken) and error.token.type == "$END":
        position, found, width = len(text.rstrip()), "end of file", 1
    elif isinstance(error, UnexpectedToken):
        found, width = f"'{error.token}'", len(error.token)
    else:
        found, width = f"character {text[position]!r}", 1
    if isinstance(error, UnexpectedCharacters):
        names = error.allowed or set()
    else:
        assert isinstance(error, UnexpectedToken)
        names = error.accepts or error.expected
    words = sorted({_terminal(parser, name) for name in names})
    expected = " or ".join(words) if len(words) < 3 else ", ".join(words[:-1]) + f" or {words[-1]}"
    line = text.count("\n", 0, position) + 1
    column = position - (text.rfind("\n", 0, position) + 1) + 1
    span = Span(line, column, line, column + width)

    starts = [m.start() for m in _TOP_LEVEL.finditer(text)]
    here = max((s for s in starts if s <= position), default=0)
    after = min((s for s in starts if s > position), default=len(text))
    opened = _unclosed_brace(text, here)
    if opened is not None:
        opening_line = text.count("\n", 0, opened) + 1
        expected = f"'}}' to close the block opened on line {opening_line}"
        statement = max((s for s in starts if s <= opened), default=0)
        return (
            Diagnostic(f"found {found}, expected {expected}", span),
            statement,
            max(here, statement + 1),
        )
    before = re.search(r"([A-Za-z_]\w*)\s*$", text[here:position])
    hint = did_you_mean(before[1], KEYWORDS) if before and before[1] not in KEYWORDS else ""
    return Diagnostic(f"found {found}, expected {expected}", span, hint), here, after


def _in_header(text: str, start: int) -> bool:
    """Whether a statement is `snn 1` or `network NAME`, without which nothing else parses."""
    return start == 0 or text.startswith(("snn", "network"), start)


def _unclosed_brace(text: str, end: int) -> int | None:
    """Where the innermost brace still open at `end` was opened."""
    stack = []
    for match in re.finditer(r"#[^\n]*|[{}]", text[:end]):
        if match[0] == "{":
            stack.append(match.start())
        elif match[0] == "}" and stack:
            stack.pop()
    return stack[-1] if stack else None


def _terminal(parser: Lark, name: str) -> str:
    if name == "$END":
        return "end of file"
    known = {"NAME": "a name", "NUMBER": "a number"}
    return known.get(name) or f"'{parser.get_terminal(name).pattern.value}'"
