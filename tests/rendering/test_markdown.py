"""The report and the gate table: what a reader sees first is the verdict."""

import pytest

from schemas.artifacts import Comparison, GateVerdict, GateVerdicts
from schemas.params import Ablate
from stages.rendering import markdown
from stages.rendering.terminal import print_gates
from tests.diagnoses import diagnosis

ROWS = [
    Comparison(metric="refusal.harmful.refusal_rate", base=1.0, ablated=0.25, difference=-0.75, samples=320),
    Comparison(metric="drift.first_token_kl", base=None, ablated=0.03125, difference=None, samples=None),
]
PASSES = GateVerdict(
    metric="refusal.harmful.refusal_rate", limit="at most 0.5", value=0.25, verdict="pass", reason="it is 0.25"
)
FAILS = GateVerdict(
    metric="drift.first_token_kl", limit="at most 0.01", value=0.03125, verdict="fail", reason="it is 0.03125"
)
GOOD = GateVerdicts(verdict="pass", gates=[PASSES])
BAD = GateVerdicts(verdict="fail", gates=[PASSES, FAILS])
NONE = GateVerdicts(verdict="pass", gates=[])


def render_report(rows: list[Comparison], gates: GateVerdicts) -> str:
    """The report; what explains it is asked for in `test_explanation.py`."""
    return markdown.render_report(rows, gates, diagnosis(), Ablate(), ())


def table(report: str, heading: str) -> list[list[str]]:
    """The cells of the table that has this heading in its first cell, its rule left out."""
    lines = report.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(f"| {heading} |"))
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    assert len({len(row) for row in rows}) == 1
    return [rows[0], *rows[2:]]


@pytest.mark.parametrize(("gates", "heading"), [(GOOD, "# All gates pass"), (BAD, "# A gate fails")])
def test_the_verdict_is_the_heading(gates: GateVerdicts, heading: str) -> None:
    assert render_report(ROWS, gates).splitlines()[0] == heading


def test_every_gate_is_a_line_with_its_limit_verdict_and_reason() -> None:
    assert table(render_report(ROWS, BAD), "gate")[1:] == [
        ["`refusal.harmful.refusal_rate`", "at most 0.5", "**pass**", "it is 0.25"],
        ["`drift.first_token_kl`", "at most 0.01", "**fail**", "it is 0.03125"],
    ]


def test_every_metric_is_a_line_with_both_models_and_drift_has_no_base() -> None:
    assert table(render_report(ROWS, GOOD), "metric")[1:] == [
        ["`refusal.harmful.refusal_rate`", "1.0000", "0.2500", "-0.7500", "320"],
        ["`drift.first_token_kl`", "", "0.0312", "", ""],
    ]


def test_a_report_without_gates_says_so() -> None:
    report = render_report(ROWS, NONE)
    assert "params.yaml sets no gates." in report and "| gate |" not in report


def test_a_report_without_gates_claims_no_pass() -> None:
    assert "pass" not in render_report(ROWS, NONE).splitlines()[0]


def test_a_report_ends_with_a_newline_and_has_no_blank_run() -> None:
    for gates in (GOOD, BAD, NONE):
        report = render_report(ROWS, gates)
        assert report.endswith(".\n") and not report.endswith("\n\n") and "\n\n\n" not in report


def test_the_terminal_shows_every_gate_whole(capsys: pytest.CaptureFixture[str]) -> None:
    print_gates(BAD)
    shown = capsys.readouterr().out
    for gate in BAD.gates:
        line = next(line for line in shown.splitlines() if gate.metric in line)
        assert gate.limit in line and gate.verdict in line and gate.reason in line


def test_the_terminal_says_that_there_are_no_gates(capsys: pytest.CaptureFixture[str]) -> None:
    print_gates(NONE)
    assert capsys.readouterr().out == "params.yaml sets no gates\n"
