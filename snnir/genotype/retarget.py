"""Settings that carry a genotype to other data or another size: `--set classes=100`."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, TypeVar

from snnir.errors import GenotypeError, SnnirError, did_you_mean
from snnir.genotype import ast
from snnir.genotype import vocabulary as words
from snnir.genotype.parser import parse, parse_neuron
from snnir.genotype.printer import print_genotype
from snnir.source import Source

E = TypeVar("E", bound=ast.Element)
Change = Callable[[ast.Genotype, str], ast.Genotype]
"""A genotype and the value of a setting to the changed genotype; raises SnnirError."""

_SIZE: Final = "(-?[0-9]+)"
_INPUT: Final = (
    re.compile(f"(){_SIZE}x{_SIZE}x{_SIZE}"),
    re.compile(rf"({'|'.join(words.INPUT_KINDS)})\[{_SIZE}, *{_SIZE}, *{_SIZE}\]"),
)
"""How the value of `input=` is written: its kind, where it says one, and its three sizes."""


def retarget(genotype: ast.Genotype, settings: Sequence[str]) -> ast.Genotype:
    """`genotype` with each `KEY=VALUE` in its place, printed and read back.

    Keys are `classes`, `steps`, `input`, `neuron`, `channels` and, where several backbones have
    layers, `NAME.channels`. `source` and spans are those of the new text, without the old comments.
    No settings give back `genotype` itself.

    Raises:
        SnnirError: with everything that is wrong in the settings.
        GenotypeError: when what the settings make breaks a rule of the language.
    """
    if not settings:
        return genotype
    changed, seen, errors = genotype, set[str](), list[str]()
    for setting in settings:
        try:
            key, value = _key_and_value(genotype, setting)
            if key in seen:
                raise SnnirError(f"found '{key}' twice, expected it once")
            seen.add(key)
            changed = _changes(genotype)[key](changed, value)
        except SnnirError as error:
            errors.append(f"--set {setting}: {error}")
    if errors:
        raise SnnirError("\n".join(errors))
    name = genotype.source.name if genotype.source else genotype.name
    options = " ".join(f"--set {setting}" for setting in settings)
    return parse(Source(f"{name} with {options}", print_genotype(changed)))


def _changes(genotype: ast.Genotype) -> dict[str, Change]:
    """What each key of `genotype` does."""
    channels = {f"{name}.channels": partial(_channels, name) for name in _layered(genotype)}
    return {
        "classes": _classes, "steps": _steps, "input": _input, "neuron": _neuron, **channels,
    }  # fmt: skip


def _key_and_value(genotype: ast.Genotype, setting: str) -> tuple[str, str]:
    """The two sides of a setting; `channels` becomes `NAME.channels`."""
    key, equals, value = setting.partition("=")
    if not equals:
        raise SnnirError(f"found '{setting}', expected KEY=VALUE")
    known = ["channels", *_changes(genotype)]
    if key == "channels":
        return f"{_only_layered(genotype)}.channels", value
    if key not in known:
        expected = f"expected one of {', '.join(sorted(known))}"
        hint = did_you_mean(key, known)
        raise SnnirError(f"found unknown setting '{key}', {expected}. {hint}".rstrip())
    return key, value


def _layered(genotype: ast.Genotype) -> list[str]:
    return [name for name, backbone in genotype.backbones.items() if backbone.layers]


def _only_layered(genotype: ast.Genotype) -> str:
    names = _layered(genotype)
    if not names:
        raise SnnirError("found no backbone with layers, expected one")
    if len(names) > 1:
        which = " or ".join(f"{name}.channels=" for name in names)
        raise SnnirError(f"found {len(names)} backbones with layers, expected {which}")
    return names[0]


# --- changes ------------------------------------------------------------------------------------


def _classes(genotype: ast.Genotype, value: str) -> ast.Genotype:
    classes = _whole_number(value, words.MAX_CLASSES)
    task = genotype.head.task
    if not isinstance(task, ast.Classify):
        raise SnnirError("found a disparity head, which has no classes, expected a classify head")

    def change(statement: ast.Statement) -> ast.Statement:
        if not isinstance(statement, ast.Head | ast.Auxiliary):
            return statement
        return _with(statement, task=_with(statement.task, classes=classes))

    return _with_each(genotype, change)


def _steps(genotype: ast.Genotype, value: str) -> ast.Genotype:
    return _with_one(genotype, ast.Steps(count=_whole_number(value, words.MAX_STEPS)))


def _neuron(genotype: ast.Genotype, value: str) -> ast.Genotype:
    """Another default neuron; nodes that name their own keep it."""
    try:
        return _with_one(genotype, ast.DefaultNeuron(neuron=parse_neuron(value)))
    except GenotypeError as error:
        reason = error.diagnostics[0].message
        raise SnnirError(f"{reason} (a neuron is written lif(tau=0.25), say)") from None


def _input(genotype: ast.Genotype, value: str) -> ast.Genotype:
    if len({(i.kind, i.shape) for i in genotype.inputs}) > 1:
        names = ", ".join(i.name for i in genotype.inputs)
        raise SnnirError(f"found inputs {names} that differ, expected a network with equal inputs")
    match = next(filter(None, (form.fullmatch(value) for form in _INPUT)), None)
    if not match:
        raise SnnirError(f"found '{value}', expected CxHxW, frame[C, H, W] or events[C, H, W]")
    kind, *sizes = match.groups()
    limits = (words.MAX_CHANNELS, words.MAX_SIDE, words.MAX_SIDE)
    shape = tuple(map(_whole_number, sizes, limits))

    def change(statement: ast.Statement) -> ast.Statement:
        if not isinstance(statement, ast.Input):
            return statement
        return _with(statement, kind=kind or statement.kind, shape=shape)

    return _with_each(genotype, change)


def _channels(name: str, genotype: ast.Genotype, value: str) -> ast.Genotype:
    """New channels of the layers of backbone `name`; its stem and `out` keep their proportion."""
    new = _whole_number(value, words.MAX_CHANNELS)
    backbone = genotype.backbones[name]
    assert backbone.layers
    old = backbone.layers.channels
    scaled = _with(
        backbone,
        stem=tuple(_scaled(op, new, old) for op in backbone.stem),
        layers=_with(backbone.layers, channels=new),
        out=tuple(_scaled_out(op, new, old) for op in backbone.out),
    )
    return _with_each(genotype, lambda s: scaled if s is backbone else s)


def _scaled(operation: ast.LayerOperation, new: int, old: int) -> ast.LayerOperation:
    channels, rest = divmod(operation.channels * new, old)
    if rest:
        raise SnnirError(
            f"found {operation.operation}({operation.channels}), which would have "
            f"{operation.channels * new / old:g} channels, expected a whole number: "
            "stem and out scale with the layers"
        )
    return _with(operation, channels=channels)


def _scaled_out(
    operation: ast.LayerOperation | ast.ResizeToStem, new: int, old: int
) -> ast.LayerOperation | ast.ResizeToStem:
    """As `_scaled`; a resize, or one channel such as a cost, has no width to scale."""
    if isinstance(operation, ast.ResizeToStem) or operation.channels == 1:
        return operation
    return _scaled(operation, new, old)


def _whole_number(text: str, limit: int) -> int:
    if not re.fullmatch("[0-9]+", text) or not text.strip("0"):
        raise SnnirError(f"found '{text}', expected a whole number of at least 1")
    if len(text) > 18 or int(text) > limit:
        raise SnnirError(f"found '{text}', expected a whole number of at most {limit}")
    return int(text)


def _with_one(genotype: ast.Genotype, statement: ast.Statement) -> ast.Genotype:
    """The statement in the place of its kind's, or after the inputs."""
    kind = type(statement)
    if genotype.all(kind):
        return _with_each(genotype, lambda s: statement if isinstance(s, kind) else s)
    after = genotype.statements.index(genotype.inputs[-1]) + 1
    before, rest = genotype.statements[:after], genotype.statements[after:]
    return _with(genotype, statements=(*before, statement, *rest))


def _with(element: E, **fields: object) -> E:
    return element.model_copy(update=fields)


def _with_each(
    genotype: ast.Genotype, change: Callable[[ast.Statement], ast.Statement]
) -> ast.Genotype:
    return _with(genotype, statements=tuple(map(change, genotype.statements)))
