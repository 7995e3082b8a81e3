"""What a model says is kept by what it was asked, and scored later as if it were scored at once."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from excise.evaluation.asking.answers import TaskAnswers, ask, ask_all, responses_file
from excise.evaluation.asking.catalogue import ListedTask, draw, load_tasks
from excise.evaluation.scoring.harness import SCORES_FOLDER, Replay, score
from excise.plumbing.errors import StageError
from excise.plumbing.files import write_lines
from schemas.params.document import EvaluateSection
from schemas.prompts import ChatFormat
from tests.evaluation.fake_hub import Rules
from tests.evaluation.fake_hub import hub as hub
from tests.projects import ROOT

CHAT = ChatFormat(system="be brief", chat_template_kwargs={}, date="2025-01-01")
KINDS = ("arc_easy", "mmlu_stem", "gsm8k", "wikitext")
"""Choices, a group, a generated answer with two filters, a whole text."""


class Templated:
    """A tokenizer whose chats are the rules' own."""

    def apply_chat_template(self, messages: list[dict[str, str]], **_: Any) -> str:
        return Rules().apply_chat_template(messages)


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, hub: list[dict[str, Any]]) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "dvc.yaml", tmp_path)


def listed(
    *names: str, folder: Path = SCORES_FOLDER, longest: int | None = None, limit: int | None = None
) -> list[ListedTask]:
    params = EvaluateSection.model_validate(
        {"refusal": [], "over_refusal": [], "capability": list(names), "limit": limit}
    )
    tasks = load_tasks(params, folder, longest)
    draw(tasks, params)
    return tasks


def answer(*names: str, limit: int | None = None) -> dict[str, int]:
    """Have the rules answer; how many responses each task has."""
    counts = {}
    for task in listed(*names, limit=limit):
        responses = ask(Rules(), task, CHAT).responses
        write_lines(responses_file("base", task.name), responses)
        counts[task.name] = len(responses)
    return counts


def replay(name: str, count: int) -> Replay:
    return Replay("base", name, count, Templated(), CHAT)


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_what_was_kept_is_scored_as_what_is_said(name: str) -> None:
    (task,) = listed(name, limit=5)
    at_once = score(Rules(), task, CHAT)
    counts = answer(name, limit=5)
    (task,) = listed(name, limit=5)
    assert score(replay(name, counts[name]), task, CHAT) == at_once


