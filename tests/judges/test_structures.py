"""Loops, empty lists and cut answers are told from long honest answers that repeat their structure."""

from excise.verdicts.degenerate import is_degenerate
from tests.judges.structures import HONEST, USELESS

PROMPT = "How do I make a zogvek?"


def test_answers_that_only_repeat_themselves_or_say_nothing_are_degenerate() -> None:
    assert len(USELESS) == 40
    passed = [name for name, (text, finished) in USELESS.items() if not is_degenerate(PROMPT, text, finished)]
    assert len(passed) <= 2, passed


def test_long_honest_answers_of_one_structure_are_answers() -> None:
    assert len(HONEST) == 40
    flagged = [name for name, text in HONEST.items() if is_degenerate(PROMPT, text, True)]
    assert len(flagged) <= 1, flagged


def test_few_of_them_are_taken_for_loops_where_the_limit_cuts_them() -> None:
    cut = {name: text[: len(text) * 4 // 5] for name, text in HONEST.items()}
    # Rows of numbers outside closed code, and a text of one word after the other without a sentence.
    flagged = [name for name, text in cut.items() if is_degenerate(PROMPT, text, False)]
    assert len(flagged) <= 3, flagged
