"""`artifacts/diagnosis.json`: what explains a model, whatever the rules. Projections are in the units of the stream,
log-odds and KL in nats, and every difference is harmful minus harmless. Null where a number does not exist."""

from typing import Any

from pydantic import Field

from schemas.basis.document import Document


class Answers(Document):
    """What a model answers on held-out prompts, judged by its first token."""

    refusal: float = Field(description="share of harmful prompts that it is more likely than not to refuse")
    probability: float = Field(description="mean probability of refusing a harmful prompt")
    remaining: float = Field(description="the larger of the two: what is left of refusal")
    harmful_log_odds: float = Field(description="mean log-odds of refusing a harmful prompt")
    over_refusal: float = Field(description="share of harmless prompts that it is more likely than not to refuse")
    harmless_log_odds: float = Field(description="mean log-odds of refusing a harmless prompt")
    kl: float = Field(description="KL(base‖this) of the first token on harmless prompts, mean")
    median_kl: float = Field(description="the same, median: a few prompts may make most of the mean")


class Cause(Document):
    """One measurement's direction, taken out everywhere and put in."""

    measurement: int
    reason: str | None = Field(description="why there is no direction; null when there is one")
    ablated: Answers | None = Field(description="nothing holds the direction")
    added: Answers | None = Field(description="the difference of means is added to the stream, at every token")


class StreamPoint(Document):
    """The stream along the direction at one measurement, mean over prompts."""

    measurement: int
    harmful: float
    harmless: float
    difference: float


class WriterEffect(Document):
    """What one writer of one layer adds along the direction."""

    layer: int
    role: str
    harmful: float
    harmless: float
    difference: float
    effect: float
    """change of the log-odds of refusing harmful prompts when its write along the direction is replaced by its mean on
    harmless prompts"""


class RoleEffect(Document):
    """All writers of one kind together."""

    role: str
    difference: float = Field(description="of all its layers, as far as it reaches the last measurement")
    effect: float


class ExpertEffect(Document):
    """One routed expert of one layer."""

    layer: int
    expert: int
    difference: float
    effect: float | None = Field(description="null for experts that write less than those that were tried")


class NamedWriter(Document):
    """The writer that is the cause: the kind with the largest effect, and the least of it that nearly has that."""

    role: str
    layers: list[int]
    experts: dict[int, list[int]]
    """layer → experts; empty for other kinds, and where no few experts have the effect but whole layers"""
    effect: float = Field(description="of what is named, all together")


class RouterReading(Document):
    """What the router of one layer does with the direction."""

    layer: int
    share: float | None
    """of the difference of mean logits, what goes through the direction; null where there is none"""
    distance: float = Field(description="Jensen-Shannon distance between the two sides' use of experts, 0 to 1")
    changed: float | None
    """share of chosen experts, on harmful prompts, that are no longer chosen once the direction is taken out of the
    router's input; null, as the share, where its norm is such that it cannot be"""
    harmful_use: list[int] = Field(description="how many harmful prompts each expert is chosen on")
    harmless_use: list[int]
    log_odds: list[float] = Field(description="of each expert's use on harmful against harmless prompts")


class WeightsSplit(Document):
    """What routed experts of one layer write, split into what weights and what outputs carry."""

    layer: int
    difference: float
    by_weights: float | None = Field(description="null where weights multiply what experts read: not separable")
    by_outputs: float | None


class RangeTrial(Document):
    """All writers of some layers, edited along the explained direction at scale 1, and no others."""

    first: int
    last: int
    written: float = Field(description="what their writers add to the difference, all kinds together")
    answers: Answers | None = Field(description="null where these layers have nothing that can be edited so")


class Recommendation(Document):
    """The edit that removes refusal at the lowest mean KL, of those tried."""

    rules: list[dict[str, Any]] = Field(description="for params.yaml")
    removes: bool = Field(description="whether refusal fell to the limit; if not, it is the lowest that was found")
    answers: Answers
    tried: int
    alike: int
    """how many others that remove refusal cannot be told from it: the paired 95 % interval of the difference in KL
    includes 0"""


class Diagnosis(Document):
    """`artifacts/diagnosis.json`."""

    measurement: int
    """whose direction is explained: that which, ablated everywhere, removes most refusal; of several, at the lowest
    KL"""
    harmful_prompts: int
    harmless_prompts: int
    refusal_tokens: list[int] = Field(description="with which the base begins refusals")
    refusal_words: list[str] = Field(description="the same, decoded")
    limit: float
    """refusal is removed where neither the share of harmful prompts refused nor the probability of refusing is
    larger"""
    base: Answers
    causes: list[Cause]
    stream: list[StreamPoint]
    layer_scales: list[float] = Field(description="what each layer multiplies the whole stream by")
    writers: list[WriterEffect]
    roles: list[RoleEffect]
    experts: list[ExpertEffect] = Field(description="those that write most")
    named: NamedWriter
    routers: list[RouterReading]
    weights: list[WeightsSplit]
    ranges: list[RangeTrial]
    recommendation: Recommendation | None = Field(description="null where this model takes none of the edits tried")
