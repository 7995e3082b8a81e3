"""Tables stand between their marks, and nothing else of a document changes."""

from pathlib import Path

import pytest

from excise.gitops.experiments.tables import Row, command, empty_document, render, written_into
from schemas.experiments import Column
from schemas.wording import ParamsError

COLUMNS = [Column(title="refusal", metric="refusal.organism_harmful.refusal_rate")]
COLUMNS += [Column(title="a|b", metric="drift.first_token_kl")]


def test_a_row_shows_its_values_and_the_command_that_makes_it() -> None:
    rows = [
        Row("no edit", ("ablate.rules.0.scale=0",), (1.0, 0.0)),
        Row("one | two", ("prompts.system='a|`b`'", "ablate.targets=[mlp, router]"), (0.98765, None)),
        Row("broken", (), None),
    ]
    assert render(COLUMNS, rows).splitlines() == [
        r"| experiment | refusal | a\|b | command |",
        "| --- | ---: | ---: | --- |",
        "| no edit | 1.0000 | 0.0000 | `dvc exp run -S ablate.rules.0.scale=0` |",
        r"""| one \| two | 0.9877 |  | `` dvc exp run -S 'prompts.system='"'"'a\|`b`'"'"'' """
        "-S 'ablate.targets=[mlp, router]' `` |",
        "| broken | failed |  | `dvc exp run` |",
    ]


def test_a_command_is_quoted_for_the_shell() -> None:
    assert command(("a=[b, c]", "d=1")) == "dvc exp run -S 'a=[b, c]' -S d=1"


def test_only_what_stands_between_the_marks_changes() -> None:
    before = "# Mine\r\n\ntext\n<!-- table:begin a -->\nold\n<!-- table:end a -->\n\nmore  "
    after = written_into(before, {"a": "new"}, {"a": "A"}, "mine.md")
    assert after == before.replace("old", "new")
    assert written_into(after, {"a": "new"}, {"a": "A"}, "mine.md") == after


def test_a_document_without_marks_gets_them_at_its_end() -> None:
    document = empty_document("mine", Path("mine.yaml"))
    after = written_into(document, {"a": "one", "b": "two"}, {"a": "First", "b": "Second"}, "mine.md")
    assert after.startswith(document.rstrip())
    assert "## First\n\n<!-- table:begin a -->\none\n<!-- table:end a -->\n\n## Second\n" in after
    assert written_into(after, {"a": "one", "b": "two"}, {"a": "First", "b": "Second"}, "mine.md") == after


@pytest.mark.parametrize(
    "document",
    [
        "<!-- table:begin a -->",
        "<!-- table:end a -->\n<!-- table:begin a -->",
        "<!-- table:begin a -->\n<!-- table:end a -->\n" * 2,
    ],
)
def test_marks_that_do_not_pair_are_an_error(document: str) -> None:
    with pytest.raises(ParamsError, match="must hold"):
        written_into(document, {"a": ""}, {"a": "A"}, "mine.md")
