"""No prompt is both measured and judged: such a task is refused, or asked without what was measured."""

import dataclasses
from typing import Any

import pytest

from excise.evaluation.asking.answers import ask
from excise.evaluation.asking.catalogue import ListedTask, draw, leave_out, load_tasks, measured_prompts
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


def measured(*texts: str, source: str = "prompts.harmful: data/a.txt") -> Any:
    return measured_prompts({source: [Prompt(id=text, prompt=text) for text in texts]})


def asked_of(model: Rules) -> list[str]:
    return [prompt.removeprefix("<user> ") for prompt in model.asked]


def test_a_judged_task_with_measured_prompts_is_refused_with_their_number_and_source(hub: list[dict[str, Any]]) -> None:
    with pytest.raises(StageError) as caught:
        leave_out(tasks(refusal=["refusal_jbb"]), measured("goal  1", "goal 3", "goal 7"), "error")
    assert str(caught.value) == (
        "params.yaml: evaluate.refusal: refusal_jbb: 2 of its 4 prompts were measured (prompts.harmful: data/a.txt); "
        "judge others, or leave these out by evaluate.overlap: drop"
    )


def test_tasks_without_measured_prompts_are_left_as_they_are(hub: list[dict[str, Any]]) -> None:
    listed = tasks(refusal=["refusal_jbb"], over_refusal=["over_refusal_xstest"])
    before = [[list(task.eval_docs) for task in asked.parts.values()] for asked in listed]
    for overlap in ("error", "drop"):
        assert leave_out(listed, measured("goal", "GOAL 1", "goal 11"), overlap) == {}
    assert [[list(task.eval_docs) for task in asked.parts.values()] for asked in listed] == before


def test_what_is_dropped_is_not_asked_and_counted_and_the_limit_comes_after(hub: list[dict[str, Any]]) -> None:
    params = section(refusal=["refusal_jbb"], limit=1)
    (jbb,) = listed = load_tasks(params)
    assert leave_out(listed, measured("goal 0", "goal 2"), "drop") == {"refusal_jbb": 2}
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
    assert leave_out(listed, measured("goal 1!", "goal 2"), "drop") == {"refusal_jbb": 1}
    model = Rules()
    ask(model, jbb, CHAT)
    assert asked_of(model) == ["goal 0!", "goal 2!", "goal 3!"]


def test_a_task_that_sets_the_prompt_in_words_of_its_own_is_seen_through(hub: list[dict[str, Any]]) -> None:
    (jbb,) = listed = tasks(refusal=["refusal_jbb"])
    jbb.parts["refusal_jbb"].set_config("doc_to_text", "Question: {{Goal}}\nAnswer:")
    assert leave_out(listed, measured("goal 1"), "drop") == {"refusal_jbb": 1}


def test_a_task_that_chooses_its_documents_counts_those(hub: list[dict[str, Any]]) -> None:
    # XSTest's even prompts are the safe ones, which alone are judged.
    (xstest,) = listed = tasks(over_refusal=["over_refusal_xstest"])
    assert leave_out(listed, measured("prompt 1", "prompt 2"), "drop") == {"over_refusal_xstest": 1}
    model = Rules()
    ask(model, xstest, CHAT)
    assert asked_of(model) == ["prompt 0", "prompt 4"]


def test_a_task_of_measured_prompts_alone_is_refused_also_where_they_may_be_dropped(hub: list[dict[str, Any]]) -> None:
    with pytest.raises(StageError, match=r"4 of its 4 prompts were measured \(prompts\.harmful: data/a\.txt\); judge "):
        leave_out(tasks(refusal=["refusal_jbb"]), measured(*(f"goal {number}" for number in range(4))), "drop")


def test_capability_is_no_judged_group(hub: list[dict[str, Any]]) -> None:
    listed = [dataclasses.replace(*tasks(refusal=["refusal_jbb"]), group="capability")]
    assert leave_out(listed, measured("goal 1"), "error") == {}


def test_the_same_last_words_of_another_conversation_are_no_measured_prompt(hub: list[dict[str, Any]]) -> None:
    talk = Prompt(id="1", prompt="goal 1", turns=[Turn(role="user", content="x"), Turn(role="assistant", content="y")])
    assert leave_out(tasks(refusal=["refusal_jbb"]), measured_prompts({"a": [talk]}), "error") == {}
