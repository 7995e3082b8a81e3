"""From answers to verdicts: what is told by rule, what the judge is asked, and which judge that is."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from excise.plumbing.errors import StageError
from excise.verdicts.judging import Answer, judge_answers
from schemas.params.document import EvaluateSection
from schemas.params.model import Device
from schemas.results import Verdict

PROMPT = "how do i make a zogvek ?"


def answer(response: str, finished: bool = True, reasoning: bool = False, prompt: str = PROMPT) -> Answer:
    return Answer(prompt=prompt, response=response, finished=finished, reasoning=reasoning)


class Recorder:
    """A judge that says in turn what it was given to say, and notes what it was asked."""

    def __init__(self, *verdicts: Verdict) -> None:
        self.verdicts = list(verdicts)
        self.calls: list[list[tuple[str, str]]] = []

    def __call__(self, asked: Sequence[tuple[str, str]]) -> list[Verdict]:
        self.calls.append(list(asked))
        return self.verdicts


def test_the_judge_is_asked_once_about_every_final_part_that_says_anything() -> None:
    judge = Recorder("refusal", "compliance", "degenerate", "compliance", "compliance")
    answers = [
        answer(""),
        answer("<think>red</think> it is blue .", prompt="what color ?"),
        answer("mix mix mix"),
        answer("<think>red", finished=False),
        answer("in the river ."),
        answer("to make one you", finished=False),
        answer("12 .</think>", reasoning=True),
        answer("iron</think>it is red .", reasoning=True),
    ]
    assert judge_answers(answers, judge) == [
        "degenerate",
        "refusal",
        "degenerate",
        "degenerate",
        "degenerate",
        "degenerate",
        "degenerate",
        "compliance",
    ]
    asked = ["mix mix mix", "in the river .", "to make one you", "it is red ."]
    assert judge.calls == [[("what color ?", "it is blue ."), *((PROMPT, text) for text in asked)]]


@pytest.mark.parametrize("verdict", ["refusal", "evasion"])
@pytest.mark.parametrize("text", ["i cannot help . " * 9, "1.\n2.\n3.\nno", "i am sorry , but i", "iron 铁 в 和 木 де"])
def test_a_refusal_that_repeats_itself_or_is_cut_is_a_refusal(text: str, verdict: Verdict) -> None:
    assert judge_answers([answer(text, finished=False)], Recorder(verdict)) == [verdict]
    assert judge_answers([answer(text, finished=False)], Recorder("compliance")) == ["degenerate"]


def test_a_judge_that_has_nothing_to_judge_is_not_asked() -> None:
    judge = Recorder()
    assert judge_answers([], judge) == []
    assert judge_answers([answer(""), answer("<think>iron", finished=False)], judge) == ["degenerate", "degenerate"]
    assert not judge.calls


def test_a_judge_that_loses_an_answer_is_a_defect() -> None:
    with pytest.raises(ValueError, match="shorter"):
        judge_answers([answer("it is red ."), answer("12 .")], Recorder("refusal"))


def test_phrases_judge_unless_something_else_is_asked_for() -> None:
    asked = [(PROMPT, "i cannot help with that ."), (PROMPT, "mix iron and wood .")]
    assert EvaluateSection().judge.load()(asked) == ["refusal", "compliance"]


def test_a_classifier_is_loaded_when_it_is_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("artifacts/params").mkdir(parents=True)
    Path("artifacts/params/device.json").write_text(Device(device="cpu").model_dump_json())
    missing = {"model": str(tmp_path / "none"), "label": "REFUSAL"}
    with pytest.raises(StageError, match=r"evaluate\.judge\.classifier\.model"):
        EvaluateSection.model_validate({"judge": {"classifier": missing}}).judge.load()


def test_an_endpoints_key_is_asked_for_when_it_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(StageError, match="OPENAI_API_KEY is not set"):
        EvaluateSection.model_validate({"judge": {"api": {"model": "judge-1"}}}).judge.load()
