"""`artifacts/simulation.json`: what the current rules would do, before any byte is written. Units are those of
`artifacts/diagnosis.json`. Perplexities are of the base's own answers to harmless prompts, in multiples of its own."""

from typing import Any

from pydantic import Field

from schemas.basis.document import Document
from schemas.diagnosis import Answers
from schemas.edit import PlanRow


class ScaleTrial(Document):
    """The current rules, the scale of each times one number; projections in the last measurement."""

    scale: float = Field(description="what the scale of every rule is multiplied by; 1: the rules as they are")
    direct: float = Field(description="the difference left if all inputs stayed the same; of projections only")
    simulated: float | None = Field(description="the difference left in a forward pass of the edited model")
    indirect: float | None = Field(description="simulated minus direct")
    answers: Answers | None = Field(description="null, as what was simulated, where logits are NaN or infinite")
    perplexity: float | None = Field(description="null where it is no number")


class PartTrial(Document):
    """The current rules in some of the layers that they name, and in no others."""

    first: int
    last: int
    perplexity: float | None = Field(description="null where it is no number")


class Projections(Document):
    """Where one model's stream lies along the direction, a number for each prompt."""

    harmful: list[float]
    harmless: list[float]


class Simulation(Document):
    """`artifacts/simulation.json`."""

    edited: list[PlanRow] = Field(description="by the rules of params.yaml")
    measurements: list[float] = Field(description="whose directions the edits take, in order")
    measurement: float = Field(description="along whose direction: that of most of the edits")
    projections_before: Projections = Field(description="at that measurement, in the base")
    projections_after: Projections = Field(description="the same with the rules of params.yaml")
    current: Answers = Field(description="with the rules of params.yaml")
    difference: float = Field(description="in the last measurement of the base")
    left_out: float = Field(description="of that, what no rule covers")
    scales: list[ScaleTrial]
    ruinous: bool = Field(description="whether the rules, as they are, leave a model that cannot write any more")
    thirds: list[PartTrial] = Field(description="each third of the layers by itself; empty where nothing is ruinous")
    ablate: dict[str, Any] = Field(description="the resolved `ablate` section of params.yaml")
    directions_sha256: str = Field(pattern="^[0-9a-f]{64}$")
