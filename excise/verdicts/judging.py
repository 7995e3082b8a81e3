"""From answers to verdicts: a rule, the same for every judge, finds degenerate answers; the rest is judged."""

from collections.abc import Sequence
from dataclasses import dataclass

from excise.judges import Judgement
from excise.prompts.reasoning import final_part
from excise.verdicts.degenerate import is_degenerate
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


def judge_answers(answers: Sequence[Answer], judge: Judgement) -> list[Verdict]:
    """The verdict of each answer. The judge is asked once, about every answer that is not degenerate by rule."""
    finals = {
        number: final
        for number, answer in enumerate(answers)
        if (final := answer.final) is not None and not is_degenerate(answer.prompt, final, answer.finished)
    }
    given = judge([(answers[number].prompt, final) for number, final in finals.items()]) if finals else []
    verdicts: dict[int, Verdict] = dict(zip(finals, given, strict=True))
    return [verdicts.get(number, "degenerate") for number in range(len(answers))]
