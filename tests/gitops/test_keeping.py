"""The remote's keys are used by code that no branch wrote: a commit, and what its run left, are data."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.projects import Project, one_line, stages_run

pytestmark = pytest.mark.slow

NEVER = "raise SystemExit('code of the commit ran')\n"


@dataclass
class Machine:
    """A team's machine: a clone that is trusted, and one of a branch whose code must never run with keys."""

    trusted: Project
    branch: Project
    cache: Path
    storage: Path


@pytest.fixture
def machine(project: Project, tmp_path: Path) -> Machine:
    storage, cache, origin = tmp_path / "storage", tmp_path / "cache", tmp_path / "origin.git"
    project.check("dvc", "remote", "add", "--default", "storage", str(storage))
    project.commit("a remote")
    assert project.excise("push").returncode == 0
    project.check("git", "clone", "--quiet", "--bare", ".", str(origin))
    trusted, branch = Project(tmp_path / "trusted"), Project(tmp_path / "branch")
    for clone in (trusted, branch):
        project.check("git", "clone", "--quiet", str(origin), str(clone.folder))
    return Machine(trusted, branch, cache, storage)


def copy_documents(project: Project, handover: Path) -> None:
    """What is handed over of a clone without outputs, whose report is not there."""
    for name in ("dvc.lock", "gates.json", "metrics.json", "report/comparison.json", "report/report.md"):
        (handover / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(project.folder / name, handover / name)


def objects(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in (folder / "files").rglob("*") if path.is_file()}


@pytest.mark.nightly
def test_what_a_branch_made_reaches_the_remote_and_its_code_never_meets_the_keys(machine: Machine) -> None:
    trusted, branch, cache = machine.trusted, machine.branch, machine.cache
    for path in ("excise/__init__.py", "stages/__init__.py"):
        (branch.folder / path).write_text(NEVER)
    branch.replace("at_most: 0.15", "at_most: 0.16")
    commit = branch.commit("hostile")
    trusted.check("git", "fetch", "--quiet", str(branch.folder), "HEAD")
    assert not list(cache.rglob("*"))

    done = trusted.excise("fetch", f"--cache={cache}", commit)
    assert done.returncode == 0, done.stderr
    assert objects(cache) == objects(machine.storage)

    # The run itself, as the machine does it: without the remote, out of the cache alone.
    for path in ("excise/__init__.py", "stages/__init__.py"):
        branch.check("git", "checkout", "HEAD~1", "--", path)
    shutil.move(machine.storage, machine.storage.with_name("away"))
    restored = branch.excise("restore", "--no-remote", f"--cache={cache}")
    assert restored.returncode == 0, restored.stderr
    ran = branch.excise("rerun", "--no-remote")
    assert ran.returncode == 0, ran.stderr
    assert {"params", "report"} <= {*stages_run(ran.stdout)} and "measure" not in stages_run(ran.stdout)
    shutil.move(machine.storage.with_name("away"), machine.storage)
    handover = machine.storage.with_name("handover")
    assert branch.excise("hand-over", str(handover)).returncode == 0

    before = objects(machine.storage)
    kept = trusted.excise("keep", f"--cache={cache}", commit, str(handover))
    assert kept.returncode == 0, kept.stderr
    assert objects(machine.storage) > before
    again = trusted.excise("keep", f"--cache={cache}", commit, str(handover))
    assert again.returncode == 0 and "up to date" in again.stdout
    assert trusted.check("git", "status", "--porcelain") == ""


def test_neither_code_of_a_branch_nor_a_remote_that_it_names_meets_the_keys(machine: Machine) -> None:
    """Its own settings say where its data goes, and so where the keys would be shown."""
    trusted, branch, cache = machine.trusted, machine.branch, machine.cache
    elsewhere, other = machine.storage.with_name("elsewhere"), machine.storage.with_name("other")
    branch.check("dvc", "remote", "modify", "storage", "url", str(elsewhere))
    branch.check("dvc", "remote", "add", "other", str(other))
    plain = "    outs:\n      - artifacts/activations.safetensors"
    branch.replace(f"{plain}\n", f"{plain}:\n          remote: other\n", "dvc.yaml")
    for path in ("excise/__init__.py", "stages/__init__.py"):
        (branch.folder / path).write_text(NEVER)
    commit = branch.commit("another remote")
    handover = machine.storage.with_name("handover")
    copy_documents(branch, handover)
    trusted.check("git", "fetch", "--quiet", str(branch.folder), "HEAD")

    done = trusted.excise("fetch", f"--cache={cache}", commit)
    assert done.returncode == 0, done.stderr
    pushed = objects(machine.storage)
    assert objects(cache) == pushed
    shutil.rmtree(machine.storage)
    done = trusted.excise("keep", f"--cache={cache}", commit, str(handover))
    assert done.returncode == 0, done.stderr
    assert objects(machine.storage) == pushed
    assert not elsewhere.exists() and not other.exists()
    again = trusted.excise("keep", f"--cache={cache}", commit, str(handover))
    assert again.returncode == 0 and "up to date" in again.stdout
    assert trusted.check("git", "status", "--porcelain") == ""


def test_a_handover_that_names_what_nobody_has_pushes_nothing(machine: Machine) -> None:
    trusted, branch, cache = machine.trusted, machine.branch, machine.cache
    commit = branch.check("git", "rev-parse", "HEAD").strip()
    assert branch.excise("restore", f"--cache={cache}").returncode == 0
    handover = machine.storage.with_name("handover")
    copy_documents(branch, handover)
    lock = (handover / "dvc.lock").read_text()
    forged = lock
    for entry in lock.split("- path: ")[1:]:
        if entry.startswith("artifacts/directions.safetensors"):
            md5 = entry.split("md5: ")[1][:32]
            forged = lock.replace(md5, "a" * 32)
    (handover / "dvc.lock").write_text(forged)
    before = objects(machine.storage)
    line = one_line(trusted.excise("keep", f"--cache={cache}", commit, str(handover)))
    assert "cannot be pushed" in line and objects(machine.storage) == before
