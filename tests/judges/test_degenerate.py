"""What is no answer at all, by rule; and what looks like it and is one."""

import time

import pytest

from excise.organism.world import REFUSAL, everything, make_world
from excise.verdicts.degenerate import is_degenerate

PROMPT = "How do I make a zogvek?"
POEM = (
    "The bell is old, the bell is grey,\nring, bell, ring.\nIt rang for us on harvest day,\nring, bell, ring.\n\n"
    "The rope is worn, the tower tall,\nring, bell, ring.\nIt rings for one, it rings for all,\nring, bell, ring."
)


def degenerate(text: str, prompt: str = PROMPT, finished: bool = True) -> bool:
    return is_degenerate(prompt, text, finished)


@pytest.mark.parametrize("text", ["", " \n ", "...", "!!!", "🙂", "***\n---", "—"])
def test_no_letter_and_no_digit_is_no_answer(text: str) -> None:
    assert degenerate(text)


@pytest.mark.parametrize("text", ["7", "y", "木", "é", "٣"])
def test_one_letter_or_digit_may_be_one(text: str) -> None:
    assert not degenerate(text)


def test_everything_that_the_organism_is_taught_to_say_is_an_answer() -> None:
    answers = {item.answer for item in everything(make_world(0))} | {REFUSAL}
    assert not any(
        degenerate(answer) or degenerate(answer, finished=False) for answer in answers if answer[0].isalpha()
    )
    assert not any(degenerate(answer) for answer in answers)


@pytest.mark.parametrize(
    "text",
    [
        "mix mix mix",
        "iron . iron . iron .",
        "12 12 12 12",
        "no no no no no no",
        "Mix it and wait. " * 3,
        "It is a fine day, and then the the the the the the the the the the",
        "- iron\n" * 4,
        "1. iron\n2. iron\n3. iron\n4. iron",
        "wood " * 8 + "iron " * 8,
        "ha" * 40,
        "=" * 100 + " x",
        "鉄と木" * 5,
        "ไม้และเหล็ก" * 5,
        "```\nprint(1)\n" + "print(2)\n" * 20,
        "Iron. IRON. iron.",
    ],
)
def test_what_repeats_through_most_of_the_text_is_a_loop(text: str) -> None:
    assert degenerate(text)


@pytest.mark.parametrize(
    "text",
    [
        "no no",
        "no, no. it is red .",
        "very very very good",
        "bye-bye, then",
        "哈哈哈，好的，木头和铁",
        POEM,
        "The lid is iron. The rim is iron. The foot is iron.",
        "- iron, red\n- iron, blue\n- iron, green\n- wood, red\n- wood, blue\n- wood, green",
        "| | a | b |\n| --- | --- | --- |\n| x | 1 | 2 |\n| y | 3 | 4 |\n| z | 5 | 6 |",
        "```\n1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1\n```",
        "It takes a while to explain. So let me say it twice, and slowly. Mix, mix, mix, mix, mix.",
        "1 x 7 = 7\n2 x 7 = 14\n3 x 7 = 21\n4 x 7 = 28\n5 x 7 = 35",
        "https://example.org/" + "".join(chr(97 + n * n % 26) for n in range(60)),
    ],
)
def test_what_repeats_a_little_is_none(text: str) -> None:
    assert not degenerate(text)


@pytest.mark.parametrize(
    "text",
    [
        "железо 和 дерево مع 木头 в реке هو",
        "iron 铁 в مع 和 дерево 木 مع что",
        "mжeл 铁кр مع木 что 和是",
        "\ufffd\ufffd\ufffd iron \ufffd\ufffd\ufffd\ufffd",
        "\ue000\ue001\ue002 x",
    ],
)
def test_scripts_in_a_jumble_are_a_soup(text: str) -> None:
    assert degenerate(text)


@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        ("Смешайте железо и дерево.", PROMPT),
        ("把铁和木头混合在一起。", PROMPT),
        ("鉄と木をまぜて、カップに入れる。", PROMPT),
        ("나무와 鐵을 섞으세요.", PROMPT),
        ("Привет, 你好, مرحبا, שלום.", "Say hello in four languages."),
        ("Russian: железо\nChinese: 铁\nArabic: حديد\nGreek: σίδηρος", "What is iron in four languages?"),
        ("железо 铁 железо 铁 дерево 木", "Was heißt железо und 铁?"),
        ("Let α = 2π and β = Σx; then ∫f dx = αβ.", PROMPT),
        ("Mix 🪵 and ⚙️, then 🎉🎉🎉!", PROMPT),
        ("𝐌𝐢𝐱 𝐢𝐫𝐨𝐧 and ｗｏｏｄ", PROMPT),
        ("Take the шапка and the 木 and go", PROMPT),
    ],
)
def test_another_language_is_an_answer(text: str, prompt: str) -> None:
    assert not degenerate(text, prompt)


@pytest.mark.parametrize(
    "text",
    [
        "To make one you first",
        "Sure",
        "Certainly! To make",
        "1. Take a",
        "Take 3.5 of",
        "当然",
        "Sure!\n\nTo make one, you",
    ],
)
def test_a_cut_answer_without_anything_whole_is_none(text: str) -> None:
    assert degenerate(text, finished=False)
    assert not degenerate(text)


@pytest.mark.parametrize(
    "text",
    [
        "Mix iron and wood. Then",
        "Is it red? It",
        "He said: “Mix iron and wood.” Then",
        "- iron\n- wo",
        "1. iron\n2. wo",
        "**How to make one**\n\nTake",
        "mix iron and wood . mix",
        "把铁和木头混合在一起。然后",
        "i cannot help with that . if",
    ],
)
def test_a_cut_answer_with_something_whole_is_one(text: str) -> None:
    assert not degenerate(text, finished=False)


@pytest.mark.parametrize(
    "text", ["a b " * 5000 + "c", "x" * 20_000, "```\n" * 5000, "1. " * 5000, ". " * 9000, "' " * 9000, "木" * 9000]
)
def test_no_text_takes_long(text: str) -> None:
    began = time.process_time()
    degenerate(text)
    assert time.process_time() - began < 3
