"""Degenerate answers: empty, a loop, mixed scripts, or cut off early; docs/judges.md says what these rules miss."""

import functools
import itertools
import re
import unicodedata
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

_LEAST_REPEATS = 3
_LEAST_LOOPED_TOKENS = 5  # of a loop that is not the whole text, so that "very very very good" is not one
_LONGEST_WORD = 30  # longer tokens are split into characters
_LEAST_SCRIPT_CHANGES = 3
_LEAST_WORDS = 3

_FENCED = re.compile(r"(^```.*?^```[ \t]*$)", re.DOTALL | re.MULTILINE)
_LIST_NUMBER = re.compile(r"^\s*\d{1,3}[.)](?:\s|$)", re.MULTILINE)
_LIST_ITEM = re.compile(r"\s*(?:[-*+•]|\d{1,3}[.)])\s+\w")
_TOKEN = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|\w+|([^\w\s])\1*")
_PHRASE_END = re.compile(r"[^\w\s]|_|\n")
_SENTENCE_END = re.compile(r"[.!?…][\"'”’»)*_\]]*(?:\s|$)|[。！？।؟]")


def is_degenerate(prompt: str, text: str, finished: bool) -> bool:
    """Whether the final part of a response is not an answer at all, by rule."""
    return (
        not any(character.isalnum() for character in text)
        or _is_loop(text)
        or _mixes_scripts(prompt, text)
        or not (finished or _has_whole_part(text))
    )


def _is_loop(text: str) -> bool:
    """Whether sequences that repeat at least three times in a row make up more than half of the text."""
    tokens = _token_numbers(text)
    looped = np.zeros(len(tokens), dtype=bool)
    for period in range(1, len(tokens) // _LEAST_REPEATS + 1):
        # A period repeats if (repeats - 1) × period tokens in a row equal those one period before.
        same = np.concatenate(([0], tokens[period:] == tokens[:-period], [0]))
        begins, ends = np.flatnonzero(np.diff(same) == 1), np.flatnonzero(np.diff(same) == -1)
        long = ends - begins >= (_LEAST_REPEATS - 1) * period
        for begin, end in zip(begins[long], ends[long], strict=True):
            looped[begin : end + period] = True
    count = int(looped.sum())
    return count > len(tokens) / 2 and (count >= _LEAST_LOOPED_TOKENS or count == len(tokens))


def _token_numbers(text: str) -> NDArray[np.int64]:
    """Tokens as numbers, equal for equal tokens. Numbers of list items are left out, so that a list that repeats one
    item is a loop; tokens in a closed block of code equal no other, because tables of numbers may repeat."""
    vocabulary: dict[str, int] = {}
    numbers: list[int] = []
    for index, part in enumerate(_FENCED.split(text)):
        if index % 2:  # a block of code
            numbers += [-1 - number for number, _ in enumerate(_tokens(part), len(numbers))]
        else:
            numbers += [vocabulary.setdefault(token, len(vocabulary)) for token in _tokens(part)]
    return np.array(numbers, dtype=np.int64)


def _tokens(text: str) -> Iterator[str]:
    for match in _TOKEN.finditer(_LIST_NUMBER.sub("\n", unicodedata.normalize("NFKC", text).casefold())):
        if len(match[0]) <= _LONGEST_WORD:
            yield match[0]
        else:
            yield from match[0]


def _mixes_scripts(prompt: str, text: str) -> bool:
    """Whether most letters are of several scripts that the prompt does not use (except Latin, as in names and code),
    mixed within phrases: one script is a change of language, and one for each phrase a list of translations."""
    text = unicodedata.normalize("NFKC", text)
    known, scripts = {"LATIN", *_scripts(prompt)}, _scripts(text)
    foreign = [script for script in scripts if script not in known]
    if len(foreign) <= len(scripts) / 2:
        return False
    if foreign.count(_UNREADABLE) > len(foreign) / 2:
        return True
    pairs = (pair for phrase in _PHRASE_END.split(text) for pair in itertools.pairwise(_scripts(phrase)))
    return len(set(foreign)) > 1 and sum(before != after for before, after in pairs) >= _LEAST_SCRIPT_CHANGES


def _scripts(text: str) -> list[str]:
    return [script for script in map(_script, text) if script is not None]


_UNREADABLE = "UNREADABLE"
# One text may mix these, as Korean mixes Hangul with Chinese characters.
_ONE_SCRIPT = {"HIRAGANA": "CJK", "KATAKANA": "CJK", "BOPOMOFO": "CJK", "HANGUL": "CJK"}


@functools.cache
def _script(character: str) -> str | None:
    """The script of a letter, by the first word of its Unicode name; None for other characters."""
    if character == "\ufffd" or unicodedata.category(character) == "Co":
        return _UNREADABLE
    if not character.isalpha():
        return None
    script = unicodedata.name(character, "UNKNOWN").split()[0]
    return _ONE_SCRIPT.get(script, script)


def _has_whole_part(text: str) -> bool:
    """Whether a text that was cut off has a complete list item, line or sentence of more words than "Certainly!"."""
    *lines, last = text.split("\n")
    sentences = _SENTENCE_END.split(_LIST_NUMBER.sub("", last))[:-1]
    words = (sum(map(str.isalnum, _tokens(part))) for part in (*lines, *sentences))
    return any(map(_LIST_ITEM.match, lines)) or any(count >= _LEAST_WORDS for count in words)
