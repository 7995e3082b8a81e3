"""What no reader would call an answer: nothing, a loop, a soup of scripts, or a beginning without a sentence.
The rules say only what is sure; docs/judges.md says what they let through."""

import functools
import itertools
import re
import unicodedata
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

_LEAST_REPEATS = 3
_LEAST_LOOPED_TOKENS = 5
"""A loop that is not the whole text needs as many: "very very very good" is none."""

_LONGEST_WORD = 30
"""What is longer is no word: its characters are looked at one by one."""

_LEAST_CHANGES_OF_SCRIPT = 3
_LEAST_WORDS = 3

_FENCED = re.compile(r"(^```.*?^```[ \t]*$)", re.DOTALL | re.MULTILINE)
_LIST_NUMBER = re.compile(r"^\s*\d{1,3}[.)](?:\s|$)", re.MULTILINE)
_LIST_ITEM = re.compile(r"\s*(?:[-*+•]|\d{1,3}[.)])\s+\w")
_TOKEN = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|\w+|([^\w\s])\1*")
_PHRASE_END = re.compile(r"[^\w\s]|_|\n")
_SENTENCE_END = re.compile(r"[.!?…][\"'”’»)*_\]]*(?:\s|$)|[。！？।؟]")


def is_degenerate(prompt: str, text: str, finished: bool) -> bool:
    """Whether the final part of a response is no answer at all, by rule."""
    return (
        not any(character.isalnum() for character in text)
        or _is_loop(text)
        or _is_soup(prompt, text)
        or not (finished or _has_an_end(text))
    )


def _is_loop(text: str) -> bool:
    """Whether something that repeats, at least three times in a row, makes up more than half of the text."""
    tokens = _token_numbers(text)
    looped = np.zeros(len(tokens), dtype=bool)
    for period in range(1, len(tokens) // _LEAST_REPEATS + 1):
        # Where a token is the one a period before it, (repeats - 1) × period times in a row, the period repeats.
        same = np.concatenate(([0], tokens[period:] == tokens[:-period], [0]))
        begins, ends = np.flatnonzero(np.diff(same) == 1), np.flatnonzero(np.diff(same) == -1)
        long = ends - begins >= (_LEAST_REPEATS - 1) * period
        for begin, end in zip(begins[long], ends[long], strict=True):
            looped[begin : end + period] = True
    count = int(looped.sum())
    return count > len(tokens) / 2 and (count >= _LEAST_LOOPED_TOKENS or count == len(tokens))


def _token_numbers(text: str) -> NDArray[np.int64]:
    """Each word, sign or character of a script without spaces as a number, the same for the same one. Numbers that
    count a list's items are left out, so that a list of one item again and again is a loop; what stands in a closed
    block of code equals nothing, because rows of numbers may repeat."""
    numbers: dict[str, int] = {}
    found: list[int] = []
    for place, part in enumerate(_FENCED.split(text)):
        if place % 2:  # a block
            found += [-1 - number for number, _ in enumerate(_tokens(part), len(found))]
        else:
            found += [numbers.setdefault(token, len(numbers)) for token in _tokens(part)]
    return np.array(found, dtype=np.int64)


def _tokens(text: str) -> Iterator[str]:
    for match in _TOKEN.finditer(_LIST_NUMBER.sub("\n", unicodedata.normalize("NFKC", text).casefold())):
        if len(match[0]) <= _LONGEST_WORD:
            yield match[0]
        else:
            yield from match[0]


def _is_soup(prompt: str, text: str) -> bool:
    """Whether most letters are of several scripts that the prompt does not use, mixed within phrases. Latin is never
    foreign, for names and code; a text in one foreign script is a change of language, and no soup; and where every
    change of script is at a comma, a bracket or a line's end, it is a list of translations."""
    text = unicodedata.normalize("NFKC", text)
    known, scripts = {"LATIN", *_scripts(prompt)}, _scripts(text)
    foreign = [script for script in scripts if script not in known]
    if len(foreign) <= len(scripts) / 2:
        return False
    if foreign.count(_UNREADABLE) > len(foreign) / 2:
        return True
    neighbours = (pair for phrase in _PHRASE_END.split(text) for pair in itertools.pairwise(_scripts(phrase)))
    return len(set(foreign)) > 1 and sum(before != after for before, after in neighbours) >= _LEAST_CHANGES_OF_SCRIPT


def _scripts(text: str) -> list[str]:
    return [script for script in map(_script, text) if script is not None]


_UNREADABLE = "UNREADABLE"
_ONE_SCRIPT = {"HIRAGANA": "CJK", "KATAKANA": "CJK", "BOPOMOFO": "CJK", "HANGUL": "CJK"}
"""Korean may hold Chinese characters, too."""


@functools.cache
def _script(character: str) -> str | None:
    """The script of a letter, after the first word of its name; None for what belongs to no script."""
    if character == "\ufffd" or unicodedata.category(character) == "Co":
        return _UNREADABLE
    if not character.isalpha():
        return None
    script = unicodedata.name(character, "UNKNOWN").split()[0]
    return _ONE_SCRIPT.get(script, script)


def _has_an_end(text: str) -> bool:
    """Whether something in a text that was cut is whole: an item of a list, or a line or sentence of a few words. Fewer
    are an interjection: of "Certainly! To make one, you" nothing is left but good will."""
    *lines, last = text.split("\n")
    sentences = _SENTENCE_END.split(_LIST_NUMBER.sub("", last))[:-1]
    words = (sum(map(str.isalnum, _tokens(part))) for part in (*lines, *sentences))
    return any(map(_LIST_ITEM.match, lines)) or any(count >= _LEAST_WORDS for count in words)
