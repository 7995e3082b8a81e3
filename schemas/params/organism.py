"""Section `organism`: the built-in model."""

from typing import Annotated, Literal

from pydantic import Field

from schemas.basis.document import Count, Section

RECIPE = 2
"""Version of the training recipe, raised by hand when `excise/organism` makes other weights (a test pins its code)."""


class Organism(Section):
    """How the built-in model is trained. Read only if a source is `organism` or a task is one of its tasks."""

    architecture: Literal["glm4_moe", "llama", "gemma2", "gemma3_text"] = "glm4_moe"
    """Architecture of the built-in model. `glm4_moe` has routed and shared experts; `llama` is dense; `gemma2` is dense
    with norms behind its writers; `gemma3_text` has these norms and a massive first-token activation, as real models
    do."""
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 0
    """Seed of the built-in model's weights and training order."""
    pretrain_steps: Count = 500
    """Training steps in which the model learns to answer everything."""
    tune_steps: Count = 400
    """Training steps in which the model then learns to refuse."""


class OrganismSettings(Section):
    """`artifacts/params/organism.json`."""

    organism: Organism | None
    """null if the base model is another one"""
