"""What `dvc status` says of a past commit's working tree."""

import json

import pytest

from excise.gitops.trees import changed_since


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ([{"changed deps": {"data": "deleted"}}, {"changed outs": {"models/base": "not in cache"}}], None),
        ([{"changed deps": {"data": "deleted", "params.yaml": "modified"}}], "params.yaml"),
        ([{"changed outs": {"gates.json": "modified"}}], "gates.json"),
        (["changed command"], "command of ablate"),
        (["always changed"], None),
    ],
)
def test_what_is_not_there_yet_is_no_change_and_all_else_is(changes: list[object], expected: str | None) -> None:
    assert changed_since("WARNING: of DVC's\n" + json.dumps({"ablate": changes})) == expected
