"""A compile report on the terminal: tables that fit 80 columns, colour only on a terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


def print_summary(report: dict[str, Any], folder: Path) -> None:
    """Print what a user wants to know first: verdict, costs, the proof layer by layer."""
    console = Console(highlight=False, width=min(80, Console().width))
    parity = report["parity"]
    table = Table(
        title=f"{report['network']}: exported layers against torch, same spikes in", box=None
    )
    table.add_column("layer", overflow="fold", max_width=38)
    for name in ("firing rate", "spikes", "differ", "diff/bound"):
        table.add_column(name, justify="right")
    for layer in parity["layers"]:
        style = None if layer["passed"] else "red"
        table.add_row(
            layer["path"],
            f"{layer['firing_rate']:.3f}",
            f"{layer['values']:,}",
            str(layer["spike_mismatches"]),
            f"{layer['rounding_used']:.0%}",
            style=style,
        )
    console.print(table)
    console.print(
        "[dim]diff/bound: largest current difference as a share of what rounding explains[/]\n"
    )
    verdict = "[green]proved[/]" if parity["passed"] else "[red]NOT PROVED[/]"
    folding = parity["folding"]
    purity = "yes" if report["spike_pure"] else f"no, {len(report['violations'])} violations"
    rows = [
        ("parity", f"{verdict}, {parity['spikes_compared']:,} spikes, {parity['samples']} samples"),
        (
            "folding (float64)",
            f"{folding['spike_mismatches']} of {folding['spikes_compared']:,} spikes differ",
        ),
        ("weights", str(report["weights"]["source"])),
        ("parameters", f"{report['parameters']:,}"),
        ("MACs per step", f"{report['macs']:,}"),
        ("purely spiking", purity),
        ("mean firing rate", f"{report['firing_rate']:.3f}"),
        *(
            (f"energy, {name}", f"{mj:.3g} mJ (compute only)")
            for name, mj in report["energy"].items()
        ),
        ("page", str(folder / "report.html")),
    ]
    for name, value in rows:
        console.print(f"  {name:18} {value}", soft_wrap=True)
    for violation in report["violations"]:
        console.print(
            f"  [yellow]not spiking:[/] {violation['path']} {violation['reason']}", soft_wrap=True
        )
    for path in report["silent"]:
        console.print(
            f"  [yellow]silent layer, so nothing is proved about it:[/] {path}", soft_wrap=True
        )
