"""What lm-eval gives is kept sample by sample, and the samples make the number that it gives."""

from pathlib import Path
from typing import Any

import pytest

from excise.evaluation.asking.catalogue import load_tasks
from excise.evaluation.scoring.harness import SCORES_FOLDER, Scored, score
from excise.plumbing.aggregations import aggregate, as_values
from schemas.params.document import EvaluateSection
from schemas.prompts import ChatFormat
from tests.evaluation.fake_hub import Rules
from tests.evaluation.fake_hub import hub as hub

CHAT = ChatFormat(system="be brief", chat_template_kwargs={}, date="2025-01-01")


def scored(name: str, folder: Path = SCORES_FOLDER) -> tuple[Scored, Rules]:
    listed = EvaluateSection.model_validate({"refusal": [], "over_refusal": [], "capability": [name]})
    (task,) = load_tasks(listed, folder)
    model = Rules()
    return score(model, task, CHAT), model


@pytest.mark.parametrize(
    ("name", "metrics", "aggregation", "samples"),
    [
        ("arc_easy", {"acc", "acc_norm"}, "mean", 12),
        ("mmlu_stem", {"acc"}, "mean", 19 * 6),
        ("gsm8k", {"exact_match_strict_match", "exact_match_flexible_extract"}, "mean", 8),
        ("wikitext", {"word_perplexity", "byte_perplexity", "bits_per_byte"}, None, 5),
    ],
)
def test_the_samples_of_each_metric_make_its_value(
    hub: list[dict[str, Any]], name: str, metrics: set[str], aggregation: str | None, samples: int
) -> None:
    found, _ = scored(name)
    assert set(found.values) == metrics == set(found.described)
    assert len(found.samples) == samples and len({sample.id for sample in found.samples}) == samples
    for metric, value in found.values.items():
        described = found.described[metric]
        assert described.aggregation is not None and aggregation in (None, described.aggregation)
        assert described.higher_is_better == ("perplexity" not in metric and "bits" not in metric)
        values = as_values([sample.metrics[metric] for sample in found.samples])
        assert aggregate(described.aggregation, values) == pytest.approx(value, rel=1e-9)


def test_filters_of_one_metric_are_two_metrics(hub: list[dict[str, Any]]) -> None:
    found, _ = scored("gsm8k")
    assert found.values == {"exact_match_strict_match": 0.5, "exact_match_flexible_extract": 1.0}
    assert found.samples[1].response == "It is 2 ."  # whole, whatever a filter takes of it


def test_of_choices_the_most_likely_is_the_answer(hub: list[dict[str, Any]]) -> None:
    found, _ = scored("arc_easy")
    assert {sample.response for sample in found.samples} <= {str(number) for number in range(13)}
    assert "what is 3 plus one ?" in found.samples[3].prompt


def test_the_chat_template_and_the_system_prompt_are_used(hub: list[dict[str, Any]]) -> None:
    _, model = scored("gsm8k")
    assert all(prompt.startswith("<system> be brief") and "<user>" in prompt for prompt in model.asked)


def test_a_custom_mean_over_all_parts_of_samples_is_a_ratio(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, hub: list[dict[str, Any]]
) -> None:
    (tmp_path / "parts.py").write_text(
        "def results(document, answers):\n"
        "    return {'kept': [len(answers[0]) % 2 == 0, True, False], 'texts': (answers[0], 'x')}\n"
        "def over_all(values):\n"
        "    return sum(sum(one) for one in values) / sum(len(one) for one in values)\n"
        "def share(values):\n"
        "    return sum(len(one[0]) for one in values) / 100\n"
    )
    (tmp_path / "parts.yaml").write_text(
        "task: parts\ndataset_path: gsm8k\ntest_split: test\noutput_type: generate_until\n"
        "doc_to_text: '{{question}}'\ndoc_to_target: ''\nprocess_results: !function parts.results\n"
        "metric_list:\n"
        "  - {metric: kept, aggregation: !function parts.over_all, higher_is_better: true}\n"
        "  - {metric: texts, aggregation: !function parts.share, higher_is_better: true}\n"
    )
    monkeypatch.setattr("excise.evaluation.asking.catalogue.TASKS", ("parts",))
    found, _ = scored("parts", tmp_path)
    assert found.described["kept"].aggregation == "ratio"
    assert all(sample.metrics["kept"][1] == 3 for sample in found.samples)  # type: ignore[index]
    assert found.described["texts"].aggregation is None and "texts" not in found.samples[0].metrics
