"""Section `organism`: the built-in model."""

from typing import Annotated, Literal

from pydantic import Field

from schemas.basis.document import Count, Section

Architecture = Literal["glm4_moe", "llama", "gemma2"]


class Organism(Section):
    """How the built-in model is made. Read only when a source is `organism` or a task is one of its own."""

    architecture: Architecture = Field(
        default="glm4_moe",
        description="The built-in model's architecture: `glm4_moe` has routed and shared experts, `llama` is dense, "
        "`gemma2` is dense with norms behind its writers.",
    )
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = Field(
        default=0, description="Seed of the built-in model's weights and training order."
    )
    pretrain_steps: Count = Field(default=500, description="Training steps in which it learns to answer everything.")
    tune_steps: Count = Field(default=400, description="Training steps in which it then learns to refuse.")


class OrganismSettings(Section):
    """`artifacts/params/organism.json`."""

    organism: Organism | None = Field(description="null where the base model is another one")
