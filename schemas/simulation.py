"""`artifacts/simulation.json`: what the current rules would do. Units are those of `artifacts/diagnosis.json`;
perplexities are of texts that the base finds likely, divided by the base's."""

from typing import Any, Literal

from pydantic import Field

from schemas.basis.document import Document, Sha256
from schemas.diagnosis import Answers
from schemas.edit import PlanRow


class ScaleTrial(Document):
    """The current rules with their scales multiplied; differences are at the last measurement."""

    scale: float = Field(description="what the scale of every rule is multiplied by; 1: the rules as they are")
    direct: float = Field(description="the difference left if all inputs stayed the same; counts projections only")
    simulated: float | None = Field(description="the difference left in a forward pass of the edited model")
    indirect: float | None = Field(description="simulated minus direct")
    answers: Answers | None = Field(description="null, like `simulated`, if logits are NaN or infinite")
    perplexity: float | None = Field(description="null if it is not finite")


class PartTrial(Document):
    """The current rules in only some of the layers that they name."""

    first: int
    last: int
    perplexity: float | None = Field(description="null if it is not finite")


class Projections(Document):
    """The projection of one model's stream on the direction, for each prompt."""

    harmful: list[float]
    harmless: list[float]


class Simulation(Document):
    edited: list[PlanRow] = Field(description="by the rules of params.yaml")
    measurements: list[float] = Field(description="whose directions the edits remove, in order")
    measurement: float = Field(description="the one whose direction most edits remove; projections are along it")
    projections_before: Projections = Field(description="at that measurement, in the base")
    projections_after: Projections = Field(description="the same with the rules of params.yaml")
    current: Answers = Field(description="with the rules of params.yaml")
    difference: float = Field(description="at the last measurement of the base")
    left_out: float = Field(description="the part of it that no rule covers")
    scales: list[ScaleTrial]
    read: Literal["answers", "prompts"] = Field(
        description="whose perplexity is told: of the base's own answers to harmless prompts, or of these prompts, if "
        "the model is read layer by layer, which would take a read for each token of an answer"
    )
    ruinous: bool = Field(description="whether the edited model can no longer write")
    thirds: list[PartTrial] = Field(description="each third of the layers by itself; empty if not ruinous")
    passes: float = Field(description="what was computed: all held-out prompts, tokens and layers once are one pass")
    ablate: dict[str, Any] = Field(description="the resolved `ablate` section of params.yaml")
    directions_sha256: Sha256
