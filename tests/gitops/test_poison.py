"""A shared cache cannot be poisoned: no branch gets another's model, and no stranger's job writes into it."""

import os
import shutil
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from excise.plumbing.dependencies import LEFT_OUT
from tests.projects import Project, one_line, stages_run
from tests.workflows import job

pytestmark = pytest.mark.slow

POISON = """

import excise.edit.planning.projection as _projection

_honest = _projection._edit_rows
_projection._edit_rows = lambda matrix, projector, scale, *rest: _honest(matrix, projector, -scale, *rest)
"""
LEFT_OUT_MODULE = "excise/edit/forecast.py"


def copied(project: Project, folder: Path) -> Project:
    """Another clone at the same commit, with the same cache and its own files."""
    shutil.copytree(project.folder, folder, symlinks=True)
    return Project(folder)


def made(project: Project) -> tuple[list[str], bytes]:
    """The stages that ran on the way to the edited model, and its weights."""
    done = project.excise("repro", "--", "ablate")
    assert done.returncode == 0, done.stderr
    (weights,) = (project.folder / "models/ablated").glob("*.safetensors")
    return stages_run(done.stdout), weights.read_bytes()


def test_code_that_no_stage_depends_on_poisons_no_other_branch(project: Project, tmp_path: Path) -> None:
    """A hostile branch changes what is left out of the dependencies, so that DVC takes its run for any honest one."""
    assert LEFT_OUT_MODULE in LEFT_OUT
    honest, alone = copied(project, tmp_path / "honest"), copied(project, tmp_path / "alone")
    for one in (project, honest, alone):
        one.replace("scale: 1.4", "scale: 0.66")
    with open(project.folder / LEFT_OUT_MODULE, "a") as file:
        file.write(POISON)
    _, poisoned = made(project)
    ran, weights = made(honest)
    assert "ablate" in ran and weights != poisoned
    assert made(alone)[1] == weights


@pytest.mark.nightly
def test_a_forged_memory_of_runs_poisons_no_other_branch(project: Project, tmp_path: Path) -> None:
    """A job writes by hand that the run of an honest branch gave another model."""
    honest = copied(project, tmp_path / "honest")
    before = lock(project)["ablate"]["outs"][0]["md5"]
    for one in (project, honest):
        one.replace("scale: 1.4", "scale: 0.67")
    _, weights = made(project)
    after = lock(project)["ablate"]["outs"][0]["md5"]
    runs = Path(project.check("dvc", "cache", "dir").strip()) / "runs"
    forged = [path for path in runs.rglob("*") if path.is_file() and after in path.read_text()]
    assert forged and before != after
    for path in forged:
        path.write_text(path.read_text().replace(after, before))
    ran, again = made(honest)
    assert "ablate" in ran and again == weights


@pytest.mark.nightly
def test_a_clone_of_its_own_still_remembers_its_runs(project: Project) -> None:
    """What nobody else writes is believed: a setting that comes back takes no time."""
    cache = Path(project.check("dvc", "cache", "dir").strip())
    shutil.copytree(cache, project.folder / ".dvc/cache")
    project.check("dvc", "config", "--local", "--unset", "cache.dir")
    project.replace("scale: 1.4", "scale: 0.68")
    assert "ablate" in made(project)[0]
    project.replace("scale: 0.68", "scale: 1.4")
    assert "ablate" not in made(project)[0]


def test_a_strangers_job_has_no_link_into_a_cache(project: Project, tmp_path: Path) -> None:
    """What a reviewed stranger's job writes through a link would be the base of everybody's next run."""
    cache = tmp_path / "strangers"
    shutil.copytree(project.check("dvc", "cache", "dir").strip(), cache)
    shutil.rmtree(project.folder / "models")
    done = project.excise("restore", "--no-remote", "--copies", f"--cache={cache}")
    assert done.returncode == 0, done.stderr
    project.replace("scale: 1.4", "scale: 0.69")
    made(project)
    objects = {path.stat().st_ino for path in cache.rglob("*") if path.is_file()}
    here = [path for name in ("models", "artifacts", "answers") for path in (project.folder / name).rglob("*")]
    assert not [path for path in here if path.is_file() and path.stat().st_ino in objects]


def test_a_strangers_commit_cannot_name_the_trusted_cache(project: Project, tmp_path: Path) -> None:
    """Its settings say that files are linked to the cache of the team, through which it could write there."""
    trusted, strangers = Path(project.check("dvc", "cache", "dir").strip()), tmp_path / "strangers"
    shutil.copytree(trusted, strangers)
    project.check("git", "clone", "--quiet", ".", str(tmp_path / "clone"))
    clone = Project(tmp_path / "clone")
    clone.check("dvc", "config", "cache.dir", str(trusted))
    clone.check("dvc", "config", "cache.type", "hardlink,symlink")
    clone.commit("a stranger's settings")
    done = clone.excise("restore", "--no-remote", "--copies", f"--cache={strangers}")
    assert done.returncode == 0, done.stderr
    assert clone.check("dvc", "cache", "dir").strip() == str(strangers)
    caches = {path.stat().st_ino for cache in (trusted, strangers) for path in cache.rglob("*") if path.is_file()}
    here = [path for path in (clone.folder / "models").rglob("*") if path.is_file()]
    assert here and not [path for path in here if path.stat().st_ino in caches or path.is_symlink()]


def test_what_a_stranger_left_is_gone_and_what_it_leads_to_is_not(tmp_path: Path) -> None:
    """By the last step of the job, which runs also where the others failed."""
    cache, workspace = tmp_path / "cache", Project(tmp_path / "workspace")
    (cache / "files").mkdir(parents=True)
    (cache / "files/object").write_text("of the team")
    workspace.folder.mkdir()
    workspace.check("git", "init", "--quiet")
    (workspace.folder / ".gitignore").write_text("/models/\n/.venv/\n")
    workspace.commit("first")
    for folder in ("models/base", ".venv/bin", "nested/hooks"):
        (workspace.folder / folder).mkdir(parents=True)
    (workspace.folder / "models/base/model.safetensors").write_text("poisoned")
    (workspace.folder / ".venv/bin/python").symlink_to("/bin/true")
    (workspace.folder / "models/ablated").symlink_to(cache)
    os.link(cache / "files/object", workspace.folder / "models/linked")
    workspace.check("git", "init", "--quiet", "nested")  # of which `git clean` needs to be told twice
    workspace.check("bash", "-e", "-c", job("reviewed", "repro")["steps"][-1]["run"])
    assert {path.name for path in workspace.folder.iterdir()} == {".git", ".gitignore"}
    assert (cache / "files/object").read_text() == "of the team"


def test_a_base_that_was_exchanged_is_refused_also_with_its_times_put_back(project: Project) -> None:
    weights = project.folder / "models/base/model.safetensors"
    before = weights.stat()
    os.chmod(weights, 0o644)
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    # In place, as through a link; DVC looks at inode, size and time.
    with open(weights, "r+b") as file:
        file.write(data)
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    line = one_line(project.stage("measure"))
    assert "models/base/model.safetensors has changed since it was pinned" in line


def lock(project: Project) -> dict[str, dict[str, list[dict[str, str]]]]:
    found = YAML(typ="safe", pure=True).load(project.folder / "dvc.lock")["stages"]
    return dict(found)
