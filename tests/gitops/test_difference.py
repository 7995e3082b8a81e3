"""What differs between two sides of a project, in real repositories."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from excise.gitops import sides
from excise.gitops.difference import difference
from excise.plumbing.errors import StageError
from schemas.evidence import Comparison, Comparisons, GateVerdicts, ParameterChange
from schemas.gitops import Difference
from tests.evidence_documents import BAD, GOOD, broken_rows, good_rows, row
from tests.projects import ROOT, Project

PARAMS = (ROOT / "params.yaml").read_text()
LOCK = "schema: '2.0'\nstages:\n  ablate:\n    cmd: x\n    deps:\n    - path: a\n      md5: {}\n"


def write(folder: Path, rows: list[Comparison], gates: GateVerdicts, params: str = PARAMS, digest: str = "one") -> None:
    """What a run leaves of what a comment reads."""
    (folder / "report/pictures").mkdir(parents=True, exist_ok=True)
    (folder / "params.yaml").write_text(params)
    (folder / "dvc.lock").write_text(LOCK.format(digest))
    (folder / "gates.json").write_text(gates.model_dump_json())
    (folder / "report/comparison.json").write_text(Comparisons(rows=rows).model_dump_json())
    (folder / "report/pictures/stream.svg").write_text("<svg/>")


@pytest.fixture
def repository(tmp_path: Path) -> Project:
    """`main` with good results, and a branch with another scale that broke the model, checked out."""
    project = Project(tmp_path / "project")
    project.folder.mkdir()
    project.check("git", "init", "--quiet", "--initial-branch", "main")
    write(project.folder, good_rows(), GOOD)
    project.commit("good")
    project.check("git", "checkout", "--quiet", "-b", "stronger")
    write(project.folder, broken_rows(), BAD, PARAMS.replace("scale: 1.4", "scale: 2.0"), "two")
    project.commit("broken")
    return project


def test_a_branch_is_compared_with_what_it_branched_off(repository: Project) -> None:
    base = repository.check("git", "rev-parse", "main").strip()
    repository.check("git", "checkout", "--quiet", "main")
    write(repository.folder, [], GOOD, PARAMS.replace("seed: 0", "seed: 7"))
    repository.commit("main went on")
    found = difference(repository.folder, "main", "stronger")
    assert (found.base, found.base_name) == (base, "main")
    assert found.head == repository.check("git", "rev-parse", "stronger").strip()
    assert found.parameters == [ParameterChange(key="ablate.rules.0.scale", before="1.4", after="2.0")]
    assert [change.dependencies for change in found.lock.stages] == [["a"]] and found.lock.same == 0
    assert found.before is not None and found.before.rows == good_rows() and found.before.gates == GOOD
    assert (found.now.rows, found.now.gates) == (broken_rows(), BAD)
    assert found.pictures == ["stream"] and found.uncommitted == []


def test_histories_with_nothing_in_common_are_compared_as_they_are(repository: Project) -> None:
    repository.check("git", "checkout", "--quiet", "--orphan", "alone")
    alone = repository.commit("alone")
    assert difference(repository.folder, "main", alone).base == repository.check("git", "rev-parse", "main").strip()


def test_of_a_commit_nothing_that_lies_in_the_folder_is_read(repository: Project) -> None:
    before = difference(repository.folder, "main", "stronger")
    for name in ("params.yaml", "dvc.lock", "gates.json", "report/comparison.json", "report/pictures/stream.svg"):
        (repository.folder / name).unlink()
    assert difference(repository.folder, "main", "stronger") == before


def test_what_is_not_committed_yet_is_read_and_named(repository: Project) -> None:
    assert difference(repository.folder, "main").uncommitted == []
    write(repository.folder, good_rows(), GOOD, PARAMS.replace("scale: 1.4", "scale: 0.5"), "two")
    found = difference(repository.folder, "main")
    assert found.uncommitted == ["params.yaml", "report/comparison.json", "gates.json"]
    assert found.now.rows == good_rows()
    assert found.parameters == [ParameterChange(key="ablate.rules.0.scale", before="1.4", after="0.5")]


def test_a_project_in_a_folder_of_its_repository_is_read_there(repository: Project) -> None:
    inner = repository.folder / "inner"
    write(inner, good_rows(), BAD)
    repository.commit("inner")
    for head in (None, "HEAD"):
        found = difference(inner, "main", head)
        assert found.now.rows == good_rows() and found.pictures == ["stream"]
        assert found.before is None and found.parameters is None and [one.kind for one in found.lock.stages] == ["new"]


@pytest.mark.parametrize("text", [None, '{"rows": [{"metric": "refusal.a.b", "other": 1}]}', "[]", "no JSON"])
def test_a_base_without_results_that_can_be_read_is_no_error(repository: Project, text: str | None) -> None:
    repository.check("git", "checkout", "--quiet", "main")
    comparison = repository.folder / "report/comparison.json"
    comparison.unlink() if text is None else comparison.write_text(text)
    (repository.folder / "dvc.lock").write_text("[")
    base = repository.commit("an earlier version")
    write(repository.folder, good_rows(), GOOD)
    found = difference(repository.folder, base)
    assert found.before is None and found.now.rows == good_rows()
    assert [change.kind for change in found.lock.stages] == ["new"]


def spoilt(found: Project, name: str, text: str | None) -> None:
    path = found.folder / name
    path.unlink() if text is None else path.write_text(text)


@pytest.mark.parametrize("committed", [False, True])
@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("params.yaml", None, "params.yaml is not there"),
        ("dvc.lock", None, "dvc.lock is not there"),
        ("gates.json", None, "gates.json is not there"),
        ("report/comparison.json", None, "comparison.json is not there"),
        ("params.yaml", "a: [", "params.yaml: line 1"),
        ("params.yaml", "report/comparison.json", "must hold a mapping"),
        ("dvc.lock", "stages: 3", "dvc.lock: stages"),
        ("gates.json", "{}", r"gates.json in .*\(verdict: Field required\)"),
        ("report/comparison.json", '{"rows": [{}]}', r"comparison.json in .*\(rows.0.metric: Field required\)"),
        ("report/comparison.json", "\ud83d\n" * 3, "comparison.json in .* is not whole JSON"),
    ],
)
def test_a_head_without_results_that_can_be_read_is_one_line(
    repository: Project, name: str, text: str | None, says: str, committed: bool
) -> None:
    spoilt(repository, name, None if text is None else text.encode(errors="replace").decode())
    if committed:
        repository.commit("spoilt")
    with pytest.raises(StageError, match=says) as error:
        difference(repository.folder, "main", "HEAD" if committed else None)
    assert "\n" not in str(error.value) and "dvc repro" in str(error.value)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda one: one.model_copy(update={"metric": "nogroup"}),
        lambda one: one.model_copy(update={"base": None}),
        lambda one: one.model_copy(update={"difference": None}),
        lambda one: one.model_copy(update={"metric": "drift.first_token_kl"}),
    ],
)
def test_rows_that_no_run_writes_are_refused(repository: Project, spoil: Callable[[Comparison], Comparison]) -> None:
    write(repository.folder, [spoil(row("refusal.task.refusal_rate", 1.0, 0.5))], GOOD)
    with pytest.raises(StageError, match=r"comparison\.json in \S+ has \"[a-z._]+\", which must be"):
        difference(repository.folder, "main")


@pytest.mark.parametrize("committed", [False, True])
@pytest.mark.parametrize("name", ["params.yaml", "dvc.lock", "gates.json", "report/comparison.json", "report"])
def test_a_link_is_never_followed(repository: Project, tmp_path: Path, name: str, committed: bool) -> None:
    secret = tmp_path / "secret"
    os.rename(repository.folder / name, secret)
    (repository.folder / name).symlink_to(secret)
    if committed:
        repository.commit("linked")
    with pytest.raises(StageError, match=r"is (behind a link|not a regular file|not there)"):
        difference(repository.folder, "main", "HEAD" if committed else None)


def test_linked_pictures_are_not_listed_from_elsewhere(repository: Project, tmp_path: Path) -> None:
    pictures = repository.folder / "report/pictures"
    os.rename(pictures, tmp_path / "elsewhere")
    pictures.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StageError, match="behind a link"):
        difference(repository.folder, "main")
    repository.commit("linked")
    assert difference(repository.folder, "main", "HEAD").pictures == []


@pytest.mark.parametrize("committed", [False, True])
def test_a_file_of_absurd_size_is_not_read(
    repository: Project, monkeypatch: pytest.MonkeyPatch, committed: bool
) -> None:
    monkeypatch.setattr(sides, "LARGEST", 100)
    with pytest.raises(StageError, match=r"params\.yaml in \S+ is too large"):
        difference(repository.folder, "main", "HEAD" if committed else None)


def test_what_is_no_regular_file_is_not_opened(repository: Project) -> None:
    (repository.folder / "gates.json").unlink()
    (repository.folder / "gates.json").mkdir()
    with pytest.raises(StageError, match=r"gates\.json in \S+ is not a regular file"):
        difference(repository.folder, "main")


def test_only_pictures_with_plain_names_are_listed(repository: Project) -> None:
    for name in ("a b.svg", "x).svg", "UPPER.svg", "stream.png", "é.svg", "new\nline.svg"):
        (repository.folder / "report/pictures" / name).write_text("<svg/>")
    assert difference(repository.folder, "main").pictures == ["stream"]
    repository.commit("pictures")
    assert difference(repository.folder, "main", "HEAD").pictures == ["stream"]


def test_a_base_that_is_no_commit_is_one_line(repository: Project) -> None:
    with pytest.raises(StageError, match="nowhere is no commit of this repository"):
        difference(repository.folder, "nowhere")


def test_a_difference_survives_being_written_down(repository: Project) -> None:
    found = difference(repository.folder, "main")
    assert Difference.model_validate_json(found.model_dump_json()) == found
