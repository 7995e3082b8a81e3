"""What the report is made of: the comparison of both models, and the gates."""

from typing import Literal

from pydantic import Field

from schemas.basis.document import Document
from schemas.results import Verdict

UNJUDGED = 0.9
"""If this share of answers is degenerate, the others are fewer than gates usually allow, and nothing was judged."""

Outcome = Literal["pass", "warn", "fail"]
"""Of a gate. Warn: inconclusive, which params.yaml accepts."""


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
    verdict: Outcome
    reason: str
    samples_needed: int | None = Field(description="about how many would settle it, if inconclusive; else null")


class GateVerdicts(Document):
    """`gates.json`."""

    verdict: Outcome = Field(description="the worst of all gates")
    gates: list[GateVerdict]


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
