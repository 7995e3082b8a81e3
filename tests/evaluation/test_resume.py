"""Finished tasks are found again for the same question to the same model, and for nothing else."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from excise.evaluation import resume
from excise.evaluation.catalogue import Asked, load_tasks
from excise.evaluation.harness import Answered
from excise.evaluation.resume import Finished
from schemas.params.document import EvaluateSection
from schemas.results import Metric, Sample
from tests.evaluation.fake_hub import hub as hub

SETTINGS: dict[str, Any] = {"model": "a digest", "limit": None, "chat": {"system": None}}
GIVEN = Answered(
    samples=[Sample(id="0", item=None, prompt="a ?", response="b", verdict=None, metrics={"acc": 1.0})],
    values={"acc": 1.0},
    described={"acc": Metric(aggregation="mean", higher_is_better=True)},
    longest_answer=256,
    batch_size=8,
)


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, hub: list[dict[str, Any]]) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    yield


def tasks(*names: str) -> list[Asked]:
    return load_tasks(EvaluateSection.model_validate({"refusal": list(names), "over_refusal": [], "capability": []}))


def test_what_was_finished_is_found_again() -> None:
    (asked,) = tasks("refusal_jbb")
    assert Finished("base", SETTINGS).get(asked) is None
    Finished("base", SETTINGS).put(asked, GIVEN)
    (again,) = tasks("refusal_jbb")  # as another process would load it
    assert Finished("base", SETTINGS).get(again) == GIVEN


@pytest.mark.parametrize("change", [{"model": "another"}, {"limit": 4}, {"chat": {"system": "be brief"}}])
def test_another_model_or_setting_finds_nothing(change: dict[str, Any]) -> None:
    (asked,) = tasks("refusal_jbb")
    Finished("base", SETTINGS).put(asked, GIVEN)
    assert Finished("base", SETTINGS | change).get(asked) is None


def test_another_task_or_the_other_model_finds_nothing() -> None:
    jbb, other = tasks("refusal_jbb", "gsm8k")
    Finished("base", SETTINGS).put(jbb, GIVEN)
    assert Finished("base", SETTINGS).get(other) is None
    assert Finished("ablated", SETTINGS).get(jbb) is None


def test_a_task_that_was_changed_finds_nothing() -> None:
    (asked,) = tasks("refusal_jbb")
    Finished("base", SETTINGS).put(asked, GIVEN)
    for task in asked.tasks.values():
        task.set_config("generation_kwargs", {"max_gen_toks": 12}, update=True)
    assert Finished("base", SETTINGS).get(asked) is None


def test_other_code_or_libraries_find_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    (asked,) = tasks("refusal_jbb")
    Finished("base", SETTINGS).put(asked, GIVEN)
    monkeypatch.setattr(resume, "version", lambda name: f"another {name}")
    assert Finished("base", SETTINGS).get(asked) is None


def test_other_samples_of_the_same_number_find_nothing() -> None:
    Path("data").mkdir()

    def mine(text: str) -> Asked:
        Path("data/mine.txt").write_text(text)
        custom = {"refusal": {"source": "data/mine.txt"}}
        listed = {"refusal": ["refusal_custom"], "over_refusal": [], "capability": [], "custom": custom}
        (asked,) = load_tasks(EvaluateSection.model_validate(listed))
        return asked

    Finished("base", SETTINGS).put(mine("a ?"), GIVEN)
    assert Finished("base", SETTINGS).get(mine("a ?")) == GIVEN
    assert Finished("base", SETTINGS).get(mine("b ?")) is None


@pytest.mark.parametrize("spoiled", ["", "{", "[1]", '{"samples": []}'])
def test_a_file_that_is_not_whole_counts_as_none(spoiled: str) -> None:
    (asked,) = tasks("refusal_jbb")
    Finished("base", SETTINGS).put(asked, GIVEN)
    (path,) = Path(".excise/evaluate/base").glob("*.json")
    path.write_text(spoiled)
    assert Finished("base", SETTINGS).get(asked) is None


def test_what_a_run_had_no_use_for_is_forgotten() -> None:
    jbb, other = tasks("refusal_jbb", "gsm8k")
    for settings in (SETTINGS, SETTINGS | {"model": "an older one"}):
        Finished("base", settings).put(jbb, GIVEN)
        Finished("base", settings).put(other, GIVEN)
    Finished("ablated", SETTINGS).put(jbb, GIVEN)
    Finished("base", SETTINGS).sweep([jbb])
    assert [path.parent.name for path in sorted(Path(".excise").rglob("*.json"))] == ["ablated", "base"]
    assert Finished("base", SETTINGS).get(jbb) == GIVEN
