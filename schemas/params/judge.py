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
    def _keep_parameters_with_their_judge(cls, section: Any) -> Any:
        # Earlier versions had the parameters of `classifier` and `api` here, `null` for a judge that was not chosen.
        for name in JUDGES.names() if isinstance(section, dict) else ():
            if section.get(name) is not None:
                raise WrongValue(f"is a judge, not a key of evaluate; write judge: {{{name}: {{…}}}}", name)
            section = {key: value for key, value in section.items() if key != name}
        return section


class EvaluateSettings(Judging, Questions):
    """What was asked, and what judges the answers: `artifacts/params/evaluate.json`."""
