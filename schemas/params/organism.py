"""Section `organism`: the built-in model."""

from typing import Annotated, Literal

from pydantic import Field

from schemas.basis.document import Count, Section

RECIPE = 1
"""The version of how it is trained, raised by hand where a change of `excise/organism` gives other weights: recorded
beside the weights, it decides whether the model is trained again. A test holds the code that belongs to it."""


class Organism(Section):
    """How the built-in model is made. Read only when a source is `organism` or a task is one of its own."""

    architecture: Literal["glm4_moe", "llama", "gemma2", "gemma3_text"] = "glm4_moe"
    """The built-in model's architecture: `glm4_moe` has routed and shared experts, `llama` is dense, `gemma2` is dense
    with norms behind its writers, `gemma3_text` too, and with a massive activation of the first token, as real ones."""
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 0
    """Seed of the built-in model's weights and training order."""
    pretrain_steps: Count = 500
    """Training steps in which it learns to answer everything."""
    tune_steps: Count = 400
    """Training steps in which it then learns to refuse."""


class OrganismSettings(Section):
    """`artifacts/params/organism.json`."""

    organism: Organism | None
    """null where the base model is another one"""
