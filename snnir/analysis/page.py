"""The report as one HTML file that opens from disk without a network."""

from __future__ import annotations

from typing import Any

import jinja2


def render_page(report: dict[str, Any], drawing: str) -> str:
    """Fill report.html.j2 with a report and the network's SVG."""
    pages = html_pages("snnir.analysis")
    pages.filters["short"] = lambda number: f"{number:.3g}"
    return pages.get_template("report.html.j2").render(report=report, drawing=drawing)


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
    environment.filters["thousands"] = lambda number: f"{number:,}"
    environment.filters["duration"] = duration
    environment.filters["percent"] = lambda share: f"{100 * share:.2f} %"
    return environment


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
