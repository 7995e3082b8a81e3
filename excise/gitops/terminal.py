"""Tables in a terminal: gates and plans."""

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from excise.report.words import measured
from schemas.basis.text import ranges
from schemas.edit import PlanRow
from schemas.evidence import GateVerdicts, Outcome
from schemas.model import LayoutProof, ModelLayout

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


def print_layout(
    layout: ModelLayout,
    rows: Mapping[tuple[str, str], list[int]],
    proof: LayoutProof,
    copied: Sequence[str],
    differences: Sequence[str] | None,
) -> None:
    """Print what each tensor of a layout does, and how it is known. `rows` are layers by tensor and what that does."""
    table = Table("tensor", "does", "layers", title=f"Layout of {layout.model_type}", title_justify="left")
    family = layout.family
    for name in family.embeddings:
        table.add_row(escape(name), "token embeddings" + (", and output head" if layout.tied else ""), "-")
    for embedding in family.other_embeddings:
        table.add_row(escape(embedding.weight), "added to the stream before the first layer", "-")
    for (name, what), layers in rows.items():
        table.add_row(escape(name), escape(what), ranges(layers))
    console = _console()
    console.print(table)
    if copied:
        console.print(escape(f"Neither writes to the stream nor reads it, and is copied: {', '.join(copied)}"))
    worst = min([*proof.left_out.values(), *proof.turned.values()])
    console.print(
        f"Proof, on a small twin: of its stream, {proof.before:.2g} lies along a random direction; after the edit of "
        f"all that writes to it, {proof.component:.1e}; with one writer left out, or edited along its other axis, at "
        f"least {worst:.1e}"
    )
    if differences is not None:
        agrees = "otherwise" if differences else "the same"
        console.print(f"A file of schemas/architectures/ declares this type, and says {agrees}")
    for difference in differences or ():
        console.print(escape(f"- {difference}"))


def _console() -> Console:
    return Console(width=None if Console().is_terminal else 200)
