"""docs/models.md says of every model type whether its layout is exact, and if not, why."""

import re

import pytest

from benchmarks.model_types import DOCUMENT, measure, model_types, recorded

RECORDED = recorded(DOCUMENT.read_text(encoding="utf-8"))
TYPES = list(model_types())
TENTH = TYPES[::10]
"""Those that are measured again each time."""


def test_every_model_type_of_transformers_has_a_row() -> None:
    assert list(RECORDED) == TYPES


def test_most_types_are_exact_and_every_other_has_its_reason() -> None:
    text = {name for name, reads in model_types().items() if reads == "text"}
    assert sum(RECORDED[name][0] for name in text) >= 136
    assert all(len(how) > 20 for exact, how in RECORDED.values() if not exact)


@pytest.mark.parametrize(
    "model_type",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in TENTH else [pytest.mark.slow, pytest.mark.nightly])
        for name in TYPES
    ],
)
def test_what_is_recorded_of_a_type_is_so(model_type: str) -> None:
    row = measure(model_type)
    exact, how = RECORDED[model_type]
    assert (row.component is not None) == exact
    assert _without_figures(row.how) == _without_figures(how)
    if row.component is not None and row.simulation is not None:
        assert row.component <= 1e-6
        assert row.simulation <= 1e-4


def _without_figures(text: str) -> str:
    """They differ between machines."""
    return re.sub(r"\d+(\.\d+)?(e[+-]\d+)?", "#", text)
