"""Functions by which task files find their prompts; lm-eval imports this file by path, from the project folder."""

from typing import Any

from datasets import Dataset

from excise.plumbing.errors import StageError
from excise.prompts.chats import read_prompts
from excise.prompts.gathering import gather
from schemas.params.sources import CustomPrompts
from schemas.prompts import Prompt


def organism(name: str, **_metadata: Any) -> dict[str, Dataset]:
    """One of the organism's prompt lists."""
    return _test_split(read_prompts(name))


def safe(documents: Dataset) -> Dataset:
    """XSTest's safe prompts, without the unsafe ones that it has for contrast."""
    return documents.filter(lambda document: document["label"] == "safe")


def custom(**kwargs: Any) -> dict[str, Dataset]:
    """The user's own prompts. Raises `StageError`: they cannot be read, or have several messages."""
    source = CustomPrompts(**{name: kwargs[name] for name in CustomPrompts.model_fields if name in kwargs})
    prompts = gather(source).prompts
    if conversations := sum(bool(prompt.turns) for prompt in prompts):
        raise StageError(
            f"params.yaml: evaluate.custom: {conversations} of {len(prompts)} prompts in {source.source} have earlier "
            "messages, but a task asks only one message; name a column of texts"
        )
    return _test_split(prompts)


def _test_split(prompts: list[Prompt]) -> dict[str, Dataset]:
    return {"test": Dataset.from_list([prompt.model_dump(exclude={"turns"}) for prompt in prompts])}
