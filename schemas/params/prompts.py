"""Section `prompts`: what the refusal direction is measured on."""

from typing import Annotated, Self

from pydantic import Field, JsonValue, model_validator

from schemas.basis.document import Count, Section
from schemas.basis.fields import Day
from schemas.params.model import Model
from schemas.params.organism import WorldSettings
from schemas.params.sources import PromptSource
from schemas.wording import WrongValue


class Prompts(Section):
    """The prompts that the direction is measured on."""

    harmful: PromptSource = PromptSource(source="organism", split="harmful_train")
    """Prompts that the base model refuses."""
    harmless: PromptSource = PromptSource(source="organism", split="harmless_train")
    """Prompts that the base model answers."""
    system: str | None = None
    """System prompt, put before every prompt in measurement and evaluation."""
    chat_template_kwargs: dict[str, JsonValue] = Field(default={})
    """Arguments for the chat template, such as `enable_thinking: false`, in measurement and evaluation."""
    limit: Count | None = None
    """Measure only the first N prompts of each kind; `null`: all."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Shuffle seed for prompts from files and datasets, applied before the held-out split and `limit`."""
    date: Day = "2025-01-01"
    """Date passed to chat templates that insert today's date, so that prompts are reproducible."""

    @model_validator(mode="after")
    def _have_two_sources(self) -> Self:
        if self.harmful == self.harmless:
            raise WrongValue("must not be the same as prompts.harmful: there would be no difference", "harmless")
        return self


class PrepareSettings(Section):
    """`artifacts/params/prepare.json`."""

    model: Model
    prompts: Prompts
    world: WorldSettings
    """of the organism, from which its tasks and prompts are made"""
