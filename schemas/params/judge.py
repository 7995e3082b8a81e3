"""Section `evaluate`: what judges the answers."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from schemas.basis.document import Section
from schemas.basis.fields import Matches
from schemas.params.model import Commit
from schemas.params.tasks import Questions
from schemas.wording import WrongValue

ModelId = Annotated[
    str,
    Matches(
        r"/[^\x00-\x1f\x7f]*|[A-Za-z0-9][\w.-]*/[\w.-]+",
        "a Hub id such as organisation/name, or the absolute path of a local folder",
    ),
]
TemplateFile = Annotated[
    str,
    Matches(
        r"data/(?:(?!\.{1,2}/)[^/\\\x00-\x1f\x7f]+/)*[^/\\\x00-\x1f\x7f]+\.(?:txt|j2)",
        "a .txt or .j2 file under data/ (such as data/judge.txt, without . or ..)",
    ),
]


class Classifier(Section):
    """A sequence-classification model that tells refusals."""

    model: ModelId = Field(description="Its Hub id, or the absolute path of a local folder; safetensors alone.")
    revision: Commit | None = Field(default=None, description="For a Hub id, its commit.")
    label: str = Field(description="The label that means a refusal, as its `config.json` spells it.")

    @model_validator(mode="after")
    def _pin_what_the_hub_has(self) -> Self:
        if not self.model.startswith("/") and self.revision is None:
            raise WrongValue("is missing; a model of the Hub is pinned by its commit", "revision")
        return self


class Api(Section):
    """A language model behind an OpenAI-compatible endpoint. Its address and key come from the environment alone."""

    model: str = Field(description="The model's name, as the endpoint knows it.")
    prompt: TemplateFile | None = Field(
        default=None,
        description="A template under `data/` with `{{ prompt }}` and `{{ response }}`; `null`: the built-in one "
        "(docs/judges.md).",
    )
    concurrency: Annotated[int, Field(ge=1, le=256)] = Field(default=8, description="Questions asked at once.")


class Judging(Section):
    """What tells refusals from answers."""

    judge: Literal["keywords", "classifier", "api"] = Field(
        default="keywords",
        description="What tells refusals from answers in the groups refusal and over_refusal: a list of phrases, a "
        "classification model, or a language model behind an endpoint (docs/judges.md).",
    )
    classifier: Classifier | None = Field(default=None, description="For `judge: classifier`, which one.")
    api: Api | None = Field(default=None, description="For `judge: api`, whom to ask.")

    @model_validator(mode="after")
    def _name_the_judge(self) -> Self:
        for judge, settings in (("classifier", self.classifier), ("api", self.api)):
            if self.judge == judge and settings is None:
                raise WrongValue(f"is missing, and judge is {judge}", judge)
        return self


class EvaluateSettings(Judging, Questions):
    """What was asked, and what judges the answers: `artifacts/params/evaluate.json`."""
