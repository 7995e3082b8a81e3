"""Perplexity of the base's own answers: 1 as the base is, and under an edit what the written model makes of them."""

import math
from pathlib import Path

import pytest
import torch

from excise.trials.perplexity import OwnAnswers
from excise.trials.simulation import simulated
from tests.subjects import HARMLESS, Subject, rules

ANSWERS = [[3, 9, 4], [8], [1, 2], [5, 6, 7, 8], [2, 2]]


@torch.inference_mode()
def nats(model: object, prompt: list[int], answer: list[int]) -> list[float]:
    """What the model gives each token of an answer, in a pass of its own."""
    logits = model(input_ids=torch.tensor([prompt + answer])).logits[0]  # type: ignore[operator]
    told = torch.log_softmax(logits[len(prompt) - 1 : -1].double(), dim=-1)
    return [float(told[place, token]) for place, token in enumerate(answer)]


@pytest.mark.parametrize("name", ["llama", "glm4_moe", "gemma2"])
def test_it_is_how_much_less_likely_the_written_model_finds_each_token(name: str, tmp_path: Path) -> None:
    subject = Subject(name, tmp_path / "base")
    own = OwnAnswers(subject.model, HARMLESS, ANSWERS)
    assert own.perplexity() == pytest.approx(1.0, abs=1e-6)
    ablate = rules(targets=["attention", "mlp", "routed_experts"], scale=3.0)
    with simulated(subject.model, subject.bench.plan(ablate)):
        found = own.perplexity()
    edited = subject.write(ablate, tmp_path / "edited")
    asked = list(zip(HARMLESS, ANSWERS, strict=True))
    base, now = ([one for pair in asked for one in nats(model, *pair)] for model in (subject.model, edited))
    assert found == pytest.approx(math.exp((sum(base) - sum(now)) / len(base)), rel=1e-4)
    assert found != pytest.approx(1.0, abs=1e-3)
    assert own.perplexity() == pytest.approx(1.0, abs=1e-6)


def test_it_is_none_where_it_is_no_number(tmp_path: Path) -> None:
    subject = Subject("llama", tmp_path)
    own = OwnAnswers(subject.model, HARMLESS, ANSWERS)
    with torch.no_grad():
        subject.model.get_output_embeddings().weight[0] = float("nan")
    assert own.perplexity() is None
