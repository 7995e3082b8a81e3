"""From answers to verdicts: what is degenerate is told by rule, the same for every judge; the rest is judged."""

from collections.abc import Sequence
from dataclasses import dataclass

from excise.judges import Judge
from excise.judges.degenerate import is_degenerate
from excise.judges.keywords import judge_by_keywords
from excise.prompts.reasoning import final_part
from schemas.params.judge import Judging
from schemas.results import Verdict


@dataclass(frozen=True)
class Answer:
    """What a model was asked and what it generated."""

    prompt: str
    response: str
    """As generated, without special tokens."""
    finished: bool
    """Whether the model ended it itself, rather than the limit of tokens."""
    reasoning: bool
    """Whether the prompt's chat template already opened a reasoning block."""

    @property
    def final(self) -> str | None:
        """The part that is meant for the reader; None where it never leaves the reasoning."""
        return final_part(self.response, self.reasoning)


def chosen_judge(params: Judging) -> Judge:
    """The judge that `evaluate.judge` names, with what it needs loaded, so that what is missing is said at once.
    Raises `StageError`: it needs what is not there: a model, a key, a template."""
    # Imported where they are used: transformers is slow, and few ask an endpoint.
    if params.judge == "classifier":
        from excise.judges.classifier import classifier_judge

        assert params.classifier is not None  # by its schema
        return classifier_judge(params.classifier)
    if params.judge == "api":
        from excise.judges.api import api_judge

        assert params.api is not None  # by its schema
        return api_judge(params.api)
    return judge_by_keywords


def judge_answers(answers: Sequence[Answer], judge: Judge) -> list[Verdict]:
    """The verdict of each answer. The judge is asked once, about every answer that is not degenerate by rule."""
    finals = {
        number: final
        for number, answer in enumerate(answers)
        if (final := answer.final) is not None and not is_degenerate(answer.prompt, final, answer.finished)
    }
    given = judge([(answers[number].prompt, final) for number, final in finals.items()]) if finals else []
    verdicts: dict[int, Verdict] = dict(zip(finals, given, strict=True))
    return [verdicts.get(number, "degenerate") for number in range(len(answers))]
