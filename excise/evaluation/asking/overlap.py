"""Samples of judged tasks that are too close to what was measured: the same prompt, a prompt about the same item, or,
if params.yaml declares how similar is too similar, one with nearly the same words."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import numpy as np
from lm_eval.api.task import Task
from scipy.sparse import csr_array

from excise.evaluation.asking.catalogue import ListedTask, keep
from excise.evaluation.asking.conversations import Conversations, prompt_of
from excise.plumbing.errors import StageError
from excise.plumbing.files import read_document
from excise.prompts.chats import PROMPTS_MANIFEST, identity, read_prompts
from schemas.params.tasks import TASKS, Questions
from schemas.prompts import Prompt, PromptsManifest

Closeness = Literal["measured", "item", "similar"]


@dataclass(frozen=True)
class MeasuredPrompts:
    """The prompts that the direction was measured on, or edits were tried on. They must not be judged."""

    sources: Mapping[tuple[str, ...], str]
    """The source of each prompt, by `excise.prompts.chats.identity`."""
    items: Mapping[str, str] = field(default_factory=dict)
    """The source of each item that prompts are about."""

    @classmethod
    def of(cls, lists: Mapping[str, Sequence[Prompt]]) -> Self:
        """Those of each source's prompts."""
        prompts = [(prompt, source) for source, listed in lists.items() for prompt in listed]
        return cls(
            {identity(prompt): source for prompt, source in prompts},
            {prompt.item: source for prompt, source in prompts if prompt.item is not None},
        )


def read_measured_prompts() -> MeasuredPrompts:
    """Those that `prepare` wrote."""
    manifest = read_document(PromptsManifest, PROMPTS_MANIFEST)
    return MeasuredPrompts.of(
        {
            f"prompts.{kind}: {origin.source}": [*read_prompts(kind), *read_prompts(f"{kind}_held_out")]
            for kind, origin in (("harmful", manifest.harmful), ("harmless", manifest.harmless))
        }
    )


def leave_out(tasks: Sequence[ListedTask], measured: MeasuredPrompts, params: Questions) -> dict[str, int]:
    """Leave samples that are too close to measured prompts out of the judged tasks, if `evaluate.overlap` allows it.
    Returns how many each task lost, if any. Raises `StageError`: it is not allowed, or a task has no other samples."""
    left_out: dict[str, int] = {}
    for listed in tasks:
        for task in listed.parts.values() if listed.judged else ():
            found = [*_close(task, measured, params.similarity)]
            close = [each for each in found if each is not None]
            if not close:
                continue
            kept = [row for row, each in enumerate(found) if each is None]
            if params.overlap == "error" or not kept:
                alternative = ", or leave these out by evaluate.overlap: drop" if kept else ""
                raise StageError(
                    f"params.yaml: evaluate.{listed.group}: {listed.name}: {_counted(close, len(found))} "
                    f"({', '.join(sorted({source for _, source in close}))}); judge others{alternative}"
                )
            keep(task, kept)
            left_out[listed.name] = left_out.get(listed.name, 0) + len(close)
    return left_out


def similarities(texts: Sequence[Sequence[str]], others: Sequence[Sequence[str]]) -> np.ndarray[Any, Any]:
    """Of each text and each other one, the share of their words that both have (Jaccard's index): ``[texts, others]``
    float64. Case, punctuation and how often a word stands there do not count; of scripts without spaces, each character
    is a word."""
    columns: dict[str, int] = {}
    found = [
        [{word for part in text for word in _WORD.findall(part.casefold())} for text in each]
        for each in (texts, others)
    ]
    for words in (words for each in found for own in each for words in sorted(own)):
        columns.setdefault(words, len(columns))
    one, other = (_matrix(each, columns) for each in found)
    both = (one @ other.T).toarray()
    either = one.sum(axis=1)[:, None] + other.sum(axis=1)[None, :] - both
    return np.divide(both, either, out=np.zeros_like(both), where=either > 0)


_NO_SPACES = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff"
_WORD = re.compile(rf"[{_NO_SPACES}]|[^\W{_NO_SPACES}]+")
"""A word, or a character of Thai, Lao, Burmese, Khmer, Japanese or Chinese."""


def _matrix(found: Sequence[set[str]], columns: Mapping[str, int]) -> csr_array:
    """Which words each text has: ``[texts, words]``, 1 or 0."""
    places = [(row, columns[word]) for row, own in enumerate(found) for word in own]
    rows, of_words = zip(*places, strict=True) if places else ((), ())
    return csr_array((np.ones(len(places)), (rows, of_words)), shape=(len(found), len(columns)))


def _close(task: Task, measured: MeasuredPrompts, similarity: float | None) -> Iterator[tuple[Closeness, str] | None]:
    """How each sample of a task is close to what was measured, and the source of that; None: it is not."""
    documents = list(task.eval_docs)
    alike = {} if similarity is None else _alike(task, documents, measured, similarity)
    has_items = isinstance(task, Conversations) or task.task_name in TASKS
    for row, document in enumerate(documents):
        item = document.get("item") if has_items else None
        found = (measured.sources.get(text) for text in _texts(task, document))
        if (source := next((source for source in found if source is not None), None)) is not None:
            yield "measured", source
        elif item is not None and item in measured.items:
            yield "item", measured.items[item]
        elif row in alike:
            yield "similar", alike[row]
        else:
            yield None


def _texts(task: Task, document: Any) -> list[tuple[str, ...]]:
    """What may be a document's prompt, as `identity` gives it: any of its texts, as a task may add words of its own."""
    if isinstance(task, Conversations):
        return [identity(prompt_of(document))]
    texts = [str(task.doc_to_text(document)), *(text for text in dict(document).values() if isinstance(text, str))]
    return [identity(Prompt(id="", prompt=text)) for text in texts]


def _alike(task: Task, documents: Sequence[Any], measured: MeasuredPrompts, similarity: float) -> dict[int, str]:
    """The source of the most similar measured prompt, by the row of each document for which one is similar enough."""
    texts = [(row, text) for row, document in enumerate(documents) for text in _texts(task, document)]
    if not texts or not measured.sources:
        return {}
    shares, sources = similarities([text for _, text in texts], [*measured.sources]), [*measured.sources.values()]
    enough = shares.max(axis=1) >= similarity
    return {row: sources[share.argmax()] for (row, _), share, close in zip(texts, shares, enough, strict=True) if close}


def _counted(close: Sequence[tuple[Closeness, str]], all_of_them: int) -> str:
    """Such as "2 of its 4 prompts were measured, 1 shares its item with a measured one"."""
    kinds = [kind for kind, _ in close]
    first, *more = ((kinds.count(kind), *words) for kind, words in _WORDS.items() if kind in kinds)
    said = [f"{first[0]} of its {all_of_them} prompts {first[2]}"]
    return ", ".join(said + [f"{count} {one if count == 1 else several}" for count, one, several in more])


_WORDS: Mapping[Closeness, tuple[str, str]] = {
    "measured": ("was measured", "were measured"),
    "item": ("shares its item with a measured one", "share their items with measured ones"),
    "similar": ("is similar to a measured one", "are similar to measured ones"),
}
"""What is said of one prompt that is close, and of several."""
