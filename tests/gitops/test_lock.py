"""What dvc.lock says: which stages ran and why, what they read and wrote, and of which bytes."""

import pytest

from excise.gitops.lock import LockError, lock_changes, read_lock
from excise.gitops.models import folder_md5
from excise.plumbing.errors import StageError
from schemas.basis import plain_yaml
from schemas.gitops import LockChanges, StageChange
from tests.projects import ROOT, Project


def stage(name: str, deps: dict[str, str], outs: dict[str, str], cmd: str = "exec python") -> str:
    """One stage's entry, its files by path and digest."""
    lines = [f"  {name}:", f"    cmd: {cmd}"]
    for kind, files in (("deps", deps), ("outs", outs)):
        lines.append(f"    {kind}:")
        for path, md5 in files.items():
            lines += [f"    - path: {path}", "      hash: md5", f"      md5: {md5 * 32}", "      size: 1"]
    return "\n".join(lines) + "\n"


def lock(*stages: str) -> str:
    return "schema: '2.0'\nstages:\n" + "".join(stages)


MEASURE = stage("measure", {"artifacts/prompts": "a"}, {"artifacts/directions.json": "b"})
ABLATE = stage("ablate", {"artifacts/params/ablate.json": "c", "models/base": "d"}, {"models/ablated": "e"})


def only(changes: LockChanges) -> StageChange:
    (change,) = changes.stages
    return change


def test_the_same_lock_has_no_changes() -> None:
    assert lock_changes(lock(MEASURE, ABLATE), lock(MEASURE, ABLATE)) == LockChanges(stages=[], same=2)


def test_the_order_of_stages_and_files_is_no_change() -> None:
    turned = stage("ablate", {"models/base": "d", "artifacts/params/ablate.json": "c"}, {"models/ablated": "e"})
    assert lock_changes(lock(MEASURE, ABLATE), lock(turned, MEASURE)).stages == []


def test_a_stage_is_named_with_the_inputs_and_outputs_that_changed() -> None:
    other = stage("ablate", {"artifacts/params/ablate.json": "f", "models/base": "d"}, {"models/ablated": "f"})
    changes = lock_changes(lock(MEASURE, ABLATE), lock(MEASURE, other))
    assert changes.same == 1
    assert only(changes) == StageChange(
        stage="ablate",
        kind="changed",
        command=False,
        dependencies=["artifacts/params/ablate.json"],
        outputs=["models/ablated"],
    )


def test_inputs_that_are_new_or_gone_are_changed_inputs() -> None:
    other = stage("ablate", {"models/base": "d", "excise/edit": "f"}, {"models/ablated": "e"})
    change = only(lock_changes(lock(ABLATE), lock(other)))
    assert change.dependencies == ["excise/edit", "artifacts/params/ablate.json"] and change.outputs == []


def test_another_command_is_told() -> None:
    other = stage("measure", {"artifacts/prompts": "a"}, {"artifacts/directions.json": "b"}, cmd="python -m x")
    change = only(lock_changes(lock(MEASURE), lock(other)))
    assert change.command and not change.dependencies and not change.outputs


def test_other_bytes_from_the_same_inputs_are_told() -> None:
    other = stage("measure", {"artifacts/prompts": "a"}, {"artifacts/directions.json": "f"})
    change = only(lock_changes(lock(MEASURE), lock(other)))
    assert change.outputs == ["artifacts/directions.json"] and not change.command and not change.dependencies


def test_stages_that_are_new_or_gone_are_told_apart() -> None:
    changes = lock_changes(lock(MEASURE), lock(ABLATE))
    assert [(change.stage, change.kind) for change in changes.stages] == [("ablate", "new"), ("measure", "gone")]


def test_without_an_earlier_lock_every_stage_is_new() -> None:
    changes = lock_changes(None, lock(MEASURE, ABLATE))
    assert [change.kind for change in changes.stages] == ["new", "new"] and changes.same == 0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "- a list",
        "{",
        "stages: 1",
        "stages: {measure: [1]}",
        "stages: {measure: {deps: {path: x}}}",
        "a: &a [*a]",
        "a: 1",
        "stages: []",
        "stages: {ablate: 3}",
        "stages: {ablate: {outs: [3]}}",
        "report/other-file",
    ],
)
def test_what_is_no_lock_is_one_line(text: str) -> None:
    with pytest.raises(LockError, match=r"^dvc\.lock: ") as error:
        lock_changes(lock(MEASURE), text)
    assert "\n" not in str(error.value)


RECORDED = """
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
    recorded = read_lock(RECORDED)
    assert recorded.model == "cc.dir"
    assert recorded.wrote("measure") == {"artifacts/directions.json": "aa"}
    recorded.check_is_whole("0" * 40)


def test_a_stage_that_did_not_follow_its_input_is_named() -> None:
    text = RECORDED.replace(
        "directions.json, md5: aa}\n    - {path: artifacts/plain", "directions.json, md5: dd}\n    - {path: x"
    )
    with pytest.raises(StageError, match=r"ablate had not run on the artifacts/directions\.json"):
        read_lock(text).check_is_whole("0" * 40)


def read_on_the_way_to(path: str) -> list[tuple[str, str, str]]:
    """In dvc.yaml: which stage, on the way to a file, reads which file that which stage writes."""
    stages = plain_yaml.parse_mapping((ROOT / "dvc.yaml").read_text(), "dvc.yaml")["stages"]
    writes = {file: name for name, stage in stages.items() for out in stage.get("outs", ()) for file in as_names(out)}
    read = [(writes[path], file, writes[file]) for file in stages[writes[path]]["deps"] if file in writes]
    return read + [one for _, file, _ in read for one in read_on_the_way_to(file)]


def as_names(out: str | dict[str, object]) -> list[str]:
    return [out] if isinstance(out, str) else [*out]


def test_every_stage_that_leads_to_the_model_must_have_followed() -> None:
    steps = {*read_on_the_way_to("models/ablated")}
    assert {reader for reader, _, _ in steps} == {"organism", "prepare", "measure", "directions", "ablate"}
    for reader, path, writer in steps:
        whole = read_lock(lock(stage(writer, {"x": "c"}, {path: "a"}), stage(reader, {path: "a"}, {"y": "c"})))
        whole.check_is_whole("0" * 40)
        stale = read_lock(lock(stage(writer, {"x": "c"}, {path: "b"}), stage(reader, {path: "a"}, {"y": "c"})))
        with pytest.raises(StageError, match=f"{reader} had not run on the {path}"):
            stale.check_is_whole("0" * 40)
        assert (whole.difference(stale) or "").startswith(f"{path} (")


def test_the_first_difference_is_that_of_the_earliest_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = read_lock(RECORDED)
    assert recorded.difference(recorded) is None
    other = read_lock(RECORDED.replace("aa", "dd").replace("cc", "ee"))
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    found = recorded.difference(other) or ""
    assert found.startswith("artifacts/directions.json (measured bytes depend on the number of CPU threads")
    assert "OMP_NUM_THREADS, 3 here" in found and "hardware" in found
    only_model = read_lock(RECORDED.replace("cc", "ee"))
    assert (recorded.difference(only_model) or "").startswith("models/ablated (")
