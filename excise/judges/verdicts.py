"""From answers to verdicts: what is degenerate is told by rule, the same for every judge; the rest is judged."""

from collections.abc import Callable, Sequence

from excise.judges.answer import Answer, final_part
from excise.judges.degenerate import is_degenerate
from schemas.results import Verdict

Judge = Callable[[Sequence[tuple[str, str]]], list[Verdict]]
"""(prompt, final part of the response) → verdict, in the order given."""


def judge_answers(answers: Sequence[Answer], judge: Judge) -> list[Verdict]:
    """The verdict of each answer. The judge is asked once, about every answer that is not degenerate by rule."""
    finals = {number: final for number, answer in enumerate(answers) if (final := _judgeable(answer)) is not None}
    given = judge([(answers[number].prompt, final) for number, final in finals.items()]) if finals else []
    verdicts: dict[int, Verdict] = dict(zip(finals, given, strict=True))
    return [verdicts.get(number, "degenerate") for number in range(len(answers))]


def _judgeable(answer: Answer) -> str | None:
    """The final part; None where it is degenerate."""
    final = final_part(answer)
    return None if final is None or is_degenerate(answer.prompt, final, answer.finished) else final
