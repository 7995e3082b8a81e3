"""A machine that runs what others pushed has a cache, a remote, both, or neither."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from excise.gitops import storage
from excise.gitops.storage import check_kept
from excise.plumbing.errors import StageError
from tests.projects import Project, one_line


@pytest.fixture
def clone(finished: Project, tmp_path: Path) -> Project:
    """A new clone, which has nothing that stages made."""
    finished.check("git", "clone", "--quiet", ".", str(tmp_path / "clone"))
    return Project(tmp_path / "clone")


def store(clone: Project, *arguments: str) -> str:
    done = clone.excise(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def own(project: Project, tmp_path: Path) -> tuple[Project, Path]:
    """The finished quick project with a cache of its own, and where its objects are."""
    shutil.copytree(project.check("dvc", "cache", "dir").strip(), tmp_path / "cache")
    project.check("dvc", "config", "--local", "cache.dir", str(tmp_path / "cache"))
    return project, tmp_path / "cache/files/md5"


def of(objects: Path, md5: str) -> Path:
    """An object of the cache."""
    return objects / md5[:2] / md5[2:]


def lose(objects: Path, md5: str, how: str) -> None:
    """What may happen to a folder's object, or to one that it lists."""
    entry = of(objects, md5)
    files = json.loads(entry.read_text())
    file = of(objects, max(files, key=lambda each: of(objects, each["md5"]).stat().st_size)["md5"])
    chosen = entry if "list" in how else file
    if "cut" in how:
        data = chosen.read_bytes()
        chosen.unlink()  # the workspace's own link stays whole
        chosen.write_bytes(data[:-1])
    else:
        chosen.unlink()


@pytest.mark.slow
def test_with_the_shared_cache_alone_nothing_runs_again(finished: Project, clone: Project) -> None:
    said = store(clone, "restore", "--cache", str(finished.folder.parent / "cache"))
    assert "No DVC remote is set" in said
    assert "Running stage" not in store(clone, "repro")
    assert not clone.check("git", "status", "--porcelain")
    assert "No DVC remote is set" in store(clone, "push")


@pytest.mark.nightly
def test_what_a_killed_run_left_does_not_stop_the_next(finished: Project, clone: Project, tmp_path: Path) -> None:
    clone.check("dvc", "remote", "add", "--local", "--default", "storage", str(tmp_path / "storage"))
    store(clone, "restore", "--cache", str(finished.folder.parent / "cache"))
    store(clone, "push")
    shutil.rmtree(clone.folder / "models/base")
    (clone.folder / "models/base").mkdir()
    (clone.folder / "models/base/half").write_text("written, and in no cache yet")
    store(clone, "restore")
    assert "Running stage" not in store(clone, "repro")


@pytest.mark.slow
@pytest.mark.parametrize("cut", ["", '{"/somewhere": {"write": {"pid": 1, "cm'])
def test_a_list_that_dvc_was_killed_while_writing_does_not_stop_the_next_run(project: Project, cut: str) -> None:
    (project.folder / ".dvc/tmp/rwlock").write_text(cut)
    assert "Running stage" not in store(project, "repro")


@pytest.mark.parametrize("parts", [0, 1, 40])
def test_a_record_that_dvc_was_killed_while_writing_is_the_last_commits_again(project: Project, parts: int) -> None:
    path = project.folder / "dvc.lock"
    whole = path.read_bytes()
    # In the middle of a word, or behind one, where what is left is YAML.
    pieces = whole.split(b"hash: ")[:parts]
    path.write_bytes(b"hash: ".join(pieces) + (b"" if not pieces else b"has" if parts == 1 else b"hash:"))
    done = project.excise("repro", "--", "params")
    assert done.returncode == 0, done.stdout + done.stderr
    assert path.read_bytes() == whole and "dvc.lock was written in part" in done.stdout


def test_a_record_with_a_conflict_is_left_to_a_person(project: Project) -> None:
    path = project.folder / "dvc.lock"
    conflict = b"<<<<<<< HEAD\n" + path.read_bytes() + b"=======\n>>>>>>> main\n"
    path.write_bytes(conflict)
    assert project.excise("repro", "--", "params").returncode != 0
    assert path.read_bytes() == conflict


@pytest.mark.slow
def test_a_shared_cache_is_made_and_is_the_groups(clone: Project, tmp_path: Path) -> None:
    store(clone, "restore", "--cache", str(tmp_path / "new/cache"))
    assert clone.check("dvc", "cache", "dir").strip() == str(tmp_path / "new/cache")
    assert clone.check("dvc", "config", "cache.shared").strip() == "group"
    assert not clone.check("git", "status", "--porcelain")


