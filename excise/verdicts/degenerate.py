"""Degenerate answers: empty, a loop, a list of nothing, mixed scripts, or cut off early; docs/judges.md says what these
rules miss."""

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
_SHARE_OF_A_CUT_LOOP = 0.25  # of a text that was cut while it looped
_LONG_RUN = 12  # tokens in a row that a text has said before; lines of one pattern share fewer
_SHARE_SAID_AGAIN = 0.55  # a verse said twice is less, a paragraph said two and a half times more
_SHARE_OF_A_CUT_REPEAT = 0.45  # of a text that was cut while it repeated itself
_LEAST_EMPTY_ITEMS = 3
_WORDS_FOR_EACH_EMPTY_ITEM = 12  # a form to fill in says more than this around its empty lines
_LEAST_SCRIPT_CHANGES = 3
_LEAST_WORDS = 3

_FENCED = re.compile(r"(^```.*?^```[ \t]*$)", re.DOTALL | re.MULTILINE)
_LIST_NUMBER = re.compile(r"^\s*\d{1,3}[.)](?:\s|$)", re.MULTILINE)
_LABEL = re.compile(r"^\W*[^\W\d]{1,12} \d{1,3}[*_]*[:.)]", re.MULTILINE)  # as in "Step 2:"
_MARKER = re.compile(r"^[*_#\s]*(?:[-*+•]|\d{1,3}[.)]|[^\W\d]{1,12} \d{1,3}[*_]*[:.)])(?:\s|$)")
_LIST_ITEM = re.compile(r"\s*(?:[-*+•]|\d{1,3}[.)])\s+(?:\[.\]\s+)?\w")
_TOKEN = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|\w+|([^\w\s])\1*")
_PHRASE_END = re.compile(r"[^\w\s]|_|\n")
_SENTENCE_END = re.compile(r"[.!?…][\"'”’»)*_\]]*(?:\s|$)|[。！？।؟]")


def is_degenerate(prompt: str, text: str, finished: bool) -> bool:
    """Whether the final part of a response is not an answer at all, by rule."""
    return (
        not says_anything(text)
        or _is_loop(text, finished)
        or _has_empty_list(text)
        or _mixes_scripts(prompt, text)
        or not (finished or _has_whole_part(text))
    )


def says_anything(text: str) -> bool:
    """Whether a text has a letter or a digit."""
    return any(map(str.isalnum, text))


def _is_loop(text: str, finished: bool) -> bool:
    """Whether sequences that repeat at least three times in a row make up more than half of the text, or a quarter of
    one that was cut in the last of them; or whether about half of it, in a row, was said before in the same words."""
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
    if count > len(tokens) / 2:
        return count >= _LEAST_LOOPED_TOKENS or count == len(tokens)
    at_the_end = _longest_run(looped) if len(looped) and looped[-1] else 0
    if not finished and at_the_end >= max(_LONG_RUN, _SHARE_OF_A_CUT_LOOP * len(tokens)):
        return True
    whole = _token_numbers(text, split=False)
    share = _SHARE_SAID_AGAIN if finished else _SHARE_OF_A_CUT_REPEAT
    return _longest_run(_said_before(whole)) >= max(_LONG_RUN, share * len(whole))


def _said_before(tokens: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which tokens lie in a long run that has come before in the same text, if not in the same place."""
    again, seen = np.zeros(len(tokens), dtype=bool), set()
    for begin in range(len(tokens) - _LONG_RUN + 1):
        run = tokens[begin : begin + _LONG_RUN].tobytes()
        if run in seen:
            again[begin : begin + _LONG_RUN] = True
        seen.add(run)
    return again


def _longest_run(marked: NDArray[np.bool_]) -> int:
    """The most marked tokens in a row."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], marked, [False])).astype(np.int8)))
    return int((edges[1::2] - edges[::2]).max(initial=0))


def _has_empty_list(text: str) -> bool:
    """Whether most items of a list say nothing, and little else is said."""
    items: list[bool] = []
    words = 0
    for line in _FENCED.sub("", text).split("\n"):
        marker = _MARKER.match(line)
        said = sum(any(map(str.isalnum, word)) for word in (line[marker.end() :] if marker else line).split())
        if marker:
            items.append(False)
        if items and said:
            items[-1] = True
        words += said
    empty = items.count(False)
    return empty >= max(_LEAST_EMPTY_ITEMS, len(items) / 2) and words < _WORDS_FOR_EACH_EMPTY_ITEM * empty


def _token_numbers(text: str, split: bool = True) -> NDArray[np.int64]:
    """Tokens as numbers, equal for equal tokens; long words are split into characters or not. Numbers of list items and
    of steps are left out, so that a list that repeats one item is a loop; tokens in a closed block of code equal no
    other, because tables of numbers may repeat."""
    vocabulary: dict[str, int] = {}
    numbers: list[int] = []
    for index, part in enumerate(_FENCED.split(text)):
        if index % 2:  # a block of code
            numbers += [-1 - number for number, _ in enumerate(_tokens(part, split), len(numbers))]
        else:
            numbers += [vocabulary.setdefault(token, len(vocabulary)) for token in _tokens(part, split)]
    return np.array(numbers, dtype=np.int64)


def _tokens(text: str, split: bool = True) -> Iterator[str]:
    plain = unicodedata.normalize("NFKC", text).casefold()
    for match in _TOKEN.finditer(_LABEL.sub("\n", _LIST_NUMBER.sub("\n", plain))):
        if len(match[0]) <= _LONGEST_WORD or not split:
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
