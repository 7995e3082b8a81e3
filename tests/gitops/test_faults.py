"""Faults and kills while something is published, pushed, restored or released: after each, the same command without a
fault leaves all as it would be without any. Nothing is missing, and nothing is there twice. Of cases that take longer,
`make test-slow` runs a tenth, and `make test-nightly` the others.
"""

import contextlib
import os
import re
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from excise.gitops import publish
from excise.plumbing.errors import LONGEST_LINE, StageError
from excise.plumbing.files import md5_of_file
from tests.gitops.fake_github import FakeGitHub, Fault, fake_github, new_release
from tests.gitops.published import Published, prepare
from tests.pipeline.test_kills import Killer, files
from tests.projects import ROOT, Project, environment

FAULTS = [("500", False), ("500", True), ("503", True), ("cut", False), ("cut", True), ("cut within", True)]
FAULTS += [("no JSON", True), ("half of JSON", True), ("another list", True), ("another object", False)]
FAULTS += [("429", False), ("limited", False)]
"""What fails, and whether it was carried out all the same."""

COMMENTS, STATUSES = "POST /graphql", "GET .*/statuses"
PUBLISHING = {
    "look for the comment": (COMMENTS, 0),
    "comment": ("POST .*/comments$", 0),
    "look for the comment again": (COMMENTS, 1),
    "look at the status": (STATUSES, 0),
    "set the status": ("POST .*/statuses/", 0),
    "look at the status of the results": (STATUSES, 1),
    "set the status of the results": ("POST .*/statuses/", 1),
}
"""Requests of a first `publish`, in their order: method and path, and how many of these come before."""

RELEASING = {
    "look for the tag": ("GET .*/git/ref/tags/", 0),
    "look for the release": ("GET .*/releases/tags/", 0),
    "look for a draft": (r"GET .*/releases\?", 0),
    "draft": ("POST .*/releases$", 0),
    "look at the first file": (r"GET .*/releases/\d+$", 0),
    "upload the first file": ("POST /uploads/", 0),
    "upload the last file": ("POST /uploads/", 2),
    "look at all files": (r"GET .*/releases/\d+$", 3),
    "publish": (r"PATCH .*/releases/\d+$", 0),
}
"""The same of a first `attach` of three files."""

REPLACING = {
    "look for the release": ("GET .*/releases/tags/", 0),
    "delete a file": ("DELETE .*/releases/assets/", 0),
    "upload a file": ("POST /uploads/", 0),
    "publish": (r"PATCH .*/releases/\d+$", 0),
}
"""The same of an `attach` of other files to the release that is there."""

FILES = {"card.md": "the card", "edit.json": "{}", "report.html": "<html>" + "x" * 100_000}


def no_pause(seconds: float) -> None:
    assert seconds <= 60


