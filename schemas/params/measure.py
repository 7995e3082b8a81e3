"""Section `measure`, as far as forward passes go."""

from typing import Annotated

from pydantic import Field

from schemas.basis.document import Section
from schemas.basis.fields import BatchSize


class Measure(Section):
    """How activations are taken."""

    batch_size: BatchSize = "auto"
    """Prompts in one forward pass; `auto` begins with 64. Where memory runs out it is halved, and said."""
    position: Annotated[int, Field(le=-1)] = -1
    """Which token of the formatted prompt is measured, counted from its end: -1 is the last."""
