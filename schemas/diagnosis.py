"""`artifacts/diagnosis.json`: what explains a model, whatever the rules. Projections are in the units of the stream,
log-odds and KL in nats, and every difference is harmful minus harmless. Null where a number does not exist."""

from typing import Any

from pydantic import Field

from schemas.basis.document import Document


class Answers(Document):
    """What a model answers on held-out prompts, judged by its first token."""

    refusal: float = Field(
        description="share of harmful prompts that it refuses: by its likeliest token, or more likely than not"
    )
    probability: float = Field(description="mean probability of refusing a harmful prompt")
    remaining: float = Field(description="the larger of these two: what is left of refusal")
    harmful_log_odds: float = Field(description="mean log-odds of refusing a harmful prompt")
    over_refusal: float = Field(description="the same of harmless prompts")
    harmless_log_odds: float = Field(description="mean log-odds of refusing a harmless prompt")
    kl: float = Field(description="KL(base‖this) of the first token on harmless prompts, mean")
    median_kl: float = Field(description="the same, median: a few prompts may make most of the mean")
    kl_without_refusal: float = Field(
        description="mean KL of the first token without those that begin refusals, both sides renormalized: prompts "
        "that the base itself half refuses may hold most of the whole KL"
    )
    harmful_prompts: int = Field(description="that were asked; fewer than all if they ruled the trial out")
    harmless_prompts: int


class Added(Document):
    """What a direction does to harmless prompts."""

    over_refusal: float = Field(description="share of them that is refused")
    log_odds: float = Field(description="mean log-odds of refusing them")
    prompts: int


class Cause(Document):
    """What removing or adding one measurement's direction does."""

    measurement: int
    reason: str | None = Field(description="why there is no direction; null if there is one")
    ablated: Answers | None = Field(description="with the direction removed from the embeddings and every write")
    added: Added | None = Field(description="with the difference of means added to the stream, at every token")


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
    effect: float = Field(description="change of harmful log-odds with this component replaced by its harmless mean")


class RoleEffect(Document):
    """All writers of one kind together."""

    role: str
    difference: float = Field(description="sum over layers of what reaches the last measurement")
    effect: float


class ExpertEffect(Document):
    layer: int
    expert: int
    difference: float
    effect: float | None = Field(description="null for experts that write too little to be tried")


class NamedWriter(Document):
    """The cause: the kind of writer with the largest effect, and the smallest part of it with nearly that effect."""

    role: str
    layers: list[int]
    experts: dict[int, list[int]] = Field(description="layer → experts; empty if the part consists of whole layers")
    effect: float = Field(description="of the named part, all together")


class RouterReading(Document):
    """What the router of one layer does with the direction."""

    layer: int
    share: float | None = Field(description="of the difference of mean logits, due to the direction; null without one")
    distance: float = Field(description="Jensen-Shannon distance between use on harmful and harmless prompts, 0 to 1")
    changed: float | None
    """share of those chosen on harmful prompts, not without the direction in the router's input; null like `share`"""
    harmful_use: list[int] = Field(description="number of harmful prompts that each expert is chosen on")
    harmless_use: list[int]
    log_odds: list[float] = Field(description="of each expert's use, harmful against harmless prompts")


class WeightsSplit(Document):
    """What routed experts of one layer write, split into the shares of combination weights and of outputs."""

    layer: int
    difference: float
    by_weights: float | None = Field(description="null if weights multiply the input of experts: not separable")
    by_outputs: float | None


class RangeTrial(Document):
    """An edit of all writers of some layers along the explained direction, at scale 1."""

    first: int
    last: int
    written: float = Field(description="what these writers add to the difference")
    answers: Answers | None = Field(description="null if these layers have nothing that can be edited this way")


class Recommendation(Document):
    """Of the edits tried, the one that removes refusal at the lowest mean KL without refusals."""

    rules: list[dict[str, Any]] = Field(description="for params.yaml")
    removes: bool = Field(description="whether refusal fell to the limit; if not, this is the lowest refusal found")
    answers: Answers
    tried: int
    ruled_out: int = Field(description="of these, those that a part of the prompts ruled out")
    alike: int = Field(
        description="others, asked all prompts, that remove refusal and whose KL does not differ (paired 95 % interval)"
    )


class Diagnosis(Document):
    reason: str | None = Field(default=None, description="why nothing is explained; null if the base refuses")
    measurement: int | None
    """whose direction is explained: removing it everywhere removes refusal at the lowest KL without refusals, or, if
    none does, leaves the least"""
    passes: float = Field(description="what was computed: all held-out prompts, tokens and layers once are one pass")
    harmful_prompts: int
    harmless_prompts: int
    refusal_tokens: list[int] = Field(description="with which the base begins answers to harmful prompts more often")
    refusal_words: list[str] = Field(description="the same, decoded")
    limit: float = Field(description="refusal is removed if `remaining` is at most this")
    base: Answers
    causes: list[Cause]
    stream: list[StreamPoint]
    layer_scales: list[float] = Field(description="what each layer multiplies the whole stream by")
    writers: list[WriterEffect]
    roles: list[RoleEffect]
    experts: list[ExpertEffect] = Field(description="those that write the most")
    named: NamedWriter | None = Field(description="null if nothing is explained")
    routers: list[RouterReading]
    weights: list[WeightsSplit]
    ranges: list[RangeTrial]
    recommendation: Recommendation | None = Field(description="null if it takes no edit that was tried, or none was")
