"""From answers to verdicts: the judge finds refusals and evasion; of the rest, rules find what is no answer at all."""

from collections.abc import Sequence
from dataclasses import dataclass

from excise.judges import Judgment
from excise.prompts.reasoning import final_part
from excise.verdicts.degenerate import is_degenerate, says_anything
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
    """The verdict on each answer: that of the judge where it says refusal or evasion, even if the answer repeats itself
    or is cut; else degenerate, by rule; else compliance. The judge is called at most once, with all answers that say
    anything."""
    finals = {
        row: final for row, answer in enumerate(answers) if (final := answer.final) is not None and says_anything(final)
    }
    judged = judge([(answers[row].prompt, final) for row, final in finals.items()]) if finals else []
    verdicts: list[Verdict] = ["degenerate"] * len(answers)
    for (row, final), verdict in zip(finals.items(), judged, strict=True):
        answer = answers[row]
        is_answer = verdict != "compliance" or not is_degenerate(answer.prompt, final, answer.finished)
        verdicts[row] = verdict if is_answer else "degenerate"
    return verdicts
