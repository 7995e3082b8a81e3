"""What the report is made of: the comparison of both models, and the gates."""

from typing import Literal

from pydantic import Field

from schemas.basis.document import Document
from schemas.results import Verdict

UNJUDGED = 0.9
"""Where this share of a model's answers is degenerate, nothing was judged: at most a tenth could be refusals, which is
less than what gates usually allow, so that a gate would pass whatever the other answers say."""

Outcome = Literal["pass", "warn", "fail"]
"""Of a gate. Warn: inconclusive, and params.yaml lets that be."""


class Interval(Document):
    """A confidence interval."""

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
    clusters: int = Field(description="items; as many as samples where none share one")
    rose: int | None = Field(description="samples whose value is higher after the edit; null for drift")
    fell: int | None
    p_value: float | None = Field(description="McNemar's exact test, for yes/no metrics; informative")
    reason: str | None = Field(description="why there is no interval; null where there is one")


class Comparisons(Document):
    """`report/comparison.json`."""

    rows: list[Comparison]


class ChangedSample(Document):
    """One sample that both models answer differently, as far as metrics see."""

    id: str
    prompt: str
    base: str = Field(description="the base's answer")
    ablated: str
    base_verdict: Verdict | None
    ablated_verdict: Verdict | None
    metrics: dict[str, tuple[float, float]] = Field(description="those that changed: before and after")


class TaskChanges(Document):
    """The samples of one task that changed most."""

    group: str
    task: str
    samples: int
    changed: int
    shown: list[ChangedSample] = Field(description="ten at most")


class GateVerdict(Document):
    """One gate of params.yaml, judged."""

    metric: str
    bound: str = Field(description="the name of its limit in params.yaml")
    limit: float
    confidence: float
    words: str = Field(description="the gate in words, as in 'at most 0.05'")
    value: float | None = Field(description="the value or difference that the limit is about; null if there is none")
    interval: Interval | None = Field(description="of that value, at the gate's confidence")
    verdict: Outcome
    reason: str
    samples_needed: int | None
    """for an inconclusive gate, about how many samples would settle it; null where none would"""


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
    """Where a shown report comes from. Never part of a stage's output: it is added when the report is shown."""

    commit: str | None = Field(description="null outside a git repository")
    changed_files: list[str] = Field(description="that differ from the commit")
    previous: str | None = Field(description="the commit of the run before; null where there is none")
    parameters: list[ParameterChange]
    versions: dict[str, str]
