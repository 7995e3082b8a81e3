"""`doctor` names each thing that is wrong, with what mends it, and changes nothing."""

import json
import os
import resource
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from excise.gitops.checks import data, findings, runner
from excise.gitops.doctor import examine
from excise.plumbing import process
from excise.plumbing.errors import StageError
from tests.projects import ROOT, Project, one_line

Break = Callable[[Project, pytest.MonkeyPatch], None]

MODEL, RESULTS = "models/ablated", "results/ablated"


SETTINGS = """
[core]
    remote = storage
['remote "storage"']
    url = {place}/storage
    verify = true
[cache]
    dir = {place}/cache
    shared = group
    type = "hardlink,copy"
"""


@pytest.fixture(scope="module")
def whole(finished: Project, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished project, a cache of its own, and a remote that has everything. Not to be changed."""
    place = tmp_path_factory.mktemp("whole")
    shutil.copytree(finished.folder, place / "project", symlinks=True)
    shutil.copytree(finished.check("dvc", "cache", "dir").strip(), place / "cache")
    (place / "cache").chmod(0o2775)
    project = Project(place / "project")
    (project.folder / ".dvc/config.local").write_text(SETTINGS.format(place=place))
    project.check("python", "-m", "excise", "push")
    project.check("git", "config", "user.name", "test")
    project.check("git", "config", "user.email", "test@localhost")
    return place


@pytest.fixture
def healthy(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A copy of it to be changed, with no runner around it, in which the test runs."""
    shutil.copytree(whole, tmp_path, symlinks=True, dirs_exist_ok=True)
    project = Project(tmp_path / "project")
    (project.folder / ".dvc/config.local").write_text(SETTINGS.format(place=tmp_path))
    for name in [*os.environ]:
        if name.startswith(("GITHUB_", "RUNNER_", "ACTIONS_", "EXCISE_", "HF_TOKEN", "HUGGING_FACE_HUB")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(project.folder)
    return project


def change(project: Project, old: str, new: str) -> None:
    """Change a line of DVC's settings."""
    project.replace(old, new, file=".dvc/config.local")


def lines(capsys: pytest.CaptureFixture[str], *checks: str, deep: bool = False) -> list[str]:
    """What it prints of the project in the current folder."""
    capsys.readouterr()
    try:
        examine(Path(), deep, checks)
        failed = ""
    except StageError as error:
        failed = str(error)
    printed = capsys.readouterr().out.splitlines()
    wrong = [line for line in printed if line.startswith("WRONG")]
    assert (f"{len(wrong)} of these lines" in failed) if wrong else not failed
    return printed


def object_of(project: Project, output: str, store: str = "cache") -> Path:
    md5 = project.hashes()[output]
    return project.folder.parent / store / "files/md5" / md5[:2] / md5[2:]


def rewrite(path: Path, data: bytes) -> None:
    path.unlink()
    path.write_bytes(data)
    path.chmod(0o444)


def test_where_all_is_well_it_says_so_and_changes_nothing(healthy: Project, tmp_path: Path) -> None:
    before = {path: path.lstat().st_mtime_ns for path in tmp_path.rglob("*") if "__pycache__" not in path.parts}
    done = healthy.excise("doctor", "--deep")
    assert done.returncode == 0 and not done.stderr, done.stdout + done.stderr
    printed = done.stdout.splitlines()
    assert all(line.startswith(("ok  ", "note  ")) for line in printed), done.stdout
    names = {"python", "packages", "git", "dvc.yaml", "dvc.lock", "dvc", "cache", "objects", "leftovers", "remote"}
    assert {line.split()[1] for line in printed} == {
        f"{name}:" for name in names | {"disk", "secrets", "hook", "github"}
    }
    after = {path: path.lstat().st_mtime_ns for path in tmp_path.rglob("*") if "__pycache__" not in path.parts}
    assert before.keys() == after.keys()
    assert {
        path for path in before if path.is_file() and before[path] != after[path] and ".dvc/tmp" not in str(path)
    } == set()


def test_without_remote_cache_and_results_nothing_is_wrong(project: Project, tmp_path: Path) -> None:
    """As in a new clone that has not run yet."""
    project.check("git", "rm", "--quiet", "dvc.lock")
    project.check("dvc", "config", "--local", "cache.dir", str(project.folder / ".dvc/cache"))
    done = project.excise("doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (
        "note   dvc.lock: there is no dvc.lock" in done.stdout and "note   remote: no DVC remote is set" in done.stdout
    )


def _other_pin(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = project.folder / "requirements.lock"
    lock.write_text(lock.read_text().replace("ruff==", "ruff==999."))


def _other_compute_pin(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    (project.folder / "pins").write_text("numpy==0.1\n")
    monkeypatch.setattr(process, "PINS", project.folder / "pins")


def _stale_environment(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    (project.folder / ".venv").mkdir(exist_ok=True)
    (project.folder / ".venv/requirements.lock").write_text("another\n")
    monkeypatch.setattr(sys, "prefix", str(project.folder / ".venv"))


def _nobody(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.check("git", "config", "user.useConfigOnly", "true")
    project.check("git", "config", "--unset", "user.email")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    for name in ("GIT_AUTHOR_EMAIL", "GIT_COMMITTER_EMAIL", "EMAIL"):
        monkeypatch.delenv(name, raising=False)


def _merge(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    (project.folder / ".git/MERGE_HEAD").write_text(project.check("git", "rev-parse", "HEAD"))


def _conflict(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    (project.folder / "gates.json").write_text("<<<<<<< HEAD\n{}\n=======\n{}\n>>>>>>> main\n")


def _unknown_code(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    path = project.folder / "dvc.yaml"
    lines = path.read_text().splitlines(keepends=True)
    lines.remove(next(line for line in lines if line.startswith("      - schemas/")))
    path.write_text("".join(lines))


def _broken_lock(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    (project.folder / "dvc.lock").write_text("stages: [")


def _broken_settings(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    (project.folder / ".dvc/config").write_text("[core]\n  nonsense = 1\n")


def _no_links(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)


def _reflinks(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    change(project, '"hardlink,copy"', '"reflink,copy"')
    monkeypatch.setattr(data, "_can_reflink", lambda source, target: False)


def _unwritable(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, access = project.folder.parent / "cache", os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != cache and access(path, mode))


def _private(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    change(project, "    shared = group\n", "")


def _wrong_group(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    (project.folder.parent / "cache").chmod(0o755)


def _lost(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    object_of(project, RESULTS).unlink()


def _lost_everywhere(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    object_of(project, RESULTS).unlink()
    shutil.rmtree(project.folder / RESULTS)


def _cut(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    path = object_of(project, "artifacts/activations.safetensors")
    rewrite(path, path.read_bytes()[:-1])


def _flipped(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    path = object_of(project, "artifacts/activations.safetensors")
    rewrite(path, path.read_bytes()[:-1] + b"x")


def _rwlock(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    (project.folder / ".dvc/tmp/rwlock").write_text('{"/somewhere": {"wri')


def _partial(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    (project.folder / "models/.ablated.partial").mkdir()


def _tree(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    (project.folder / ".dvc/tmp/models/left").mkdir(parents=True)


def _unmoved(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    path = object_of(project, RESULTS)
    path.with_name(f"{path.name}.0123456789012345678901.tmp").write_bytes(b"half")


def _unverified(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    change(project, "verify = true", "verify = false")


def _unmounted(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(project.folder.parent / "storage")


def _no_plugin(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    change(project, f"url = {project.folder.parent}/storage", "url = gs://bucket/path")


def _unpushed(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    object_of(project, RESULTS, "storage").unlink()


def _half_pushed(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    rewrite(object_of(project, RESULTS, "storage"), b"[")


def _left_in_remote(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    path = object_of(project, RESULTS, "storage")
    path.with_name(".0123456789012345678901.tmp").write_bytes(b"half")


def _full(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))


def _small_files(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    _limit(monkeypatch, resource.RLIMIT_FSIZE, 1000)


def _few_files(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    _limit(monkeypatch, resource.RLIMIT_NOFILE, 64)


def _limit(monkeypatch: pytest.MonkeyPatch, name: int, value: int) -> None:
    limits = resource.getrlimit
    monkeypatch.setattr(resource, "getrlimit", lambda each: (value, value) if each == name else limits(each))


def _trusting(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNNER_NAME", "gpu")
    monkeypatch.setenv("EXCISE_TRUST_REMOTE_CODE", "1")


def _token(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the runner's .env, which a person's own shell does not read."""
    (project.folder.parent / ".runner").touch()
    (project.folder.parent / ".env").write_text("LANG=C.UTF-8\nHF_TOKEN=not-a-token\n")


def _no_hook(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")


def _lost_hook(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(runner.HOOK, "/opt/nowhere/job-started.sh")


def _other_hook(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    _hook_at(project, monkeypatch).write_text("#!/bin/sh\nexit 0\n")


def _own_hook(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(runner.HOOK, str(project.folder / runner.SHIPPED_HOOK))


def _writable_hook(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    hook, access = _hook_at(project, monkeypatch), os.access
    own = (hook, *hook.parents)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(os, "access", lambda path, mode: path == hook.parent if path in own else access(path, mode))


def _root(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    _hook_at(project, monkeypatch)
    monkeypatch.setattr(os, "geteuid", lambda: 0)


def _hook_at(project: Project, monkeypatch: pytest.MonkeyPatch) -> Path:
    hook = project.folder.parent / "opt/job-started.sh"
    hook.parent.mkdir()
    shutil.copyfile(project.folder / runner.SHIPPED_HOOK, hook)
    monkeypatch.setenv(runner.HOOK, str(hook))
    return hook


@pytest.mark.parametrize(
    ("breaks", "what", "remedy"),
    [
        (_other_pin, "packages: requirements.lock pins other versions than are installed of ruff", "make environment"),
        (_other_compute_pin, "packages: numpy is installed as ", "make environment"),
        (_stale_environment, "python: .venv was made from another requirements.lock", "run `make environment`"),
        (_nobody, "git: git does not know who commits", "git config user.name"),
        (_merge, "git: a merge is in progress", "`git merge --abort` undoes it"),
        (_conflict, "git: gates.json has conflict markers", "docs/runner.md"),
        (_unknown_code, "dvc.yaml: dvc.yaml: params lacks schemas/", "run `python -m excise deps --write`"),
        (_broken_lock, "dvc.lock: dvc.lock", ""),
        (_broken_settings, "dvc: DVC cannot read this project", "nonsense"),
        (_no_links, "cache: {tmp}/cache cannot be linked from this clone", "`CACHE=/folder make restore`"),
        (_reflinks, "cache: cache.type begins with reflink", "`dvc config --local cache.type hardlink,copy`"),
        (_unwritable, "cache: {tmp}/cache cannot be written to", "`ls -ld {tmp}/cache`"),
        (_private, "cache: others may share this cache", "`dvc config --local cache.shared group`"),
        (_wrong_group, "cache: {tmp}/cache is shared, and its group cannot write to it", "`chmod g+ws {tmp}/cache`"),
        (_lost, "objects: the cache lacks {tmp}/cache/files/md5/", "`dvc commit evaluate@ablated`"),
        (_lost_everywhere, "objects: the cache lacks {tmp}/cache/files/md5/", "`make restore` fetches it"),
        (_cut, "objects: {tmp}/cache/files/md5/", "delete it, then `make restore`"),
        (_rwlock, "leftovers: DVC was killed while it wrote .dvc/tmp/rwlock", "`rm .dvc/tmp/rwlock`"),
        (_partial, "leftovers: a killed stage left models/.ablated.partial", "`rm -rf models/.ablated.partial`"),
        (_tree, "leftovers: a killed `make model` left .dvc/tmp/models/left", "`rm -rf .dvc/tmp/models/left`"),
        (_unmoved, "leftovers: a killed transfer left {tmp}/cache/files/md5/", "`rm -rf {tmp}/cache/files/md5/"),
        (
            _unverified,
            "remote: storage is not verified by DVC's own commands",
            "`dvc remote modify storage verify true`",
        ),
        (_unmounted, "remote: storage ({tmp}/storage) is not there", "mount what it lies on"),
        (_no_plugin, "remote: storage (gs://bucket/path) fails: ", "check its address"),
        (_unpushed, "remote: it lacks 1 of the ", "`make push`, on a machine that has them"),
        (_half_pushed, "remote: it has in another size, as a killed push leaves it, 1 of the ", "`make push`"),
        (_left_in_remote, "remote: a killed push left {tmp}/storage/files/md5/", "`rm {tmp}/storage/files/md5/"),
        (_full, "disk: 0 MB are free", "docs/runner.md (Disk)"),
        (_small_files, "disk: the limit RLIMIT_FSIZE is 0 MB, less than a model", "`ulimit -f unlimited`"),
        (_few_files, "disk: this process may open 64 files at once", "`ulimit -n 4096`"),
        (_trusting, "secrets: EXCISE_TRUST_REMOTE_CODE is set: a commit can name a model", "remove it from"),
        (_token, "secrets: HF_TOKEN is set on a runner", "remove it from"),
        (_no_hook, "hook: ACTIONS_RUNNER_HOOK_JOB_STARTED is not set", "copy .github/runner/job-started.sh"),
        (
            _lost_hook,
            "hook: ACTIONS_RUNNER_HOOK_JOB_STARTED names /opt/nowhere/job-started.sh, which is not there",
            "copy ",
        ),
        (
            _other_hook,
            "hook: {tmp}/opt/job-started.sh is not the .github/runner/job-started.sh",
            "copy it again, as root",
        ),
        (_own_hook, "hook: {tmp}/project/.github/runner/job-started.sh is in a workspace", "folder of root's"),
        (_writable_hook, "hook: {tmp}/opt is writable by this user", "`sudo chown root: {tmp}/opt && sudo chmod go-w"),
        (_root, "hook: jobs run as root here", "a user of its own"),
    ],
    ids=lambda value: value.__name__.strip("_") if callable(value) else "",
)
def test_what_is_wrong_is_one_line_that_says_what_mends_it(
    healthy: Project,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    breaks: Break,
    what: str,
    remedy: str,
) -> None:
    breaks(healthy, monkeypatch)
    start = f"WRONG  {what.replace('{tmp}', str(tmp_path))}"
    (line,) = (line for line in lines(capsys, what.partition(":")[0]) if line.startswith(start))
    assert remedy.replace("{tmp}", str(tmp_path)) in line.removeprefix(start) and "not-a-token" not in line


def test_only_reading_an_object_finds_that_its_bytes_are_others(
    healthy: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _flipped(healthy, monkeypatch)
    spoiled = object_of(healthy, "artifacts/activations.safetensors")
    assert not [line for line in lines(capsys, "objects") if line.startswith("WRONG")]
    (line,) = (line for line in lines(capsys, "objects", deep=True) if line.startswith("WRONG"))
    assert line.startswith(f"WRONG  objects: {spoiled}, of artifacts/activations.safetensors, has other bytes")


@pytest.fixture
def silent_server() -> Iterator[int]:
    """The port of a server that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.slow
def test_a_remote_that_does_not_answer_is_not_waited_for(
    healthy: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], silent_server: int
) -> None:
    url = f"http://someone:secret@127.0.0.1:{silent_server}/storage"
    change(healthy, f"url = {healthy.folder.parent}/storage", f"url = {url}")
    assert findings.SECONDS_TO_ANSWER == 20
    monkeypatch.setattr(data, "SECONDS_TO_ANSWER", 4.0)
    (line,) = (line for line in lines(capsys, "remote") if line.startswith("WRONG"))
    assert f"remote: storage (http://127.0.0.1:{silent_server}/storage) did not answer within 4 seconds" in line
    assert "secret" not in line


GITHUB: dict[str, dict[str, Any]] = {
    "actions/permissions/fork-pr-contributor-approval": {"approval_policy": "all_external_contributors"},
    "actions/permissions/workflow": {
        "default_workflow_permissions": "read",
        "can_approve_pull_request_reviews": False,
    },
    "environments": {
        "environments": [
            {"name": "gpu", "protection_rules": []},
            {
                "name": "gpu-reviewed",
                "protection_rules": [{"type": "required_reviewers", "prevent_self_review": True, "reviewers": []}],
            },
            {"name": "hub", "protection_rules": [{"type": "required_reviewers", "reviewers": []}]},
        ]
    },
}
"""What GitHub answers where its settings are those of docs/runner.md."""


@pytest.fixture
def at_github(healthy: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose origin is at GitHub, and a `gh` that answers from a folder."""
    healthy.check("git", "remote", "add", "origin", "git@github.com:team/models.git")
    answers = tmp_path / "answers"
    for path, answer in GITHUB.items():
        (answers / "repos/team/models" / path).parent.mkdir(parents=True, exist_ok=True)
        (answers / "repos/team/models" / path).write_text(json.dumps(answer))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/gh").write_text(f'#!/bin/sh\n[ "$1" = auth ] || cat "{answers}/$2"\n')
    (tmp_path / "bin/gh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin{os.pathsep}{os.environ['PATH']}")
    return answers / "repos/team/models"


def of_github(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return lines(capsys, "github")


def test_settings_of_the_repository_are_compared_with_those_that_it_needs(
    at_github: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert [line[:2] for line in of_github(capsys)] == ["ok"] * 4
    wrong = {
        "actions/permissions/fork-pr-contributor-approval": {"approval_policy": "first_time_contributors"},
        "actions/permissions/workflow": {"default_workflow_permissions": "write"},
        "environments": {"environments": [{"name": "gpu-reviewed", "protection_rules": []}]},
    }
    for path, answer in wrong.items():
        (at_github / path).write_text(json.dumps(answer))
    approval, permissions, reviewed, hub = of_github(capsys)
    assert "WRONG" in approval and "by the policy first_time_contributors" in approval
    assert "fork-pr-contributor-approval -f approval_policy=all_external_contributors`" in approval
    assert "WRONG" in permissions and "-f default_workflow_permissions=read" in permissions
    assert "WRONG" in reviewed and "gpu-reviewed has no required reviewers; set it in Settings" in reviewed
    assert "WRONG" in hub and "there is no environment hub" in hub
    own = {"type": "required_reviewers", "prevent_self_review": False}
    (at_github / "environments").write_text(
        json.dumps({"environments": [{"name": "gpu-reviewed", "protection_rules": [own]}]})
    )
    assert "may also approve it" in of_github(capsys)[2]


def test_what_github_does_not_answer_is_said(
    at_github: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(at_github)
    assert all(line.startswith("note") and "only an administrator" in line for line in of_github(capsys))
    (tmp_path / "bin/gh").write_text("#!/bin/sh\nexit 1\n")
    (line,) = of_github(capsys)
    assert line.startswith("note") and "`gh auth login`" in line and "Settings → Actions → General" in line


def test_a_check_that_there_is_not_is_one_line(healthy: Project) -> None:
    assert "there is no check disks; there are python, packages, git" in one_line(healthy.excise("doctor", "disks"))


def test_what_dvc_cannot_read_is_said_once(
    healthy: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _broken_settings(healthy, monkeypatch)
    assert len([line for line in lines(capsys, "dvc", "cache", "objects") if line.startswith("WRONG")]) == 1


def test_the_hook_that_a_runner_s_is_compared_with_is_shipped() -> None:
    assert (ROOT / runner.SHIPPED_HOOK).is_file()
