"""Section `model`: which model is edited."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from schemas.fields import Matches
from schemas.params.section import Section
from schemas.text import show
from schemas.wording import WrongValue

HUB_ID = (
    r"(?!.*(?:--|\.\.|\.git(?:/|$)))[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
    r"/[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
)
ModelSource = Annotated[
    str,
    Matches(
        rf"organism|/[^\x00-\x1f\x7f]*|{HUB_ID}",
        "organism, a Hub id such as organisation/name, or the absolute path of a local folder",
        ("organism",),
    ),
]
Commit = Annotated[str, Matches(r"[0-9a-f]{40}", "a commit of 40 hexadecimal digits; a branch may move")]


class Model(Section):
    """Which model is edited."""

    source: ModelSource = Field(
        default="organism",
        description="The base model: `organism`, the built-in model that is trained here, a Hub id such as "
        "`organisation/name` (docs/hub.md), or the absolute path of a local folder in Hugging Face format.",
    )
    revision: Commit | None = Field(
        default=None,
        description="For a Hub id alone, its commit of 40 digits, so that the model stays the same; `make pin "
        "MODEL=organisation/name` writes the newest.",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto",
        description="What the model is loaded in to be measured and evaluated; `auto` is what its `config.json` says. "
        "The edited model keeps the types of the base.",
    )

    @model_validator(mode="after")
    def _pin_what_is_of_the_hub(self) -> Self:
        is_of_hub = self.source != "organism" and not self.source.startswith("/")
        if is_of_hub and self.revision is None:
            raise WrongValue(f"is missing; `make pin MODEL={self.source}` finds it", "revision")
        if not is_of_hub and self.revision is not None:
            raise WrongValue(f"is for a Hub id alone, got {show(self.revision)} for {show(self.source)}", "revision")
        return self
