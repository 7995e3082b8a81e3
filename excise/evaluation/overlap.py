"""No prompt is both measured and judged: judged tasks are looked through before any model is loaded."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from lm_eval.api.task import Task

from excise.evaluation.catalogue import ListedTask
from excise.plumbing.artifacts import read_document
from excise.plumbing.errors import StageError
from excise.prompts.chats import PROMPTS_MANIFEST, identity, read_prompts
from schemas.prompts import Prompt, PromptsManifest

MeasuredPrompts = Mapping[tuple[str, ...], str]
"""Of each prompt that the direction was measured or tried on, by what makes it the same, its source."""


def read_measured_prompts() -> MeasuredPrompts:
    """What must not be judged: the prompts that the direction was measured on, and those that edits were tried on."""
    manifest = read_document(PromptsManifest, PROMPTS_MANIFEST)
    return measured_prompts(
        {
            f"prompts.{side}: {origin.source}": [*read_prompts(side), *read_prompts(f"{side}_held_out")]
            for side, origin in (("harmful", manifest.harmful), ("harmless", manifest.harmless))
        }
    )


def measured_prompts(lists: Mapping[str, Sequence[Prompt]]) -> MeasuredPrompts:
    """The prompts of each source, by what makes them the same."""
    return {identity(prompt): source for source, prompts in lists.items() for prompt in prompts}


def leave_out(
    tasks: Sequence[ListedTask], measured: MeasuredPrompts, overlap: Literal["error", "drop"]
) -> dict[str, int]:
    """Leave measured prompts out of the judged tasks, where `overlap` allows that.

    Returns:
        Task → samples left out, of those tasks that lost any.

    Raises:
        StageError: a judged task holds measured prompts, and they are not to be dropped; or it holds no others.
    """
    left_out: dict[str, int] = {}
    for listed in tasks:
        for task in listed.parts.values() if listed.judged else ():
            sources = [_source(task, document, measured) for document in task.eval_docs]
            kept = [row for row, source in enumerate(sources) if source is None]
            if len(kept) == len(sources):
                continue
            if overlap == "error" or not kept:
                raise StageError(_told(listed, sources, none_left=not kept))
            _keep(task, kept)
            left_out[listed.name] = left_out.get(listed.name, 0) + len(sources) - len(kept)
    return left_out


def _told(listed: ListedTask, sources: Sequence[str | None], none_left: bool) -> str:
    found = [source for source in sources if source is not None]
    where = f"params.yaml: evaluate.{listed.group}: {listed.name}"
    mend = "" if none_left else ", or leave these out by evaluate.overlap: drop"
    return (
        f"{where}: {len(found)} of its {len(sources)} prompts were measured ({', '.join(sorted(set(found)))}); "
        f"judge others{mend}"
    )


def _source(task: Task, document: Any, measured: MeasuredPrompts) -> str | None:
    """Where what a document asks was measured; None where it was not. A task may set its text in words of its own, so
    each of its texts is looked at."""
    texts = [str(task.doc_to_text(document)), *(text for text in dict(document).values() if isinstance(text, str))]
    found = (measured.get(identity(Prompt(id="", prompt=text))) for text in texts)
    return next((source for source in found if source is not None), None)


def _keep(task: Task, rows: Sequence[int]) -> None:
    """Ask about these documents alone. They are put in place as the task itself prepared them, and so not again."""
    split = task.config.test_split if task.has_test_docs() else task.config.validation_split
    documents = task.eval_docs
    kept = [documents[row] for row in rows] if isinstance(documents, list) else documents.select(rows)
    task.dataset = {**task.dataset, split: kept}
    task.set_config("process_docs", None)
