"""Perplexity of the base's own answers: 1 as the base is, and under an edit what the written model makes of them."""

import math
from pathlib import Path

import pytest
import torch

from excise.trials.changes import Trial, of_edits
from excise.trials.engines import InMemory
from excise.trials.perplexity import Reading
from excise.trials.tree import Sharing
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
    ablate = rules(targets=["attention", "mlp", "routed_experts"], scale=3.0)
    edit = of_edits(subject.model, subject.bench.plan(ablate))
    reading = Reading(InMemory(subject.model), HARMLESS, ANSWERS, [Trial(), edit])
    reading.run()
    unedited, found = reading.perplexities()
    assert unedited == pytest.approx(1.0, abs=1e-6)
    edited = subject.write(ablate, tmp_path / "edited")
    asked = list(zip(HARMLESS, ANSWERS, strict=True))
    base, now = ([one for pair in asked for one in nats(model, *pair)] for model in (subject.model, edited))
    assert found == pytest.approx(math.exp((sum(base) - sum(now)) / len(base)), rel=1e-4)
    assert found != pytest.approx(1.0, abs=1e-3)


def test_a_model_that_cannot_be_run_layer_by_layer_is_read_in_whole_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = Subject("llama", tmp_path)
    edit = of_edits(subject.model, subject.bench.plan(rules(targets=["attention", "mlp"])))

    def read() -> float | None:
        reading = Reading(InMemory(subject.model), HARMLESS, ANSWERS, [edit])
        reading.run()
        return reading.perplexities()[0]

    together = read()
    monkeypatch.setattr(InMemory, "sharing", lambda *_: Sharing(layers=False, beginning=0, holds=False))
    assert read() == pytest.approx(together, rel=1e-5)


def test_it_is_none_where_it_is_no_number(tmp_path: Path) -> None:
    subject = Subject("llama", tmp_path)
    reading = Reading(InMemory(subject.model), HARMLESS, ANSWERS, [Trial()])
    with torch.no_grad():
        subject.model.get_output_embeddings().weight[0] = float("nan")
    reading.run()
    assert reading.perplexities() == [None]
