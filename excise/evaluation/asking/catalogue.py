"""The tasks that params.yaml lists, and the samples that are asked; all errors are raised before a model is loaded."""

import functools
import hashlib
import json
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager
from transformers import set_seed

from excise.plumbing.errors import StageError
from excise.plumbing.files import DATA, lies_in_data
from excise.plumbing.private.lm_eval import generation_settings, task_config, task_files
from schemas.basis.text import one_line, suggest
from schemas.params.tasks import TASKS, Questions, TaskGroup

TASKS_FOLDER = Path(__file__).parent / "tasks"
"""Our tasks, without scoring."""


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
    `longest_text` tokens, the model's context; `reasoning`: whether the model may reason before it answers. Raises
    `StageError`: a task does not exist, or cannot be asked here."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # most of its messages are not for our users
    listed = [(group, name) for group, names in params.tasks().items() for name in names]
    check_own_tasks(params.include)
    known = {*TASKS, *params.custom.sources()}
    own = None if params.include is None else Path(params.include).resolve()
    manager = _index(folder, own, any(name not in known for _, name in listed))
    set_seed(SEED)  # some tasks shuffle their samples
    tasks = [_load(manager, group, name, params, folder) for group, name in listed]
    for task in tasks:
        for part in task.parts.values():
            if part.OUTPUT_TYPE == "generate_until":
                _set_length(part, task.judged, params, longest_text, reasoning)
    return tasks


def _set_length(part: Task, judged: bool, params: Questions, longest_text: int | None, reasoning: bool) -> None:
    settings = part.get_config("generation_kwargs") or {}
    answer = generation_settings(settings, params.max_new_tokens if judged else LONGEST_ANSWER)["max_gen_toks"]
    needed = answer + params.reasoning_tokens if reasoning else answer
    longest = needed if longest_text is None else min(needed, longest_text // 2)
    if longest != answer or (judged and settings.get("max_gen_toks") != longest):
        part.set_config(key="generation_kwargs", value={"max_gen_toks": longest}, update=True)


@functools.cache
def _index(folder: Path, own: Path | None, with_defaults: bool) -> TaskManager:
    """The index of tasks: lm-eval's, which take seconds to find, the user's, and ours; the last of a name counts."""
    paths: list[str | Path] = [folder] if own is None else [own, folder]
    return TaskManager(include_path=paths, include_defaults=with_defaults)


def _load(manager: TaskManager, group: TaskGroup, name: str, params: Questions, folder: Path) -> ListedTask:
    where = f"params.yaml: evaluate.{group}: {name}"
    custom = params.custom.sources().get(name)
    spec: str | dict[str, Any] = name
    if custom is not None:
        kind = "over_refusal_custom" if name.startswith("over_") else "refusal_custom"
        spec = {**task_config(folder / f"{kind}.yaml"), "task": name, "dataset_kwargs": custom.model_dump()}
    elif name in manager.all_tags:
        raise StageError(f"{where} is a tag for several lm-eval tasks; list those that you want")
    elif name not in manager.all_tasks:
        there = f" or one in {params.include}" if params.include else ""
        raise StageError(f"{where} is not an lm-eval task{there}{suggest(name, manager.all_tasks)}")
    for config in _configs(manager, name):
        metrics = config.get("metric_list") or []
        if config.get("unsafe_code") or any(isinstance(entry, dict) and entry.get("hf_evaluate") for entry in metrics):
            raise StageError(f"{where} runs code from a model or the Hub, which excise never does; leave it out")
    try:
        loaded = manager.load([spec])
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


def check_own_tasks(include: str | None) -> None:
    """Raises `StageError`: the folder of the user's own tasks is missing, or a file in it cannot be read, leads outside
    `data/`, or has the name of a task of ours or of another file. lm-eval itself would only leave such a task out."""
    if include is None:
        return
    if not Path(include).is_dir():
        raise StageError(f"params.yaml: evaluate.include names {include}, which is not a folder; put your tasks there")
    files_by_name: dict[str, Path] = {}
    for path in sorted(Path(include).rglob("*.yaml")):
        try:
            files, config = task_files(path), task_config(path, with_functions=False)
        except Exception as error:  # of YAML, of files that are missing, of includes in a circle
            raise StageError(f"{path} is not a task file of lm-eval: {one_line(error, 150)}") from None
        for file in files:
            _check_in_data(file)
        name = config.get("group", config.get("task"))
        if isinstance(name, str):  # other files are parts of tasks
            if name in TASKS or name in files_by_name:
                other = files_by_name.get(name, "a task of excise")
                raise StageError(f"{path} is named {name}, as is {other}; give it a name of its own")
            files_by_name[name] = path


def _check_in_data(file: Path) -> None:
    """Raises `StageError`: a task file, or the code that it names, is outside `data/`, on whose files stages depend."""
    if not lies_in_data(file):
        raise StageError(f"{file} leads outside {DATA}/; tasks there may only use files and code in it")
    for name in _FUNCTION.findall(file.read_text(encoding="utf-8")):
        module = file.parent / f"{name.rpartition('.')[0].replace('.', '/')}.py"
        if not name.startswith("lm_eval.") and not (module.is_file() and lies_in_data(module)):
            raise StageError(f"{file}: !function {name} is in no file of {file.parent}; put its code there")


_FUNCTION = re.compile(r"!function\s+(\S+)")


def draw(tasks: Sequence[ListedTask], params: Questions) -> dict[str, int]:
    """Keep only as many samples of each part of a task as params.yaml allows. Which ones depends on the seed and the
    sample, not on the order of rows or on other samples; they keep their order. Returns how many there were of each
    task that lost some."""
    drawn: dict[str, int] = {}
    for listed in tasks:
        most, parts = params.limit_of(listed.name), listed.parts.values()
        counts = {task.task_name: len(task.eval_docs) for task in parts}
        if most is None or max(counts.values()) <= most:
            continue
        drawn[listed.name] = sum(counts.values())
        for task in parts:
            digests = [_sample_digest(document, params.seed) for document in task.eval_docs]
            keep(task, sorted(sorted(range(len(digests)), key=digests.__getitem__)[:most]))
    return drawn


def _sample_digest(document: Any, seed: int) -> bytes:
    text = json.dumps(dict(document), sort_keys=True, default=str)
    return hashlib.sha256(f"{seed} {text}".encode()).digest()


def keep(task: Task, rows: Sequence[int]) -> None:
    """Leave a task only these of its documents."""
    documents = task.eval_docs
    kept = [documents[row] for row in rows] if isinstance(documents, list) else documents.select(rows)

    def documents_to_ask() -> Any:
        return kept

    # lm-eval asks what this method returns; few-shot examples come from elsewhere.
    setattr(task, "test_docs" if task.has_test_docs() else "validation_docs", documents_to_ask)


LONGEST_ANSWER = 256
"""lm-eval's default number of tokens to generate, in tasks that are not judged."""
SEED = 1234
"""lm-eval's default seed, for tasks that shuffle or sample and for few-shot examples."""
