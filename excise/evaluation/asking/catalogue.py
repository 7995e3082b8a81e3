"""The tasks that params.yaml lists, and the samples that are asked; all errors are raised before a model is loaded."""

import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager
from transformers import set_seed

from excise.plumbing.errors import StageError
from excise.plumbing.files import read_document
from excise.plumbing.private.lm_eval import task_config
from excise.prompts.chats import PROMPTS_MANIFEST, identity, read_prompts
from schemas.basis.text import suggest
from schemas.params.tasks import TASKS, Questions, TaskGroup
from schemas.prompts import Prompt, PromptsManifest

TASKS_FOLDER = Path(__file__).parent / "tasks"
"""Our tasks, without scoring."""
MeasuredPrompts = Mapping[tuple[str, ...], str]
"""The source of each prompt that the direction was measured or tried on, by `excise.prompts.chats.identity`."""


@dataclass(frozen=True)
class ListedTask:
    """A task that params.yaml lists, which may be a group of tasks in lm-eval."""

    group: TaskGroup
    name: str
    parts: dict[str, Task]
    """The tasks of the group, or this task, by name."""
    loaded: dict[str, Any]
    """What lm-eval evaluates."""

    @property
    def judged(self) -> bool:
        """Whether its answers get a verdict."""
        return self.group != "capability"


def load_tasks(
    params: Questions, folder: Path = TASKS_FOLDER, longest_text: int | None = None, reasoning: bool = False
) -> list[ListedTask]:
    """Every task that `evaluate` lists, in its order; our own are in `folder`. An answer may take half of
    `longest_text` tokens, the model's context. Raises `StageError`: a task does not exist, or cannot be asked here."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # most of its messages are not for our users
    listed = [(group, name) for group, names in params.tasks().items() for name in names]
    manager = _index(folder, any(name not in TASKS for _, name in listed))
    set_seed(SEED)  # some tasks shuffle their samples
    tasks = [_load(manager, group, name, params, folder) for group, name in listed]
    for part in (part for task in tasks for part in task.parts.values() if part.OUTPUT_TYPE == "generate_until"):
        configured = (part.get_config("generation_kwargs") or {}).get("max_gen_toks", LONGEST_ANSWER)
        needed = max(configured, LONGEST_REASONING) if reasoning else configured
        longest = needed if longest_text is None else min(needed, longest_text // 2)
        if longest != configured:
            part.set_config(key="generation_kwargs", value={"max_gen_toks": longest}, update=True)
    return tasks


@functools.cache
def _index(folder: Path, with_defaults: bool) -> TaskManager:
    """The index of tasks; lm-eval's own take seconds to find."""
    return TaskManager(include_path=str(folder), include_defaults=with_defaults)


def _load(manager: TaskManager, group: TaskGroup, name: str, params: Questions, folder: Path) -> ListedTask:
    where = f"params.yaml: evaluate.{group}: {name}"
    if name in manager.all_tags:
        raise StageError(f"{where} is a tag for several lm-eval tasks; list those that you want")
    if name not in manager.all_tasks:
        raise StageError(f"{where} is not an lm-eval task{suggest(name, manager.all_tasks)}")
    for config in _configs(manager, name):
        metrics = config.get("metric_list") or []
        if config.get("unsafe_code") or any(isinstance(entry, dict) and entry.get("hf_evaluate") for entry in metrics):
            raise StageError(f"{where} runs code from a model or the Hub, which excise never does; leave it out")
    custom = {"refusal_custom": params.custom.refusal, "over_refusal_custom": params.custom.over_refusal}.get(name)
    try:
        own = custom and {**task_config(folder / f"{name}.yaml"), "dataset_kwargs": custom.model_dump()}
        loaded = manager.load([own or name])
    except StageError:
        raise
    except Exception as error:  # tasks are programs that may raise anything
        raise StageError(f"{where} could not be loaded: {type(error).__name__}: {error}") from None
    listed = ListedTask(group, name, dict(loaded["tasks"]), dict(loaded))
    if name in loaded["groups"] and not loaded["groups"][name].has_aggregation:
        raise StageError(f"{where} is a group without a metric of its own; list its tasks: {', '.join(listed.parts)}")
    for task in listed.parts.values():
        if listed.judged and task.OUTPUT_TYPE != "generate_until":
            raise StageError(f"{where} generates no answer that could be a refusal; list it under evaluate.capability")
        if getattr(task, "MULTIMODAL", False):
            raise StageError(f"{where} asks about more than text; leave it out")
        # As lm-eval's own command does by default.
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=SEED)
    return listed


