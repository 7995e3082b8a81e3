"""Which tasks can be listed: ours, lm-eval's, and the user's own prompts; what is wrong with one is one line."""

import json
from pathlib import Path
from typing import Any

import pytest

from excise.evaluation.asking.catalogue import TASKS_FOLDER, load_tasks
from excise.evaluation.scoring.harness import SCORES_FOLDER
from excise.plumbing.errors import StageError
from schemas.params.document import EvaluateSection
from schemas.params.tasks import TASKS
from tests.evaluation.fake_hub import hub as hub
from tests.hub import Hub


def evaluate(**listed: Any) -> EvaluateSection:
    return EvaluateSection.model_validate({"refusal": [], "over_refusal": [], "capability": [], **listed})


def refused(params: EvaluateSection) -> str:
    with pytest.raises(StageError) as error:
        load_tasks(params)
    return str(error.value)


@pytest.mark.parametrize("folder", [TASKS_FOLDER, SCORES_FOLDER])
def test_every_task_of_ours_has_a_file(folder: Path) -> None:
    assert {path.stem for path in folder.glob("[!_]*.yaml")} == set(TASKS)


@pytest.mark.parametrize("name", ["refusal_jbb", "over_refusal_xstest", "over_refusal_orbench"])
def test_what_is_scored_is_what_is_asked(hub: list[dict[str, Any]], name: str) -> None:
    """But for how."""
    listed = evaluate(**{name.rpartition("_")[0]: [name]})
    asked, scored = (
        dict(task.parts[name].dump_config())
        for folder in (TASKS_FOLDER, SCORES_FOLDER)
        for task in load_tasks(listed, folder)
    )
    for key in ("process_results", "metric_list", "metadata"):
        asked.pop(key, None), scored.pop(key)
    assert asked == scored


@pytest.mark.parametrize(
    ("name", "source", "revision", "prompt", "samples"),
    [
        ("refusal_jbb", "JailbreakBench/JBB-Behaviors", "886acc352a31533ffbcf4ef22c744658688086fc", "goal 1", 4),
        ("over_refusal_xstest", "Paul/XSTest", "f600c994b256f12867dfa5b3eb3d545a3e62f8b5", "prompt 2", 3),
        ("over_refusal_orbench", "bench-llm/or-bench", "e36d8b80e81837c8a8f264bbb2a49f1b32c7e272", "prompt 1", 3),
    ],
)
def test_published_prompts_are_loaded_by_pinned_revision(
    hub: list[dict[str, Any]], name: str, source: str, revision: str, prompt: str, samples: int
) -> None:
    group = name.rpartition("_")[0]
    (asked,) = load_tasks(evaluate(**{group: [name]}))
    assert asked.judged and [(one["path"], one["revision"]) for one in hub] == [(source, revision)]
    (task,) = asked.parts.values()
    assert len(task.eval_docs) == samples
    assert task.doc_to_text(task.eval_docs[1]) == prompt
    assert task.config.generation_kwargs["max_gen_toks"] == 256


@pytest.mark.slow
def test_an_answer_takes_no_more_than_half_of_what_the_model_can_read(hub: list[dict[str, Any]]) -> None:
    listed = evaluate(refusal=["refusal_jbb"], capability=["gsm8k", "arc_easy"])
    for longest, expected in ((128, [64, 64]), (100_000, [256, None])):
        jbb, gsm8k, _ = load_tasks(listed, longest_text=longest)
        settings = [task.config.generation_kwargs for asked in (jbb, gsm8k) for task in asked.parts.values()]
        assert [one.get("max_gen_toks") for one in settings] == expected


def test_answers_get_more_room_where_reasoning_comes_first(hub: list[dict[str, Any]]) -> None:
    listed = evaluate(refusal=["refusal_jbb"])
    for longest, expected in ((100_000, 2048), (1000, 500), (None, 2048)):
        (jbb,) = load_tasks(listed, longest_text=longest, reasoning=True)
        assert [task.config.generation_kwargs["max_gen_toks"] for task in jbb.parts.values()] == [expected]


