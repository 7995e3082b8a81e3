"""Drift: the base's own answers, read by both models, and how far apart these find what comes next."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from excise.evaluation.answering.drift import drift_samples, token_kl
from excise.evaluation.scoring.harness import drift_values
from excise.inference import continuations
from excise.inference.continuations import ANSWER_TOKENS, greedy_answers, predictions
from excise.organism.model import ARCHITECTURES, make_model, make_tokenizer
from excise.organism.world import make_world
from schemas.prompts import Prompt

TOKENIZER = make_tokenizer(make_world(0))
PROMPTS = [[random.Random(row).randrange(6, 90) for _ in range(3 + 5 * row % 17)] for row in range(9)]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def models(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """A random model, and another one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return tuple(make_model(request.param, TOKENIZER).eval() for _ in range(2))


TOKENS = [11, 40]
"""Said to begin refusals."""


def answers_of(model: Any, batch_size: int = 4) -> list[list[int]]:
    return greedy_answers(model, TOKENIZER, PROMPTS, batch_size, lambda _: None)


def alone(model: Any, prompt: list[int], answer: list[int]) -> Tensor:
    """Log-probabilities at each token of the answer, ``[tokens, vocabulary]``, without a batch."""
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0]
    return torch.log_softmax(logits[len(prompt) - 1 : -1].double(), dim=-1)


def test_the_base_answers_greedily_each_prompt_as_without_the_others(models: tuple[Any, Any]) -> None:
    for prompt, answer in zip(PROMPTS, answers_of(models[0]), strict=True):
        assert 1 <= len(answer) <= ANSWER_TOKENS
        likely = alone(models[0], prompt, answer)
        chosen = likely.gather(1, torch.tensor(answer)[:, None])[:, 0]
        assert (likely.max(dim=-1).values - chosen).max() < 1e-4  # the most likely, but for rounding
        assert TOKENIZER.eos_token_id not in answer[:-1]


@pytest.mark.parametrize("batch_size", [1, pytest.param(4, marks=pytest.mark.nightly), 64])
def test_both_models_read_the_same_answers_and_are_compared_token_by_token(
    models: tuple[Any, Any], batch_size: int
) -> None:
    answers = answers_of(models[0])
    base = predictions(models[0], PROMPTS, answers, batch_size, lambda _: None)
    edited = predictions(models[1], PROMPTS, base.answers(), batch_size, lambda _: None, base.likely())
    prompts = [Prompt(id=str(row), prompt="") for row in range(len(PROMPTS))]
    values = drift_values(drift_samples(prompts, [""] * len(PROMPTS), base, edited, TOKENS))

    kl, others, agree, worse = [], [], [], []
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        p, q = (alone(model, prompt, answer).numpy() for model in models)
        kl.append((np.exp(p) * (p - q)).sum(axis=-1))
        left = (np.delete(side[0], TOKENS) for side in (p, q))
        p_left, q_left = (side - np.log(np.exp(side).sum()) for side in left)
        others.append((np.exp(p_left) * (p_left - q_left)).sum())
        agree += list(p.argmax(axis=-1) == q.argmax(axis=-1))
        worse += [p[place, token] - q[place, token] for place, token in enumerate(answer)]
    assert values["first_token_kl"] == pytest.approx(np.mean([one[0] for one in kl]), rel=1e-4)
    assert values["first_token_kl_without_refusal"] == pytest.approx(np.mean(others), rel=1e-3)
    assert values["first_token_kl_without_refusal"] != pytest.approx(values["first_token_kl"], rel=1e-5)
    assert values["answer_kl"] == pytest.approx(np.concatenate(kl).mean(), rel=1e-4)
    assert values["top1_agreement"] == pytest.approx(np.mean(agree), abs=0.01)
    assert values["perplexity_ratio"] == pytest.approx(np.exp(np.mean(worse)), rel=1e-4)
    assert values["answer_kl"] > 0.1 and values["perplexity_ratio"] > 1.1 and values["top1_agreement"] < 0.9


def test_a_model_has_no_drift_from_itself(models: tuple[Any, Any]) -> None:
    base = predictions(models[0], PROMPTS, answers_of(models[0]), 4, lambda _: None)
    again = predictions(models[0], PROMPTS, base.answers(), 4, lambda _: None, base.likely())
    prompts = [Prompt(id=str(row), prompt="") for row in range(len(PROMPTS))]
    assert drift_values(drift_samples(prompts, [""] * len(PROMPTS), base, again, TOKENS)) == {
        "first_token_kl": 0.0,
        "first_token_kl_without_refusal": 0.0,
        "answer_kl": 0.0,
        "top1_agreement": 1.0,
        "perplexity_ratio": 1.0,
    }


def test_unlikely_tokens_taken_together_only_lower_the_kl(
    models: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers, found = answers_of(models[0]), {}
    for kept in (20, 100, 10**6):
        monkeypatch.setattr(continuations, "MOST_LIKELY", kept)
        base = predictions(models[0], PROMPTS, answers, 4, lambda _: None)
        edited = predictions(models[1], PROMPTS, answers, 4, lambda _: None, base.likely())
        found[kept] = token_kl(base.log_probabilities, edited.log_probabilities)
        assert base.log_probabilities.shape[1] == min(kept, len(TOKENIZER))
    assert (found[20] <= found[100] + 1e-6).all() and (found[100] <= found[10**6] + 1e-6).all()
    assert (found[20] > 0).all() and found[20].mean() < 0.9 * found[10**6].mean()


def test_what_the_likely_tokens_leave_counts_as_one_token() -> None:
    base, edited = torch.tensor([[0.5, 0.25]]).log(), torch.tensor([[0.25, 0.25]]).log()
    expected = 0.5 * np.log(0.5 / 0.25) + 0.25 * np.log(0.25 / 0.5)
    assert token_kl(base, edited).tolist() == pytest.approx([expected], rel=1e-6)


def test_what_goes_to_a_file_comes_back_whole(models: tuple[Any, Any]) -> None:
    base = predictions(models[0], PROMPTS, answers_of(models[0]), 4, lambda _: None)
    assert list(base.tensors()) == [
        "lengths",
        "answer",
        "answer_log_probability",
        "tokens",
        "log_probabilities",
        "best",
    ]
    assert base.answers() == answers_of(models[0])
