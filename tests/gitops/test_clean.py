"""What nothing names any more goes on request, and nothing else does: in real repositories of git and DVC."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from filelock import FileLock

from excise.gitops import cleaning
from excise.gitops.lock import md5_of
from excise.gitops.trees import WITHIN, commit_tree
from excise.judges.api import CACHE
from excise.plumbing.errors import StageError
from tests.projects import Project, one_line

pytestmark = pytest.mark.slow

KEPT = (
    "main",
    "branch",
    "annotated",
    "lightweight",
    "remote-tracking",
    "pull",
    "nested",
    "experiment",
    "stash",
    "older stash",
    "here",
)
"""Each names a result that nothing else does."""
COMMITTED = ("parent", "main", "deleted", "branch", "annotated", "lightweight", "remote-tracking", "pull", "nested")
DAY = 24 * 60 * 60
GRAPH = """
stages:
  copy: {cmd: "mkdir -p kept; cp source kept/whole; echo also {source} > kept/part", deps: [source], outs: [kept]}
  show: {cmd: cp source shown, deps: [source], outs: [shown: {cache: false}]}
""".replace("{source}", "$(cat source)")


def clean(
    project: Project,
    *,
    remove: bool = True,
    all_commits: bool = False,
    projects: tuple[Path, ...] = (),
    shared: bool = False,
    days: int = 90,
) -> None:
    cleaning.clean(project.folder, remove, all_commits, projects, shared, days)


@dataclass(frozen=True)
class History:
    """A project with a cache of its own, and for each name the commit that recorded its result."""

    project: Project
    commits: dict[str, str]

    @property
    def cache(self) -> Path:
        return self.project.folder / ".dvc/cache"

    def objects(self) -> dict[str, bytes]:
        """Every file of the cache."""
        files = (path for path in self.cache.rglob("*") if path.is_file())
        return {path.relative_to(self.cache).as_posix(): path.read_bytes() for path in files}

    def of(self, name: str) -> set[str]:
        """The objects of a result that no other one has."""
        files = {"whole": f"{name}\n", "part": f"also {name}\n"}
        md5s = {file: md5_of(text.encode()) for file, text in files.items()}
        listed = json.dumps([{"md5": md5, "relpath": file} for file, md5 in sorted(md5s.items())])
        found = {*md5s.values(), f"{md5_of(listed.encode())}.dir"}
        return {f"files/md5/{md5[:2]}/{md5[2:]}" for md5 in found}


def result(project: Project, name: str) -> None:
    (project.folder / "source").write_text(f"{name}\n")
    project.repro()


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> History:
    """Not to be changed: take a `history`."""
    project = Project(tmp_path_factory.mktemp("recorded") / "project")
    project.folder.mkdir()
    project.check("git", "init", "--quiet", "--initial-branch", "main")
    project.check("dvc", "init", "--quiet")
    project.check("dvc", "config", "core.analytics", "false")
    project.check("dvc", "config", "cache.type", "hardlink,copy")
    (project.folder / "dvc.yaml").write_text(GRAPH)
    commits = {}
    for name in COMMITTED:
        result(project, name)
        commits[name] = project.commit(name)
        if name == "main":
            project.check("git", "checkout", "--quiet", "--detach")
        elif name != "parent":
            project.check("git", "checkout", "--quiet", "--detach", "main")
    references = {
        "branch": "refs/heads/branch",
        "deleted": "refs/heads/deleted",
        "lightweight": "refs/tags/lightweight",
        "remote-tracking": "refs/remotes/origin/remote-tracking",
        "pull": "refs/pull/7/head",
    }
    for name, reference in references.items():
        project.check("git", "update-ref", reference, commits[name])
    for tag, what in (("annotated", commits["annotated"]), ("inner", commits["nested"]), ("outer", "inner")):
        project.check("git", "tag", "--annotate", "--message", "kept", tag, what)
    project.check("git", "tag", "--delete", "inner")
    project.check("git", "checkout", "--quiet", "main")
    (project.folder / "source").write_text("experiment\n")
    project.check("dvc", "exp", "run", "--name", "experiment")
    project.check("git", "reset", "--quiet", "--hard")
    for name in ("older stash", "stash"):
        result(project, name)
        project.check("git", "stash")
    project.check("git", "branch", "--quiet", "--delete", "--force", "deleted")
    result(project, "here")
    return History(project, commits)


@pytest.fixture
def history(recorded: History, tmp_path: Path) -> History:
    """A copy of it, to be changed."""
    subprocess.run(["cp", "--archive", str(recorded.project.folder), str(tmp_path / "project")], check=True)
    return History(Project(tmp_path / "project"), recorded.commits)


def gone(history: History, before: dict[str, bytes]) -> set[str]:
    """What the cache lost; the rest must be as it was."""
    after = history.objects()
    assert after.items() <= before.items()
    return before.keys() - after.keys()


def test_what_only_a_deleted_branch_named_goes_and_all_else_stays(history: History) -> None:
    before = history.objects()
    assert all(history.of(name) <= before.keys() for name in (*KEPT, "deleted", "parent"))
    clean(history.project)
    lost = gone(history, before)
    assert {path for path in lost if not path.startswith("runs/")} == history.of("deleted") | history.of("parent")
    assert len([path for path in lost if path.startswith("runs/")]) == 2
    assert not any(history.of(name) & lost for name in KEPT)
    assert not [folder for folder in (history.cache / "runs").glob("*/*") if not any(folder.iterdir())]


def test_afterwards_everything_that_was_kept_can_be_checked_out(history: History) -> None:
    project = history.project
    clean(project)
    assert "up to date" in project.check("dvc", "status")
    project.check("git", "checkout", "--quiet", "--force", "main")
    for name in ("branch", "remotes/origin/remote-tracking"):
        project.check("git", "checkout", "--quiet", name)
        project.check("dvc", "checkout")
        assert "up to date" in project.check("dvc", "status")
        assert (project.folder / "kept/whole").read_text() == f"{name.split('/')[-1]}\n"
        assert project.repro() == []
    project.check("git", "checkout", "--quiet", "main")
    project.check("git", "stash", "pop")
    project.check("dvc", "checkout")
    assert (project.folder / "kept/whole").read_text() == "stash\n"
    project.check("git", "checkout", "--quiet", "--force", "main")
    project.check("dvc", "exp", "apply", "experiment")
    assert (project.folder / "kept/whole").read_text() == "experiment\n"


def test_a_record_of_a_run_that_is_kept_still_serves(history: History) -> None:
    project = history.project
    clean(project)
    project.check("git", "checkout", "--quiet", "--force", "main")
    (project.folder / "source").write_text("branch\n")
    assert project.repro() == ["show"]  # DVC records no run that writes into git


def test_nothing_is_removed_unless_it_is_said(history: History, capsys: pytest.CaptureFixture[str]) -> None:
    before = history.objects()
    clean(history.project, remove=False)
    assert history.objects() == before
    listed = capsys.readouterr().out
    size = sum(len(before[path]) for path in history.of("deleted") | history.of("parent"))
    assert f"{6:>8}  {size / 2**20:>10,.1f}\n" in listed and listed.endswith("(--yes) removes this\n")
    clean(history.project)
    assert capsys.readouterr().out.endswith("Removed\n")
    clean(history.project)
    assert capsys.readouterr().out.endswith("There is nothing to remove\n")


def test_with_all_commits_those_before_the_newest_are_kept(history: History) -> None:
    before = history.objects()
    clean(history.project, all_commits=True)
    assert {path for path in gone(history, before) if not path.startswith("runs/")} == history.of("deleted")


@pytest.mark.parametrize("where", ["MERGE_HEAD", "worktree", "index", "data file"])
def test_what_git_is_in_the_middle_of_is_kept(history: History, tmp_path: Path, where: str) -> None:
    project, commit = history.project, history.commits["deleted"]
    if where == "worktree":
        project.check("git", "worktree", "add", "--quiet", "--detach", str(tmp_path / "other"), commit)
    elif where == "MERGE_HEAD":
        (project.folder / ".git/MERGE_HEAD").write_text(f"{commit}\n")
    elif where == "index":
        project.check("git", "update-index", "--cacheinfo", f"100644,{blob(project, commit)},dvc.lock")
    else:
        (listed,) = (path for path in history.of("deleted") if path.endswith(".dir"))
        md5 = listed.removeprefix("files/md5/").replace("/", "")
        (project.folder / "kept.dvc").write_text(f"outs:\n- md5: {md5}\n  hash: md5\n  path: other\n")
    before = history.objects()
    clean(project)
    assert {path for path in gone(history, before) if not path.startswith("runs/")} == history.of("parent")


def blob(project: Project, commit: str) -> str:
    return project.check("git", "rev-parse", f"{commit}:dvc.lock").strip()


def test_a_shallow_clone_is_refused(history: History, tmp_path: Path) -> None:
    history.project.check("git", "stash")
    source = f"file://{history.project.folder}"
    subprocess.run(["git", "clone", "--quiet", "--depth", "1", source, str(tmp_path / "shallow")], check=True)
    with pytest.raises(StageError, match=r"is a shallow clone.*`git fetch --unshallow`"):
        clean(Project(tmp_path / "shallow"))


@pytest.mark.parametrize(
    "text", ["<<<<<<< HEAD\nstages: {}\n=======\n>>>>>>> main\n", "stages: [", "other: 1\n", "\xff"]
)
@pytest.mark.parametrize("where", ["here", "at a commit"])
def test_a_lock_that_cannot_be_read_stops_it(history: History, text: str, where: str) -> None:
    project = history.project
    lock = (project.folder / "dvc.lock").read_bytes()
    (project.folder / "dvc.lock").write_bytes(text.encode("latin-1"))
    if where == "at a commit":
        project.check("git", "checkout", "--quiet", "-b", "broken")
        project.commit("broken")
        project.check("git", "checkout", "--quiet", "main")
        (project.folder / "dvc.lock").write_bytes(lock)
    before = history.objects()
    with pytest.raises(StageError, match=r"^dvc\.lock (?:at|in) .* cannot be read, so it is not known what it needs"):
        clean(project)
    assert history.objects() == before


def test_a_list_of_a_folder_that_was_changed_stops_it(history: History) -> None:
    (listed,) = (path for path in history.of("branch") if path.endswith(".dir"))
    (history.cache / listed).unlink()
    (history.cache / listed).write_text("[]")
    before = history.objects()
    with pytest.raises(StageError, match=r"should list a folder's files and was changed"):
        clean(history.project)
    assert history.objects() == before


@pytest.fixture
def shared(history: History, tmp_path: Path) -> Iterator[tuple[History, Project]]:
    """The cache lies elsewhere, and another clone uses it as well, which made something of its own there."""
    history.cache.rename(tmp_path / "cache")
    history.cache.symlink_to(tmp_path / "cache")  # for `objects` alone
    history.project.check("dvc", "config", "--local", "cache.dir", str(tmp_path / "cache"))
    shutil.copytree(history.project.folder, tmp_path / "other", symlinks=True, ignore=shutil.ignore_patterns("cache"))
    other = Project(tmp_path / "other")
    result(other, "of the other")
    yield history, other


def test_a_shared_cache_is_left_alone(
    shared: tuple[History, Project], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    history, _ = shared
    before = history.objects()
    clean(history.project)
    assert history.objects() == before
    assert f"{tmp_path / 'cache'} is shared, so it is left alone" in capsys.readouterr().out


def test_of_a_shared_cache_goes_what_no_named_clone_needs(shared: tuple[History, Project]) -> None:
    history, other = shared
    before = history.objects()
    clean(history.project, projects=(other.folder,))
    lost = gone(history, before)
    assert history.of("deleted") <= lost and not history.of("of the other") & lost
    clean(history.project, shared=True)
    assert history.of("of the other") <= gone(history, before)


def test_a_clone_with_another_cache_is_refused(
    history: History, shared: tuple[History, Project], tmp_path: Path
) -> None:
    _, other = shared
    other.check("dvc", "config", "--local", "cache.dir", str(tmp_path / "third"))
    with pytest.raises(StageError, match="uses another cache"):
        clean(history.project, projects=(other.folder,))
    with pytest.raises(StageError, match="is not a folder"):
        clean(history.project, projects=(tmp_path / "nowhere",))


def test_a_cache_that_a_group_may_write_is_shared_wherever_it_lies(history: History) -> None:
    history.project.check("dvc", "config", "--local", "cache.shared", "group")
    before = history.objects()
    clean(history.project)
    assert history.objects() == before


def test_while_a_stage_runs_nothing_goes(history: History) -> None:
    before = history.objects()
    user = {"pid": os.getpid(), "cmd": "dvc repro"}
    rwlock = history.project.folder / ".dvc/tmp/rwlock"
    rwlock.write_text(json.dumps({"write": {"/kept": user}}))
    with pytest.raises(StageError, match=rf"^process {os.getpid()} runs stages in "):
        clean(history.project)
    rwlock.write_text('{"write')
    with pytest.raises(StageError, match="is being written, or DVC was killed"):
        clean(history.project)
    rwlock.write_text(json.dumps({"read": {"/source": [{**user, "pid": 2**22 - 3}]}}))  # it was killed
    assert history.objects() == before
    clean(history.project)
    assert history.of("deleted") <= gone(history, before)


def test_while_dvc_or_make_model_is_at_work_nothing_goes(history: History) -> None:
    before = history.objects()
    with commit_tree(history.project.folder, "HEAD"), pytest.raises(StageError, match="`make model` is at work"):
        clean(history.project)
    code = "import time; from dvc.repo import Repo\nwith Repo().lock: print('locked', flush=True); time.sleep(60)"
    process = subprocess.Popen(
        [shutil.which("python") or "python", "-c", code], cwd=history.project.folder, stdout=subprocess.PIPE, text=True
    )
    with process:
        try:
            assert process.stdout and process.stdout.readline() == "locked\n"
            with pytest.raises(StageError, match=r"nothing was removed, as .* is in use"):
                clean(history.project)
        finally:
            process.kill()
    assert history.objects() == before


def test_what_a_killed_make_model_left_goes(history: History) -> None:
    project = history.project
    place = project.folder / WITHIN / "left"
    place.mkdir(parents=True)
    with FileLock(place / "lock"):
        pass
    project.check("git", "worktree", "add", "--quiet", "--detach", str(place / "tree"), history.commits["branch"])
    clean(project, remove=False)
    assert place.exists()
    clean(project)
    assert not place.exists() and project.check("git", "worktree", "list").count("\n") == 1


def test_copies_that_were_cut_short_go_when_they_are_old(history: History) -> None:
    names = ("files/md5/.abcdefghijklmnopqrstuv.tmp", f"files/md5/ab/{'0' * 30}.abcdefghijklmnopqrstuv.tmp")
    for age in (0, 2 * DAY):
        for name in names:
            path = history.cache / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"x" * 100)
            os.utime(path, (time.time() - age,) * 2)
        (history.cache / "files/md5/ab/mine.tmp").write_text("no file of DVC's")
        clean(history.project)
        assert all((history.cache / name).exists() == (age == 0) for name in names)
    assert (history.cache / "files/md5/ab/mine.tmp").exists()


def test_verdicts_and_unfinished_answers_go_when_they_were_long_not_used(history: History) -> None:
    assert cleaning.VERDICTS == CACHE
    folder = history.project.folder
    ages = {
        ".excise/judge/old.json": (100, 100),
        ".excise/judge/read.json": (100, 10),
        ".excise/judge/new.json": (10, 10),
        ".excise/unfinished/answer@base/old/task.jsonl": (100, 100),
        ".excise/unfinished/answer@base/new/task.jsonl": (10, 10),
        ".excise/digests.json": (100, 100),
    }
    for name, (written, read) in ages.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
        os.utime(folder / name, (time.time() - read * DAY, time.time() - written * DAY))
    clean(history.project)
    left = {path.relative_to(folder).as_posix() for path in (folder / ".excise").rglob("*") if path.is_file()}
    assert left == {name for name in ages if "old" not in name}
    clean(history.project, days=5)
    assert [path.name for path in (folder / ".excise").rglob("*") if path.is_file()] == ["digests.json"]


def test_the_command_works_without_a_terminal_and_asks_nothing(project: Project, finished: Project) -> None:
    cache = Path(finished.check("dvc", "cache", "dir").strip())
    done = project.excise("clean", "--yes")
    assert done.returncode == 0 and f"{cache} is shared, so it is left alone" in done.stdout
    shutil.copytree(cache, project.folder / ".dvc/cache", copy_function=os.link)
    project.check("dvc", "config", "--local", "--unset", "cache.dir")
    extra = project.folder / ".dvc/cache/files/md5/00" / ("0" * 30)
    extra.parent.mkdir(exist_ok=True)
    extra.write_text("of nothing")
    assert "Nothing was removed" in project.check("python", "-m", "excise", "clean") and extra.exists()
    project.check("python", "-m", "excise", "clean", "--yes")
    assert not extra.exists()
    assert "up to date" in project.check("dvc", "status")
    assert project.repro() == []
    assert "is not a folder" in one_line(project.excise("clean", "--projects", "nowhere"))
