"""Two branches that each ran become one: parameters and code are merged, and what stages wrote is of one run."""

import shutil
import subprocess
from pathlib import Path

import pytest

from excise.gitops.lock import LOCK
from excise.gitops.merging import finish_merge
from excise.plumbing.errors import StageError
from excise.plumbing.graph import GRAPH, read_stages
from schemas.wording import ParamsError
from tests.projects import ROOT, Project

PARAMS = "# a\n# b\ngates: []\n# c\n# d\n"


def state(project: Project) -> tuple[str, dict[str, bytes]]:
    """The index, and every file that git could see."""
    names = project.check("git", "ls-files", "--cached", "--others", "--exclude-standard", "-z").split("\0")
    files = {name: project.folder / name for name in names if name}
    return project.check("git", "ls-files", "--stage"), {n: f.read_bytes() for n, f in files.items() if f.is_file()}


def merge(project: Project, branch: str) -> "subprocess.CompletedProcess[str]":
    return project.run("git", "merge", branch)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("device: auto ", "device: cpu  ", marks=pytest.mark.slow),
        pytest.param("scale: 1.4", "scale: 0.57", marks=pytest.mark.nightly),
    ],
)
def test_of_two_pull_requests_the_second_runs_only_what_the_first_changes(project: Project, old: str, new: str) -> None:
    project.check("git", "branch", "--move", "main")
    project.check("git", "checkout", "--quiet", "-b", "first")
    project.replace("at_most: 0.15", "at_most: 0.57")
    assert project.repro() == ["params", "report"]
    project.commit("a gate")
    project.check("git", "checkout", "--quiet", "-b", "second", "main")
    project.check("dvc", "checkout")
    project.replace(old, new)
    project.repro()
    project.commit("something else")
    before = project.hashes()
    project.check("git", "checkout", "--quiet", "main")
    project.check("git", "merge", "--quiet", "first")

    project.check("git", "checkout", "--quiet", "second")
    assert merge(project, "main").returncode != 0
    done = project.excise("merge")
    assert done.returncode == 0 and "these stages run: params, report\n" in done.stdout, done.stderr
    assert project.repro() == ["params", "report"]
    names = done.stdout.partition("`git add ")[2].partition("`")[0].split()
    project.check("git", "add", *names)
    project.check("git", "commit", "--quiet", "--no-edit")

    assert not project.check("git", "status", "--porcelain")
    assert "up to date" in project.check("dvc", "status")
    assert project.repro() == []
    params = (project.folder / "params.yaml").read_text()
    assert new in params and "at_most: 0.57" in params
    assert "0.57" in (project.folder / "gates.json").read_text()
    assert project.hashes()["models/ablated"] == before["models/ablated"]
    assert len(project.check("git", "log", "-1", "--format=%P").split()) == 2


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """One stage that ran, which writes a file into the cache and a folder into git."""
    project = Project(tmp_path_factory.mktemp("base"))
    folder = project.folder
    project.check("git", "init", "--quiet", "--initial-branch", "main")
    project.check("dvc", "init", "--quiet")
    (folder / "params.yaml").write_text(PARAMS)
    (folder / "code.py").write_text("1\n")
    (folder / "source").write_text("a\nb\nc\nd\ne\n")
    (folder / "dvc.yaml").write_text(
        "stages:\n  copy:\n    cmd: cp source kept; rm -rf shown; mkdir shown; split -l 1 source shown/line-\n"
        "    deps: [source]\n    outs: [kept, shown: {cache: false}]\n"
    )
    project.repro()
    project.commit("base")
    return project


@pytest.fixture
def small(base: Project, tmp_path: Path) -> Project:
    """A copy of it, to be changed."""
    shutil.copytree(base.folder, tmp_path / "project")
    return Project(tmp_path / "project")


def diverge(project: Project, file: str, ours: str, theirs: str, run: bool = True) -> None:
    """On main the file is `theirs`, on the branch it is `ours`, both recorded."""
    for branch, text in (("main", theirs), ("branch", ours)):
        if branch != "main":
            project.check("git", "checkout", "--quiet", "-b", branch, "main~")
        (project.folder / file).write_text(text)
        if run:
            project.repro()
        project.commit(f"{file} on {branch}")


LONGER, SHORTER = "a\nb\nc\nd\ne\nf\n", "A\nb\nc\n"


@pytest.mark.parametrize(("ours", "theirs"), [(LONGER, SHORTER), (SHORTER, LONGER)])
def test_generated_files_are_ours_also_where_one_side_added_or_deleted_them(
    small: Project, ours: str, theirs: str
) -> None:
    diverge(small, "source", ours, theirs)
    recorded = state(small)[1]
    merge(small, "main")
    (small.folder / "source").write_text("A\nb\nc\nd\ne\nf\n")
    small.check("git", "add", "source")
    told = finish_merge(small.folder)
    assert "these stages run: copy\n" in told
    files = state(small)[1]
    assert {n: d for n, d in files.items() if n != "source"} == {n: d for n, d in recorded.items() if n != "source"}
    assert not small.check("git", "ls-files", "--unmerged")
    assert small.repro() == ["copy"]


def test_a_mixture_that_git_made_without_a_conflict_is_undone(small: Project) -> None:
    diverge(small, "source", "a\nb\nc\nd\nE\n", "A\nb\nc\nd\ne\n")
    merge(small, "main")
    line = small.folder / "shown/line-aa"
    assert line.read_text() == "A\n"  # theirs, beside a dvc.lock of ours
    finish_merge(small.folder)
    assert line.read_text() == "a\n"
    assert (small.folder / "source").read_text() == "A\nb\nc\nd\nE\n"


