"""A race asks few prompts of what these rule out, keeps what they do not, and what it says stands for all prompts."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from excise.trials.changes import Trial
from excise.trials.growing import Growing
from excise.trials.journal import Journal
from excise.trials.questions import Asked, Kind, Numbers, Questions
from excise.trials.racing import SHARES, Strata, survivors
from excise.trials.tree import Job
from tests.subjects import Subject, rules

PROMPTS = 64


class Replayed(Questions):
    """Questions whose answers are made up beforehand, by trial and prompt."""

    def __init__(self, chances: Tensor, drift: Tensor, base: Tensor, seed: int = 0) -> None:
        """Of refusing harmful prompts, ``[trials, prompts]``, and KL without refusals; the base's chances."""
        self.harmful = self.harmless = [[0]] * PROMPTS
        self.prompts = {"harmful": self.harmful, "harmless": self.harmless}
        self._seed, self._known_strata = seed, dict[Kind, Strata]()
        self._answers: dict[Kind, Tensor] = {"harmful": chances.logit(), "harmless": drift}
        self._base = Asked([Trial()])
        base_odds: dict[Kind, Tensor] = {"harmful": base.logit(), "harmless": torch.full((PROMPTS,), -9.0)}
        for kind, odds in base_odds.items():
            numbers = self._base.numbers[kind] = Numbers(1, PROMPTS)
            numbers.log_odds[0], numbers.is_asked[0] = odds, True
        self.asked = 0

    def _job(self, asked: Asked, kind: Kind, trials: Sequence[int], rows: Sequence[int]) -> Job:
        numbers, values = asked.numbers[kind], self._answers[kind]
        for trial in trials:
            numbers.log_odds[trial, rows] = values[trial, rows] if kind == "harmful" else -9.0
            numbers.kl[trial, rows] = numbers.kl_without[trial, rows] = values[trial, rows]
            numbers.is_asked[trial, rows] = True
        self.asked += len(trials) * len(rows)
        return Job([], [], lambda *_: None, None)  # type: ignore[arg-type]

    def _run(self, jobs: Sequence[Job]) -> None:
        pass


def raced(chances: Tensor, drift: Tensor, seed: int, keep: int = 1, most: int = 6) -> tuple[Replayed, Asked]:
    questions = Replayed(chances, drift, torch.full((PROMPTS,), 0.97), seed)
    asked = Asked([Trial()] * len(chances), keep=keep, most=most)
    questions._race(asked, keep)
    return questions, asked


def made_up(seed: int, trials: int = 40) -> tuple[Tensor, Tensor]:
    """Trials of which most leave refusal, and some remove it at various drifts."""
    numbers = torch.Generator().manual_seed(seed)
    left = torch.where(torch.arange(trials) % 3 == 0, 0.01, 0.3 + 0.6 * torch.rand(trials, generator=numbers))
    chances = (left[:, None] * (0.5 + torch.rand(trials, PROMPTS, generator=numbers))).clamp(0.001, 0.999).double()
    means = 0.001 * 4 ** (5 * torch.rand(trials, generator=numbers))
    return chances, (means[:, None] * torch.rand(trials, PROMPTS, generator=numbers) * 2).double()


def test_the_winner_of_all_prompts_is_asked_all_or_one_that_is_like_it() -> None:
    kept = cost = 0
    for seed in range(25):
        chances, drift = made_up(seed)
        questions, asked = raced(chances, drift, seed)
        outcomes = questions.outcomes(asked)
        whole = [number for number, outcome in enumerate(outcomes) if outcome.is_whole]
        assert 1 <= len(whole) <= 6
        best = min(whole, key=lambda number: outcomes[number].rank)
        removing = [number for number in range(len(chances)) if float(chances[number].mean()) <= 0.05]
        winner = min(removing, key=lambda number: float(drift[number].mean()))
        increase = drift[best] - drift[winner]
        kept += best == winner or float(increase.mean()) <= 1.96 * float(increase.std()) / PROMPTS**0.5
        cost += questions.asked
    assert kept >= 23 and cost <= 0.4 * 25 * 40 * 2 * PROMPTS


