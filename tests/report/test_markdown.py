"""The report and the gate table: what a reader sees first is the verdict."""

import re
from collections.abc import Mapping
from io import StringIO
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from excise.gitops import terminal
from excise.gitops.terminal import print_gates
from excise.report import markdown
from excise.report.conclusions import conclude
from excise.report.words import headline, measured
from schemas.evidence import Comparison, GateVerdicts, Outcome
from schemas.params.ablate import Ablate
from tests.diagnoses import directions, simulation
from tests.evidence_documents import (
    BAD,
    EMPTY,
    FAILS,
    GOOD,
    INCONCLUSIVE,
    NO_GATES,
    REFUSED,
    VOID,
    WARNS,
    broken_rows,
    drift_row,
    gate,
    gates,
    good_rows,
    manifest,
    report,
    row,
    silent_row,
)

ROWS = [
    row("refusal.harmful.refusal_rate", 1.0, 0.25),
    drift_row("first_token_kl", 0.03125, (0.025, 0.0375)),
    silent_row("capability.wikitext.word_perplexity", 12.5, 13.0),
]


def render_report(rows: list[Comparison], gates: GateVerdicts, left_out: Mapping[str, int] | None = None) -> str:
    """The report; what explains it is asked for in `test_explanation.py`."""
    return markdown.render_report(report(rows=rows, gates=gates, left_out=left_out or {}))


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


def test_samples_that_were_left_out_are_counted_and_nothing_is_said_where_none_were() -> None:
    note = "Left out of judging, because the direction was measured on their prompts: "
    told = render_report(ROWS, GOOD, {"refusal_jbb": 3, "organism_harmful": 1200})
    assert f"\n\n{note}3 of `refusal_jbb`, 1,200 of `organism_harmful`.\n\n" in told
    assert "Left out" not in render_report(ROWS, GOOD)


@pytest.mark.parametrize(
    ("gates", "heading"),
    [
        (GOOD, "# All gates pass"),
        (INCONCLUSIVE, "# A gate is inconclusive"),
        (REFUSED, "# A gate is inconclusive, and not accepted"),
        (EMPTY, "# A gate is void, 1 is inconclusive"),
        (BAD, "# A gate fails, 1 is inconclusive"),
        (gates(FAILS, FAILS, VOID, VOID, WARNS, WARNS), "# 2 gates fail, 2 are void, 2 are inconclusive"),
        (NO_GATES, "# No gates"),
    ],
)
def test_the_verdict_is_the_heading(gates: GateVerdicts, heading: str) -> None:
    assert render_report(ROWS, gates).splitlines()[0] == heading


@pytest.mark.parametrize(
    ("gates", "sentence"),
    [
        (GOOD, "The gate passes: its interval lies entirely within its limit."),
        (gates(gate(), gate()), "Both gates pass: each interval lies entirely within its limit."),
        (gates(gate(), gate(), gate()), "All 3 gates pass: each interval lies entirely within its limit."),
        (INCONCLUSIVE, f"These samples cannot show whether `{WARNS.metric}` keeps its limit (drop of at most 0.03)"),
        (gates(WARNS, WARNS), "; 2 of 2 gates are inconclusive."),
        (REFUSED, "; params.yaml does not accept that (`inconclusive: fail`)."),
        (
            EMPTY,
            f"The gate on `{VOID.metric}` (at most 0.15) is void: it is 0.01, but the base keeps this limit already",
        ),
        (gates(VOID, WARNS, VOID), "; 2 of 3 gates are void."),
        (BAD, f"`{FAILS.metric}` fails its gate (at most 0.001): its interval is outside."),
        (gates(FAILS, FAILS, WARNS), "; 2 of 3 gates fail."),
        (NO_GATES, "params.yaml sets no gates, so nothing is judged."),
    ],
)
def test_one_sentence_says_why(gates: GateVerdicts, sentence: str) -> None:
    assert sentence in render_report(ROWS, gates).splitlines()[2]