def test_twice_is_as_once_and_results_of_a_run_are_kept(small: Project) -> None:
    diverge(small, "source", "a\nb\nc\nd\nE\n", "A\nb\nc\nd\ne\n")
    merge(small, "main")
    told, once = finish_merge(small.folder), state(small)
    assert finish_merge(small.folder) == told and state(small) == once
    small.repro()
    ran = state(small)[1]
    assert "next: `git commit`" in finish_merge(small.folder)
    assert state(small)[1] == ran
    small.check("git", "commit", "--quiet", "--no-edit")
    assert not small.check("git", "status", "--porcelain")


def test_a_merge_that_changes_no_input_runs_nothing(small: Project) -> None:
    diverge(small, "params.yaml", PARAMS.replace("# a", "# A"), PARAMS.replace("# d", "# D"), run=False)
    small.check("git", "merge", "--no-commit", "main")
    assert "next: `git commit`" in finish_merge(small.folder)


def test_a_conflict_in_params_is_one_line_and_changes_nothing(small: Project) -> None:
    diverge(small, "params.yaml", PARAMS.replace("# b", "# ours"), PARAMS.replace("# b", "# theirs"), run=False)
    merge(small, "main")
    for _ in ("unmerged", "added with its markers"):
        before = state(small)
        with pytest.raises(StageError, match=r"^params\.yaml holds conflict markers of a merge; resolve it"):
            finish_merge(small.folder)
        assert state(small) == before
        small.check("git", "add", "params.yaml")


def test_params_that_a_person_resolved_are_staged_as_they_are(small: Project) -> None:
    diverge(small, "params.yaml", PARAMS.replace("# b", "# ours"), PARAMS.replace("# b", "# theirs"), run=False)
    merge(small, "main")
    resolved = PARAMS.replace("# b", "# both")
    (small.folder / "params.yaml").write_text(resolved)
    finish_merge(small.folder)
    assert small.check("git", "show", ":params.yaml") == resolved == (small.folder / "params.yaml").read_text()


@pytest.mark.parametrize("resolved", ["gates: []\ngates: []\n", "nonsense: 1\n", "[]\n"])
def test_params_that_cannot_be_read_are_named_and_nothing_changes(small: Project, resolved: str) -> None:
    diverge(small, "params.yaml", PARAMS.replace("# b", "# ours"), PARAMS.replace("# b", "# theirs"), run=False)
    merge(small, "main")
    (small.folder / "params.yaml").write_text(resolved)
    before = state(small)
    with pytest.raises(ParamsError, match=r"^params\.yaml: "):
        finish_merge(small.folder)
    assert state(small) == before


@pytest.mark.parametrize("file", ["code.py", "dvc.yaml"])
def test_a_conflict_in_another_file_is_one_line_and_changes_nothing(small: Project, file: str) -> None:
    text = (small.folder / file).read_text()
    diverge(small, file, f"# ours\n{text}", f"# theirs\n{text}", run=False)
    merge(small, "main")
    before = state(small)
    with pytest.raises(StageError, match=rf"^{file} holds conflict markers of a merge; resolve it"):
        finish_merge(small.folder)
    assert state(small) == before
    (small.folder / file).write_text(text)
    with pytest.raises(StageError, match=rf"^{file} is in conflict; resolve it, `git add` it"):
        finish_merge(small.folder)
    (small.folder / file).write_bytes(before[1][file])
    small.check("git", "add", file)
    with pytest.raises(StageError, match=rf"^{file} holds conflict markers of a merge; resolve it"):
        finish_merge(small.folder)
    (small.folder / file).write_text(text)
    small.check("git", "add", file)
    finish_merge(small.folder)


def test_a_conflict_beside_a_project_in_a_folder_is_seen(small: Project, tmp_path: Path) -> None:
    shutil.copytree(small.folder, tmp_path / "outer/inner", ignore=shutil.ignore_patterns(".git"))
    outer, inner = Project(tmp_path / "outer"), Project(tmp_path / "outer/inner")
    outer.check("git", "init", "--quiet", "--initial-branch", "main")
    outer.commit("base")
    diverge(inner, "../code.py", "ours\n", "theirs\n", run=False)
    merge(inner, "main")
    with pytest.raises(StageError, match=r"^\.\./code\.py holds conflict markers"):
        finish_merge(inner.folder)


def test_without_a_merge_there_is_one_line(small: Project) -> None:
    with pytest.raises(StageError, match=r"^no merge is in progress; `git merge origin/main` begins one$"):
        finish_merge(small.folder)


def test_during_a_rebase_there_is_one_line(small: Project) -> None:
    diverge(small, "code.py", "ours\n", "theirs\n", run=False)
    assert small.run("git", "rebase", "main").returncode != 0
    with pytest.raises(StageError, match=r"^a rebase is in progress, and this command is for merges"):
        finish_merge(small.folder)


def test_git_mixes_nothing_that_stages_write() -> None:
    """`.gitattributes` names what dvc.yaml writes into git, and no more."""
    stages = read_stages((ROOT / GRAPH).read_text()).values()
    written = {LOCK, *(path for stage in stages for path in stage.committed)}
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
    told = subprocess.run(
        ["git", "check-attr", "--stdin", "merge", "linguist-generated"],
        cwd=ROOT, check=True, capture_output=True, text=True, input="\n".join(tracked),
    ).stdout  # fmt: skip
    for attribute, value in (("merge", "unset"), ("linguist-generated", "set")):
        found = {line.split(": ")[0] for line in told.splitlines() if line.endswith(f": {attribute}: {value}")}
        assert found == {path for path in tracked if any(Path(path).is_relative_to(each) for each in written)}
