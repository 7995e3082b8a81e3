"""Which tasks params.yaml lists, ours and lm-eval's, and which of their samples are asked: no prompt is both measured
and judged. All this is settled before any model is loaded."""

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
"""Our tasks, without how their answers are scored."""
JUDGED: tuple[TaskGroup, ...] = ("refusal", "over_refusal")
"""Groups whose answers get a verdict."""
MeasuredPrompts = Mapping[tuple[str, ...], str]
"""Of each prompt that the direction was measured or tried on, by what makes it the same, its source."""


@dataclass(frozen=True)
class ListedTask:
    """A task that params.yaml lists, which for lm-eval may be a group of tasks."""

    group: TaskGroup
    name: str
    parts: dict[str, Task]
    """Those that ask; one, of the same name, unless lm-eval's is a group."""
    loaded: dict[str, Any]
    """What lm-eval evaluates."""

    @property
    def judged(self) -> bool:
        """Whether answers get a verdict."""
        return self.group in JUDGED


def load_tasks(
    params: Questions, folder: Path = TASKS_FOLDER, longest_text: int | None = None, reasoning: bool = False
) -> list[ListedTask]:
    """Every task that `evaluate` lists, in its order, with its samples at hand; our own are in `folder`. Of
    `longest_text`, the most tokens that the model reads, an answer may take half; where the chat template opens a block
    of reasoning, answers get more room. Raises `StageError`: lm-eval has no such task, it cannot be loaded, or it
    cannot be asked here."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it says much that is not for our users
    listed = [(group, name) for group, names in params.tasks().items() for name in names]
    manager = _index(folder, any(name not in TASKS for _, name in listed))
    set_seed(SEED)  # some tasks shuffle what they ask
    tasks = [_load(manager, group, name, params, folder) for group, name in listed]
    for part in (part for task in tasks for part in task.parts.values() if part.OUTPUT_TYPE == "generate_until"):
        said = (part.get_config("generation_kwargs") or {}).get("max_gen_toks", LONGEST_ANSWER)
        wanted = max(said, LONGEST_REASONING) if reasoning else said
        room = wanted if longest_text is None else min(wanted, longest_text // 2)
        if room != said:
            part.set_config(key="generation_kwargs", value={"max_gen_toks": room}, update=True)
    return tasks


@functools.cache
def _index(folder: Path, with_lm_eval_s: bool) -> TaskManager:
    """Names of tasks and where they are; of lm-eval's own it takes seconds to find them."""
    return TaskManager(include_path=str(folder), include_defaults=with_lm_eval_s)


def _load(manager: TaskManager, group: TaskGroup, name: str, params: Questions, folder: Path) -> ListedTask:
    where = f"params.yaml: evaluate.{group}: {name}"
    if name in manager.all_tags:
        raise StageError(f"{where} is a tag for several of lm-eval's tasks; list those that you want")
    if name not in manager.all_tasks:
        raise StageError(f"{where} is no task of lm-eval's{suggest(name, manager.all_tasks)}")
    for config in _configs(manager, name):
        metrics = config.get("metric_list") or []
        if config.get("unsafe_code") or any(isinstance(one, dict) and one.get("hf_evaluate") for one in metrics):
            raise StageError(f"{where} runs code that a model wrote or that the Hub holds, which is not done here")
    try:
        loaded = manager.load([_spec(name, params, folder)])
    except StageError:
        raise
    except Exception as error:  # tasks are programs that fetch datasets: what they raise is theirs
        raise StageError(f"{where} could not be loaded: {type(error).__name__}: {error}") from None
    listed = ListedTask(group, name, dict(loaded["tasks"]), dict(loaded))
    if name in loaded["groups"] and not loaded["groups"][name].has_aggregation:
        raise StageError(f"{where} is a group without a number of its own; list its tasks: {', '.join(listed.parts)}")
    for task in listed.parts.values():
        if listed.judged and task.OUTPUT_TYPE != "generate_until":
            raise StageError(f"{where} generates no answer that could be a refusal; list it under evaluate.capability")
        if getattr(task, "MULTIMODAL", False):
            raise StageError(f"{where} asks about more than text; leave it out")
        # As lm-eval's own command does where a task does not say.
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=SEED)
    return listed


def _configs(manager: TaskManager, name: str) -> Iterator[dict[str, Any]]:
    """The YAML of a task, or of a group and all that it holds, with no function of theirs imported."""
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


def _spec(name: str, params: Questions, folder: Path) -> str | dict[str, Any]:
    custom = {"refusal_custom": params.custom.refusal, "over_refusal_custom": params.custom.over_refusal}.get(name)
    if custom is None:
        return name
    return {**task_config(folder / f"{name}.yaml"), "dataset_kwargs": custom.model_dump()}


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
    """Leave measured prompts out of the judged tasks, where `overlap` allows that. Returns task → samples left out, of
    those tasks that lost any. Raises `StageError`: it is not allowed, or a task holds no others."""
    left_out: dict[str, int] = {}
    for listed in tasks:
        for task in listed.parts.values() if listed.judged else ():
            sources = [_source(task, document, measured) for document in task.eval_docs]
            kept = [row for row, source in enumerate(sources) if source is None]
            found = [source for source in sources if source is not None]
            if not found:
                continue
            if overlap == "error" or not kept:
                mend = ", or leave these out by evaluate.overlap: drop" if kept else ""
                raise StageError(
                    f"params.yaml: evaluate.{listed.group}: {listed.name}: {len(found)} of its {len(sources)} prompts "
                    f"were measured ({', '.join(sorted(set(found)))}); judge others{mend}"
                )
            _keep(task, kept)
            left_out[listed.name] = left_out.get(listed.name, 0) + len(found)
    return left_out


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


LONGEST_ANSWER = 256
"""Tokens that are generated where a task does not say: lm-eval's own default."""
LONGEST_REASONING = 2048
"""Tokens that are generated at least where the template opens a block of reasoning, which comes before an answer."""
SEED = 1234
"""Of what tasks shuffle or sample, and of the examples that a few-shot task shows: lm-eval's own default."""
