"""Section `gates`: limits that metrics must keep."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import ConfigDict, Field, RootModel, model_validator

from schemas.basis.document import Listed, Margin, Number, Section
from schemas.basis.fields import matches
from schemas.basis.text import suggest
from schemas.params.ablate import Ablate
from schemas.wording import WrongValue

Bound = Literal["at_most", "at_least", "max_drop", "max_rise"]
# Exactly one of the limits holds a number, the others are absent or null.
_HAS_LIMIT: list[Any] = [{"required": [name], "properties": {name: {"type": "number"}}} for name in get_args(Bound)]
_DRIFT = ("first_token_kl", "answer_kl", "top1_agreement", "perplexity_ratio")
_DRIFT_NAMES = tuple(f"drift.{name}" for name in _DRIFT)
MetricName = Annotated[
    str,
    matches(
        rf"(?:refusal|over_refusal|capability)\.[^.\s]+\.[A-Za-z0-9_]+|drift\.(?:{'|'.join(_DRIFT)})",
        "refusal.<task>.<metric>, over_refusal.<task>.<metric>, capability.<task>.<metric>, or one of "
        + ", ".join(_DRIFT_NAMES),
        _DRIFT_NAMES,
    ),
]


class Gate(Section):
    """One limit that a metric must keep."""

    model_config = ConfigDict(json_schema_extra={"oneOf": _HAS_LIMIT})

    metric: MetricName
    """`<group>.<task>.<metric>` of a task that `evaluate` lists, or `drift.<metric>`: `first_token_kl`, `answer_kl`,
    `top1_agreement`, `perplexity_ratio`."""
    at_most: Number | None = None
    """The edited model's value may not be above this."""
    at_least: Number | None = None
    """The edited model's value may not be below this."""
    max_drop: Margin | None = None
    """It may not fall by more than this from the base's value."""
    max_rise: Margin | None = None
    """It may not rise by more than this from the base's value."""
    confidence: Annotated[float, Field(ge=0.5, lt=1)] = 0.95
    """Of the interval that decides: inside the limit it passes, wholly outside it fails, else it is inconclusive."""
    inconclusive: Literal["warn", "fail"] = "warn"
    """What an inconclusive gate does to the verdict."""

    def limit(self) -> tuple[Bound, float]:
        """Which limit the gate sets, and its value."""
        return self._limits()[0]

    def _limits(self) -> list[tuple[Bound, float]]:
        return [(name, value) for name in get_args(Bound) if (value := getattr(self, name)) is not None]

    @model_validator(mode="after")
    def _set_one_limit(self) -> Self:
        if len(limits := self._limits()) != 1:
            got = " and ".join(name for name, _ in limits) or "none"
            raise WrongValue(f"must have exactly one of {', '.join(get_args(Bound))}, got {got}")
        return self


class Gates(RootModel[Listed[Gate]]):
    """What decides whether a run is good, each line for itself."""

    model_config = ConfigDict(strict=True, frozen=True)


class ReportSettings(Section):
    """`artifacts/params/report.json`."""

    gates: Gates
    ablate: Ablate


def unknown_task(metric: str, there: Sequence[str], which: str) -> str:
    """What is wrong where a metric is of none of these tasks, else nothing."""
    task = metric.rpartition(".")[0]
    if task == "drift" or task in there:
        return ""
    return f"names {task}, which {which}; there is {', '.join([*there, 'drift'])}{suggest(task, there)}"
