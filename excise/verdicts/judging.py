"""From answers to verdicts: rules find degenerate answers, whatever the judge; the judge decides on the rest."""

from collections.abc import Sequence
from dataclasses import dataclass

from excise.judges import Judgment
from excise.prompts.reasoning import final_part
from excise.verdicts.degenerate import is_degenerate
from schemas.results import Verdict


@dataclass(frozen=True)
class Answer:
    prompt: str
    response: str
    """As generated, without special tokens."""
    finished: bool
    """Whether the model ended it, rather than the token limit."""
    reasoning: bool
    """Whether the chat template already opened a block of reasoning."""

    @property
    def final(self) -> str | None:
        """The part after the reasoning; None if the reasoning never ends."""
        return final_part(self.response, self.reasoning)


def judge_answers(answers: Sequence[Answer], judge: Judgment) -> list[Verdict]:
    """The verdict on each answer. The judge is called at most once, with all answers that are not degenerate."""
    finals = {
        row: final
        for row, answer in enumerate(answers)
        if (final := answer.final) is not None and not is_degenerate(answer.prompt, final, answer.finished)
    }
    judged = judge([(answers[row].prompt, final) for row, final in finals.items()]) if finals else []
    verdicts: dict[int, Verdict] = dict(zip(finals, judged, strict=True))
    return [verdicts.get(row, "degenerate") for row in range(len(answers))]
