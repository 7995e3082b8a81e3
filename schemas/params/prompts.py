"""Section `prompts`: what the refusal direction is measured on."""

from typing import Annotated, Self

from pydantic import Field, JsonValue, model_validator

from schemas.basis.document import Count, Section
from schemas.basis.fields import Day
from schemas.params.model import Model
from schemas.params.sources import PromptSource
from schemas.wording import WrongValue


class Prompts(Section):
    """What the direction is measured on."""

    harmful: PromptSource = PromptSource(source="organism", split="harmful_train")
    """The prompts that are refused."""
    harmless: PromptSource = PromptSource(source="organism", split="harmless_train")
    """The prompts that are answered."""
    system: str | None = None
    """A system prompt before every prompt, in measuring and in evaluation."""
    chat_template_kwargs: dict[str, JsonValue] = Field(default={})
    """Passed on to the chat template, such as `enable_thinking: false`, in measuring and in evaluation."""
    limit: Count | None = None
    """At most this many prompts a side, the first ones; `null`: all."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of the order into which the prompts of files and data sets are put, before any are held out and the first ones
    taken."""
    date: Day = "2025-01-01"
    """The day that a chat template is told which asks for today's, so that a prompt is the same text on every day."""

    @model_validator(mode="after")
    def _tell_the_sides_apart(self) -> Self:
        if self.harmful == self.harmless:
            raise WrongValue("must not be the same as prompts.harmful: they would have no difference", "harmless")
        return self


class PrepareSettings(Section):
    """`artifacts/params/prepare.json`."""

    model: Model
    prompts: Prompts
    world: int
    """the seed of the organism's world, of which its tasks and prompts are made"""
