"""Section `evaluate`: what judges the answers."""

from typing import Annotated, Any

from pydantic import Field, model_validator

from schemas.basis.document import Section
from schemas.extensions import Room
from schemas.params.tasks import Questions
from schemas.wording import WrongValue

JUDGES = Room("excise.judges")


class Judging(Section):
    """What judges the answers."""

    judge: Annotated[Any, JUDGES] = Field(default="keywords", validate_default=True)
    """Decides whether an answer of the groups refusal and over_refusal is a refusal (docs/judges.md)."""

    @model_validator(mode="before")
    @classmethod
    def _keep_parameters_with_their_judge(cls, given: Any) -> Any:
        # The parameters of `classifier` and `api` once stood here, `null` where another judge was chosen.
        for name in JUDGES.names() if isinstance(given, dict) else ():
            if given.get(name) is not None:
                raise WrongValue(f"is a judge and not a key here; write judge: {{{name}: {{…}}}}", name)
            given = {key: value for key, value in given.items() if key != name}
        return given


class EvaluateSettings(Judging, Questions):
    """What was asked, and what judges the answers: `artifacts/params/evaluate.json`."""
