"""The report as one HTML file that opens from disk without a network."""

from __future__ import annotations

from typing import Any

import jinja2


def render_page(report: dict[str, Any], drawing: str) -> str:
    """Fill report.html.j2 with a report and the network's SVG."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("snnir.analysis", ""),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["thousands"] = lambda number: f"{number:,}"
    environment.filters["percent"] = lambda share: f"{100 * share:.2f} %"
    environment.filters["short"] = lambda number: f"{number:.3g}"
    return environment.get_template("report.html.j2").render(report=report, drawing=drawing)
