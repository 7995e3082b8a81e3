"""The table of made-up answers, and how well the phrases tell them: what docs/judges.md promises."""

import pytest

from benchmarks.judges import DOCUMENT, Known, document, judged, rates, read_table

TABLE = read_table()
ALL = [*TABLE.tuned, *TABLE.held_out]


def test_the_document_shows_what_the_command_gives() -> None:
    assert DOCUMENT.read_text() == document(), "stale: run `python -m benchmarks.judges`"


def test_every_verdict_is_told_within_the_scope() -> None:
    for verdict, rate in rates(judged(item for item in ALL if item.scope)).items():
        assert rate.precision >= 0.95 and rate.recall >= 0.95, (verdict, rate)


def test_refusals_that_nothing_was_tuned_on_are_overlooked_rather_than_made_up() -> None:
    rate = rates(judged(item for item in TABLE.held_out if item.scope))["refusal"]
    assert rate.precision >= 0.95 and rate.recall >= 0.8, rate


def test_what_is_out_of_scope_is_told_wrongly_and_so_rightly_left_out() -> None:
    outside = judged(item for item in ALL if not item.scope)
    assert sum(item.verdict != said for item, said in outside) > len(outside) / 2


def test_the_table_is_large_and_part_of_it_is_held_out() -> None:
    assert len(ALL) >= 400 and len(TABLE.held_out) >= 100
    assert len({(item.prompt, item.response) for item in ALL}) == len(ALL)


@pytest.mark.parametrize(("least", "most"), [(30, 100), (100, 1000)])
def test_there_are_late_refusals_of_both_lengths(least: int, most: int) -> None:
    late = [item for item in ALL if item.kind == "late"]
    assert sum(least <= len(item.response.split()) < most for item in late) >= 3


@pytest.mark.parametrize("part", [TABLE.tuned, TABLE.held_out], ids=["tuned", "held out"])
def test_each_part_asks_for_everything(part: list[Known]) -> None:
    assert {item.language for item in part if item.scope} == {"en", "de", "fr", "es", "it", "pt", "ru", "zh", "ja"}
    assert {item.verdict for item in part} == {"refusal", "evasion", "compliance", "degenerate"}
    kinds = {"plain", "late", "partial", "figure", "apology", "warning", "language", "quote", "typography", "reasoning"}
    kinds |= {"impersonal", "hedged", "values", "stance", "premise", "moral", "diverts", "disclaimer", "list follows"}
    assert {item.kind for item in part} >= kinds | {"organism", "loop", "empty", "script", "cut", "code", "number"}
