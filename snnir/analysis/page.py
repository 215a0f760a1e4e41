"""Reports as HTML files that open from disk without a network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jinja2

from snnir.analysis.chart import Chart, histogram, raster


def render_page(report: Mapping[str, Any], drawing: str, *, charts: Sequence[Chart] = ()) -> str:
    """Fill report.html.j2 with a report, the network's SVG and the charts of its training."""
    first, *others = report["cost_models"]
    priced = [m["name"] for m in others if m.get("memory") and report["energy"][first["name"]]]
    factor = report["energy"][priced[0]] / report["energy"][first["name"]] if priced else None
    return (
        html_pages("snnir.analysis")
        .get_template("report.html.j2")
        .render(
            report=report,
            drawing=drawing,
            charts=charts,
            memory_factor=None if first.get("memory") else factor,
            shown_model=first["name"],
            pictures=list(_pictures(report)),
        )
    )


def _pictures(report: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """Of each spiking layer, where it was looked at."""
    for path, seen in report["behaviour"].items():
        yield {
            "path": path,
            "histogram": histogram(
                seen["membranes"], seen["low"], seen["high"], f"membranes of {path}"
            ),
            "raster": raster(seen["raster"], report["measured_steps"], f"spikes of {path}"),
        }


def html_pages(package: str) -> jinja2.Environment:
    """The HTML templates of a package, and those that all pages share."""
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(
            [jinja2.PackageLoader(name, "") for name in (package, "snnir.analysis")]
        ),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "duration": duration,
        "energy": energy,
        "number": number,
        "percent": lambda share: f"{100 * share:.2f} %",
        "short": lambda number: f"{number:.3g}",
        "si": si,
        "thousands": lambda number: f"{number:,}",
    }
    return environment


def number(value: float) -> str:
    """Four digits at least, all of those before the point."""
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def si(count: float) -> str:
    """A count, in thousands, millions or billions where it is large."""
    for factor, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count:.3g}"


def energy(millijoules: float) -> str:
    """In the unit that suits it."""
    for factor, unit in ((1e3, "J"), (1.0, "mJ"), (1e-3, "µJ"), (1e-6, "nJ")):
        if millijoules >= factor:
            return f"{millijoules / factor:.3g} {unit}"
    return f"{millijoules * 1e9:.3g} pJ"


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