def some(cases: Iterable[tuple[Any, ...]], fast: int = 0) -> list[Any]:
    """Each case in one run: the first and every so-manieth in the fast one, if asked to; of the others, the first tenth
    in the slow one, and the rest at night."""
    cases = list(cases)
    quick = [case for number, case in enumerate(cases) if fast and number % fast == 0]
    longer = [case for case in cases if case not in quick]
    slow = longer[: -(-len(longer) // 10)]
    marks = {case: pytest.mark.slow if case in slow else pytest.mark.nightly for case in longer}
    return [pytest.param(*case, marks=marks.get(case, ())) for case in cases]


def crossed(steps: Iterable[str], fast: int) -> list[Any]:
    """Every fault at every step."""
    return some(((step, how, done) for how, done in FAULTS for step in steps), fast)


def fail_then_repeat(hub: FakeGitHub, step: tuple[str, int], how: str, done: bool, job: Callable[[], object]) -> None:
    """A job during which GitHub fails at a step and from then on, and the same job without a fault."""
    asked, skip = step

    def go_on() -> None:
        hub.faults.append(Fault(".", how, times=1000))

    hub.faults = [Fault(asked, how, done, skip=skip, stop=go_on)]
    with pytest.raises(StageError, match=r"GitHub .* run the job again") as error:
        job()
    assert len(str(error.value)) <= LONGEST_LINE and "\n" not in str(error.value)
    assert len(hub.faults) == 2
    hub.faults.clear()
    job()


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Published:
    """A run that nobody published, to be copied."""
    return prepare(tmp_path_factory.mktemp("template"), FakeGitHub())


@pytest.fixture
def run(template: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Published]:
    """A copy of it, whose clone and environment are this process's."""
    with fake_github() as hub:
        yield enter(template, tmp_path, hub, monkeypatch)


def enter(template: Published, folder: Path, hub: FakeGitHub, monkeypatch: pytest.MonkeyPatch) -> Published:
    clone, origin = Project(folder / "clone"), Project(folder / "origin.git")
    shutil.copytree(template.origin.folder, origin.folder)
    # Without the branch, which is to be fetched.
    origin.check(
        "git", "clone", "--quiet", "--single-branch", "--branch", "main", f"file://{origin.folder}", str(clone.folder)
    )
    hub.say("somebody", "a remark")
    run = Published(clone, origin, template.handover, hub, template.base, template.head)
    monkeypatch.chdir(clone.folder)
    for name, value in environment(**run.settings).items():
        monkeypatch.setenv(name, value)
    return run


def seen(run: Published) -> dict[str, Any]:
    """All that is there after a run was published."""
    return {
        "branches": run.origin.check("git", "for-each-ref"),
        "commits": run.origin.check("git", "log", "--format=%H %P %s", "topic"),
        "comments": [(each["author"], each["body"]) for each in run.hub.comments],
        "statuses": run.hub.statuses,
        "clone": run.clone.check("git", "status", "--porcelain"),
    }


@pytest.fixture(scope="module")
def whole(template: Published, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What is there after a run was published without a fault."""
    with pytest.MonkeyPatch.context() as patch, fake_github() as hub:
        run = enter(template, tmp_path_factory.mktemp("whole"), hub, patch)
        publish.publish(run.handover)
        found = seen(run)
    assert len(found["comments"]) == len(found["statuses"]) == 2 and found["commits"].count("\n") == 3
    return found


def test_every_request_of_publishing_is_among_those_that_fail(run: Published) -> None:
    publish.publish(run.handover)
    matching = [
        [n for n, each in enumerate(run.hub.asked) if re.search(asked, each)] for asked, _ in PUBLISHING.values()
    ]
    chosen = [found[skip] for found, (_, skip) in zip(matching, PUBLISHING.values(), strict=True)]
    assert chosen == list(range(len(run.hub.asked)))


@pytest.mark.parametrize(("step", "how", "done"), crossed(PUBLISHING, fast=13))
def test_publishing_is_whole_after_a_repeat(
    run: Published, whole: dict[str, Any], step: str, how: str, done: bool
) -> None:
    fail_then_repeat(run.hub, PUBLISHING[step], how, done, lambda: publish.publish(run.handover, no_pause))
    assert seen(run) == whole


@pytest.mark.parametrize(("step", "how", "done"), crossed(PUBLISHING, fast=17))
def test_a_fault_that_passes_does_not_fail_publishing(
    run: Published, whole: dict[str, Any], step: str, how: str, done: bool
) -> None:
    asked, skip = PUBLISHING[step]
    run.hub.faults = [Fault(asked, how, done, skip=skip)]
    publish.publish(run.handover, no_pause)
    assert seen(run) == whole and not run.hub.faults[0].times


@pytest.fixture
def release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[FakeGitHub, Path]]:
    """What `make release` wrote, and where it goes."""
    folder = tmp_path / "release"
    folder.mkdir()
    for name, text in FILES.items():
        (folder / name).write_text(text)
    with fake_github() as hub:
        for name, value in {**hub.environment, "GITHUB_TOKEN": "ghs_secret"}.items():
            monkeypatch.setenv(name, value)
        yield hub, folder


def assert_released(hub: FakeGitHub, files: dict[str, str], released: int = 1) -> None:
    """One release, published, with all files and no other."""
    found = hub.published("model-1")
    assert len(hub.releases) == released and found["body"] == files["card.md"]
    assert sorted(asset["name"] for asset in found["assets"]) == sorted(files)
    assert hub.assets == {name: text.encode() for name, text in files.items()}
    assert len(hub.contents) == len(files)


@pytest.mark.parametrize(("step", "how", "done"), crossed(RELEASING, fast=7))
def test_a_release_is_whole_after_a_repeat(release: tuple[FakeGitHub, Path], step: str, how: str, done: bool) -> None:
    hub, folder = release
    hub.immutable = True
    fail_then_repeat(hub, RELEASING[step], how, done, lambda: publish.attach("model-1", folder, no_pause))
    assert_released(hub, FILES)


@pytest.mark.parametrize(("step", "how", "done"), crossed(RELEASING, fast=7))
def test_a_fault_that_passes_does_not_fail_a_release(
    release: tuple[FakeGitHub, Path], step: str, how: str, done: bool
) -> None:
    hub, folder = release
    hub.immutable = True
    asked, skip = RELEASING[step]
    hub.faults = [Fault(asked, how, done, skip=skip)]
    publish.attach("model-1", folder, no_pause)
    assert_released(hub, FILES)
    assert not hub.faults[0].times


@pytest.mark.parametrize(("step", "how", "done"), crossed(REPLACING, fast=7))
def test_another_release_of_a_tag_replaces_all_files_after_a_repeat(
    release: tuple[FakeGitHub, Path], step: str, how: str, done: bool
) -> None:
    hub, folder = release
    publish.attach("model-1", folder, no_pause)
    others = {name: f"other {text}" for name, text in FILES.items()}
    for name, text in others.items():
        (folder / name).write_text(text)
    fail_then_repeat(hub, REPLACING[step], how, done, lambda: publish.attach("model-1", folder, no_pause))
    assert_released(hub, others)


def test_a_file_of_which_the_upload_was_cut_off_is_sent_again(release: tuple[FakeGitHub, Path]) -> None:
    hub, folder = release

    def cut() -> None:
        hub.releases[-1]["assets"][-1].update(state="starter", size=0, digest=None)

    hub.faults = [Fault("POST /uploads/", "cut", done=True, skip=1, stop=cut)]
    publish.attach("model-1", folder, no_pause)
    assert_released(hub, FILES)


def test_a_release_of_which_a_file_is_not_whole_stays_a_draft(release: tuple[FakeGitHub, Path]) -> None:
    hub, folder = release

    def lose() -> None:
        hub.releases[-1]["assets"][-1].update(size=1)

    hub.faults = [Fault("POST /uploads/", "", done=True, skip=2, stop=lose)]
    with pytest.raises(StageError, match=r"does not show all of report\.html"):
        publish.attach("model-1", folder, no_pause)
    assert hub.releases[-1]["draft"]
    publish.attach("model-1", folder, no_pause)
    assert_released(hub, FILES)


def test_another_releases_draft_is_left_alone(release: tuple[FakeGitHub, Path]) -> None:
    hub, folder = release
    hub.releases.append({**new_release(hub, {"tag_name": "model-0", "draft": True})})
    before = dict(hub.releases[0])
    publish.attach("model-1", folder, no_pause)
    assert_released(hub, FILES, released=2)
    assert hub.releases[0] == before


def break_git(run: Published, fault: str, action: str) -> None:
    """Have git fail at origin, once, by a shell's action."""
    where, _, number = fault.partition(" ")
    script = run.origin.folder / "hooks" / where
    if where == "upload-pack":  # of which `number` says which one
        script = run.origin.folder / "upload-pack"
        count = f'echo >> {script}.count; test $(wc -l < {script}.count) = {number} || exec git-upload-pack "$@"'
        run.clone.check("git", "config", "remote.origin.uploadpack", str(script))
    else:
        count = 'rm "$0"'
    script.parent.mkdir(exist_ok=True)
    script.write_text(f"#!/bin/sh\n{count}\n{action}\n")
    script.chmod(0o755)


CUT = 'kill -9 "$PPID"'  # of a hook: the program that receives what is pushed
GIT_FAULTS = [
    ("upload-pack 1", "exit 1"),  # fetch
    ("upload-pack 1", 'git-upload-pack "$@" | dd bs=1 count=400 2> /dev/null'),
    ("upload-pack 2", "exit 1"),  # look at the branch
    ("upload-pack 2", "echo 'fatal: 500' >&2; exit 128"),
    ("pre-receive", "echo 'error: 500' >&2; exit 1"),
    ("pre-receive", CUT),
    ("update", "exit 1"),
    ("update", CUT),
]


@pytest.mark.parametrize(("fault", "action"), some(GIT_FAULTS, fast=3))
def test_publishing_is_whole_when_git_failed(run: Published, whole: dict[str, Any], fault: str, action: str) -> None:
    break_git(run, fault, action)
    with pytest.raises(StageError, match=r"^`git [a-z-]+` failed: ") as error:
        publish.publish(run.handover, no_pause)
    assert len(str(error.value)) <= LONGEST_LINE and "\n" not in str(error.value)
    assert not run.hub.asked and run.tip == run.head
    publish.publish(run.handover, no_pause)
    assert seen(run) == whole


@pytest.mark.parametrize("looked", [True, False])
def test_a_push_that_was_cut_off_when_it_was_done_is_done(run: Published, whole: dict[str, Any], looked: bool) -> None:
    break_git(run, "post-receive", CUT)
    if not looked:  # nor is there an answer when the branch is looked at again
        break_git(run, "upload-pack 3", "exit 1")
        with pytest.raises(StageError, match="git ls-remote"):
            publish.publish(run.handover, no_pause)
        assert not run.hub.asked
    publish.publish(run.handover, no_pause)
    assert seen(run) == whole


def start(folder: Path, *command: str) -> "subprocess.Popen[bytes]":
    """A command of excise, as the first of a group of processes that can be killed as a whole."""
    return subprocess.Popen(
        ["python", "-m", "excise", *command],
        cwd=folder,
        env=environment(PYTHONPATH=str(ROOT)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def end(process: "subprocess.Popen[bytes]") -> None:
    """What a runner that is switched off does to it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def kill_at(hub: FakeGitHub, step: tuple[str, int], done: bool, *command: str) -> None:
    """A command that is killed when GitHub receives a request, or when that is carried out."""
    asked, skip = step
    running: list[subprocess.Popen[bytes]] = []
    fault = Fault(asked, "kill", done, skip=skip, stop=lambda: end(running[0]))
    hub.faults = [fault]
    running.append(start(Path(), *command))
    assert running[0].wait(timeout=60) == -signal.SIGKILL
    assert not fault.times
    hub.faults.clear()


@pytest.mark.parametrize(("step", "done"), some((step, done) for done in (True, False) for step in PUBLISHING))
def test_publishing_is_whole_after_it_was_killed(run: Published, whole: dict[str, Any], step: str, done: bool) -> None:
    kill_at(run.hub, PUBLISHING[step], done, "publish", str(run.handover))
    publish.publish(run.handover, no_pause)
    assert seen(run) == whole


@pytest.mark.parametrize(
    "fault", some((each,) for each in ("post-receive", "pre-receive", "update", "upload-pack 1", "upload-pack 2"))
)
def test_publishing_is_whole_after_it_was_killed_within_git(
    run: Published, whole: dict[str, Any], fault: str, tmp_path: Path
) -> None:
    number = tmp_path / "number"
    break_git(run, fault, f"while test ! -s {number}; do sleep 0.01; done; kill -9 -$(cat {number})")
    process = start(Path(), "publish", str(run.handover))
    number.write_text(str(process.pid))
    assert process.wait(timeout=60) == -signal.SIGKILL
    publish.publish(run.handover, no_pause)
    assert seen(run) == whole


@pytest.mark.parametrize(("step", "done"), some((step, done) for done in (True, False) for step in RELEASING))
def test_a_release_is_whole_after_it_was_killed(release: tuple[FakeGitHub, Path], step: str, done: bool) -> None:
    hub, folder = release
    hub.immutable = True
    kill_at(hub, RELEASING[step], done, "attach", "model-1", str(folder))
    publish.attach("model-1", folder, no_pause)
    assert_released(hub, FILES)


GRAPH = """
stages:
  make:
    cmd: test
    outs: [folder, file]
"""
SIZE = 3_000_000


@dataclass(frozen=True)
class Store:
    """A project with data, a clone of it without, and a remote, which is a folder."""

    project: Project
    clone: Project
    remote: Path
    data: dict[str, bytes]
    """What the project's outputs hold."""

    @property
    def objects(self) -> dict[str, str]:
        """The MD5 of each object that the remote has, by where it lies."""
        found = [path for path in self.remote.rglob("*") if path.is_file() and path.suffix != ".tmp"]
        return {str(path.relative_to(self.remote)): md5_of_file(path) for path in found}

    def assert_whole(self) -> None:
        """The remote has all objects, each with the bytes that its name stands for, and the clone what they hold."""
        assert len(self.objects) == len(self.data) + 1
        for name, md5 in self.objects.items():
            assert name.removesuffix(".dir").replace("/", "").endswith(md5)
        for name, data in self.data.items():
            assert (self.clone.folder / name).read_bytes() == data
        # DVC tries links with a file of its own, which stays where it is killed then; jobs begin with `git clean`.
        left = self.clone.check("git", "status", "--porcelain").splitlines()
        assert not [line for line in left if not re.fullmatch(r"\?\? \.\S+\.tmp", line)]
        assert "up to date" in self.clone.check("dvc", "status")

    def excise(self, project: Project, *command: str) -> "subprocess.CompletedProcess[str]":
        return project.excise(*command, PYTHONPATH=str(ROOT))

    def check(self, project: Project, *command: str) -> None:
        done = self.excise(project, *command)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def store_template(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose stage has run."""
    project = Project(tmp_path_factory.mktemp("store") / "project")
    (project.folder / "folder").mkdir(parents=True)
    for number in range(6):
        (project.folder / f"folder/{number}").write_bytes(bytes([number]) * SIZE)
    (project.folder / "file").write_bytes(b"x" * SIZE)
    (project.folder / "dvc.yaml").write_text(GRAPH)
    project.check("git", "init", "--quiet")
    project.check("dvc", "init", "--quiet")
    project.check("dvc", "commit", "--quiet", "--force")
    project.commit("data")
    return project


@pytest.fixture
def store(store_template: Project, tmp_path: Path) -> Store:
    shutil.copytree(store_template.folder, tmp_path / "project")
    project, clone, remote = Project(tmp_path / "project"), Project(tmp_path / "clone"), tmp_path / "remote"
    project.check("dvc", "remote", "add", "--quiet", "--default", "storage", str(remote))
    project.commit("remote")
    project.check("git", "clone", "--quiet", ".", str(clone.folder))
    data = {f"folder/{path.name}": path.read_bytes() for path in (project.folder / "folder").iterdir()}
    return Store(project, clone, remote, {**data, "file": (project.folder / "file").read_bytes()})


def kill_when(folder: Path, watched: Path, count: int, *command: str) -> None:
    """A command that is killed as soon as there are so many files in a folder."""
    process = start(folder, *command)
    while process.poll() is None and sum(path.is_file() for path in watched.rglob("*")) < count:
        pass
    end(process)
    process.wait()


def fail_with_small_files(project: Project, *command: str) -> None:
    """A command that cannot write files of more than a megabyte, as where the disk is full or a quota is spent."""
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE // 3, SIZE // 3))  # noqa: E731
    done = subprocess.run(
        ["python", "-m", "excise", *command],
        cwd=project.folder,
        env=environment(PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        preexec_fn=limit,
    )
    assert done.returncode == 1 and done.stderr.strip().splitlines()[-1].startswith("ERROR: "), done.stderr


@pytest.mark.parametrize("count", some((count,) for count in range(1, 9)))
def test_the_remote_is_whole_after_a_push_was_killed(store: Store, count: int) -> None:
    kill_when(store.project.folder, store.remote, count, "push")
    store.check(store.project, "push")
    store.check(store.clone, "restore")
    store.assert_whole()


@pytest.mark.parametrize("count", some((count,) for count in range(1, 9)))
def test_a_clone_is_whole_after_a_restore_was_killed(store: Store, count: int) -> None:
    store.check(store.project, "push")
    kill_when(store.clone.folder, store.clone.folder / ".dvc/cache/files", count, "restore")
    store.check(store.clone, "restore")
    store.assert_whole()


@pytest.mark.parametrize("name", some([("folder",), ("folder/3",), ("file",)]))
def test_a_clone_is_whole_after_a_restore_was_killed_while_it_linked(store: Store, name: str) -> None:
    store.check(store.project, "push")
    process = start(store.clone.folder, "restore")
    while process.poll() is None and not (store.clone.folder / name).exists():
        pass
    end(process)
    process.wait()
    store.check(store.clone, "restore")
    store.assert_whole()


@pytest.mark.parametrize("command", some([("push",), ("restore",)]))
def test_what_could_not_be_written_is_there_after_a_repeat(store: Store, command: str) -> None:
    if command == "restore":
        store.check(store.project, "push")
    fail_with_small_files(store.project if command == "push" else store.clone, command)
    store.check(store.project, "push")
    store.check(store.clone, "restore")
    store.assert_whole()


@pytest.mark.slow
def test_what_could_not_be_written_leaves_no_part_behind(store: Store) -> None:
    """As DVC's own copies do, where the remote is a folder."""
    fail_with_small_files(store.project, "push")
    assert not list(store.remote.rglob("*.tmp"))
    store.check(store.project, "push")
    fail_with_small_files(store.clone, "restore")
    assert not list((store.clone.folder / ".dvc/cache").rglob("*.tmp"))


@pytest.mark.parametrize("kind", some([("in the way",), ("a full disk",)]))
def test_a_remote_that_cannot_be_written_is_whole_after_a_repeat(store: Store, kind: str) -> None:
    if kind == "in the way":
        store.remote.write_text("no folder")
    else:
        store.remote.mkdir()
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(store.remote)]).returncode != 0:
            pytest.skip("only root can mount a small disk here")
    try:
        done = store.excise(store.project, "push")
        assert done.returncode == 1 and done.stderr.strip().splitlines()[-1].startswith("ERROR: "), done.stderr
        if kind == "a full disk":
            subprocess.run(["mount", "-o", "remount,size=100m", str(store.remote)], check=True)
        else:
            store.remote.unlink()
        store.check(store.project, "push")
        store.check(store.clone, "restore")
        store.assert_whole()
    finally:
        if kind == "a full disk":
            subprocess.run(["umount", str(store.remote)], check=True)


@pytest.mark.parametrize("how", some([("cut",), ("empty",), ("gone",), ("list cut",), ("list gone",)]))
def test_a_remote_that_lost_bytes_is_whole_after_a_push(store: Store, how: str) -> None:
    store.check(store.project, "push")
    is_list = "list" in how
    path = next(path for path in store.remote.rglob("*") if path.is_file() and (path.suffix == ".dir") == is_list)
    data = path.read_bytes()
    path.unlink()
    if "gone" not in how:
        path.write_bytes(data[:-1] if "cut" in how else b"")
    done = store.excise(store.clone, "restore")
    assert "Traceback" not in done.stderr
    store.check(store.project, "push")
    store.check(store.clone, "restore")
    store.assert_whole()


@pytest.mark.parametrize(
    "kills", [pytest.param(1, marks=pytest.mark.slow), pytest.param(10, marks=pytest.mark.nightly)]
)
def test_a_written_release_is_whole_after_it_was_killed(project: Project, tmp_path: Path, kills: int) -> None:
    command = ("release", "HEAD", str(tmp_path / "out"), "--model", str(tmp_path / "model"))
    assert project.excise(*command).returncode == 0
    expected = [files(tmp_path / name) for name in ("out", "model")]
    killer = Killer(project, seed=4)
    # A model that the killed command brought back is one that was given to the next, and its card says so.
    shutil.rmtree(tmp_path / "out")
    assert project.excise(*command).returncode == 0
    given = [files(tmp_path / name) for name in ("out", "model")]
    assert given[1] == expected[1] and given[0].keys() == expected[0].keys()
    for _ in range(kills):
        for name in ("out", "model"):
            shutil.rmtree(tmp_path / name, ignore_errors=True)
        killer.kill(["python", "-m", "excise", *command], latest=5.0)
        for name, whole in zip(("out", "model"), expected, strict=True):
            assert not (tmp_path / name).exists() or files(tmp_path / name) == whole
        was_there = (tmp_path / "model").exists()
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        assert project.excise(*command).returncode == 0
        assert [files(tmp_path / name) for name in ("out", "model")] == (given if was_there else expected)
