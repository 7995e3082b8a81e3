"""Section `gates`: limits of metrics."""

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, RootModel, SerializerFunctionWrapHandler, model_serializer, model_validator
from pydantic.json_schema import SkipJsonSchema

from schemas.basis.document import Listed, Section
from schemas.basis.fields import matches
from schemas.basis.text import suggest
from schemas.extensions import Extension, Room
from schemas.params.ablate import Ablate
from schemas.wording import WrongValue

LIMITS = Room("excise.comparison.limits")
_DRIFT = (
    "drift.first_token_kl",
    "drift.first_token_kl_without_refusal",
    "drift.answer_kl",
    "drift.top1_agreement",
    "drift.perplexity_ratio",
)
MetricName = Annotated[
    str,
    matches(
        rf"(?:refusal|over_refusal|capability)\.[^.\s]+\.[A-Za-z0-9_]+|{'|'.join(map(re.escape, _DRIFT))}",
        "refusal.<task>.<metric>, over_refusal.<task>.<metric>, capability.<task>.<metric>, or one of "
        + ", ".join(_DRIFT),
        _DRIFT,
    ),
]
_OWN = ("metric", "confidence", "inconclusive")


class Gate(Section):
    """One limit of a metric. The key that names the limit takes its number, or a mapping of its parameters."""

    model_config = ConfigDict(
        json_schema_extra={
            "additionalProperties": {"type": ["number", "object", "null"]},
            "minProperties": 2,
            "$comment": f"extension of {LIMITS.package}",
        }
    )

    metric: MetricName
    """`<group>.<task>.<metric>` of a task that `evaluate` lists, or `drift.<metric>`: `first_token_kl`,
    `first_token_kl_without_refusal`, `answer_kl`,
    `top1_agreement`, `perplexity_ratio`."""
    confidence: Annotated[float, Field(ge=0.5, lt=1)] = 0.95
    """Of the interval that decides: a gate passes where all of it is within the limit, fails where all of it is
    outside, and is inconclusive in between."""
    inconclusive: Literal["warn", "fail"] = "warn"
    """Whether an inconclusive gate is accepted: with `fail`, the command `gate` exits with 4 and the commit's status is
    a failure; with `warn`, it exits with 0. A gate that fails or is void is never accepted."""
    limit: SkipJsonSchema[Any]
    """A `Limit` of excise/comparison/limits/."""

    @model_validator(mode="before")
    @classmethod
    def _read_the_limit(cls, gate: Any) -> Any:
        if not isinstance(gate, dict) or isinstance(gate.get("limit"), Extension):
            return gate
        limits = {key: value for key, value in gate.items() if key not in _OWN and value is not None}
        for key in limits:
            if key not in LIMITS.names():
                hint = suggest(key, known := (*_OWN, *LIMITS.names())) or f"; known here: {', '.join(known)}"
                raise WrongValue(f"is not a key{hint}", key)
        if len(limits) != 1:
            got = " and ".join(limits) or "none"
            raise WrongValue(f"must have exactly one of {', '.join(LIMITS.names())}, got {got}")
        ((name, value),) = limits.items()
        try:
            limit = LIMITS.make(name, value if isinstance(value, dict) else {"limit": value})
        except WrongValue as error:
            raise error if isinstance(value, dict) else WrongValue(error.message, name) from None
        return {key: value for key, value in gate.items() if key in _OWN} | {"limit": limit}

    @model_serializer(mode="wrap")
    def _write_as_read(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        document: dict[str, Any] = handler(self)
        parameters = document.pop("limit")
        return document | {LIMITS.name_of(self.limit): parameters if len(parameters) > 1 else parameters["limit"]}


class Gates(RootModel[Listed[Gate]]):
    """The gates, each judged by itself."""

    model_config = ConfigDict(strict=True, frozen=True)


class ReportSettings(Section):
    """`artifacts/params/report.json`."""

    gates: Gates
    ablate: Ablate


def unknown_task(metric: str, known_tasks: Sequence[str], which: str) -> str:
    """What is wrong if a metric is of none of these tasks, else nothing."""
    task = metric.rpartition(".")[0]
    if task == "drift" or task in known_tasks:
        return ""
    return f"names {task}, which {which}; known: {', '.join([*known_tasks, 'drift'])}{suggest(task, known_tasks)}"