@given(st.lists(st.tuples(st.sampled_from(get_args(Outcome)), st.sampled_from(["warn", "fail"])), max_size=6))
def test_no_headline_says_that_all_gates_pass_unless_each_does(states: list[tuple[Outcome, str]]) -> None:
    judged = gates(*(gate(verdict=verdict, inconclusive=inconclusive) for verdict, inconclusive in states))
    verdicts = [verdict for verdict, _ in states]
    assert ("pass" in headline(judged)) == (bool(verdicts) and set(verdicts) == {"pass"})
    assert ("not accepted" in headline(judged)) == (("inconclusive", "fail") in states)
    assert len(headline(judged)) <= 140  # GitHub takes no longer description of a status
    for verdict in ("void", "inconclusive"):
        assert (verdict in headline(judged)) == (verdict in verdicts)


def test_every_gate_is_a_line_with_its_limit_interval_verdict_and_reason() -> None:
    assert table(render_report(ROWS, BAD), "gate")[1:] == [
        [f"`{one.metric}`", one.words, measured(one), f"**{verdict}**", one.reason + more]
        for one, verdict, more in zip(
            BAD.gates,
            ("pass", "inconclusive", "fail"),
            ("", "; about 1,400 samples would settle it", ""),
            strict=True,
        )
    ]
    assert measured(WARNS) == "0.0125 (-0.002 to 0.041, 95 %)"


def test_a_gate_without_value_or_interval_shows_none() -> None:
    silent = gates(gate(value=None, interval=None, verdict="fail"), gate(interval=None))
    shown = [line[2] for line in table(render_report(ROWS, silent), "gate")[1:]]
    assert shown == ["-", "0 (no interval)"]


def test_every_metric_is_a_line_with_both_models_and_an_interval_where_there_is_one() -> None:
    assert table(render_report(ROWS, GOOD), "metric")[1:] == [
        ["`refusal.harmful.refusal_rate`", "1.0000", "0.2500", "-0.7500", "-0.7700 to -0.7300", "320"],
        ["`drift.first_token_kl`", "", "0.0312", "", "0.0250 to 0.0375", "64"],
        ["`capability.wikitext.word_perplexity`", "12.5000", "13.0000", "+0.5000", "", "320"],
    ]


def part(report: str, heading: str) -> str:
    """The text below one heading."""
    return report.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def test_each_conclusion_stands_once_below_the_heading_of_its_part() -> None:
    text = render_report(broken_rows(), GOOD)
    assert re.findall("^## (.*)", text, re.MULTILINE)[:3] == ["What changed", "What it cost", "Where it fails"]
    found = [line for heading in ("What changed", "What it cost", "Where it fails") for line in listed(text, heading)]
    assert sorted(found) == sorted(f"- {markdown.say(said)}" for said in conclude(broken_rows(), GOOD))
    assert listed(text, "What changed")[0].startswith("- **The edit broke the model.**")
    assert listed(text, "What it cost")[-1].startswith("- **The model drifted far**")
    assert listed(text, "Where it fails")[0].startswith("- **Refusals gave way to degenerate answers**")


def listed(report: str, heading: str) -> list[str]:
    """The statements below a heading."""
    return [line for line in part(report, heading).splitlines() if line.startswith("- ")]


def test_the_edit_is_told_by_its_base_its_rules_and_its_tensors() -> None:
    rules = [{"layers": "0-1", "measurement": 2.5, "scale": 0.5, "targets": ["attention"]}]
    rules += [{"layers": "all", "measurement": "same", "targets": ["routed_experts"], "experts": [0, 1, 3]}]
    edited = [
        {"role": "attention", "tensors": 2, "layers": [0, 1], "parameters": 8192, "bytes": 32768},
        {"role": "embedding", "tensors": 1, "layers": [], "parameters": 1024, "bytes": 4096},
    ]
    base = manifest().model_copy(update={"source": "hub", "id": "some/model", "revision": "12" * 20})
    ablate = Ablate.model_validate({"rules": rules})
    shown = report(manifest=base, ablate=ablate, simulation=simulation(edited=edited))
    text = part(markdown.render_report(shown), "What changed")
    assert "`some/model` at commit `121212121212` (`glm4_moe`, 6 layers)" in text
    assert table(text, "layers")[1:] == [
        ["0-1", "2.5", "0.5", "attention"],
        ["all", "same", "1", "routed_experts; experts 0-1, 3"],
    ]
    assert "3 tensors with 9,216 parameters are edited: 2 of `attention` (layers 0-1), 1 of `embedding`." in text
    nothing = report(simulation=simulation(edited=[]))
    assert "No tensor is edited" in part(markdown.render_report(nothing), "What changed")


