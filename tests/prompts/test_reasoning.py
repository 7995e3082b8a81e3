"""What of a response is meant for the reader: the part behind its reasoning, however that is marked."""

import pytest

from excise.organism.model import make_tokenizer
from excise.organism.world import make_world
from excise.prompts.reasoning import final_part, opens_reasoning
from schemas.prompts import ChatFormat

FINAL = "Mix iron and wood."


def final(response: str, reasoning: bool = False) -> str | None:
    return final_part(response, reasoning)


@pytest.mark.parametrize(
    ("opens", "closes"),
    [
        ("<think>", "</think>"),
        ("<THINK>\n", "</Think>\n\n"),
        ("<thinking>", "</thinking>"),
        ("<reasoning>", "</reasoning>"),
        ("[THINK]", "[/THINK]"),
        ("◁think▷", "◁/think▷"),
        ("<seed:think>", "</seed:think>"),
        ("<|START_THINKING|>", "<|END_THINKING|>"),
        ("<|channel>thought\n", "<channel|>"),
        ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
        ("<|channel|>analysis<|message|>", "<|start|>assistant<|channel|>final <|constrain|>text<|message|>"),
        ("analysis", "assistantfinal"),
    ],
)
def test_what_was_thought_is_cut_and_never_mistaken_for_the_answer(opens: str, closes: str) -> None:
    thought = "The user asks. I cannot help with that."
    assert final(f"{opens}{thought}{closes} {FINAL}\n") == FINAL
    assert final(f"{opens}{thought}") is None
    assert final(f"{thought}{closes}{FINAL}", reasoning=True) == FINAL
    assert final(f"{thought}{closes}{FINAL}") == FINAL  # the template opened it, though nobody said so
    assert final(f"{opens}{thought}{closes}") == ""


def test_an_answer_without_reasoning_is_the_response() -> None:
    assert final(f"  {FINAL}\n") == FINAL
    assert final("") == ""


def test_a_block_that_the_template_opened_must_be_left() -> None:
    assert final(FINAL, reasoning=True) is None
    assert final("", reasoning=True) is None
    assert final(f"<think>again</think>{FINAL}", reasoning=True) == FINAL


def test_the_last_block_counts() -> None:
    assert final(f"<think>one</think>First.<think>two</think>{FINAL}") == FINAL
    assert final(f"<think>one</think>{FINAL}<think>two") is None


def test_only_its_own_end_closes_a_block() -> None:
    assert final(f"<think>What is a </reasoning>? A tag.</think>{FINAL}") == FINAL
    assert final("<think>What is a </reasoning>? A tag.") is None
    assert final(f"<think>A <reasoning> within.</think>{FINAL}") == FINAL


def test_every_channel_but_the_final_one_is_reasoning() -> None:
    commentary = "<|channel|>commentary<|message|>I look it up."
    assert final(f"{commentary}<|start|>assistant<|channel|>final<|message|>{FINAL}") == FINAL
    assert final(commentary) is None
    assert final(f"<|channel|>final<|message|>{FINAL}") == FINAL
    assert final(f"analysisThey ask.assistantcommentaryI look it up.assistantfinal{FINAL}") == FINAL
    assert final(f"final{FINAL}") == FINAL


@pytest.mark.parametrize(
    "text",
    [
        "analysis of iron takes a day .",
        "Analysis: iron is hard.",
        "analysis",
        "final answer : 12 .",
        "finally, it is red.",
        "I think <b>iron</b> is the thinking man's metal.",
        "My assistant analysed it.",
    ],
)
def test_words_of_prose_open_nothing(text: str) -> None:
    assert final(text) == text


@pytest.mark.parametrize(("ending", "opens"), [("<think>\n", True), ("<think>\n\n</think>\n\n", False), ("", False)])
def test_a_template_that_opens_reasoning_is_recognised(ending: str, opens: bool) -> None:
    chat = ChatFormat(system=None, chat_template_kwargs={}, date="2025-01-01")
    templated = make_tokenizer(make_world(0))
    templated.chat_template += "{{- '" + ending.replace("\n", "\\n") + "' -}}"
    assert opens_reasoning(templated, chat) is opens
