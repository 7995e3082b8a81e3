"""The edited model of a past commit again: where it comes from, that it is that one, and that nothing else changes."""

import json
import os
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.projects import Project, environment, one_line, stages_run

FROM_CACHE, FROM_REMOTE, REBUILT = "from the cache", "from the remote", "rebuilt"


@pytest.fixture
def clone(project: Project, tmp_path: Path) -> Iterator[Project]:
    """The finished quick project with a cache of its own. Whatever a test does, no trace of it stays in the clone."""
    cache = Path(project.check("dvc", "cache", "dir").strip())
    shutil.copytree(cache, tmp_path / "cache")
    project.check("dvc", "config", "--local", "cache.dir", str(tmp_path / "cache"))
    yield project
    assert project.check("git", "worktree", "list").count("\n") == 1
    assert [path.name for path in (project.folder / ".dvc/tmp/models").glob("*")] in ([], ["lock"])
    assert not list(tmp_path.glob(".*.partial"))


def model(clone: Project, commit: str, out: Path, *options: str) -> str:
    """What bringing a model back says last; it must succeed, and leave the project as it was."""
    before = state(clone)
    done = clone.excise("model", commit, str(out), *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert state(clone) == before
    return done.stdout.splitlines()[-1]


def refused(clone: Project, commit: str, out: Path, *options: str) -> str:
    """The one line by which it fails, with nothing changed and nothing left."""
    before, there = state(clone), out.exists()
    line = one_line(clone.excise("model", commit, str(out), *options))
    assert state(clone) == before and out.exists() == there
    return line


def state(clone: Project) -> tuple[list[str], str, set[str]]:
    """What a run could change in the project; Python's own files apart."""
    status = clone.check("git", "status", "--porcelain", "--ignored").splitlines()
    return (
        [line for line in status if "__pycache__" not in line],
        (clone.folder / "dvc.lock").read_text(),
        {str(path) for path in (clone.folder / "models").rglob("*")},
    )


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def empty_cache(clone: Project, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "cache")


def forget_model(clone: Project, tmp_path: Path) -> None:
    """Delete the list of its files from the cache, which is of no use without."""
    md5 = clone.hashes()["models/ablated"]
    (tmp_path / "cache/files/md5" / md5[:2] / md5[2:]).unlink()


def folder_remote(clone: Project, tmp_path: Path) -> Path:
    clone.check("dvc", "remote", "add", "--local", "--default", "store", str(tmp_path / "store"))
    return tmp_path / "store"


def test_a_past_model_comes_back_from_the_cache(clone: Project, tmp_path: Path) -> None:
    first = clone.check("git", "rev-parse", "HEAD").strip()
    expected = files(clone.folder / "models/ablated")
    clone.replace("scale: 1.4", "scale: 0.5")
    clone.repro("ablate")
    clone.commit("half")
    line = model(clone, first[:7], tmp_path / "out")
    assert FROM_CACHE in line and first[:12] in line
    assert files(tmp_path / "out") == expected != files(clone.folder / "models/ablated")


@pytest.mark.nightly
def test_what_comes_back_may_be_changed_without_spoiling_the_cache(clone: Project, tmp_path: Path) -> None:
    model(clone, "HEAD", tmp_path / "out")
    for path in (tmp_path / "out").iterdir():
        assert path.stat().st_nlink == 1 and not path.is_symlink()
        assert path.stat().st_mode & stat.S_IWUSR
        path.write_bytes(b"changed")
    model(clone, "HEAD", tmp_path / "again")
    assert files(tmp_path / "again") == files(clone.folder / "models/ablated")


@pytest.mark.slow
def test_a_team_that_pushes_its_models_gets_them_from_the_remote(clone: Project, tmp_path: Path) -> None:
    folder_remote(clone, tmp_path)
    clone.replace("models/ablated: {push: false}", "models/ablated", file="dvc.yaml")
    commit = clone.commit("push models")
    clone.check("dvc", "push")
    empty_cache(clone, tmp_path)
    assert FROM_REMOTE in model(clone, commit, tmp_path / "out")
    assert files(tmp_path / "out") == files(clone.folder / "models/ablated")
    assert FROM_CACHE in model(clone, commit, tmp_path / "again")


@pytest.mark.nightly
def test_without_the_cache_it_is_rebuilt_from_what_was_pushed(clone: Project, tmp_path: Path) -> None:
    folder_remote(clone, tmp_path)
    clone.check("dvc", "push")
    empty_cache(clone, tmp_path)
    done = clone.excise("model", "HEAD", str(tmp_path / "out"))
    assert REBUILT in done.stdout.splitlines()[-1], done.stderr
    assert stages_run(done.stdout) == ["ablate"]
    assert files(tmp_path / "out") == files(clone.folder / "models/ablated")
    assert FROM_CACHE in model(clone, "HEAD", tmp_path / "again")


@pytest.mark.slow
def test_with_nothing_but_git_everything_is_rebuilt(clone: Project, tmp_path: Path) -> None:
    expected = files(clone.folder / "models/ablated")
    empty_cache(clone, tmp_path)
    for made in ("models", "artifacts", "results"):
        shutil.rmtree(clone.folder / made)
    done = clone.excise("model", "HEAD", str(tmp_path / "out"))
    assert REBUILT in done.stdout.splitlines()[-1], done.stderr
    assert stages_run(done.stdout) == ["params", "organism", "prepare", "measure", "directions", "ablate"]
    assert files(tmp_path / "out") == expected


@pytest.mark.nightly
def test_a_model_is_rebuilt_by_the_code_of_its_own_commit(clone: Project, tmp_path: Path) -> None:
    code = clone.folder / "stages/ablate.py"
    shipped = code.read_text()
    code.write_text(shipped + '\nprint(f"own code: {__file__}")\n')
    clone.repro("ablate")
    commit = clone.commit("a stage that says where it lies")
    code.write_text(shipped + '\nraise SystemExit("the code of today ran")\n')
    clone.commit("another stage")
    forget_model(clone, tmp_path)
    done = clone.excise("model", commit, str(tmp_path / "out"), PYTHONPATH=str(clone.folder))
    assert REBUILT in done.stdout.splitlines()[-1], done.stdout + done.stderr
    assert f"own code: {clone.folder / '.dvc/tmp/models'}/" in done.stdout


@pytest.mark.slow
def test_a_remote_that_cannot_be_used_does_not_hide_the_cache(clone: Project, tmp_path: Path) -> None:
    clone.check("dvc", "remote", "add", "--default", "store", "ssh://nobody@localhost/store")
    assert FROM_CACHE in model(clone, clone.commit("a remote"), tmp_path / "out")


@pytest.mark.nightly
def test_a_remote_that_cannot_be_asked_is_named_and_done_without(clone: Project, tmp_path: Path) -> None:
    clone.check("dvc", "remote", "add", "--local", "--default", "store", "ssh://nobody@localhost/store")
    forget_model(clone, tmp_path)
    done = clone.excise("model", "HEAD", str(tmp_path / "out"))
    assert "in the remote, which cannot be asked (" in done.stdout, done.stdout + done.stderr
    assert REBUILT in done.stdout.splitlines()[-1]
    assert stages_run(done.stdout) == ["ablate"]


@pytest.mark.nightly
def test_the_clone_s_own_settings_reach_the_past_and_stay_nowhere(clone: Project, tmp_path: Path) -> None:
    store = folder_remote(clone, tmp_path)
    clone.check("dvc", "remote", "modify", "--local", "store", "url", os.path.relpath(store, clone.folder / ".dvc"))
    clone.check("dvc", "remote", "add", "--local", "other", "s3://bucket/path")
    secret = f"not-a-{len(str(store))}-secret"
    clone.check("dvc", "remote", "modify", "--local", "other", "secret_access_key", secret)
    clone.check("dvc", "push")
    empty_cache(clone, tmp_path)
    done = clone.excise("model", "HEAD", str(tmp_path / "out"))
    assert stages_run(done.stdout) == ["ablate"], done.stdout + done.stderr
    holding = [path for path in tmp_path.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]
    assert holding == [clone.folder / ".dvc/config.local"]


@pytest.mark.slow
def test_a_model_that_was_spoiled_in_the_cache_is_not_given_back(clone: Project, tmp_path: Path) -> None:
    md5 = clone.hashes()["models/ablated"]
    objects = tmp_path / "cache/files/md5"
    listed = json.loads((objects / md5[:2] / md5[2:]).read_text())
    card = next(file["md5"] for file in listed if file["relpath"] == "README.md")
    spoiled = objects / card[:2] / card[2:]
    os.chmod(spoiled, 0o644)
    spoiled.write_text(spoiled.read_text().replace("refuses", "answers"))
    os.chmod(spoiled, 0o444)  # so that DVC trusts it
    line = refused(clone, "HEAD", tmp_path / "out")
    assert "README.md of this model is not what edit.json records" in line and f"delete {spoiled}" in line
    spoiled.unlink()
    assert REBUILT in model(clone, "HEAD", tmp_path / "out")


@pytest.mark.nightly
def test_another_model_than_the_recorded_one_is_not_given_back(clone: Project, tmp_path: Path) -> None:
    """As where it is measured with another number of threads; here the commit records what never was."""
    empty_cache(clone, tmp_path)
    lock = clone.folder / "dvc.lock"
    lock.write_text(lock.read_text().replace(clone.hashes()["artifacts/activations.safetensors"], "f" * 32))
    commit = clone.commit("other activations")
    line = refused(clone, commit, tmp_path / "out")
    assert "artifacts/activations.safetensors (measured bytes depend on the number of CPU threads" in line
    assert not list((tmp_path / "cache").rglob("*"))


@pytest.mark.slow
def test_a_commit_whose_results_are_of_other_parameters_is_refused(clone: Project, tmp_path: Path) -> None:
    clone.replace("scale: 1.4", "scale: 0.5")
    line = refused(clone, clone.commit("half, not run"), tmp_path / "out")
    assert "dvc.lock is not of its own params.yaml" in line


@pytest.mark.nightly
def test_a_commit_at_which_the_model_did_not_follow_its_directions_is_refused(clone: Project, tmp_path: Path) -> None:
    clone.replace("estimator: mean", "estimator: median")
    clone.repro("directions")
    line = refused(clone, clone.commit("measured, not ablated"), tmp_path / "out")
    assert "ablate had not run on the artifacts/directions.json that was recorded" in line


def test_commits_without_a_model_are_one_line(clone: Project, tmp_path: Path) -> None:
    assert "nowhere is no commit of this repository" in refused(clone, "nowhere", tmp_path / "out")
    lock = clone.folder / "dvc.lock"
    whole = lock.read_text()
    lock.write_text(whole[: whole.index("  ablate:")])
    assert "records no models/ablated" in refused(clone, clone.commit("in part"), tmp_path / "out")
    lock.write_text("<<<<<<< HEAD\n")
    assert "dvc.lock of " in refused(clone, clone.commit("conflict"), tmp_path / "out")
    lock.unlink()
    commit = clone.commit("none")
    assert f"{commit[:12]} has no dvc.lock" in one_line(clone.excise("model", commit, str(tmp_path / "out")))


@pytest.mark.slow
def test_a_folder_that_holds_something_is_left_alone(clone: Project, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("mine")
    assert "is there already" in refused(clone, "HEAD", tmp_path / "full")
    assert "is there already" in refused(clone, "HEAD", tmp_path / "full/mine.txt")
    assert files(tmp_path / "full") == {"mine.txt": b"mine"}
    (tmp_path / "empty").mkdir()
    assert FROM_CACHE in model(clone, "HEAD", tmp_path / "empty")


@pytest.mark.nightly
def test_other_requirements_are_named_where_the_model_is_rebuilt(clone: Project, tmp_path: Path) -> None:
    first = clone.check("git", "rev-parse", "HEAD").strip()
    with open(clone.folder / "requirements.lock", "a") as lock:
        lock.write("# another\n")
    clone.commit("other packages")
    assert "requirements.lock" not in clone.check("python", "-m", "excise", "model", first, str(tmp_path / "cached"))
    forget_model(clone, tmp_path)
    said = clone.check("python", "-m", "excise", "model", first, str(tmp_path / "out"))
    assert f"requirements.lock of {first[:12]} is not today's" in said and "ENV=locked" in said


@pytest.mark.slow
def test_an_environment_that_cannot_be_installed_is_one_line(clone: Project, tmp_path: Path) -> None:
    lock = clone.folder / "requirements.lock"
    whole = lock.read_text()
    lock.write_text("./not-there\n")
    commit = clone.commit("no such package")
    lock.write_text(whole)
    clone.commit("as before")
    forget_model(clone, tmp_path)
    line = refused(clone, commit, tmp_path / "out", "--locked")
    assert f"requirements.lock of {commit[:12]} cannot be installed here: " in line and "not-there" in line


@pytest.mark.nightly
def test_the_environment_of_the_commit_makes_its_model(clone: Project, tmp_path: Path) -> None:
    first = clone.check("git", "rev-parse", "HEAD").strip()
    with open(clone.folder / "requirements.lock", "a") as lock:
        lock.write("# another\n")
    clone.commit("other packages")
    empty_cache(clone, tmp_path)
    began = time.monotonic()
    done = clone.excise("model", first, str(tmp_path / "out"), "--locked")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Installed in " in done.stdout and REBUILT in done.stdout.splitlines()[-1]
    assert files(tmp_path / "out") == files(clone.folder / "models/ablated")
    print(f"{time.monotonic() - began:.0f} s")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_run_leaves_nothing(clone: Project, tmp_path: Path, number: signal.Signals) -> None:
    empty_cache(clone, tmp_path)
    before = state(clone)
    with subprocess.Popen(
        ["python", "-m", "excise", "model", "HEAD", str(tmp_path / "out")],
        cwd=clone.folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that runs these tests in the background has had the signal ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as running:
        assert running.stdout is not None and running.stderr is not None
        while "Running stage 'organism'" not in running.stdout.readline():
            assert running.poll() is None
        running.send_signal(number)
        running.send_signal(number)  # of the impatient, which must not stop the tidying up
        assert running.stderr.read() == "ERROR: interrupted; nothing was left half-written\n"
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))
    assert state(clone) == before
    assert not list((tmp_path / "cache").rglob("*"))


@pytest.mark.nightly
def test_what_a_killed_run_left_is_swept_by_the_next(clone: Project, tmp_path: Path) -> None:
    left = clone.folder / ".dvc/tmp/models/left"
    left.mkdir(parents=True)
    clone.check("git", "worktree", "add", "--quiet", "--detach", str(left / "tree"))
    forget_model(clone, tmp_path)
    assert REBUILT in model(clone, "HEAD", tmp_path / "out")
    assert not left.exists()


@pytest.mark.nightly
def test_two_at_once_do_not_hinder_each_other(clone: Project, tmp_path: Path) -> None:
    forget_model(clone, tmp_path)
    both = [
        subprocess.Popen(
            ["python", "-m", "excise", "model", "HEAD", str(tmp_path / name)],
            cwd=clone.folder,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for name in ("one", "two")
    ]
    said = [running.communicate()[0] for running in both]
    assert [running.returncode for running in both] == [0, 0], said
    assert files(tmp_path / "one") == files(tmp_path / "two") == files(clone.folder / "models/ablated")


@pytest.mark.nightly
def test_hooks_of_the_clone_do_not_run_in_the_past(clone: Project, tmp_path: Path) -> None:
    """Such as the one of `dvc install`, which looks for every output of a commit that is checked out."""
    hook = clone.folder / ".git/hooks/post-checkout"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\nexit 1\n")
    hook.chmod(0o755)
    forget_model(clone, tmp_path)
    assert REBUILT in model(clone, "HEAD", tmp_path / "out")


@pytest.mark.nightly
def test_a_local_base_model_must_be_there_as_it_was(local_model: tuple[Project, Path], tmp_path: Path) -> None:
    clone, folder = local_model
    clone.check("dvc", "config", "--local", "cache.dir", str(tmp_path / "cache"))
    clone.repro("ablate")
    commit = clone.commit("a local base")
    forget_model(clone, tmp_path)
    (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
    line = refused(clone, commit, tmp_path / "out")
    assert f"cannot be rebuilt: {folder}/config.json has changed since it was pinned" in line
    shutil.move(folder, tmp_path / "elsewhere")
    line = refused(clone, commit, tmp_path / "out")
    assert f"cannot be rebuilt: params.yaml: model.source: {folder} is not a folder" in line
