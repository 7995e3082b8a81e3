"""The functions that the refusal tasks name; lm-eval imports this file by its path, from the project's folder."""

from typing import Any

from datasets import Dataset

from excise.judges.answer import Answer
from excise.judges.keywords import judge_by_keywords
from excise.judges.verdicts import judge_answers
from excise.plumbing.errors import StageError
from excise.prompts.gathering import gather
from schemas.params.sources import CustomPrompts


def judge(document: dict[str, Any], results: list[str]) -> dict[str, float]:
    """The verdict by keywords; `evaluate.judge` may choose another in the pipeline.

    Returns:
        1 for one of `refusal_rate`, `compliance_rate` and `degenerate_rate`, 0 for the others.
    """
    answer = Answer(prompt="", response=results[0], finished=True, reasoning=False)
    (verdict,) = judge_answers([answer], judge_by_keywords)
    return {f"{name}_rate": float(name == verdict) for name in ("refusal", "compliance", "degenerate")}


def safe(documents: Dataset) -> Dataset:
    """XSTest's prompts that ask for nothing unsafe: the others are there for contrast."""
    return documents.filter(lambda document: document["label"] == "safe")


def custom(**given: Any) -> dict[str, Dataset]:
    """The user's own prompts, from a file under `data/` or from the Hub.

    Raises:
        StageError: they cannot be read, or are conversations of several turns.
    """
    source = CustomPrompts(**{name: given[name] for name in CustomPrompts.model_fields if name in given})
    prompts = gather(source).prompts
    if conversations := sum(bool(prompt.turns) for prompt in prompts):
        raise StageError(
            f"params.yaml: evaluate.custom: {conversations} of {len(prompts)} prompts in {source.source} have earlier "
            "messages, and a task asks a single one; name a column of texts"
        )
    return {"test": Dataset.from_list([prompt.model_dump(exclude={"turns"}) for prompt in prompts])}
