"""Reports on the terminal: tables that fit 80 columns, colour only on a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from snnir.analysis.page import energy, si

WIDTH = 80


def print_summary(report: Mapping[str, Any], folder: Path) -> None:
    """What `compile` says: the proof layer by layer, verdict, costs."""
    console = _console()
    how = "end to end" if report["target"] == "nir" else "same spikes in"
    table = _table(f"{report['network']}: exported layers against torch, {how}", "layer")
    for name in ("firing rate", "spikes", "differ", "diff/bound"):
        table.add_column(name, justify="right")
    for layer in report["parity"]["layers"]:
        table.add_row(
            escape(layer["path"]),
            f"{layer['firing_rate']:.3f}",
            f"{layer['values']:,}",
            str(layer["spike_mismatches"]),
            f"{layer['rounding_used']:.0%}",
            style=None if layer["passed"] else "red",
        )
    console.print(table)
    console.print(
        "[dim]diff/bound: largest current difference as a share of what rounding explains[/]\n"
    )
    _print_totals(console, report, folder)


def print_report(report: Mapping[str, Any], folder: Path) -> None:
    """What `report` says: every layer that computes or fires, then the totals."""
    console = _console()
    table = _table(f"{report['network']}: a sample, layer by layer", "layer")
    model = report["cost_models"][0]["name"]
    for name in ("firing", "MACs", "SynOps", "by rate", escape(model)):
        table.add_column(name, justify="right")
    for layer in report["layers"]:
        did = layer["operations"]
        if not (did or "firing_rate" in layer):
            continue
        rate = layer.get("firing_rate")
        table.add_row(
            layer["path"],
            "" if rate is None else f"{rate:.3f}",
            *(si(did[key]) if key in did else "" for key in ("macs", "synops", "synops_by_rate")),
            energy(layer["energy"][model]) if layer.get("energy", {}).get(model) else "",
        )
    console.print(table)
    console.print()
    _print_totals(console, report, folder)


def print_comparison(comparison: Mapping[str, Any], folder: Path) -> None:
    """Totals of several networks side by side, then the layers' SynOps and MACs."""
    console = _console()
    for title, rows in (
        ("totals", comparison["totals"]),
        ("SynOps and MACs of a sample, layer by layer", _computing(comparison)),
    ):
        table = _table(title, "")
        for name in (*comparison["networks"], "difference"):
            table.add_column(escape(name), justify="right", overflow="fold")
        for row in rows:
            values = ["–" if value is None else _number(value) for value in row["values"]]
            change = row["difference"]
            table.add_row(
                escape(row["name"]),
                *values,
                "–" if change is None else f"{'+' if change > 0 else ''}{_number(change)}",
            )
        console.print(table)
        console.print()
    page = escape(str(folder / "compare.html"))
    console.print(f"  pages: {page}, and a report of each beside it", soft_wrap=True)


def _computing(comparison: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "name": layer["path"],
            "values": layer["values"][name],
            "difference": layer["difference"][name],
        }
        for layer in comparison["layers"]
        for name in ("sample_synops", "sample_macs")
        if name in layer["values"]
    ]


def _number(value: float) -> str:
    if isinstance(value, int) and abs(value) < 1e6:
        return f"{value:,}"
    return ("-" if value < 0 else "") + (si(abs(value)) if abs(value) >= 1 else f"{abs(value):.3g}")


def _console() -> Console:
    return Console(highlight=False, width=min(WIDTH, Console().width))


def _table(title: str, first: str) -> Table:
    table = Table(title=escape(title), box=None)
    table.add_column(first, overflow="fold", max_width=34)
    return table


def _print_totals(console: Console, report: Mapping[str, Any], folder: Path) -> None:
    """Name and value, a line each; then what a user should worry about."""
    parity = report["parity"]
    verdict = "[green]proved[/]" if parity["passed"] else "[red]NOT PROVED[/]"
    folding = parity["folding"]
    purity = "yes" if report["spike_pure"] else f"no, {len(report['violations'])} violations"
    did = report["operations"]
    rows = [
        ("parity", f"{verdict}, {parity['spikes_compared']:,} spikes, {parity['samples']} samples"),
        (
            "folding (float64)",
            f"{folding['spike_mismatches']} of {folding['spikes_compared']:,} spikes differ",
        ),
        *_exactness(report),
        ("weights", escape(report["weights"]["source"])),
        ("parameters", f"{report['parameters']:,}"),
        ("MACs per step", f"{report['macs']:,}"),
        ("SynOps per sample", f"{si(did['synops'])} exact, {si(did['synops_by_rate'])} by rate"),
        ("purely spiking", purity),
        ("mean firing rate", f"{report['firing_rate']:.3f}"),
        (
            "measured on",
            f"{report['measured_samples']:,} samples, {escape(report['inputs']['source'])}",
        ),
    ]
    if report.get("quantisation"):
        layers = report["quantisation"]["layers"]
        worst = max(layer["weight_rounding"] for layer in layers)
        rows.append(("int8", f"{len(layers)} convolutions, weights changed by {worst:.2%} at most"))
    for name, value in report.get("measures", {}).items():
        shown = f"{value:.2%}" if name.endswith("accuracy") else f"{value:.4g}"
        rows.append((name.replace("_", " "), shown))
    for model in report["cost_models"]:
        unpriced = report["energy_parts"][model["name"]]["unpriced_macs"]
        note = "memory included" if "memory" in model else "no memory traffic"
        note += f", {si(unpriced)} MACs not priced" if unpriced else ""
        price = energy(report["energy"][model["name"]])
        rows.append((f"energy, {escape(model['name'])}", f"{price} ({note})"))
    for name, value in [*rows, ("page", escape(str(folder / "report.html")))]:
        console.print(f"  {name:18} {value}", soft_wrap=True)
    for violation in report["violations"]:
        console.print(
            f"  [yellow]not spiking:[/] {violation['path']} {violation['reason']}", soft_wrap=True
        )
    for path in report["silent"]:
        console.print(
            f"  [yellow]silent layer, so nothing is proved about it:[/] {path}", soft_wrap=True
        )


def _exactness(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What exact mode adds: the certificate and the comparison that forces nothing."""
    certificate, found = report["certificate"], report["parity"]["end_to_end"]
    if not certificate:
        return []
    tightest = min(certificate["layers"], key=lambda layer: layer["headroom_bits"])
    verdict = "[green]every sum exact[/]" if certificate["holds"] else "[red]DOES NOT HOLD[/]"
    headroom = f"{tightest['headroom_bits']:.2f} bits left at {tightest['path']}"
    runtimes = "torch, onnxruntime, NumPy"
    return [
        ("certificate", f"{verdict}, {headroom}"),
        (
            "end to end",
            f"{found['mismatches']} of {found['spikes_compared']:,} differ ({runtimes})",
        ),
    ]
