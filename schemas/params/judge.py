"""Section `evaluate`: what judges the answers."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from schemas.basis.document import Section
from schemas.basis.fields import PATH, matches
from schemas.params.model import HUB_OR_FOLDER, Commit
from schemas.params.tasks import Questions
from schemas.wording import WrongValue

ModelId = Annotated[str, matches(r"/[^\x00-\x1f\x7f]*|[A-Za-z0-9][\w.-]*/[\w.-]+", HUB_OR_FOLDER)]
TemplateFile = Annotated[
    str,
    matches(rf"data/{PATH}\.(?:txt|j2)", "a .txt or .j2 file under data/ (such as data/judge.txt, without . or ..)"),
]


class Classifier(Section):
    """A sequence-classification model that tells refusals."""

    model: ModelId
    """Its Hub id, or the absolute path of a local folder; safetensors alone."""
    revision: Commit | None = None
    """For a Hub id, its commit."""
    label: str
    """The label that means a refusal, as its `config.json` spells it."""

    @model_validator(mode="after")
    def _pin_what_the_hub_has(self) -> Self:
        if not self.model.startswith("/") and self.revision is None:
            raise WrongValue("is missing; a model of the Hub is pinned by its commit", "revision")
        return self


class Api(Section):
    """A language model behind an OpenAI-compatible endpoint. Its address and key come from the environment alone."""

    model: str
    """The model's name, as the endpoint knows it."""
    prompt: TemplateFile | None = None
    """A template under `data/` with `{{ prompt }}` and `{{ response }}`; `null`: the built-in one (docs/judges.md)."""
    concurrency: Annotated[int, Field(ge=1, le=256)] = 8
    """Questions asked at once."""


class Judging(Section):
    """What tells refusals from answers."""

    judge: Literal["keywords", "classifier", "api"] = "keywords"
    """What tells refusals from answers in the groups refusal and over_refusal: a list of phrases, a classification
    model, or a language model behind an endpoint (docs/judges.md)."""
    classifier: Classifier | None = None
    """For `judge: classifier`, which one."""
    api: Api | None = None
    """For `judge: api`, whom to ask."""

    @model_validator(mode="after")
    def _name_the_judge(self) -> Self:
        if self.judge != "keywords" and getattr(self, self.judge) is None:
            raise WrongValue(f"is missing, and judge is {self.judge}", self.judge)
        return self


class EvaluateSettings(Judging, Questions):
    """What was asked, and what judges the answers: `artifacts/params/evaluate.json`."""