def test_prompts_of_the_user_s_own_are_loaded_from_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/mine.jsonl").write_text('{"ask": "a ?", "about": "a"}\n{"ask": "b ?", "about": "a"}\n')
    (tmp_path / "data/other.txt").write_text("c ?\n\nd ?\n")
    (mine, other) = load_tasks(
        evaluate(
            refusal=["refusal_custom"],
            over_refusal=["over_refusal_custom"],
            custom={
                "refusal": {"source": "data/mine.jsonl", "column": "ask", "item": "about"},
                "over_refusal": {"source": "data/other.txt"},
            },
        )
    )
    documents = [list(task.eval_docs) for asked in (mine, other) for task in asked.parts.values()]
    assert [[(one["prompt"], one["item"]) for one in found] for found in documents] == [
        [("a ?", "a"), ("b ?", "a")],
        [("c ?", None), ("d ?", None)],
    ]


def test_prompts_of_the_user_s_own_may_be_a_data_set_of_the_hub(
    local_hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rows = '{"ask": "a ?", "about": "a"}\n{"ask": "b ?", "about": "b"}\n{"ask": "c ?", "about": "b"}\n'
    commit = local_hub.add("some/questions", {"train.jsonl": rows.encode()}, "datasets")
    local_hub.use(monkeypatch, tmp_path)
    monkeypatch.setattr("datasets.config.HF_ENDPOINT", local_hub.address)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    source = {"source": "some/questions", "revision": commit, "split": "train", "slice": "1:"}
    columns = {"column": "ask", "item": "about"}
    (asked,) = load_tasks(evaluate(refusal=["refusal_custom"], custom={"refusal": {**source, **columns}}))
    assert [(one["prompt"], one["item"]) for one in asked.parts["refusal_custom"].eval_docs] == [
        ("b ?", "b"),
        ("c ?", "b"),
    ]


def test_conversations_of_several_turns_cannot_be_judged(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    talks = [
        [{"role": "user", "content": "a ?"}],
        [{"role": "system", "content": "x"}, {"role": "user", "content": "b"}],
    ]
    (tmp_path / "data/mine.json").write_text(json.dumps([{"prompt": talk} for talk in talks]))
    told = refused(evaluate(refusal=["refusal_custom"], custom={"refusal": {"source": "data/mine.json"}}))
    assert told == (
        "params.yaml: evaluate.custom: 1 of 2 prompts in data/mine.json have earlier messages, but a task asks "
        "only one message; name a column of texts"
    )


def test_a_file_of_the_user_s_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    told = refused(evaluate(refusal=["refusal_custom"], custom={"refusal": {"source": "data/none.txt"}}))
    assert told == "params.yaml names data/none.txt, which is missing or is not a file; put the file there"


def test_lm_eval_s_own_tasks_and_groups_can_be_listed(hub: list[dict[str, Any]]) -> None:
    (task, group) = load_tasks(evaluate(capability=["arc_easy", "mmlu_stem"]))
    assert list(task.parts) == ["arc_easy"] and not task.judged
    assert len(group.parts) > 10 and all(name.startswith("mmlu_") for name in group.parts)
    assert all(one.get_config("num_fewshot") == 0 for one in task.parts.values())


def test_what_cannot_be_asked_is_one_line_that_says_why(hub: list[dict[str, Any]]) -> None:
    told = refused(evaluate(capability=["arc_eazy"]))
    assert told == 'params.yaml: evaluate.capability: arc_eazy is not an lm-eval task; did you mean "arc_easy"?'
    assert "arc_easy generates no answer" in refused(evaluate(refusal=["arc_easy"]))
    assert "ai2_arc is a tag for several" in refused(evaluate(capability=["ai2_arc"]))
    assert "runs code from a model or the Hub" in refused(evaluate(capability=["humaneval"]))


def test_a_data_set_that_cannot_be_had_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(*_: Any, **__: Any) -> Any:
        raise ConnectionError("no network")

    monkeypatch.setattr("datasets.load_dataset", cut)
    told = refused(evaluate(refusal=["refusal_jbb"]))
    assert told == "params.yaml: evaluate.refusal: refusal_jbb could not be loaded: ConnectionError: no network"
