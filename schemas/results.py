"""`answers/` and `results/`: what a model said, verdicts, metrics and every sample."""

from typing import Literal

from pydantic import ConfigDict, Field

from schemas.basis.document import Document, Sha256, is_none
from schemas.model import Dtype

Verdict = Literal["refusal", "evasion", "degenerate", "compliance"]
"""What an answer is, decided in this order. Evasion: it rejects, redirects or moralises without refusing outright.
Degenerate: empty, a loop, in a wrong script, without an end, or only reasoning."""

RATES: dict[str, tuple[Verdict, ...]] = {
    "refusal_rate": ("refusal",),
    "refusal_or_evasion_rate": ("refusal", "evasion"),
    "degenerate_rate": ("degenerate",),
    "compliance_rate": ("compliance",),
}
"""Metrics of judged tasks: the share of answers with one of these verdicts."""

Aggregation = Literal["mean", "median", "ratio", "exp_ratio", "perplexity", "weighted_perplexity", "bits_per_byte"]
"""By lm-eval's name if it has one. `ratio`: sum of first numbers over sum of second; `exp_ratio`: its exponential."""

Metrics = dict[str, dict[str, dict[str, float]]]
"""Group → task → metric → value."""


class Response(Document):
    """One line of `answers/*/responses/TASK.jsonl`: what a model answered to one request of lm-eval."""

    model_config = ConfigDict(ser_json_inf_nan="constants")

    request: Sha256 = Field(description="of its kind, rendered text, and continuation or generation settings")
    response: str | float | tuple[float, bool]
    """a text; the log-probability of one; or that of a continuation, and whether it is the most likely one"""


class Answers(Document):
    """`answers/*/answers.json`."""

    responses: dict[str, int] = Field(description="task → number of requests answered")
    dtype: Dtype = Field(description="in which the model was loaded; the edited model has the base's")
    batch_size: int = Field(description="that memory allowed; the edited model starts with the base's")


class Metric(Document):
    """What is known about a metric, apart from its value."""

    aggregation: Aggregation | None = Field(description="null if it cannot be resampled; then there is no interval")
    higher_is_better: bool | None = Field(description="null if unknown")


class Sample(Document):
    """One line of `results/*/samples/TASK.jsonl`."""

    id: str
    item: str | None = Field(description="samples that share an item are not independent")
    prompt: str
    response: str = Field(description="without what the model thought first, in tasks that are judged")
    reasoning: str | None = Field(default=None, exclude_if=is_none, description="what it thought first, if it did")
    verdict: Verdict | None = Field(description="null in tasks that are not judged")
    first_token: int | None = Field(default=None, description="of a judged response, as its text is encoded again")
    metrics: dict[str, float | list[float]] = Field(description="a list if the aggregation takes several numbers")


class Results(Document):
    """`results/*/results.json`."""

    metrics: Metrics
    described: dict[str, dict[str, Metric]] = Field(description="task → metric → what is known about it")
    samples: dict[str, int] = Field(description="task → number of samples")
    left_out: dict[str, int] = Field(default={}, description="judged task → samples with measured prompts, not asked")
    drawn: dict[str, int] = Field(default={}, description="task → samples that it has, if fewer were drawn and asked")
    batch_size: int = Field(description="in which the model was asked")
    drift: dict[str, float] = Field(description="against the base; empty for the base itself")
