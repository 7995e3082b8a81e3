"""Tables in a terminal: gates and plans."""

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from excise.report.words import measured
from schemas.basis.text import ranges
from schemas.edit import PlanRow
from schemas.evidence import GateVerdicts, Outcome

COLOURS: dict[Outcome, str] = {"pass": "green", "inconclusive": "yellow", "void": "magenta", "fail": "red"}


def print_gates(verdicts: GateVerdicts) -> None:
    """Print one line a gate, and the verdict on all."""
    table = Table("gate", "limit", "value and interval", "verdict", "why", title="Gates", title_justify="left")
    for gate in verdicts.gates:
        verdict = f"[{COLOURS[gate.verdict]}]{gate.verdict}[/]"
        table.add_row(escape(gate.metric), gate.words, measured(gate), verdict, escape(gate.reason))
    _console().print(table if verdicts.gates else "params.yaml sets no gates")


def print_plan(
    rows: list[PlanRow], left: tuple[float, float] | None, spare_layers: list[str], left_out: Sequence[str]
) -> None:
    """Print what a plan would edit, one line a role, and the layers that it leaves as they are."""
    table = Table(title="Plan", title_justify="left")
    for name in ("role", "tensors", "layers", "parameters", "MiB"):
        table.add_column(name, justify="left" if name in ("role", "layers") else "right")
    for row in rows:
        layers = ranges(row.layers) or "-"
        table.add_row(row.role, f"{row.tensors:,}", layers, f"{row.parameters:,}", f"{row.bytes / 2**20:,.1f}")
    _console().print(table)
    if left:
        told = f"{100 * left[0]:.0f} to {100 * left[1]:.0f} %"
        _console().print(f"Behind norms that are ignored, {told} of what a tensor writes along the direction is left")
    if spare_layers:
        _console().print(f"In the file but not in use, and copied as they are: {', '.join(spare_layers)}")
    if left_out:
        _console().print(f"Beside the weights, and not copied as it may hold them again: {', '.join(left_out)}")


def _console() -> Console:
    return Console(width=None if Console().is_terminal else 200)
