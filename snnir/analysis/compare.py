"""Reports of several networks side by side."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from snnir.analysis.page import html_pages

Report = Mapping[str, Any]

LAYER_COLUMNS = ("macs", "macs_exact", "firing_rate", "input_rate")
"""Of a layer, beside its operations and energies."""


def compare(reports: Sequence[Report]) -> dict[str, Any]:
    """What the networks have in common and where they differ: totals, and layer by layer. A layer
    that a network does not have is None there; `difference` is the last's less the first's.

    The networks must have been priced by the same cost models.
    """
    models = [model["name"] for model in reports[0]["cost_models"]]
    return {
        "networks": _names(reports),
        "totals": [
            {"name": name, "values": values, "difference": _difference(values)}
            for name, values in _totals(reports, models)
        ],
        "layers": list(_layers(reports, models)),
    }


def _names(reports: Sequence[Report]) -> list[str]:
    """Networks of one name are numbered."""
    names = [report["network"] for report in reports]
    if len(set(names)) == len(names):
        return names
    return [f"{name} ({number})" for number, name in enumerate(names, start=1)]


def _totals(
    reports: Sequence[Report], models: Sequence[str]
) -> Iterator[tuple[str, list[float | None]]]:
    for key in ("accuracy", "parameters", "steps", "macs", "macs_exact", "firing_rate"):
        if any(key in report for report in reports):
            yield key, [report.get(key) for report in reports]
    for key in reports[0]["operations"]:
        yield f"sample_{key}", [report["operations"][key] for report in reports]
    for model in models:
        yield f"energy, {model}, mJ", [report["energy"][model] for report in reports]


def _layers(reports: Sequence[Report], models: Sequence[str]) -> Iterator[dict[str, Any]]:
    by_path = [{layer["path"]: layer for layer in report["layers"]} for report in reports]
    for path in dict.fromkeys(path for own in by_path for path in own):
        rows = [_row(own[path], models) if path in own else None for own in by_path]
        names = dict.fromkeys(name for row in rows if row for name in row)
        values = {name: [None if row is None else row.get(name) for row in rows] for name in names}
        if any(value for own in values.values() for value in own):
            yield {
                "path": path,
                "in": [path in own for own in by_path],
                "values": values,
                "difference": {name: _difference(own) for name, own in values.items()},
            }


def _row(layer: Mapping[str, Any], models: Sequence[str]) -> dict[str, float]:
    """A layer's numbers by name; its operations are of a sample, its MACs of a step."""
    row = {name: layer[name] for name in LAYER_COLUMNS if layer.get(name)}
    row |= {f"sample_{name}": value for name, value in layer["operations"].items()}
    energy = layer.get("energy", {})
    return row | {f"energy_{name}_mj": energy[name] for name in models if name in energy}


def _difference(values: Sequence[float | None]) -> float | None:
    first, last = values[0], values[-1]
    return None if first is None or last is None else last - first


def to_csv(reports: Sequence[Report]) -> str:
    """A line per network and layer, comma-separated, with a heading."""
    models = [model["name"] for model in reports[0]["cost_models"]]
    rows = [
        {"network": name, "path": layer["path"], "op": layer["op"],
         "shape": "x".join(map(str, layer["shape"])), "reads": layer["reads"],
         "gives": layer["domain"], "runs_per_sample": layer["runs_per_sample"],
         **_row(layer, models)}
        for name, report in zip(_names(reports), reports, strict=True)
        for layer in report["layers"]
    ]  # fmt: skip
    text = io.StringIO()
    columns = dict.fromkeys(name for row in rows for name in row)
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def render_comparison(comparison: Mapping[str, Any]) -> str:
    """Fill compare.html.j2."""
    return (
        html_pages("snnir.analysis").get_template("compare.html.j2").render(comparison=comparison)
    )
