"""An answer as it was generated, and the part of it that is meant for the reader."""

import functools
import re
from dataclasses import dataclass
from pathlib import Path

from schemas.plain_yaml import parse_mapping, read_text

REASONING = Path(__file__).parent / "reasoning.yaml"


@dataclass(frozen=True)
class Answer:
    """What a model was asked and what it generated."""

    prompt: str
    response: str
    """As generated, without special tokens."""
    finished: bool
    """Whether the model ended it itself, rather than the limit of tokens."""
    reasoning: bool
    """Whether the prompt's chat template already opened a reasoning block, as in `<think>`."""


def final_part(answer: Answer) -> str | None:
    """The response without its reasoning, stripped; None where it never leaves the reasoning.

    It is what follows the last closed block. An end that nothing opened counts too, because some chat templates open
    the block in the prompt. Within a block, only the end of its own kind counts.
    """
    begin = 0
    inside = answer.reasoning
    kind: str | None = None  # which kind of block it is, where the response itself opened it
    for mark in _marks().finditer(answer.response):
        opens, number = str(mark.lastgroup).split("_")
        if not inside and opens == "opens":
            inside, kind = True, number
        elif opens == "closes" and kind in (None, number):
            inside, kind, begin = False, None, mark.end()
    return None if inside else answer.response[begin:].strip()


@functools.cache
def _marks() -> re.Pattern[str]:
    """Every mark as one expression, each as a group named after its side and the number of its block."""
    blocks = parse_mapping(read_text(REASONING, REASONING.name), REASONING.name)["blocks"]
    return re.compile(
        "|".join(f"(?P<{side}_{number}>{block[side]})" for number, block in enumerate(blocks) for side in sorted(block))
    )
