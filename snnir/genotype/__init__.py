"""The genotype language: text, typed tree, printer and formatter."""

from snnir.genotype.ast import Genotype
from snnir.genotype.parser import parse
from snnir.genotype.printer import format_source, print_genotype, print_statement
from snnir.genotype.retarget import retarget

__all__ = ["Genotype", "format_source", "parse", "print_genotype", "print_statement", "retarget"]
