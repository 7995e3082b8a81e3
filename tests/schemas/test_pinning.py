"""Pinning writes two values into params.yaml, and nothing else."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.basis.plain_yaml import parse_mapping
from schemas.params.document import parse
from schemas.pinning import pinned
from schemas.wording import ParamsError

SHIPPED = (Path(__file__).resolve().parents[2] / "params.yaml").read_text(encoding="utf-8")
NAME, COMMIT = "some-Org/a_model-1.5", "0123456789abcdef0123456789abcdef01234567"


def test_the_shipped_file_keeps_every_byte_but_the_two_values() -> None:
    model = SHIPPED.index("\nmodel:")
    expected = SHIPPED.replace("source: organism ", f"source: {NAME} ", 1).replace("null", COMMIT, 1)
    assert SHIPPED.index("source: organism ") > model and expected.index(f"revision: {COMMIT}") > model
    assert pinned(SHIPPED, NAME, COMMIT) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("gates: []\n", "gates: []\nmodel:\n  source: S\n  revision: R\n"),
        ("gates: []", "gates: []\nmodel:\n  source: S\n  revision: R\n"),
        ("model:\ngates: []\n", "model:\n  source: S\n  revision: R\ngates: []\n"),
        ("model:  # which\n\ngates: []\n", "model:  # which\n  source: S\n  revision: R\n\ngates: []\n"),
        ("model: {}\n", "model: {source: S, revision: R}\n"),
        ("model: null # none\n", "model: {source: S, revision: R} # none\n"),
        ("model: {dtype: auto} # x\n", "model: {source: S, revision: R, dtype: auto} # x\n"),
        ("model: {source: organism}\n", "model: {source: S, revision: R}\n"),
        (
            "model:\n    source: /a # x\n    dtype: auto\n",
            "model:\n    source: S # x\n    revision: R\n    dtype: auto\n",
        ),
        (
            "model:\n  # first\n  dtype: auto # x\n",
            "model:\n  # first\n  source: S\n  revision: R\n  dtype: auto # x\n",
        ),
        ("model:\n  revision: null # x\n", "model:\n  source: S\n  revision: R # x\n"),
        ("model:\n  revision:\n  source:\n", "model:\n  revision: R\n  source: S\n"),
        ("model:\n  'source': \"/a\"\n", "model:\n  'source': S\n  revision: R\n"),
        ("model:\r\n  source: /a\r\n", "model:\r\n  source: S\r\n  revision: R\r\n"),
        ("{model: {source: /a}, gates: []}", "{model: {source: S, revision: R}, gates: []}"),
    ],
)
def test_what_a_file_lacks_is_added_in_its_own_manner(text: str, expected: str) -> None:
    assert pinned(text, NAME, COMMIT) == expected.replace("S", NAME).replace("R", COMMIT)


@pytest.mark.parametrize("commit", ["1" * 40, "1" * 20 + "e" + "1" * 19, "0" * 40, "e" * 40])
def test_a_commit_that_looks_like_a_number_stays_text(commit: str) -> None:
    assert parse(pinned(SHIPPED, NAME, commit)).model.revision == commit


def test_pinning_anew_changes_the_commit_alone() -> None:
    once = pinned(SHIPPED, NAME, COMMIT)
    again = pinned(once, NAME, COMMIT[::-1])
    assert again == once.replace(COMMIT, COMMIT[::-1])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("model: [1]\n", "model must be a mapping of keys"),
        ("modle: {}\n", "modle is not a key"),
        ("model: {source: organism, dtype: x}\n", "model.dtype must be one of"),
        ("model: {source: \n", "line "),
        ("---\ngates: []\n...\n", "model cannot be edited as it is written; set source: "),
        ("organism: &o {}\nmodel: *o\n", "model cannot be edited as it is written"),
    ],
)
def test_what_cannot_be_pinned_is_one_line(text: str, says: str) -> None:
    with pytest.raises(ParamsError) as caught:
        pinned(text, NAME, COMMIT)
    assert str(caught.value).startswith(f"params.yaml: {says}") and str(caught.value).isprintable()


LINES = [
    "model:",
    "  source: organism",
    "  source: /a",
    "  revision: null",
    "  dtype: auto",
    "  # note",
    "",
    "gates: []",
]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(LINES), max_size=8), st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_whatever_the_file_is_the_two_keys_alone_change_or_nothing_does(
    lines: list[str], newline: str, ends: bool
) -> None:
    text = newline.join(lines) + (newline if ends else "")
    try:
        changed = pinned(text, NAME, COMMIT)
    except ParamsError:
        return
    before, after = parse_mapping(text, "x"), parse_mapping(changed, "x")
    assert after == {**before, "model": {**(before.get("model") or {}), "source": NAME, "revision": COMMIT}}
    assert changed.count("# note") == text.count("# note")
