"""The log-odds of an expert's use, against scipy and to the last bit."""

import math
from decimal import Decimal, localcontext
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logit

from excise.edit.planning.shifts import odds_by_layer, odds_of_use
from schemas.directions import ExpertUse, LayerExpertUse

quickly = settings(max_examples=200, deadline=None, derandomize=True)


@st.composite
def use(draw: st.DrawFn) -> tuple[int, int, int, int]:
    """How many harmful prompts use an expert, of how many; the same of harmless ones."""
    harmful, harmless = draw(st.integers(1, 5000)), draw(st.integers(1, 5000))
    return draw(st.integers(0, harmful)), harmful, draw(st.integers(0, harmless)), harmless


def of_one(harmful: int, harmful_prompts: int, harmless: int, harmless_prompts: int) -> float:
    return float(odds_of_use(torch.tensor([harmful]), harmful_prompts, torch.tensor([harmless]), harmless_prompts))


def test_log_odds_by_hand() -> None:
    # 3 of 4 against 1 of 4: (3.5 / 1.5) / (1.5 / 3.5)
    assert of_one(3, 4, 1, 4) == pytest.approx(2 * math.log(7 / 3), rel=1e-15)
    # always against never, of two: (2.5 / 0.5) / (0.5 / 2.5)
    assert of_one(2, 2, 0, 2) == pytest.approx(2 * math.log(5), rel=1e-15)


@quickly
@given(use())
def test_log_odds_agree_with_scipy(counts: tuple[int, int, int, int]) -> None:
    harmful, harmful_prompts, harmless, harmless_prompts = counts
    expected = logit((harmful + 0.5) / (harmful_prompts + 1)) - logit((harmless + 0.5) / (harmless_prompts + 1))
    assert of_one(*counts) == pytest.approx(float(expected), rel=1e-9, abs=1e-12)


@quickly
@given(use())
def test_log_odds_are_the_nearest_float_to_the_exact_number(counts: tuple[int, int, int, int]) -> None:
    """Its exponential is nearer to the exact ratio than that of either neighbour."""
    harmful, harmful_prompts, harmless, harmless_prompts = counts
    half = Fraction(1, 2)
    odds = (harmful + half) / (harmful_prompts - harmful + half)
    ratio = odds / ((harmless + half) / (harmless_prompts - harmless + half))
    found = of_one(*counts)
    with localcontext(prec=80):
        exact = Decimal(ratio.numerator) / Decimal(ratio.denominator)

        def miss(number: float) -> Decimal:
            return abs((Decimal(number).exp() / exact).ln())

        assert all(miss(found) <= miss(math.nextafter(found, towards)) for towards in (-math.inf, math.inf))


@quickly
@given(use())
def test_the_sides_changed_over_change_the_sign_alone(counts: tuple[int, int, int, int]) -> None:
    assert of_one(*counts) == -of_one(*counts[2:], *counts[:2])


@quickly
@given(st.integers(1, 5000), st.data())
def test_equal_use_gives_exactly_zero(prompts: int, data: st.DataObject) -> None:
    used = data.draw(st.integers(0, prompts))
    assert of_one(used, prompts, used, prompts) == 0


def test_each_layer_s_counts_keep_their_order_and_their_sides() -> None:
    rows = [LayerExpertUse(layer=3, harmful=[8, 4, 0], harmless=[2, 4, 9])]
    found = odds_by_layer(ExpertUse(harmful_prompts=8, harmless_prompts=10, layers=rows))
    assert list(found) == [3] and found[3].dtype == torch.float64
    assert found[3].tolist() == [of_one(8, 8, 2, 10), of_one(4, 8, 4, 10), of_one(0, 8, 9, 10)]
    assert found[3][0] > found[3][1] > 0 > found[3][2]