def test_a_cache_that_would_be_another_in_each_clone_is_refused(clone: Project) -> None:
    assert "must be an absolute path" in one_line(clone.excise("restore", "--cache", "cache"))


def test_a_remote_that_cannot_be_asked_fails_the_job(project: Project, tmp_path: Path) -> None:
    project.check("dvc", "remote", "add", "--local", "--default", "storage", str(tmp_path / "file/storage"))
    (tmp_path / "file").write_text("in the way")
    line = one_line(project.excise("push"))
    assert "the DVC remote failed: " in line and "`make doctor` if it fails again" in line


@pytest.mark.parametrize("how", ["file gone", "file cut", "list gone", "list cut"])
def test_a_cache_that_does_not_hold_what_dvc_lock_names_is_one_line(own: tuple[Project, Path], how: str) -> None:
    project, objects = own
    check_kept(project.folder)
    lose(objects, project.hashes()["results/ablated"], how)
    with pytest.raises(
        StageError, match=r"did not keep (?:answers|results)/\w+ in its cache.*`dvc commit (?:answer|evaluate)@\w+`"
    ) as caught:
        check_kept(project.folder)
    assert len(str(caught.value)) <= 400


@pytest.mark.nightly
def test_what_the_cache_lacks_is_not_up_to_date(own: tuple[Project, Path], tmp_path: Path) -> None:
    project, objects = own
    project.check("dvc", "remote", "add", "--local", "--default", "storage", str(tmp_path / "storage"))
    lose(objects, project.hashes()["results/ablated"], "list gone")
    done = project.excise("push")
    assert "results/ablated cannot be pushed" in done.stderr and "up to date" not in done.stdout
    assert done.returncode == 1
    project.check("dvc", "commit", "evaluate@ablated")  # as it says
    store(project, "push")
    lose(objects, project.hashes()["results/ablated"], "list gone")
    store(project, "push")  # the remote has it


@pytest.mark.slow
def test_what_lies_in_the_folder_alone_is_kept_by_the_next_restore(own: tuple[Project, Path]) -> None:
    """As after a disk was full: DVC itself would remove it."""
    project, objects = own
    lose(objects, project.hashes()["results/ablated"], "list gone")
    store(project, "restore")
    check_kept(project.folder)
    assert (project.folder / "results/ablated/results.json").is_file()


def test_what_cannot_be_restored_is_named(clone: Project, tmp_path: Path) -> None:
    said = store(clone, "restore", "--cache", str(tmp_path / "empty"))
    assert "Neither in the cache nor in the remote" in said and "models/ablated" in said


def test_a_restore_that_does_not_put_everything_back_fails(
    own: tuple[Project, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    project, _ = own
    shutil.rmtree(project.folder / "results/base/samples")
    monkeypatch.setattr(storage, "attend", lambda command, folder: 0)  # as DVC after it was killed: it does nothing
    with pytest.raises(StageError, match="results/base was not restored"):
        storage.restore(project.folder)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MB, for as long as the test runs."""
    (tmp_path / "disk").mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", str(tmp_path / "disk")])
    if mounted.returncode != 0:
        pytest.skip("only root can mount a small disk here")
    yield tmp_path / "disk"
    subprocess.run(["umount", str(tmp_path / "disk")], check=True)


@pytest.mark.slow
def test_a_full_disk_under_the_cache_fails_the_run_and_loses_nothing(
    own: tuple[Project, Path], small_disk: Path
) -> None:
    project, objects = own
    shutil.copytree(objects.parent.parent, small_disk / "cache")
    project.check("dvc", "config", "--local", "cache.dir", str(small_disk / "cache"))
    room = shutil.disk_usage(small_disk).free
    (small_disk / "filler").write_bytes(bytes(room - 100_000))
    project.replace("scale: 1.4", "scale: 0.53")
    done = project.excise("repro", "ablate")
    assert done.returncode == 1 and "`dvc commit ablate`" in done.stderr.splitlines()[-1], done.stderr
    made = (project.folder / "models/ablated/edit.json").read_bytes()
    (small_disk / "filler").unlink()
    project.check("dvc", "commit", "ablate")
    assert "Running stage" not in store(project, "repro", "ablate")
    assert (project.folder / "models/ablated/edit.json").read_bytes() == made
