"""Charts for pages: SVG coloured by the page's style sheet (base.html.j2)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from snnir.analysis.draw import Canvas

CHART_HEIGHT = 180
LEFT, RIGHT, TOP, BOTTOM = 42, 8, 8, 34
SMALLEST = 1e-9
"""Values nearer than this are drawn as one."""


@dataclass(frozen=True)
class Series:
    """A line of a chart."""

    name: str
    points: Sequence[tuple[float, float]]
    last: str = ""
    """The value at its end, for the legend."""
    dots: bool = False
    """Whether each point is by itself."""
    colour: str = ""
    """As CSS has it; none: as its place among the chart's lines gives it."""


@dataclass(frozen=True)
class Chart:
    """Lines over something that is counted (epochs, trials) or measured."""

    title: str
    series: Sequence[Series]
    x_name: str
    low: float | None = None
    high: float | None = None
    """What the vertical axis shows at least, beside the values."""
    percent: bool = False
    counted: bool = True
    """Whether the horizontal axis has whole numbers."""
    warmup: int = 0
    """Epochs that are shaded."""
    width: int = 300

    @property
    def legend(self) -> Iterator[tuple[Series, str]]:
        """The lines with their colours."""
        for number, series in enumerate(self.series):
            yield series, series.colour or colour(number, len(self.series))

    @property
    def svg(self) -> str:
        """Coloured by the page's style sheet."""
        xs, ys = zip(*(point for series in self.series for point in series.points), strict=True)
        margin = 0.5 if self.counted else 0.0
        x_low, x_high = min(xs) - margin, max(xs) + margin
        known = [bound for bound in (self.low, self.high) if bound is not None]
        ticks = _ticks(min((*ys, *known)), max((*ys, *known)))
        right, bottom = self.width - RIGHT, CHART_HEIGHT - BOTTOM

        def x_at(x: float) -> float:
            return round(LEFT + (right - LEFT) * (x - x_low) / (x_high - x_low), 1)

        def y_at(y: float) -> float:
            return round(bottom - (bottom - TOP) * (y - ticks[0]) / (ticks[-1] - ticks[0]), 1)

        canvas = Canvas()
        if self.warmup:
            width = x_at(min(self.warmup + 0.5, x_high)) - LEFT
            place = f'x="{LEFT}" y="{TOP}" width="{width:g}" height="{bottom - TOP}"'
            canvas.elements.append(f'<rect class="warmup" {place}/>')
        for tick in ticks:
            canvas.path(f"M {LEFT} {y_at(tick):g} H {right}", "grid")
            label = f"{100 * tick:.4g} %" if self.percent else f"{tick:.4g}"
            canvas.text(LEFT - 5, y_at(tick) + 4, label, anchor="end")
        for tick in _ticks(min(xs), max(xs), whole=self.counted):
            if min(xs) <= tick <= max(xs):
                canvas.text(x_at(tick), bottom + 15, f"{tick:g}", anchor="middle")
        canvas.text((LEFT + right) / 2, CHART_HEIGHT - 5, self.x_name, anchor="middle")
        for number, (series, colour) in enumerate(self.legend):
            spots = [(x_at(x), y_at(y)) for x, y in series.points]
            style = f'class="line{number}" style="--key: {colour}"'
            if not series.dots:
                line = " L ".join(f"{x:g} {y:g}" for x, y in spots)
                name = f"<title>{escape(series.name)}</title>"
                canvas.elements.append(f'<path {style} d="M {line}">{name}</path>')
            for x, y in spots if series.dots else spots[-1:]:
                canvas.elements.append(f'<circle {style} cx="{x:g}" cy="{y:g}" r="2.5"/>')
        return picture(canvas, "chart", self.width, CHART_HEIGHT, self.title)


def colour(number: int, count: int) -> str:
    """Of one of `count` things in a row: from the page's first to its second."""
    share = 100 * number / max(1, count - 1)
    return f"color-mix(in oklch, var(--second) {share:.0f}%, var(--bar))"


def picture(canvas: Canvas, kind: str, width: float, height: float, title: str) -> str:
    """A canvas as an SVG element of a page."""
    size = f'width="{width:g}" height="{height:g}" viewBox="0 0 {width:g} {height:g}"'
    body = "\n".join(canvas.elements)
    return f'<svg class="{kind}" {size} role="img" aria-label="{escape(title)}">\n{body}\n</svg>'


def _ticks(low: float, high: float, *, whole: bool = False) -> list[float]:
    """At most seven round numbers, at least two, between the first and last of which all lies."""
    if math.isclose(low, high, abs_tol=SMALLEST):
        low, high = low - abs(low) / 20, low + (abs(low) / 20 if abs(low) > SMALLEST else 1)
    power = 10.0 ** math.floor(math.log10((high - low) / 5))
    step = next(power * k for k in (1, 2, 5, 10) if (high - low) / (power * k) <= 5)
    if whole:
        step = max(1.0, step)
    return [step * k for k in range(math.floor(low / step), math.ceil(high / step) + 1)]


def histogram(shares: Sequence[float], low: float, high: float, title: str) -> str:
    """Bars of equal width from `low` to `high`; those from 1 on stand out, where 1 is the
    threshold."""
    width, height, foot = 200, 64, 14
    canvas, bar, top = Canvas(), width / len(shares), max(shares) or 1
    for number, share in enumerate(shares):
        x, tall = number * bar, (height - 4) * share / top
        middle = low + (number + 0.5) * (high - low) / len(shares)
        kind = "above" if middle >= 1 else "below"
        place = f'x="{x:g}" y="{height - tall:.1f}" width="{bar:g}" height="{tall:.1f}"'
        canvas.elements.append(f'<rect class="{kind}" {place}/>')
    for value, anchor in ((low, "start"), (1, "middle"), (high, "end")):
        x = width * (value - low) / (high - low)
        canvas.path(f"M {x:.1f} {height} v 3", "grid")
        canvas.text(x, height + foot, f"{value:g}", anchor=anchor)
    return picture(canvas, "chart histogram", width, height + foot + 4, title)


def raster(fired: Sequence[Sequence[int]], steps: int, title: str) -> str:
    """A row per neuron, a column per step, a mark per spike."""
    column, row = max(4, min(24, 120 // steps)), 3
    canvas, width, height = Canvas(), column * steps, row * len(fired)
    canvas.elements.append(f'<rect class="ground" width="{width}" height="{height}"/>')
    marks = [
        f"M {step * column + 1} {number * row + 1.5} h {column - 2}"
        for number, own in enumerate(fired)
        for step in own
    ]
    canvas.path(" ".join(marks), "spikes")
    return picture(canvas, "chart raster", width, height, title)
