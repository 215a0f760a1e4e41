"""The grammar of the genotype language."""

from importlib.resources import files


def grammar_text() -> str:
    """The Lark (LALR) grammar of `.snn` files."""
    return files(__name__).joinpath("snn.lark").read_text(encoding="utf-8")
