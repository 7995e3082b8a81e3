"""Section `measure`: the settings of the forward passes."""

from typing import Annotated

from pydantic import Field

from schemas.basis.document import Section
from schemas.basis.fields import BatchSize


class Measure(Section):
    """How activations are collected."""

    batch_size: BatchSize = "auto"
    """Prompts per forward pass; `auto` starts at 64. Halved on out-of-memory, with a warning."""
    position: Annotated[int, Field(le=-1)] = -1
    """Token of the formatted prompt at which activations are collected, counted from the end: -1 is the last."""
