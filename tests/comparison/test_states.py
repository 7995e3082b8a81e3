"""How often a gate passes although its limit is broken, and is void where it knows nothing, over simulated runs."""

from dataclasses import replace

import pytest

from benchmarks.gates import (
    BOUNDS,
    DESIGNS,
    LIMITS,
    SITUATIONS,
    VOID_DESIGNS,
    Samples,
    Situation,
    breaking,
    gate,
    states,
    void,
    wrong_passes,
)

MOST = 0.05
"""How often a gate at 95 % may be wrong where it passes, or is void."""
LEAST = 0.95
"""How often 100 samples must show that a gate is void; 20 cannot always."""
NOISE = 0.035
"""About two standard errors of a share of 0.05 of 200 runs."""


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("name", DESIGNS)
def test_a_gate_rarely_passes_that_is_just_beyond_its_limit(bound: str, name: str) -> None:
    samples = replace(DESIGNS[name], items=20)
    assert wrong_passes(bound, samples, runs=800) <= MOST + NOISE


@pytest.mark.nightly
@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("name", DESIGNS)
def test_of_10_000_runs_just_beyond_the_limit_at_most_one_in_20_passes(bound: str, name: str) -> None:
    assert wrong_passes(bound, replace(DESIGNS[name], items=20), runs=10_000) <= MOST


@pytest.mark.parametrize("bound", BOUNDS)
def test_a_gate_passes_well_within_its_limit_and_fails_well_beyond_it(bound: str) -> None:
    """Otherwise a gate that never passes would keep the promise."""
    for limit in LIMITS:
        for beyond, verdict in ((-0.045, "pass"), (0.2, "fail")):
            chances = next(breaking(bound, limit, beyond))
            assert states(gate(bound, limit), Samples(2_000), chances, runs=20) == {verdict: 1.0}


@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda situation: situation.words)
def test_a_gate_is_void_where_it_knows_nothing_and_only_there(situation: Situation) -> None:
    for samples in VOID_DESIGNS:
        share = void(situation, samples, runs=200)
        assert share <= MOST + NOISE if not situation.void else samples.items < 100 or share >= LEAST


@pytest.mark.nightly
@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda situation: situation.words)
@pytest.mark.parametrize("samples", VOID_DESIGNS, ids=str)
def test_of_10_000_runs_those_are_void_that_know_nothing(situation: Situation, samples: Samples) -> None:
    share = void(situation, samples, runs=10_000)
    assert share <= MOST if not situation.void else samples.items < 100 or share >= LEAST
