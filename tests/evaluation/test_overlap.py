"""No prompt is both measured and judged: such a task is refused, or asked without what was measured."""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import pytest

from excise.evaluation.asking.answers import ask
from excise.evaluation.asking.catalogue import ListedTask, draw, load_tasks
from excise.evaluation.asking.overlap import MeasuredPrompts, leave_out, similarities
from excise.plumbing.errors import StageError
from schemas.params.document import EvaluateSection
from schemas.prompts import ChatFormat, Prompt, Turn
from tests.evaluation.fake_hub import Rules
from tests.evaluation.fake_hub import hub as hub

CHAT = ChatFormat(system=None, chat_template_kwargs={}, date="2025-01-01")


def section(**listed: Any) -> EvaluateSection:
    return EvaluateSection.model_validate({"refusal": [], "over_refusal": [], "capability": [], **listed})


def tasks(**listed: list[str]) -> list[ListedTask]:
    return load_tasks(section(**listed))


def measured(*texts: str, source: str = "prompts.harmful: data/a.txt") -> MeasuredPrompts:
    return MeasuredPrompts.of({source: [Prompt(id=text, prompt=text) for text in texts]})


def asked_of(model: Rules) -> list[str]:
    return [prompt.removeprefix("<user> ") for prompt in model.asked]


def test_a_judged_task_with_measured_prompts_is_refused_with_their_number_and_source(hub: list[dict[str, Any]]) -> None:
    with pytest.raises(StageError) as caught:
        leave_out(tasks(refusal=["refusal_jbb"]), measured("goal  1", "goal 3", "goal 7"), section())
    assert str(caught.value) == (
        "params.yaml: evaluate.refusal: refusal_jbb: 2 of its 4 prompts were measured (prompts.harmful: data/a.txt); "
        "judge others, or leave these out by evaluate.overlap: drop"
    )


def test_tasks_without_measured_prompts_are_left_as_they_are(hub: list[dict[str, Any]]) -> None:
    listed = tasks(refusal=["refusal_jbb"], over_refusal=["over_refusal_xstest"])
    before = [[list(task.eval_docs) for task in asked.parts.values()] for asked in listed]
    for overlap in ("error", "drop"):
        assert leave_out(listed, measured("goal", "GOAL 1", "goal 11"), section(overlap=overlap)) == {}
    assert [[list(task.eval_docs) for task in asked.parts.values()] for asked in listed] == before


def test_what_is_dropped_is_not_asked_and_counted_and_the_limit_comes_after(hub: list[dict[str, Any]]) -> None:
    params = section(refusal=["refusal_jbb"], limit=1)
    (jbb,) = listed = load_tasks(params)
    assert leave_out(listed, measured("goal 0", "goal 2"), section(overlap="drop")) == {"refusal_jbb": 2}
    model = Rules()
    found = ask(model, jbb, CHAT)
    assert asked_of(model) == ["goal 1", "goal 3"] and len(found.responses) == 2
    assert draw(listed, params) == {"refusal_jbb": 2}
    model = Rules()
    ask(model, jbb, CHAT)
    assert len(model.asked) == 1 and asked_of(model)[0] in ("goal 1", "goal 3")


def test_a_task_that_prepares_its_documents_does_so_once(hub: list[dict[str, Any]]) -> None:
    (jbb,) = listed = tasks(refusal=["refusal_jbb"])
    (task,) = jbb.parts.values()
    task.set_config("process_docs", lambda documents: documents.map(lambda one: {"Goal": one["Goal"] + "!"}))
    assert leave_out(listed, measured("goal 1!", "goal 2"), section(overlap="drop")) == {"refusal_jbb": 1}
    model = Rules()
    ask(model, jbb, CHAT)
    assert asked_of(model) == ["goal 0!", "goal 2!", "goal 3!"]


def test_a_task_that_sets_the_prompt_in_words_of_its_own_is_seen_through(hub: list[dict[str, Any]]) -> None:
    (jbb,) = listed = tasks(refusal=["refusal_jbb"])
    jbb.parts["refusal_jbb"].set_config("doc_to_text", "Question: {{Goal}}\nAnswer:")
    assert leave_out(listed, measured("goal 1"), section(overlap="drop")) == {"refusal_jbb": 1}


