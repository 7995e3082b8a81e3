"""Intervals are drawn where their numbers are."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from excise.report.drawing import Axis, axes, draw_difference, draw_drift, draw_gate
from tests.evidence_documents import drift_row, gate, interval, row, silent_row

NUMBERS = st.floats(-1e6, 1e6)


def test_rates_share_an_axis_and_other_metrics_have_their_own() -> None:
    rows = [
        row("capability.a.acc", 0.5, 0.6),
        row("capability.b.acc", 0.5, 0.53),
        row("capability.c.perplexity", 12.0, 40.0, difference_interval=interval((20.0, 30.0))),
        silent_row("capability.d.acc", 0.5, 0.6),
    ]
    assert axes(rows) == {
        "capability.a.acc": Axis(-0.2, 0.2),
        "capability.b.acc": Axis(-0.2, 0.2),
        "capability.c.perplexity": Axis(-40.0, 40.0),
    }


def test_a_difference_lies_beside_no_difference_and_the_gate_that_limits_it() -> None:
    one = row("capability.a.acc", 0.5, 0.45, margin=0.025)
    axis = Axis(-0.1, 0.1)
    drop = gate(one.metric, bound="max_drop", limit=0.05)
    drawn = draw_difference(one, [drop], axis)
    assert drawn is not None
    assert (drawn.low, drawn.point, drawn.high) == (12.5, 25.0, 37.5)
    assert (drawn.neutral, drawn.limit, drawn.allowed) == (50.0, 25.0, (25.0, 75.0))
    drawn = draw_difference(one, [gate(one.metric, bound="max_rise", limit=0.05)], axis)
    assert drawn is not None and (drawn.limit, drawn.allowed) == (75.0, (0.0, 75.0))
    drawn = draw_difference(one, [gate(one.metric, bound="at_most", limit=0.05)], axis)
    assert drawn is not None and drawn.limit is None and drawn.allowed is None


def test_a_limit_beyond_the_axis_is_not_drawn_at_its_end() -> None:
    one = row("capability.a.acc", 0.5, 0.45)
    drawn = draw_difference(one, [gate(one.metric, bound="max_drop", limit=0.5)], Axis(-0.1, 0.1))
    assert drawn is not None and drawn.limit is None and drawn.allowed == (0.0, 100.0)


@pytest.mark.parametrize(("bound", "allowed"), [("at_most", (0, 50)), ("max_drop", (0, 50)), ("at_least", (50, 50))])
def test_a_gate_shades_what_it_allows(bound: str, allowed: tuple[int, int]) -> None:
    drawn = draw_gate(gate(bound=bound, limit=0.5, value=0.6, interval=interval((0.2, 0.8))))
    assert drawn is not None and drawn.allowed is not None and drawn.limit is not None
    assert drawn.allowed == pytest.approx(allowed, abs=1) and drawn.limit == pytest.approx(50, abs=1)


def test_drift_is_drawn_from_where_the_base_is() -> None:
    for name, value, ends in (("answer_kl", 2.0, (1.5, 2.5)), ("perplexity_ratio", 3.0, (2.0, 4.0))):
        drawn = draw_drift(drift_row(name, value, ends))
        assert drawn is not None and drawn.neutral == 0.0
    drawn = draw_drift(drift_row("top1_agreement", 0.9, (0.85, 0.95)))
    assert drawn is not None and drawn.neutral == 100.0 and drawn.axis.last == 1.0


def test_nothing_is_drawn_where_there_is_no_interval_or_no_number() -> None:
    silent = silent_row("capability.d.acc", 0.5, 0.6)
    assert draw_difference(silent, [], Axis(-1, 1)) is None and axes([silent]) == {}
    assert axes([row("capability.a.acc", 0.5, math.nan)]) == {}
    assert draw_gate(gate(interval=None)) is None and draw_gate(gate(value=None)) is None
    assert draw_gate(gate(value=math.nan)) is None
    assert draw_drift(drift_row("answer_kl", 1.0, ablated_interval=None)) is None
    assert draw_drift(drift_row("answer_kl", math.inf, (0.0, math.inf))) is None


@given(st.tuples(NUMBERS, NUMBERS, NUMBERS).map(sorted), NUMBERS, st.sampled_from(["at_most", "at_least", "max_drop"]))
def test_every_part_lies_in_its_order_within_the_drawing(ends: list[float], limit: float, bound: str) -> None:
    low, value, high = ends
    for drawn in (
        draw_gate(gate(value=value, interval=interval((low, high)), limit=limit, bound=bound)),
        draw_drift(drift_row("answer_kl", value, (low, high))),
    ):
        assert drawn is not None
        assert 0 <= drawn.low <= drawn.point <= drawn.high <= 100
        assert drawn.axis.first <= low and high <= drawn.axis.last
        assert drawn.limit is None or 0 <= drawn.limit <= 100
