"""Section `evaluate`: what both models are asked."""

from typing import Annotated, Literal, Self

from pydantic import model_validator

from schemas.basis.document import Count, Listed, Section
from schemas.basis.fields import Items, matches
from schemas.params.sources import CustomPrompts
from schemas.wording import WrongValue

TaskGroup = Literal["refusal", "over_refusal", "capability"]
_ORGANISM = ("organism_harmful", "organism_borderline", "organism_facts", "organism_arithmetic")
_OVER_REFUSAL = ("over_refusal_xstest", "over_refusal_orbench", "over_refusal_custom")
TASKS = (*_ORGANISM, "refusal_jbb", "refusal_custom", *_OVER_REFUSAL)
"""Our own tasks, in `excise/evaluation/asking/tasks/`. Other names are lm-eval's, which checks them."""

Task = Annotated[
    str,
    matches(
        r"(?!organism_|refusal_|over_refusal_)[A-Za-z0-9][A-Za-z0-9_+-]*|" + "|".join(TASKS),
        f"{', '.join(TASKS)} or an lm-eval task",
        TASKS,
    ),
]
Tasks = Annotated[Listed[Task], Items(distinct=True)]


class Custom(Section):
    """The sources of your own prompts, by the task that asks them."""

    refusal: CustomPrompts | None = None
    """Harmful prompts for the task `refusal_custom`."""
    over_refusal: CustomPrompts | None = None
    """Harmless prompts for the task `over_refusal_custom`."""


class Questions(Section):
    """What the base and the edited model are asked."""

    limit: Count | None = None
    """Ask only the first N samples of each task; `null`: all."""
    custom: Custom = Custom()
    """Your own prompts, whose answers are judged."""
    overlap: Literal["error", "drop"] = "error"
    """If a judged task has prompts that the direction was measured on: stop with an error, or `drop` and count them."""
    refusal: Tasks = ("organism_harmful",)
    """Tasks that count refusals of harmful prompts: ours, or any lm-eval task that generates answers."""
    over_refusal: Tasks = ("organism_borderline",)
    """Tasks that count refusals of harmless prompts that sound harmful."""
    capability: Tasks = ("organism_facts", "organism_arithmetic")
    """Tasks whose answers must stay as good as before: ours, or any lm-eval task, such as `mmlu` or `gsm8k`."""

    def tasks(self) -> dict[TaskGroup, tuple[str, ...]]:
        return {"refusal": self.refusal, "over_refusal": self.over_refusal, "capability": self.capability}

    @model_validator(mode="after")
    def _put_a_task_in_one_group_and_name_the_custom_prompts(self) -> Self:
        groups: dict[str, TaskGroup] = {}
        for group, tasks in self.tasks().items():
            for number, task in enumerate(tasks):
                if task in groups:
                    raise WrongValue(f"names {task}, which evaluate.{groups[task]} already has", group, number)
                groups[task] = group
        for kind in ("refusal", "over_refusal"):
            if f"{kind}_custom" in groups and getattr(self.custom, kind) is None:
                raise WrongValue(f"is missing, and {kind}_custom is listed", "custom", kind)
        return self
