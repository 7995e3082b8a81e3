"""How often the judge `keywords` is right about made-up answers: `python -m benchmarks.judges` (a second).

Judges every answer of `tests/judges/answers.yaml` and writes what that gives between the marks in docs/judges.md.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from pydantic import Field

from excise.gitops.experiments.tables import written_into
from excise.judges.keywords import judge_by_keywords
from excise.plumbing.files import write_text
from excise.verdicts.judging import Answer, judge_answers
from schemas.basis.document import Document
from schemas.basis.plain_yaml import parse_mapping, read_text
from schemas.basis.text import shorten
from schemas.results import Verdict

ROOT = Path(__file__).resolve().parent.parent
ANSWERS = ROOT / "tests" / "judges" / "answers.yaml"
DOCUMENT = ROOT / "docs" / "judges.md"


class Known(Document):
    """An answer whose verdict is known."""

    verdict: Verdict
    prompt: str
    response: str
    kind: str
    language: str = "en"
    finished: bool = True
    reasoning: bool = False
    scope: bool = Field(default=True, description="whether docs/judges.md promises that the phrases tell it")


class Table(Document):
    """`tests/judges/answers.yaml`."""

    tuned: list[Known]
    held_out: list[Known]


@dataclass(frozen=True)
class Rates:
    """How well one verdict is told: of `answers` that are it, `found` were said to be; `said` were in all."""

    answers: int
    said: int
    found: int

    @property
    def precision(self) -> float:
        return self.found / self.said if self.said else 1.0

    @property
    def recall(self) -> float:
        return self.found / self.answers if self.answers else 1.0


def read_table() -> Table:
    """The answers and their verdicts."""
    text = json.dumps(parse_mapping(read_text(ANSWERS, ANSWERS.name), ANSWERS.name))
    return Table.model_validate_json(text)


def judged(answers: Iterable[Known]) -> list[tuple[Known, Verdict]]:
    """Each answer with what the judge says."""
    known = list(answers)
    asked = [Answer(item.prompt, item.response, item.finished, item.reasoning) for item in known]
    return list(zip(known, judge_answers(asked, judge_by_keywords), strict=True))


def rates(results: Sequence[tuple[Known, Verdict]]) -> dict[Verdict, Rates]:
    """Precision and recall of each verdict."""
    return {
        verdict: Rates(
            answers=sum(item.verdict == verdict for item, _ in results),
            said=sum(said == verdict for _, said in results),
            found=sum(item.verdict == said == verdict for item, said in results),
        )
        for verdict in get_args(Verdict)
    }


def tables(table: Table) -> dict[str, str]:
    """What docs/judges.md shows, by name."""
    results = {"tuned on": judged(table.tuned), "held out": judged(table.held_out)}
    results["all"] = [result for part in results.values() for result in part]
    lines = [
        "| answers within the scope | verdict | answers | said | precision | recall |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for name, part in results.items():
        for verdict, rate in rates([(item, said) for item, said in part if item.scope]).items():
            lines.append(
                f"| {name} | {verdict} | {rate.answers} | {rate.said} | {rate.precision:.3f} | {rate.recall:.3f} |"
            )
    wrong = [
        (name, item, said) for name in ("tuned on", "held out") for item, said in results[name] if item.verdict != said
    ]
    missed = ["| what it is | what is said | within the scope | set | answer |", "| --- | --- | --- | --- | --- |"]
    for name, item, said in sorted(wrong, key=lambda one: not one[1].scope):
        shown = shorten(" ".join(item.response.split()), 110).replace("|", r"\|")
        missed.append(f"| {item.verdict} ({item.kind}) | {said} | {'yes' if item.scope else 'no'} | {name} | {shown} |")
    return {"measured": "\n".join(lines), "missed": "\n".join(missed)}


def document() -> str:
    """docs/judges.md with the tables that the answers give."""
    return written_into(DOCUMENT.read_text(encoding="utf-8"), tables(read_table()), {}, DOCUMENT.name)


def main() -> None:
    """Write them."""
    write_text(DOCUMENT, document())


if __name__ == "__main__":
    main()
