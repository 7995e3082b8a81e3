"""What of a response is meant for the reader: the part behind its reasoning, however that is marked."""

import pytest

from excise.organism.model import make_tokenizer
from excise.organism.world import make_world
from excise.prompts.reasoning import decode_with_marks, final_part, opens_reasoning, reasoning_part, reasons
from schemas.prompts import ChatFormat
from tests.chats import SPECIAL, chat_tokenizer, template

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


def test_what_is_cut_is_kept_apart_whole() -> None:
    assert reasoning_part(f"<think>They ask.</think> {FINAL}", False) == "<think>They ask.</think>"
    assert reasoning_part(f"They ask.</think>{FINAL}", True) == "They ask.</think>"
    assert reasoning_part("They ask.", True) == reasoning_part("They ask. ", True) == "They ask."
    assert reasoning_part(FINAL, False) is None and reasoning_part("", False) is None


CHAT = ChatFormat(system=None, chat_template_kwargs={}, date="2025-01-01")


@pytest.mark.parametrize(
    ("added", "may"),
    [
        ("", False),
        ("{{- '<think>\\n' -}}", True),
        ("{{- '<think>\\n\\n</think>\\n\\n' -}}", False),
        ("{%- if messages[0].content is none -%}{{- '<think>' -}}{%- endif -%}", True),
        ("{%- if messages[0].content is none -%}{{- '<|channel|>analysis' -}}{%- endif -%}", True),
    ],
)
def test_a_model_may_reason_if_its_template_knows_marks_and_does_not_close_them(added: str, may: bool) -> None:
    templated = make_tokenizer(make_world(0))
    templated.chat_template += added
    assert reasons(templated, CHAT) is may


@pytest.mark.parametrize(
    ("opens", "closes", "parts"),
    [
        ("<think>", "</think>", ()),
        ("[THINK]", "[/THINK]", ()),
        ("<|START_THINKING|>", "<|END_THINKING|>", ()),
        ("<|channel>", "<channel|>", ()),
        ("<|channel|>", "<|channel|>final<|message|>", ("<|message|>",)),
    ],
)
def test_marks_that_are_special_tokens_stay_and_other_special_tokens_do_not(
    opens: str, closes: str, parts: tuple[str, ...]
) -> None:
    tokenizer = chat_tokenizer(template())
    text = f"{opens}a thing{closes}red<|user|><eos>"
    marks = {opens, *([] if parts else [closes]), *parts}
    tokenizer.add_special_tokens({"extra_special_tokens": [*SPECIAL[3:], *marks]})
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert final_part(str(tokenizer.decode(tokens, skip_special_tokens=True)), False) != "red"
    kept = decode_with_marks(tokenizer, tokens)
    assert kept == text.removesuffix("<|user|><eos>") and final_part(kept, False) == "red"


def test_without_marks_among_them_no_special_token_stays() -> None:
    tokenizer = chat_tokenizer(template())
    tokens = tokenizer("<bos>a <|user|>thing<eos><pad>", add_special_tokens=False)["input_ids"]
    assert decode_with_marks(tokenizer, tokens) == tokenizer.decode(tokens, skip_special_tokens=True) == "a thing"
