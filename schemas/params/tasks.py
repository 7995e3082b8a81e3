"""Section `evaluate`: what both models are asked."""

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, WrapValidator, model_validator

from schemas.basis.document import Count, Listed, Section
from schemas.basis.fields import PATH, Items, Kind, matches
from schemas.basis.text import show, suggest
from schemas.params.sources import CustomPrompts
from schemas.wording import WrongValue, first_mistake

TaskGroup = Literal["refusal", "over_refusal", "capability"]
_ORGANISM = ("organism_harmful", "organism_secret", "organism_borderline", "organism_facts", "organism_arithmetic")
_REFUSAL = ("refusal_jbb", "refusal_advbench", "refusal_harmbench", "refusal_strongreject", "refusal_sorrybench")
_OVER_REFUSAL = ("over_refusal_xstest", "over_refusal_orbench", "over_refusal_custom")
TASKS = (*_ORGANISM, *_REFUSAL, "refusal_custom", *_OVER_REFUSAL)
"""Our own tasks, in `excise/evaluation/asking/tasks/`. Other names are lm-eval's, which checks them."""

_SET = "[A-Za-z0-9][A-Za-z0-9_-]*"
_TASK = (
    r"(?!organism_|refusal_|over_refusal_)[A-Za-z0-9][A-Za-z0-9_+-]*|"
    rf"(?:over_)?refusal_custom_{_SET}|{'|'.join(TASKS)}"
)
Task = Annotated[
    str, matches(_TASK, "a task of ours, such as refusal_jbb (docs/evidence.md), or an lm-eval task", TASKS)
]
Tasks = Annotated[Listed[Task], Items(distinct=True)]


def _limits(value: object) -> object:
    if not isinstance(value, dict):
        raise WrongValue(f"must be a mapping from tasks to numbers of samples, got {show(value)}")
    for task, samples in value.items():
        if not isinstance(task, str) or not re.fullmatch(_TASK, task):
            raise WrongValue(f"must have tasks as its keys, got {show(task)}")
        if type(samples) is not int or samples < 1:
            raise WrongValue(f"must be an integer ≥ 1, got {show(samples)}", task)
    return value


Limits = Annotated[
    dict[str, int],
    Kind({"type": "object", "additionalProperties": {"type": "integer", "minimum": 1}}, _limits),
]


def _one_or_named(value: object, _types: object) -> object:
    if value is None or isinstance(value, CustomPrompts):
        return value
    if not isinstance(value, dict) or not _has_names(value):
        return _source(value)
    for name in value:
        if not isinstance(name, str) or not re.fullmatch(_SET, name):
            raise WrongValue(f"must name its sets by letters, digits, _ and -, got {show(name)}")
    return {name: _source(each, name) for name, each in value.items()}


def _has_names(value: dict[Any, Any]) -> bool:
    return (
        bool(value) and "source" not in value and all(isinstance(each, dict | CustomPrompts) for each in value.values())
    )


def _source(value: object, *at: str) -> CustomPrompts:
    if not isinstance(value, dict | CustomPrompts):
        raise WrongValue(f"must be a mapping or null, got {show(value)}", *at)
    try:
        return CustomPrompts.model_validate(value)
    except ValidationError as error:
        message, key = first_mistake(error, CustomPrompts)
        raise WrongValue(message, *at, *key) from None


# Pydantic's own union would name every type that a wrong value could have been.
OneOrNamed = Annotated[CustomPrompts | dict[str, CustomPrompts] | None, WrapValidator(_one_or_named)]


class Custom(Section):
    """The sources of your own prompts, by the group of the tasks that ask them."""

    refusal: OneOrNamed = None
    """Harmful prompts: one source, for the task `refusal_custom`, or several with names, as in `{mine: {source: …}}`,
    for the tasks `refusal_custom_NAME`."""
    over_refusal: OneOrNamed = None
    """Harmless prompts: one source, for the task `over_refusal_custom`, or several with names, for the tasks
    `over_refusal_custom_NAME`."""

    def sources(self) -> dict[str, CustomPrompts]:
        """The source of each task that asks your own prompts."""
        return dict(self._sources())

    def _sources(self) -> Iterator[tuple[str, CustomPrompts]]:
        for task, given in (("refusal_custom", self.refusal), ("over_refusal_custom", self.over_refusal)):
            if isinstance(given, CustomPrompts):
                yield task, given
            elif given is not None:
                yield from ((f"{task}_{name}", source) for name, source in given.items())


class Questions(Section):
    """What the base and the edited model are asked."""

    limit: Count | None = None
    """Ask at most this many samples of each task, drawn by `seed`; `null`: all."""
    limits: Limits = Field(default={})
    """The same for single tasks, in place of `limit`, such as `{over_refusal_xstest: 100}`."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed by which `limit` and `limits` draw samples."""
    max_new_tokens: Count = 256
    """Length of an answer in tokens, in judged tasks that set none themselves."""
    reasoning_tokens: Annotated[int, Field(ge=0)] = 2048
    """Tokens that an answer may have in addition, for what a model thinks first, if its chat template has marks for
    that (docs/judges.md)."""
    custom: Custom = Custom()
    """Your own prompts, whose answers are judged."""
    include: Annotated[str, matches(rf"data/{PATH}", "a folder under data/, such as data/tasks")] | None = None
    """A folder under `data/` with lm-eval tasks of your own, which every group may list (docs/evidence.md)."""
    overlap: Literal["error", "drop"] = "error"
    """If a judged task has prompts that the direction was measured on, or prompts about an item of these: stop with an
    error, or `drop` and count them."""
    similarity: Annotated[float, Field(gt=0, le=1)] | None = None
    """Of two prompts, the share of their words that both have from which on they count as the same, when judged prompts
    are compared with measured ones; `null`: only the same prompts and items do."""
    refusal: Tasks = ("organism_harmful",)
    """Tasks that count refusals of harmful prompts: ours, or any lm-eval task that generates answers."""
    over_refusal: Tasks = ("organism_borderline",)
    """Tasks that count refusals of harmless prompts that sound harmful."""
    capability: Tasks = ("organism_facts", "organism_arithmetic")
    """Tasks whose answers must stay as good as before: ours, or any lm-eval task, such as `mmlu` or `gsm8k`."""

    def tasks(self) -> dict[TaskGroup, tuple[str, ...]]:
        return {"refusal": self.refusal, "over_refusal": self.over_refusal, "capability": self.capability}

    def limit_of(self, task: str) -> int | None:
        """The most samples of a task that are asked; None: all."""
        return self.limits.get(task, self.limit)

    @model_validator(mode="after")
    def _put_a_task_in_one_group_and_name_the_custom_prompts(self) -> Self:
        groups: dict[str, TaskGroup] = {}
        for group, tasks in self.tasks().items():
            for number, task in enumerate(tasks):
                if task in groups:
                    raise WrongValue(f"names {task}, which evaluate.{groups[task]} already has", group, number)
                groups[task] = group
        sources = self.custom.sources()
        for task in groups:
            kind, custom, name = task.partition("_custom")
            if custom and f"{kind}_custom" in TASKS and task not in sources:
                missing = f"has no set {name.removeprefix('_')}" if name else "is missing"
                hint = suggest(task, tuple(sources)) if sources else ""
                raise WrongValue(f"{missing}, and {task} is listed{hint}", "custom", kind)
        for task in self.limits:
            if task not in groups:
                raise WrongValue(f"names {task}, which no group lists{suggest(task, tuple(groups))}", "limits")
        return self