def test_what_was_ruled_out_says_of_how_many_prompts_and_is_weighted() -> None:
    chances, drift = made_up(3)
    questions, asked = raced(chances, drift, 0)
    outcomes = questions.outcomes(asked)
    partial = [outcome for outcome in outcomes if not outcome.is_whole]
    assert len(partial) > 30
    for outcome in partial:
        assert outcome.harmful.weights is not None
        assert float(outcome.harmful.weights.sum()) == pytest.approx(1)
        assert outcome.answers().harmful_prompts == len(outcome.harmful.log_odds) < PROMPTS


def test_what_is_no_number_is_never_a_finalist() -> None:
    chances, drift = made_up(3)
    chances[:10] = torch.nan
    drift[10:20] = torch.nan
    questions, asked = raced(chances, drift, 0)
    whole = [number for number, outcome in enumerate(questions.outcomes(asked)) if outcome.is_whole]
    assert whole and min(whole) >= 20


@given(st.integers(1, 200), st.integers(0, 5), st.randoms(use_true_random=False))
def test_each_round_asks_the_unsure_and_more_of_the_others(count: int, seed: int, numbers: random.Random) -> None:
    base = torch.tensor([numbers.random() for _ in range(count)])
    strata = Strata.of(base, seed)
    assert sorted([*strata.unsure, *strata.drawn]) == list(range(count))
    before: list[int] = []
    for share in SHARES:
        rows = strata.asked(share)
        assert set(before) <= set(rows) and set(strata.unsure) <= set(rows)
        assert float(strata.weights(rows).sum()) == pytest.approx(1)
        before = rows
    assert sorted(before) == list(range(count))
    assert strata == Strata.of(base, seed)


def test_an_interval_holds_the_mean_of_all_prompts_as_often_as_it_says() -> None:
    numbers, held = torch.Generator().manual_seed(1), 0
    for seed in range(400):
        values = torch.randn(PROMPTS, generator=numbers).double()
        base = torch.rand(PROMPTS, generator=numbers)
        strata = Strata.of(base, seed)
        rows = strata.asked(1 / 4)
        interval = strata.interval(values[rows], rows)
        held += interval.low <= float(values.mean()) <= interval.high
    assert 0.92 <= held / 400 <= 0.985


def test_of_all_prompts_the_interval_is_their_mean() -> None:
    strata = Strata.of(torch.rand(20), 0)
    values = torch.rand(20).double()
    rows = strata.asked(1.0)
    found = strata.interval(values[rows], rows)
    assert found.low == found.high == pytest.approx(float(values.mean()))


def test_one_is_out_when_so_many_others_beat_it() -> None:
    def larger(one: int, other: int) -> bool:
        return one > other

    assert survivors([3, 1, 2, 0], larger, 1) == [3]
    assert survivors([3, 1, 2, 0], larger, 3) == [3, 1, 2]


def test_what_was_answered_before_a_kill_is_not_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = Subject("llama", tmp_path / "model")
    known, path = subject.bench.questions, tmp_path / "journal.jsonl"
    trials = [subject.bench.trial(rules(layers=[layer], targets=["mlp"])) for layer in range(4)]

    def answers(tokens: Sequence[int]) -> list[dict[str, Any]]:
        again = Questions(known.engine, known.harmful, known.harmless, tokens, Journal(path))
        again.ask_base()
        with monkeypatch.context() as computing:
            computing.setattr(Growing, "through", through)
            found = again.ask_all([trial for trial in trials if trial is not None])
        return [outcome.answers().model_dump() for outcome in found]

    through = Growing.through
    first = answers(known.tokens)
    with path.open("a") as file:
        file.write('{"of": "cut o')

    def computed(*_: object) -> None:
        raise AssertionError("computed")

    through = computed  # type: ignore[assignment]
    assert answers(known.tokens) == first
    with pytest.raises(AssertionError, match="computed"):
        answers([7])  # of other tokens nothing is known
