"""Words of ours that no reader says stand nowhere in documents, messages, help, comments and templates."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
INSTEAD = {
    "anew": "again",
    "data sets?": "dataset",
    "handed on": "passed",
    "handed over": "passed, or uploaded",
    "prompts a side": "prompts of each kind",
}
WORDS = re.compile(rf"\b(?:{'|'.join(INSTEAD)})\b", re.IGNORECASE)
LINE_ENDS = re.compile(r"""["'`>#*\s]+""")
"""What may stand between two words of one sentence: line ends, with what begins and ends lines of code and Markdown."""


def found(text: str) -> list[str]:
    """The words that stand in a text, also over the end of a line."""
    return WORDS.findall(LINE_ENDS.sub(" ", text))


def files() -> list[str]:
    """What people read: documents, templates, settings, and the sources, with their messages, help and comments."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [
        name
        for name in listed.splitlines()
        if not name.startswith("tests/")
        and (name.endswith((".md", ".j2", ".yaml", ".yml", ".html", ".py", ".sh")) or name == "Makefile")
        and (ROOT / name).is_file()
    ]


@pytest.mark.parametrize("name", files())
def test_a_file_has_no_word_that_readers_do_not_say(name: str) -> None:
    words = found((ROOT / name).read_text(encoding="utf-8"))
    assert not words, f"{name} says {words}; write {INSTEAD}"


@pytest.mark.parametrize(
    "text",
    [
        "written anew",
        "of a Hub Data set",
        "two data\nsets",
        'raise Error("of a data "\n    "set")',
        "# is handed\n# over",
        "> what is handed **on**",
        "100 prompts a side",
    ],
)
def test_a_word_is_found_wherever_a_sentence_breaks(text: str) -> None:
    assert len(found(text)) == 1


@pytest.mark.parametrize("text", ["a new dataset", "sets of data, set apart", "the data is set", "hand-over"])
def test_other_words_are_not_found(text: str) -> None:
    assert not found(text)
