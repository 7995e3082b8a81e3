"""Reasoning before an answer: whether the chat template opens a block for it, and what follows the block."""

import functools
import re
from pathlib import Path
from typing import Any

from excise.prompts.chats import chat_of, render
from schemas.basis.plain_yaml import parse_mapping, read_text
from schemas.prompts import ChatFormat, Prompt

MARKS = Path(__file__).parent / "reasoning.yaml"


def final_part(response: str, opened: bool) -> str | None:
    """The part of a response after its last closed block of reasoning, stripped; None if the reasoning never ends.
    `opened`: the chat template already opened a block, as by `<think>`. An end without a beginning also counts, because
    some chat templates open the block in the prompt. Within a block, only an end of the same kind counts."""
    begin, inside = 0, opened
    kind: str | None = None  # the kind of a block that the response itself opened
    for mark in _marks().finditer(response):
        opens, number = str(mark.lastgroup).split("_")
        if not inside and opens == "opens":
            inside, kind = True, number
        elif opens == "closes" and kind in (None, number):
            inside, kind, begin = False, None, mark.end()
    return None if inside else response[begin:].strip()


def opens_reasoning(tokenizer: Any, chat: ChatFormat) -> bool:
    """Whether the chat template opens a block of reasoning, so that answers begin inside it."""
    text = render(tokenizer, chat_of(Prompt(id="", prompt="Hello"), chat.system), chat)
    return final_part(text, opened=False) is None


@functools.cache
def _marks() -> re.Pattern[str]:
    """All marks as one expression, with a group for each, named `opens_` or `closes_` and the number of its block."""
    blocks = parse_mapping(read_text(MARKS, MARKS.name), MARKS.name)["blocks"]
    return re.compile(
        "|".join(f"(?P<{side}_{number}>{block[side]})" for number, block in enumerate(blocks) for side in sorted(block))
    )
