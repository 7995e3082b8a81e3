"""What a model thinks before it answers: whether its chat template opens a block for that, and what follows the block.
How models mark such blocks is data, `reasoning.yaml`."""

import functools
import re
from pathlib import Path
from typing import Any

from excise.prompts.chats import chat_of, render
from schemas.basis.plain_yaml import parse_mapping, read_text
from schemas.prompts import ChatFormat, Prompt

MARKS = Path(__file__).parent / "reasoning.yaml"


def final_part(response: str, opened: bool) -> str | None:
    """A response without its reasoning, stripped; None where it never leaves the reasoning, which the chat template may
    already have `opened`, as by `<think>`. It is what follows the last closed block. An end that nothing opened counts
    too, as some chat templates open the block in the prompt. Within a block, only the end of its own kind counts."""
    begin = 0
    inside = opened
    kind: str | None = None  # which kind of block it is, where the response itself opened it
    for mark in _marks().finditer(response):
        opens, number = str(mark.lastgroup).split("_")
        if not inside and opens == "opens":
            inside, kind = True, number
        elif opens == "closes" and kind in (None, number):
            inside, kind, begin = False, None, mark.end()
    return None if inside else response[begin:].strip()


def opens_reasoning(tokenizer: Any, chat: ChatFormat) -> bool:
    """Whether the chat template opens a block of reasoning for the model, so that answers begin within it."""
    text = render(tokenizer, chat_of(Prompt(id="", prompt="Hello"), chat.system), chat)
    return final_part(text, opened=False) is None


@functools.cache
def _marks() -> re.Pattern[str]:
    """Every mark as one expression, each as a group named after its side and the number of its block."""
    blocks = parse_mapping(read_text(MARKS, MARKS.name), MARKS.name)["blocks"]
    return re.compile(
        "|".join(f"(?P<{side}_{number}>{block[side]})" for number, block in enumerate(blocks) for side in sorted(block))
    )
