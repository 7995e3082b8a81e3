"""`artifacts/simulation.json`: what the current rules would do, before any byte is written. Units are those of
`artifacts/diagnosis.json`."""

from typing import Literal

from pydantic import Field

from schemas.basis.document import Document, records
from schemas.diagnosis import Answers, PromptKind


class ScaleTrial(Document):
    """The current rules, the scale of each times one number; projections in the last measurement."""

    scale: float = Field(description="what the scale of every rule is multiplied by; 1: the rules as they are")
    direct: float = Field(description="the difference left if all inputs stayed the same; of projections only")
    simulated: float | None = Field(description="the difference left in a forward pass of the edited model")
    indirect: float | None = Field(description="simulated minus direct")
    answers: Answers | None = Field(description="null, as what was simulated, where logits are NaN or infinite")


class Simulation(Document):
    """`artifacts/simulation.json`."""

    measurement: float = Field(description="along whose direction: that of most of the edits")
    current: Answers = Field(description="with the rules of params.yaml")
    difference: float = Field(description="in the last measurement of the base")
    left_out: float = Field(description="of that, what no rule covers")
    scales: list[ScaleTrial]


PLOTS = {
    "scales": records(scale=float, prediction=Literal["direct", "simulated"], remainder=float | None),
    "projections": records(model=Literal["base", "edited"], prompts=PromptKind, projection=float),
}
"""What each `artifacts/simulation/*.json` holds: the records that pictures are drawn from."""
