"""Refusal by the first token: which tokens begin one, how likely it is, and that questions see what is done."""

from contextlib import ExitStack

import pytest
import torch
from torch import Tensor

from stages.base.forward import Batch, first_token_log_probabilities, mean_kl
from stages.diagnosis.refusal import log_odds, refusal_tokens
from tests.subjects import HARMFUL, HARMLESS, Subject, numbers


def answers(*probabilities: list[float]) -> Tensor:
    return torch.tensor(probabilities).log()


def test_refusals_begin_with_what_is_said_first_on_harmful_prompts_alone() -> None:
    harmful = answers([0.70, 0.20, 0.05, 0.05], [0.60, 0.20, 0.15, 0.05])
    harmless = answers([0.01, 0.10, 0.49, 0.40])
    assert refusal_tokens(harmful, harmless) == [0, 1]


def test_some_token_always_begins_refusals() -> None:
    same = answers([0.5, 0.5])
    assert len(refusal_tokens(same, same)) == 1


def test_log_odds_are_those_of_all_refusing_tokens_together() -> None:
    found = log_odds(answers([0.5, 0.2, 0.2, 0.1]), [0, 2])
    assert float(found) == pytest.approx(float(torch.tensor(0.7 / 0.3).log()), rel=1e-6)


def test_log_odds_stay_finite_where_a_refusal_is_certain() -> None:
    certain = torch.log_softmax(torch.tensor([[40.0, 0.0, 0.0]]), dim=-1)
    assert 30 < float(log_odds(certain, [0])) < 50


def test_questions_compare_what_hooks_make_of_the_model_with_the_base(subject: Subject) -> None:
    questions = subject.bench.questions
    again = questions.ask()
    assert again == questions.base and again.kl == 0

    def watch(_batch: Batch, undo: ExitStack) -> None:
        embedding = subject.model.get_input_embeddings()
        assert embedding is not None
        noise = numbers(9, 64).float()
        undo.callback(embedding.register_forward_hook(lambda _module, _args, output: output + noise).remove)

    changed = questions.ask(watch)
    with ExitStack() as undo:
        watch(Batch([], torch.empty(0), torch.empty(0), torch.empty(0)), undo)
        harmful, harmless = (
            first_token_log_probabilities(subject.model, side, 2, lambda _: None) for side in (HARMFUL, HARMLESS)
        )
    base = first_token_log_probabilities(subject.model, HARMLESS, 2, lambda _: None)
    assert changed.kl == pytest.approx(mean_kl(base, harmless), rel=1e-3) and changed.kl > 1e-4
    assert changed.harmful_log_odds == pytest.approx(float(log_odds(harmful, questions.tokens).mean()), abs=1e-4)
    assert changed.harmless_log_odds == pytest.approx(float(log_odds(harmless, questions.tokens).mean()), abs=1e-4)
    assert questions.ask() == questions.base
