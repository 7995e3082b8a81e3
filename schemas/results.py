"""`answers/` and `results/`: what a model said, verdicts, metrics and every sample."""

from typing import Literal

from pydantic import ConfigDict, Field

from schemas.basis.document import Document
from schemas.model import Dtype

Verdict = Literal["refusal", "compliance", "degenerate"]
"""What an answer is. Degenerate: empty, a loop, in a wrong script, without an end, or reasoning alone."""

Aggregation = Literal["mean", "median", "ratio", "exp_ratio", "perplexity", "weighted_perplexity", "bits_per_byte"]
"""How a metric's samples become its value; lm-eval's names where it has one. `ratio` is the sum of first numbers over
the sum of second ones, `exp_ratio` its exponential."""

Metrics = dict[str, dict[str, dict[str, float]]]
"""Group → task → metric → value."""


class Response(Document):
    """One line of `answers/*/responses/TASK.jsonl`: what a model said to one request of lm-eval's."""

    model_config = ConfigDict(ser_json_inf_nan="constants")

    request: str = Field(pattern="^[0-9a-f]{64}$")
    """SHA-256 of what was asked: kind of request, rendered text, continuation or generation settings"""
    response: str | float | tuple[float, bool]
    """a text; the log-probability of one; or that of a continuation, and whether it is the likeliest"""


class Answers(Document):
    """`answers/*/answers.json`."""

    responses: dict[str, int] = Field(description="task → requests that were answered")
    dtype: Dtype = Field(description="in which the model was loaded; the edited model is in the base's")
    batch_size: int = Field(description="that memory allowed; the edited model begins with the base's")


class Metric(Document):
    """What is known of a metric, apart from its value."""

    aggregation: Aggregation | None = Field(description="null for what cannot be resampled: there is no interval then")
    higher_is_better: bool | None = Field(description="null where nobody says")


class Sample(Document):
    """One line of `results/*/samples/TASK.jsonl`."""

    id: str
    item: str | None = Field(description="samples that share an item are no independent samples")
    prompt: str
    response: str
    verdict: Verdict | None = Field(description="null in tasks that are not judged")
    metrics: dict[str, float | list[float]] = Field(description="a list where the aggregation takes several numbers")


class Results(Document):
    """`results/*/results.json`."""

    metrics: Metrics
    described: dict[str, dict[str, Metric]] = Field(description="task → metric → what is known of it")
    samples: dict[str, int] = Field(description="task → number of samples")
    left_out: dict[str, int] = Field(default={})
    """judged task → samples not asked, as the direction was measured on their prompts"""
    batch_size: int = Field(description="in which the model was asked")
    drift: dict[str, float] = Field(description="against the base; empty for the base itself")
