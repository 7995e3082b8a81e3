"""Section `model`: which model is edited."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AliasChoices, Field, model_validator

from schemas.basis.document import Section
from schemas.basis.fields import matches
from schemas.basis.text import show
from schemas.wording import WrongValue

HUB_ID = (
    r"(?!.*(?:--|\.\.|\.git(?:/|$)))[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
    r"/[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
)
HUB_OR_FOLDER = "a Hub id such as organization/name, or the absolute path of a local folder"
ModelSource = Annotated[
    str, matches(rf"organism|/[^\x00-\x1f\x7f]*|{HUB_ID}", f"organism, {HUB_OR_FOLDER}", ("organism",))
]
Commit = Annotated[str, matches(r"[0-9a-f]{40}", "a commit of 40 hexadecimal digits; a branch may move")]
DeviceName = Annotated[
    str,
    matches(
        r"auto|cpu|cuda(?::[0-9]{1,3})?|balanced", "auto, cpu, cuda, cuda:N or balanced", ("auto", "cuda", "balanced")
    ),
]
PLACE = Path("artifacts/params/device.json")


class Model(Section):
    """Which model is edited."""

    source: ModelSource = "organism"
    """Base model: `organism` (the built-in model, trained here), a Hub id such as `organization/name` (docs/hub.md), or
    the absolute path of a local folder in Hugging Face format."""
    revision: Commit | None = None
    """Commit of a Hub model, 40 hexadecimal digits; `make pin MODEL=organization/name` writes the newest."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Data type in which the model is loaded for measurement and evaluation; `auto`: that of its `config.json`. The
    edited model keeps the base's data types."""

    @model_validator(mode="after")
    def _pin_what_is_of_the_hub(self) -> Self:
        is_of_hub = self.source != "organism" and not self.source.startswith("/")
        if is_of_hub and self.revision is None:
            remedy = f"`make pin MODEL={self.source}` finds it (a local folder needs its absolute path as source)"
            raise WrongValue(f"is missing; {remedy}", "revision")
        if not is_of_hub and self.revision is not None:
            raise WrongValue(f"is only for Hub ids, got {show(self.revision)} for {show(self.source)}", "revision")
        return self


class Device(Section):
    """Where the model runs. No stage depends on it, because it changes no result."""

    device: DeviceName = "auto"
    """`auto` (a GPU if there is one), `cpu`, `cuda`, `cuda:N`, or `balanced`: spread over all GPUs, for models that do
    not fit on one. Changing it reruns nothing."""


class Offload(Section):
    """How much of the model is in memory in measure, diagnose and simulate, which changes no measurement either."""

    offload: Literal["auto", "on", "off"] = Field(default="auto", validation_alias=AliasChoices("offload", "stream"))
    """Whether to read one decoder layer at a time from the files, for models larger than memory; `auto`: if the model
    does not fit. Changing it reruns nothing: what is measured is the same, and diagnose and simulate only ask more
    prompts, as they race nothing. Uses only the first GPU."""


class Place(Offload, Device):
    """`artifacts/params/device.json`: where and how the model runs."""

    folder: str | None = None
    """of a base model that is a local folder"""
