"""Refusal by the first token: which tokens begin one, how likely it is, and that questions see what is done."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from excise.diagnosis.explanation import explain
from excise.inference.forward import first_token_log_probabilities, kl, kl_without
from excise.inference.loading.models import decoder_layers
from excise.inference.refusals import FirstTokens, refusal_tokens
from excise.plumbing.errors import StageError
from excise.trials.changes import OnModule, Trial
from excise.trials.questions import Questions
from excise.trials.refusal import Beginnings, Outcome, beginnings, log_odds
from schemas.diagnosis import Diagnosis
from schemas.params.ablate import EditMethod
from tests.subjects import HARMFUL, HARMLESS, Subject, mean_kl, numbers, statistics


def answers(*probabilities: list[float]) -> Tensor:
    return torch.tensor(probabilities).log()


def test_refusals_begin_with_what_is_said_first_on_harmful_prompts_alone() -> None:
    harmful = answers([0.70, 0.20, 0.05, 0.05], [0.60, 0.20, 0.15, 0.05])
    harmless = answers([0.01, 0.10, 0.49, 0.40])
    first = FirstTokens(len(harmful))
    first.add([1, 2], torch.cat([harmful[1:], harmless]))
    first.add([0], harmful[:1])
    torch.testing.assert_close(first.means[0], harmful.double().exp().mean(0))
    assert refusal_tokens(*first.means) == [0, 1]


def test_some_token_always_begins_refusals() -> None:
    same = torch.tensor([0.5, 0.5])
    assert len(refusal_tokens(same, same)) == 1


def test_log_odds_are_those_of_all_refusing_tokens_together() -> None:
    found = log_odds(answers([0.5, 0.2, 0.2, 0.1]), [0, 2])
    assert float(found) == pytest.approx(float(torch.tensor(0.7 / 0.3).log()), rel=1e-6)


def test_log_odds_stay_finite_where_a_refusal_is_certain() -> None:
    certain = torch.log_softmax(torch.tensor([[40.0, 0.0, 0.0]]), dim=-1)
    assert 30 < float(log_odds(certain, [0])) < 50


def test_questions_compare_what_a_trial_makes_of_the_model_with_the_base(subject: Subject) -> None:
    questions, noise = subject.bench.questions, numbers(9, 64).float()
    change = OnModule(0, decoder_layers(subject.model)[0], "input", "noise", lambda stream: stream + noise)
    nothing, changed = questions.ask_all([Trial(), Trial((change,))])
    torch.testing.assert_close(nothing.harmful.log_odds, questions.unedited.harmful.log_odds, rtol=0, atol=1e-4)
    assert float(nothing.kl.abs().max()) <= 1e-5
    watch = Trial((change,)).watch(subject.model)
    base = first_token_log_probabilities(subject.model, HARMLESS, 2, lambda _: None)
    harmful, harmless = (
        first_token_log_probabilities(subject.model, side, 2, lambda _: None, watch) for side in (HARMFUL, HARMLESS)
    )
    assert float(changed.kl.mean()) == pytest.approx(mean_kl(base, harmless), rel=1e-3)
    assert float(changed.kl.min()) > 0
    torch.testing.assert_close(changed.kl_without, kl_without(base, harmless, questions.tokens), rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(changed.harmful.log_odds, log_odds(harmful, questions.tokens), rtol=0, atol=1e-4)
    torch.testing.assert_close(changed.harmless.log_odds, log_odds(harmless, questions.tokens), rtol=0, atol=1e-4)


def test_a_refusal_that_greedy_decoding_takes_counts_however_unlikely_it_is() -> None:
    unsure, split = [0.1, 0.05] + [0.05] * 17, [0.3, 0.3, 0.4]
    begun = beginnings(answers(unsure, [0.05, 0.1] + [0.05] * 17), [0])
    assert begun.likeliest.tolist() == [True, False] and begun.refusals == 0.5
    begun = beginnings(answers(split), [0, 1])
    assert begun.likeliest.tolist() == [False] and begun.refusals == 1


HARMLESS_PROMPT = Beginnings(torch.zeros(1), torch.zeros(1, dtype=torch.bool))


def test_what_is_left_of_refusal_is_the_share_refused_or_the_probability() -> None:
    def outcome(*log_odds: float) -> Outcome:
        odds = torch.tensor(log_odds).double()
        return Outcome(Beginnings(odds, odds > 0), HARMLESS_PROMPT, *torch.zeros(2, 1))

    sure, unsure = outcome(5.0, -9.0, -9.0, -9.0), outcome(-0.1, -0.1, -0.1, -0.1)
    assert sure.refusal == 0.25 and sure.remaining == pytest.approx(0.25, abs=0.01)
    assert unsure.refusal == 0 and unsure.remaining == pytest.approx(0.475, abs=0.001)
    assert sure.is_finite and not outcome(float("nan")).is_finite


def test_rounding_never_makes_drift_negative() -> None:
    answers = Outcome(HARMLESS_PROMPT, HARMLESS_PROMPT, *torch.full((2, 3), -1e-9).double()).answers()
    assert answers.kl == answers.median_kl == answers.kl_without_refusal == 0


def test_answers_that_are_not_finite_are_an_error_that_says_what_to_do() -> None:
    with pytest.raises(StageError, match="NaN or infinite logits; try a smaller scale"):
        Outcome(
            Beginnings(torch.tensor([float("inf")]), torch.tensor([True])), HARMLESS_PROMPT, *torch.zeros(2, 1)
        ).answers()


def test_a_base_that_hardly_refuses_is_not_explained_and_one_that_refuses_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Subject("llama", tmp_path).bench
    unedited = bench.questions.unedited

    def refusing(odds: float) -> None:
        begun = Beginnings(torch.full((6,), odds), torch.zeros(6, dtype=torch.bool))
        monkeypatch.setattr(Questions, "unedited", replace(unedited, harmful=begun))

    refusing(-4.0)
    reason = bench.questions.unexplained
    assert reason == "the base refuses 0 of the held-out harmful prompts, at a mean probability of 0.018"
    found = explain(bench, EditMethod(), statistics(), str)
    assert found.reason == reason and found.named is None and found.recommendation is None
    assert not found.refusal_words and not found.writers
    assert Diagnosis.model_validate_json(found.model_dump_json()) == found
    refusing(-2.5)  # no prompt is refused more likely than not, but each with a probability of 0.076
    assert bench.questions.unexplained is None


def test_drift_without_refusals_is_that_of_answers_that_are_none() -> None:
    base, edited = answers([0.5, 0.3, 0.2], [0.0, 0.6, 0.4]), answers([0.0, 0.6, 0.4], [0.2, 0.4, 0.4])
    # Of the first prompt only the refusal is gone, and the rest is as likely among itself as before.
    found = kl_without(base, edited, [0])
    assert float(found[0]) == pytest.approx(0, abs=1e-7) and float(kl(base, edited)[0]) > 0.3
    assert float(found[1]) == pytest.approx(0.6 * math.log(0.6 / 0.5) + 0.4 * math.log(0.4 / 0.5), rel=1e-6)
