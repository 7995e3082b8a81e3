"""What dvc.lock says, and what `dvc status` says of it."""

import json

import pytest

from excise.gitops.recorded import folder_md5, parse_lock
from excise.gitops.tree import changed_since
from excise.plumbing.errors import StageError
from tests.projects import Project

LOCK = """
schema: '2.0'
stages:
  measure:
    cmd: python
    outs:
    - {path: artifacts/directions.json, md5: aa}
    - {path: artifacts/plain}
  ablate:
    cmd: python
    deps:
    - {path: artifacts/directions.json, md5: aa}
    - {path: stages/ablate.py, md5: bb}
    outs:
    - {path: models/ablated, md5: cc.dir}
"""


def test_a_folder_is_hashed_as_dvc_hashes_it(finished: Project) -> None:
    (nested := finished.folder / "models").is_dir()
    assert folder_md5(nested / "ablated") == finished.hashes()["models/ablated"]
    assert folder_md5(finished.folder / "results/ablated") == finished.hashes()["results/ablated"]


def test_what_a_lock_records_is_read() -> None:
    recorded = parse_lock(LOCK, "dvc.lock")
    assert recorded.model == "cc.dir"
    assert recorded.wrote["measure"] == {"artifacts/directions.json": "aa"}
    recorded.check_is_whole("0" * 40)


@pytest.mark.parametrize(
    "text", ["", "stages: []", "stages: {ablate: 3}", "stages: {ablate: {outs: [3]}}", "a: 1", "{"]
)
def test_what_is_no_lock_is_one_line(text: str) -> None:
    with pytest.raises(StageError, match=r"^dvc\.lock.*"):
        parse_lock(text, "dvc.lock")


def test_a_stage_that_did_not_follow_its_input_is_named() -> None:
    text = LOCK.replace(
        "directions.json, md5: aa}\n    - {path: artifacts/plain", "directions.json, md5: dd}\n    - {path: x"
    )
    with pytest.raises(StageError, match=r"ablate had not run on the artifacts/directions\.json"):
        parse_lock(text, "dvc.lock").check_is_whole("0" * 40)


def test_the_first_difference_is_that_of_the_earliest_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = parse_lock(LOCK, "dvc.lock")
    assert recorded.difference(recorded) is None
    other = parse_lock(LOCK.replace("aa", "dd").replace("cc", "ee"), "dvc.lock")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    found = recorded.difference(other) or ""
    assert found.startswith("artifacts/directions.json (measured bytes depend on the number of CPU threads")
    assert "OMP_NUM_THREADS, 3 here" in found and "hardware" in found
    only_model = parse_lock(LOCK.replace("cc", "ee"), "dvc.lock")
    assert (recorded.difference(only_model) or "").startswith("models/ablated (")


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