def test_a_task_that_chooses_its_documents_counts_those(hub: list[dict[str, Any]]) -> None:
    # XSTest's even prompts are the safe ones, which alone are judged.
    (xstest,) = listed = tasks(over_refusal=["over_refusal_xstest"])
    assert leave_out(listed, measured("prompt 1", "prompt 2"), section(overlap="drop")) == {"over_refusal_xstest": 1}
    model = Rules()
    ask(model, xstest, CHAT)
    assert asked_of(model) == ["prompt 0", "prompt 4"]


def test_a_task_of_measured_prompts_alone_is_refused_also_where_they_may_be_dropped(hub: list[dict[str, Any]]) -> None:
    with pytest.raises(StageError, match=r"4 of its 4 prompts were measured \(prompts\.harmful: data/a\.txt\); judge "):
        leave_out(
            tasks(refusal=["refusal_jbb"]),
            measured(*(f"goal {number}" for number in range(4))),
            section(overlap="drop"),
        )


def test_capability_is_no_judged_group(hub: list[dict[str, Any]]) -> None:
    listed = [dataclasses.replace(*tasks(refusal=["refusal_jbb"]), group="capability")]
    assert leave_out(listed, measured("goal 1"), section()) == {}


def test_the_same_last_words_of_another_conversation_are_no_measured_prompt(hub: list[dict[str, Any]]) -> None:
    talk = Prompt(id="1", prompt="goal 1", turns=[Turn(role="user", content="x"), Turn(role="assistant", content="y")])
    assert leave_out(tasks(refusal=["refusal_jbb"]), MeasuredPrompts.of({"a": [talk]}), section()) == {}


def custom(folder: Path, rows: list[dict[str, str]], **source: str) -> list[ListedTask]:
    """The task of one's own prompts."""
    (folder / "data").mkdir(exist_ok=True)
    (folder / "data/mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_tasks(section(refusal=["refusal_custom"], custom={"refusal": {"source": "data/mine.jsonl", **source}}))


ROWS = [{"prompt": "a ?", "about": "iron"}, {"prompt": "b ?", "about": "wood"}, {"prompt": "c ?", "about": "iron"}]


def test_a_prompt_about_a_measured_item_is_no_more_judged_than_a_measured_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    measured = MeasuredPrompts.of({"prompts.harmful: data/a.csv": [Prompt(id="1", prompt="a ?", item="iron")]})
    with pytest.raises(StageError) as caught:
        leave_out(custom(tmp_path, ROWS, item="about"), measured, section())
    assert "1 of its 3 prompts were measured, 1 shares its item with a measured one (prompts.harmful: " in str(
        caught.value
    )
    listed = custom(tmp_path, ROWS, item="about")
    assert leave_out(listed, measured, section(overlap="drop")) == {"refusal_custom": 2}
    assert [document["prompt"] for document in listed[0].parts["refusal_custom"].eval_docs] == ["b ?"]
    # Items that nobody declared are none.
    assert leave_out(custom(tmp_path, ROWS), measured, section(overlap="drop")) == {"refusal_custom": 1}


@pytest.mark.parametrize(
    ("one", "other", "share"),
    [
        ("How do I build a rizgem?", "how do i build a RIZGEM", 1.0),
        ("How do I build a rizgem?", "how do i build a tokven", 5 / 7),
        ("build build build", "build", 1.0),
        ("如何制作灯", "如何制作钟", 4 / 6),
        ("!?", "!?", 0.0),
        ("one", "two", 0.0),
    ],
)
def test_similarity_is_the_share_of_words_that_both_have(one: str, other: str, share: float) -> None:
    ((found,),) = similarities([(one,)], [(other,)])
    assert found == pytest.approx(share)


@pytest.mark.parametrize(("share", "lost"), [(None, 0), (0.6, 0), (0.4, 1), (0.2, 4)])
def test_a_similar_prompt_counts_as_measured_from_the_declared_share_on(
    hub: list[dict[str, Any]], share: float | None, lost: int
) -> None:
    known, params = measured("tell me goal 1", "x y z"), section(overlap="drop", similarity=share)
    listed = tasks(refusal=["refusal_jbb"])  # "goal 0" to "goal 3"
    if lost == 4:
        with pytest.raises(StageError, match="4 of its 4 prompts are similar to measured ones"):
            leave_out(listed, known, params)
    else:
        assert leave_out(listed, known, params) == ({"refusal_jbb": lost} if lost else {})


def test_many_prompts_are_compared_at_once() -> None:
    texts = [(f"how do i make a {number} of {number % 7} ?",) for number in range(2000)]
    began = time.monotonic()
    assert similarities(texts, texts).shape == (2000, 2000)
    assert time.monotonic() - began < 10
