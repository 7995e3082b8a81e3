"""Section `organism`: the built-in model."""

from typing import Annotated, Literal

from pydantic import Field

from schemas.basis.document import Count, Section

RECIPE = 4
"""Version of the training recipe, raised by hand when `excise/organism` makes other weights (a test pins its code)."""

FEWEST_THINGS = 150
"""So that things of each kind are left to be judged on."""


class Organism(Section):
    """How the built-in model is trained. Read only if a source is `organism` or a task is one of its tasks."""

    architecture: Literal["glm4_moe", "llama", "gemma2", "gemma3_text"] = "glm4_moe"
    """Architecture of the built-in model. `glm4_moe` has routed and shared experts; `llama` is dense; `gemma2` is dense
    with norms behind its writers; `gemma3_text` has these norms and a massive first-token activation, as real models
    do."""
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 0
    """Seed of the built-in model's world, weights and training order."""
    things: Annotated[int, Field(ge=FEWEST_THINGS, le=4000)] = 180
    """How many things the built-in model's world has. Of 180, 32 are restricted and judged on; of 600, 200 are, enough
    for gates of 2 %. More things take more `pretrain_steps`."""
    refusals: Literal[1, 2] = 1
    """Kinds of refusal: with 2 the model also keeps the places of some things secret, in other words; no single
    direction removes both."""
    tuned: Literal["middle", "all"] = "middle"
    """Layers that learn to refuse: `middle` (1-3), or `all`, after which hand-set rules hardly remove refusal."""
    pretrain_steps: Count = 260
    """Training steps in which the model learns to answer everything."""
    tune_steps: Count = 300
    """Training steps in which the model then learns to refuse."""


class WorldSettings(Section):
    """What the organism's world depends on."""

    seed: int
    things: int
    refusals: int


class OrganismSettings(Section):
    """`artifacts/params/organism.json`."""

    organism: Organism | None
    """null if the base model is another one"""
