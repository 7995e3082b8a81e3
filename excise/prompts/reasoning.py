"""Reasoning before an answer: whether a model reasons, which marks it uses, and what follows the block."""

import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from excise.prompts.chats import chat_of, render
from schemas.basis.plain_yaml import parse_mapping, read_text
from schemas.prompts import ChatFormat, Prompt

MARKS = Path(__file__).parent / "reasoning.yaml"
_SIDES = ("closes", "opens")
_QUESTION = "Hello"


def final_part(response: str, opened: bool) -> str | None:
    """The part of a response after its last closed block of reasoning, stripped; None if the reasoning never ends.
    `opened`: the chat template already opened a block, as by `<think>`. An end without a beginning also counts, because
    some chat templates open the block in the prompt. Within a block, only an end of the same kind counts."""
    begin = _answer_begins(response, opened)
    return None if begin is None else response[begin:].strip()


def reasoning_part(response: str, opened: bool) -> str | None:
    """What `final_part` cuts off, stripped; None if that is nothing."""
    return response[: _answer_begins(response, opened)].strip() or None


def _answer_begins(response: str, opened: bool) -> int | None:
    begin, inside = 0, opened
    kind: str | None = None  # the kind of a block that the response itself opened
    for mark in _marks().finditer(response):
        opens, number = str(mark.lastgroup).split("_")
        if not inside and opens == "opens":
            inside, kind = True, number
        elif opens == "closes" and kind in (None, number):
            inside, kind, begin = False, None, mark.end()
    return None if inside else begin


def opens_reasoning(tokenizer: Any, chat: ChatFormat) -> bool:
    """Whether the chat template opens a block of reasoning, so that answers begin inside it."""
    return final_part(_rendered(tokenizer, chat), opened=False) is None


def reasons(tokenizer: Any, chat: ChatFormat) -> bool:
    """Whether the model may reason before it answers: the chat template opens a block, or knows marks of reasoning and
    does not already close a block in the prompt, as it does to switch reasoning off."""
    if opens_reasoning(tokenizer, chat):
        return True
    after_question = _rendered(tokenizer, chat).rpartition(_QUESTION)[2]
    return bool(_marks().search(str(tokenizer.chat_template))) and not _marks().search(after_question)


def _rendered(tokenizer: Any, chat: ChatFormat) -> str:
    return render(tokenizer, chat_of(Prompt(id="", prompt=_QUESTION), chat.system), chat)


def decode_with_marks(tokenizer: Any, tokens: Sequence[int]) -> str:
    """The text of tokens without special ones, except for those that mark reasoning: without them, what a model thinks
    could not be told from its answer."""
    special = {number: str(token) for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    kept = _kept(frozenset(special.values()))
    if not kept:
        return str(tokenizer.decode(tokens, skip_special_tokens=True))
    dropped = {*special, *tokenizer.all_special_ids} - {number for number, text in special.items() if text in kept}
    return str(tokenizer.decode([token for token in tokens if token not in dropped], skip_special_tokens=False))


@functools.cache
def _kept(special: frozenset[str]) -> frozenset[str]:
    """Which of these special tokens are marks of reasoning, or parts of one."""
    kept: set[str] = set()
    for block in _blocks():
        marks = {text for text in special if any(re.fullmatch(block[side], text) for side in _SIDES)}
        if marks:
            kept |= marks | special.intersection(block.get("parts", ()))
    return frozenset(kept)


@functools.cache
def _marks() -> re.Pattern[str]:
    """All marks as one expression, with a group for each, named `opens_` or `closes_` and the number of its block."""
    return re.compile(
        "|".join(f"(?P<{side}_{number}>{block[side]})" for number, block in enumerate(_blocks()) for side in _SIDES)
    )


@functools.cache
def _blocks() -> list[dict[str, Any]]:
    return list(parse_mapping(read_text(MARKS, MARKS.name), MARKS.name)["blocks"])
