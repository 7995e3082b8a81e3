"""What the report is made of: the comparison of both models, and the gates."""

from collections.abc import Iterable
from typing import Annotated, Literal, Self, get_args

from pydantic import BeforeValidator, Field, model_validator

from schemas.basis.document import Document
from schemas.results import Verdict

UNJUDGED = 0.9
"""If this share of answers is degenerate, the others are fewer than gates usually allow, and nothing was judged."""
MOSTLY_UNJUDGED = 0.5
"""If the whole interval of the share of degenerate answers is above this, most answers could not be judged."""

Outcome = Literal["pass", "inconclusive", "void", "fail"]
"""The state of a gate, best first. Void: it knows nothing about the edit, whatever the samples."""


def _as_named_now(outcome: object) -> object:
    """Earlier versions called an inconclusive gate that params.yaml accepts `warn`, and any other `fail`."""
    return "inconclusive" if outcome == "warn" else outcome


RecordedOutcome = Annotated[Outcome, BeforeValidator(_as_named_now)]
"""As gates.json of this version or an earlier one holds it."""


class Interval(Document):
    low: float
    high: float


class Comparison(Document):
    """One metric of the base and of the edited model; intervals at 95 %."""

    metric: str = Field(description="<group>.<task>.<metric>, or drift.<metric>")
    base: float | None = Field(description="null for drift, which is measured against the base")
    ablated: float
    difference: float | None = Field(description="edited minus base")
    base_interval: Interval | None
    ablated_interval: Interval | None
    difference_interval: Interval | None = Field(description="paired: of the same samples")
    higher_is_better: bool | None
    samples: int
    clusters: int = Field(description="items; as many as samples if none share one")
    rose: int | None = Field(description="samples whose value is higher after the edit; null for drift")
    fell: int | None
    p_value: float | None = Field(description="McNemar's exact test, for yes/no metrics; informative")
    reason: str | None = Field(description="why there is no interval; null if there is one")


class Comparisons(Document):
    """`report/comparison.json`."""

    rows: list[Comparison]


class ChangedSample(Document):
    id: str
    prompt: str
    base: str = Field(description="the base's answer")
    ablated: str
    base_reasoning: str | None = Field(default=None, description="what it thought before that, if it did")
    ablated_reasoning: str | None = None
    base_verdict: Verdict | None
    ablated_verdict: Verdict | None
    metrics: dict[str, tuple[float, float]] = Field(description="those that changed: base and edited")


class TaskChanges(Document):
    """The samples of one task that changed most."""

    group: str
    task: str
    samples: int
    changed: int
    shown: list[ChangedSample] = Field(description="at most ten")


class GateVerdict(Document):
    metric: str
    bound: str = Field(description="the name of its limit in params.yaml")
    limit: float
    confidence: float
    words: str = Field(description="the limit in words, such as 'at most 0.05'")
    value: float | None = Field(description="the value or difference that is limited; null if there is none")
    interval: Interval | None = Field(description="of that value, at the gate's confidence")
    inconclusive: Literal["warn", "fail"] = Field(
        default="warn", description="params.yaml's key: whether an inconclusive gate is accepted (warn) or not (fail)"
    )
    verdict: RecordedOutcome
    reason: str
    samples_needed: int | None = Field(description="about how many would settle it, if inconclusive; else null")

    @property
    def accepted(self) -> bool:
        """Whether it passes, or is inconclusive where params.yaml accepts that."""
        return self.verdict == "pass" or (self.verdict == "inconclusive" and self.inconclusive == "warn")


class GateVerdicts(Document):
    """`gates.json`."""

    verdict: RecordedOutcome = Field(description="the worst of all gates")
    gates: list[GateVerdict]

    @model_validator(mode="after")
    def _has_the_worst(self) -> Self:
        if self.verdict != worst(gate.verdict for gate in self.gates):
            raise ValueError("verdict is not the worst of the gates")
        return self

    @property
    def accepted(self) -> bool:
        """Whether every gate is."""
        return all(gate.accepted for gate in self.gates)


def worst(outcomes: Iterable[Outcome]) -> Outcome:
    """The worst of these; `pass` if there are none."""
    return max(outcomes, key=get_args(Outcome).index, default="pass")


class ParameterChange(Document):
    """One key of params.yaml that differs from the previous run's."""

    key: str
    before: str | None
    after: str | None


class Provenance(Document):
    """Where a shown report comes from. Added when the report is shown, because no stage's output may hold it."""

    commit: str | None = Field(description="null outside a git repository")
    changed_files: list[str] = Field(description="that differ from the commit")
    previous: str | None = Field(description="the commit of the previous run; null if there is none")
    parameters: list[ParameterChange]
    versions: dict[str, str]