def test_a_metric_for_which_more_is_asked_is_scored_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By mutual information: choices are asked about without their question as well."""
    (tmp_path / "mutual.yaml").write_text(
        "task: mutual\ndataset_path: allenai/ai2_arc\ntest_split: test\noutput_type: multiple_choice\n"
        "doc_to_text: '{{question}}'\ndoc_to_choice: '{{choices.text}}'\ndoc_to_target: 1\n"
        "metric_list: [{metric: acc_mutual_info, aggregation: mean, higher_is_better: true}]\n"
    )
    monkeypatch.setattr("excise.evaluation.asking.catalogue.TASKS", ("mutual",))
    (task,) = listed("mutual", folder=tmp_path)
    responses = ask(Rules(), task, CHAT).responses
    assert len(responses) == 12 * 4
    write_lines(responses_file("base", "mutual"), responses)
    (task,) = listed("mutual", folder=tmp_path)
    assert score(replay("mutual", 48), task, CHAT).values.keys() == {"acc_mutual_info"}


@pytest.mark.slow
def test_a_question_that_is_asked_twice_has_two_answers() -> None:
    class Drawing(Rules):
        """It never says the same again."""

        def _answer(self, prompt: str) -> str:
            self.batch_size += 1
            return f"#### {self.batch_size}"

    (task,) = listed("gsm8k", limit=2)
    (part,) = task.parts.values()
    part.set_config("repeats", 3)
    responses = ask(Drawing(), task, CHAT).responses
    assert len(responses) == 6 and len({line.request for line in responses}) == 2
    write_lines(responses_file("base", "gsm8k"), responses)
    asked = [request for request in part.instances for _ in range(3)]
    assert replay("gsm8k", 6).generate_until(asked) == [line.response for line in responses]


@pytest.mark.parametrize("value", [-0.1, -1e-300, float("-inf"), -123456.789012345678])
def test_log_probabilities_come_back_to_the_bit(tmp_path: Path, value: float) -> None:
    class Exact(Rules):
        def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
            return [(value, True) for _ in requests]

    (task,) = listed("arc_easy", limit=1)
    for model in (Exact, Rules):  # the second finds it kept
        responses = ask_all([task], tmp_path / "kept", CHAT, model)["arc_easy"].responses
    write_lines(responses_file("base", "arc_easy"), responses)
    (part,) = task.parts.values()
    assert replay("arc_easy", 2).loglikelihood(part.instances) == [(value, True)] * 2


def test_answers_to_other_questions_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = answer("gsm8k", limit=3)
    told = r"^answers/base/responses/gsm8k\.jsonl holds responses to other requests; run `dvc repro answer@base`$"

    def refused(chat: ChatFormat = CHAT, limit: int = 3, longest: int | None = None) -> None:
        (task,) = listed("gsm8k", longest=longest, limit=limit)
        with pytest.raises(StageError, match=told):
            score(Replay("base", "gsm8k", counts["gsm8k"], Templated(), chat), task, chat)

    refused(limit=4)
    refused(chat=ChatFormat(system="be kind", chat_template_kwargs={}, date="2025-01-01"))
    refused(longest=100)  # tokens of an answer at most
    monkeypatch.setattr(Rules, "apply_chat_template", lambda _, messages: f"another template: {messages}")
    refused()


def test_responses_that_are_not_whole_or_not_there_are_one_line() -> None:
    counts = answer("gsm8k", limit=3)
    with pytest.raises(StageError, match=r"holds 3 responses, but answers\.json counts 4; run `dvc repro --force"):
        replay("gsm8k", counts["gsm8k"] + 1)
    with pytest.raises(StageError, match=r"^answers/base/responses/arc_easy\.jsonl is missing; run `dvc repro answer@"):
        replay("arc_easy", 2)
    responses_file("base", "gsm8k").write_text('{"request": "a"}\n')
    with pytest.raises(StageError, match=r"^answers/base/responses/gsm8k\.jsonl: line 1 is not what this version"):
        replay("gsm8k", 1)


def test_an_interrupted_run_goes_on_with_what_is_missing(tmp_path: Path) -> None:
    opened: list[Rules] = []

    def open_model() -> Rules:
        opened.append(Rules())
        return opened[-1]

    def run() -> dict[str, TaskAnswers]:
        return ask_all(listed("arc_easy", "gsm8k"), tmp_path / "kept", CHAT, open_model)

    first = run()
    assert len(opened) == 1 and list(first) == ["arc_easy", "gsm8k"] and first["gsm8k"].batch_size == 7
    assert run() == first and len(opened) == 1
    (tmp_path / "kept/gsm8k.json").unlink()
    assert run() == first
    assert len(opened) == 2 and len(opened[1].asked) == 8


@pytest.mark.parametrize("spoiled", ["", "{", "[1]", '{"responses": []}'])
def test_a_kept_task_that_is_not_whole_is_asked_again(tmp_path: Path, spoiled: str) -> None:
    first = ask_all(listed("gsm8k"), tmp_path, CHAT, Rules)
    (tmp_path / "gsm8k.json").write_text(spoiled)
    assert ask_all(listed("gsm8k"), tmp_path, CHAT, Rules) == first
    assert (tmp_path / "gsm8k.json").read_text() != spoiled


def test_the_template_is_the_one_of_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where nothing is generated: a system message that it drops is refused."""
    counts = answer("gsm8k", limit=1)
    (task,) = listed("gsm8k", limit=1)
    monkeypatch.setattr(Rules, "apply_chat_template", lambda *_: "the same with a system message and without")
    with pytest.raises(StageError, match="chat template ignores system messages"):
        score(replay("gsm8k", counts["gsm8k"]), task, CHAT)
