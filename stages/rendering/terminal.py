"""The gate table in a terminal."""

from rich.console import Console
from rich.table import Table

from schemas.artifacts import GateVerdicts


def print_gates(verdicts: GateVerdicts) -> None:
    """Print one line a gate, and the verdict on all."""
    table = Table("gate", "limit", "verdict", "why", title="Gates", title_justify="left")
    for gate in verdicts.gates:
        color = "green" if gate.verdict == "pass" else "red"
        table.add_row(gate.metric, gate.limit, f"[{color}]{gate.verdict}[/]", gate.reason)
    console = Console(width=None if Console().is_terminal else 140)
    console.print(table if verdicts.gates else "params.yaml sets no gates")