def test_failures_are_counted_task_by_task() -> None:
    rate = row("refusal.harmful.refusal_rate", 0.5, 0.25, rose=16, fell=96)
    rows = [rate, row("refusal.harmful.degenerate_rate", 0.1, 0.125), row("capability.facts.refusal_rate", 0.0, 0.05)]
    assert table(part(render_report(rows, GOOD), "Where it fails"), "answers to")[1:] == [
        ["`refusal.harmful`", "320", "64", "16", "40", "32"],
        ["`capability.facts`", "320", "0", "16", "-", "-"],
    ]


def test_what_was_not_measured_is_named() -> None:
    told = part(render_report([row("refusal.harmful.exact_match", 0.0, 1.0)], GOOD), "Where it fails")
    assert "Not measured: refusal of harmless prompts, capability, drift." in told and "No answers were judged" in told
    assert "Not measured" not in render_report(good_rows(), GOOD)


def test_a_report_warns_of_ruinous_rules_and_of_directions_that_the_rules_use() -> None:
    thirds = [{"first": 0, "last": 1, "perplexity": 3.0}, {"first": 2, "last": 2, "perplexity": None}]
    doubtful = directions(warnings=["use more prompts"])
    ruined = simulation(ruinous=True, thirds=thirds, measurements=[1.5, 3.0])
    told = part(markdown.render_report(report(simulation=ruined, directions=doubtful)), "Where it fails")
    assert "1.06 times as perplexing" in told and "layers 0-1: 3.00 times, layer 2: infinitely." in told
    assert re.findall(r"direction of measurement (\d): use more prompts", told) == ["1", "2", "3"]
    assert "Warning" not in render_report(good_rows(), GOOD)


def test_a_report_of_no_samples_says_so() -> None:
    text = render_report([], GOOD)
    assert all("These samples say nothing about" in part(text, one) for one in ("What changed", "What it cost"))
    assert "No answers were judged" in part(text, "Where it fails")


def test_a_report_without_gates_says_so_and_claims_no_pass() -> None:
    text = render_report(ROWS, NO_GATES)
    assert "params.yaml sets no gates" in text and "| gate |" not in text
    assert "pass" not in text.splitlines()[0]


def test_a_report_ends_with_a_newline_and_has_no_blank_run() -> None:
    for verdicts in (GOOD, BAD, NO_GATES):
        for rows in (ROWS, good_rows(), []):
            report = render_report(rows, verdicts)
            assert report.endswith(".\n") and not report.endswith("\n\n") and "\n\n\n" not in report


def test_the_terminal_shows_every_gate_whole(capsys: pytest.CaptureFixture[str]) -> None:
    print_gates(BAD)
    shown = capsys.readouterr().out
    for one, verdict in zip(BAD.gates, ("pass", "inconclusive", "fail"), strict=True):
        line = next(line for line in shown.splitlines() if one.metric in line)
        for part in (one.words, verdict, one.reason, measured(one)):
            assert part in line


def test_the_terminal_colours_each_state_in_its_own_way(monkeypatch: pytest.MonkeyPatch) -> None:
    written = StringIO()
    console = Console(file=written, force_terminal=True, color_system="standard", width=200)
    monkeypatch.setattr(terminal, "_console", lambda: console)
    print_gates(gates(*BAD.gates, VOID))
    for colour, verdict in ((32, "pass"), (33, "inconclusive"), (35, "void"), (31, "fail")):
        assert f"\x1b[{colour}m{verdict}" in written.getvalue()


def test_the_terminal_takes_no_words_for_its_own_markup(capsys: pytest.CaptureFixture[str]) -> None:
    print_gates(gates(gate(metric="capability.a[red]b.acc", reason="[bold]it is[/bold] 0")))
    shown = capsys.readouterr().out
    assert "a[red]b" in shown and "[bold]it is[/bold]" in shown


def test_the_terminal_says_that_there_are_no_gates(capsys: pytest.CaptureFixture[str]) -> None:
    print_gates(NO_GATES)
    assert capsys.readouterr().out == "params.yaml sets no gates\n"