def _configs(manager: TaskManager, name: str) -> Iterator[dict[str, Any]]:
    """The YAML of a task, or of a group and its members, without importing their functions."""
    entry = manager.task_index.get(name)
    if entry is None or entry.yaml_path is None:
        return
    config = task_config(entry.yaml_path, with_functions=False)
    yield config
    members = config.get("task")
    for member in members if isinstance(members, list) else []:
        inner = member if isinstance(member, str) else member.get("task") or member.get("group")
        if isinstance(inner, str):
            yield from _configs(manager, inner)


def read_measured_prompts() -> MeasuredPrompts:
    """The prompts that must not be judged: the direction was measured on them, or edits were tried on them."""
    manifest = read_document(PromptsManifest, PROMPTS_MANIFEST)
    return measured_prompts(
        {
            f"prompts.{kind}: {origin.source}": [*read_prompts(kind), *read_prompts(f"{kind}_held_out")]
            for kind, origin in (("harmful", manifest.harmful), ("harmless", manifest.harmless))
        }
    )


def measured_prompts(lists: Mapping[str, Sequence[Prompt]]) -> MeasuredPrompts:
    """The same from the prompts of each source."""
    return {identity(prompt): source for source, prompts in lists.items() for prompt in prompts}


def leave_out(
    tasks: Sequence[ListedTask], measured: MeasuredPrompts, overlap: Literal["error", "drop"]
) -> dict[str, int]:
    """Leave measured prompts out of the judged tasks, if `overlap` allows it. Returns how many each task lost, if any.
    Raises `StageError`: it is not allowed, or a task has no other samples."""
    left_out: dict[str, int] = {}
    for listed in tasks:
        for task in listed.parts.values() if listed.judged else ():
            documents = task.eval_docs
            sources = [_source(task, document, measured) for document in documents]
            kept = [row for row, source in enumerate(sources) if source is None]
            overlapping = [source for source in sources if source is not None]
            if not overlapping:
                continue
            if overlap == "error" or not kept:
                alternative = ", or leave these out by evaluate.overlap: drop" if kept else ""
                raise StageError(
                    f"params.yaml: evaluate.{listed.group}: {listed.name}: {len(overlapping)} of its {len(sources)} "
                    f"prompts were measured ({', '.join(sorted(set(overlapping)))}); judge others{alternative}"
                )
            split = task.config.test_split if task.has_test_docs() else task.config.validation_split
            rows = [documents[row] for row in kept] if isinstance(documents, list) else documents.select(kept)
            task.dataset = {**task.dataset, split: rows}
            task.set_config("process_docs", None)  # the documents are already processed
            left_out[listed.name] = left_out.get(listed.name, 0) + len(overlapping)
    return left_out


def _source(task: Task, document: Any, measured: MeasuredPrompts) -> str | None:
    """The source in which a document's prompt was measured, by any of its texts: a task may add words of its own."""
    texts = [str(task.doc_to_text(document)), *(text for text in dict(document).values() if isinstance(text, str))]
    sources = (measured.get(identity(Prompt(id="", prompt=text))) for text in texts)
    return next((source for source in sources if source is not None), None)


LONGEST_ANSWER = 256
"""lm-eval's default number of tokens to generate."""
LONGEST_REASONING = 2048
"""Least number of tokens to generate if the chat template opens a block of reasoning, which precedes the answer."""
SEED = 1234
"""lm-eval's default seed, for tasks that shuffle or sample and for few-shot examples."""
