"""Whose code and which packages a stage runs with."""

import os
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import pytest

from excise.plumbing import process
from tests.projects import ROOT, Project, copy_project, one_line

MARK = '\nprint(f"own code: {__file__}")\n'


def packages(folder: Path, *names: str) -> Path:
    """A folder with packages of ours in it."""
    for name in names:
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").touch()
    return folder


def test_the_project_that_runs_is_that_of_the_folder_or_of_one_above(monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in (ROOT, ROOT / "docs", ROOT / "excise/gitops"):
        monkeypatch.chdir(folder)
        assert process.foreign_code() is None


def test_a_folder_without_code_has_none_of_its_own_to_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert process.foreign_code() is None


def test_another_project_s_code_is_named_and_this_one_s(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(packages(tmp_path / "project", "schemas", "stages", "excise"))
    found = process.foreign_code() or ""
    assert f"that of {ROOT}" in found and str(tmp_path / "project") in found and "PYTHONSAFEPATH" in found


def test_one_package_of_another_project_is_enough(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As where an older version is installed that had fewer packages."""
    project = packages(tmp_path / "project", "schemas", "stages", "excise")
    elsewhere = packages(tmp_path / "elsewhere", "schemas")
    code = "import sys; sys.path[:0] = sys.argv[1:]; from excise.plumbing.process import foreign_code as f; print(f())"
    (project / "excise/plumbing").mkdir()
    (project / "excise/plumbing/process.py").write_text((ROOT / "excise/plumbing/process.py").read_text())
    for paths, says in (([project], "None"), ([elsewhere, project], f"schemas is that of {elsewhere}")):
        command = [sys.executable, "-P", "-c", code, *map(str, paths)]
        done = subprocess.run(command, cwd=project, check=True, capture_output=True, text=True)
        assert says in done.stdout


def pin(monkeypatch: pytest.MonkeyPatch, folder: Path, *lines: str) -> str | None:
    """What is said of these pins."""
    (folder / "requirements-compute.lock").write_text("".join(f"{line}\n" for line in lines))
    monkeypatch.setattr(process, "PINS", folder / "requirements-compute.lock")
    return process.other_versions()


def test_pinned_versions_that_are_installed_are_no_difference(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    numpy = metadata.version("numpy")
    minor = sys.version_info.minor
    assert pin(monkeypatch, tmp_path, f"numpy=={numpy}", "", "# a comment") is None
    assert pin(monkeypatch, tmp_path, f"lm-eval[math]=={metadata.version('lm_eval')}") is None
    pins = (f"numpy==0.1 ; python_full_version < '3.{minor}'", f"numpy=={numpy} ; python_full_version >= '3.{minor}'")
    assert pin(monkeypatch, tmp_path, *pins) is None
    assert pin(monkeypatch, tmp_path, "nowhere-at-all==1.0 ; sys_platform == 'win32'") is None
    assert pin(monkeypatch, tmp_path, "numpy==0.1 ; sys_platform == 'win32'") is None
    monkeypatch.setattr(metadata, "version", lambda _: "2.13.0+cu128")
    assert pin(monkeypatch, tmp_path, "torch==2.13.0") is None


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (["numpy==0.1"], "numpy is installed as {numpy}, and requirements-compute.lock pins 0.1"),
        (["numpy==0.1 ; sys_platform != 'win32'"], "numpy is installed as {numpy}"),
        (["numpy=={numpy} ; python_full_version < '3.2'", "numpy==0.1 ; python_full_version >= '3.2'"], "pins 0.1"),
        (["nowhere-at-all==1.0"], "nowhere-at-all is not installed"),
    ],
)
def test_another_version_is_named_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, lines: list[str], says: str
) -> None:
    version = metadata.version("numpy")
    found = pin(monkeypatch, tmp_path, *(line.format(numpy=version) for line in lines)) or ""
    assert says.format(numpy=version) in found and "make environment" in found
    monkeypatch.setenv("EXCISE_UNPINNED", "1")
    assert process.other_versions() is None


def test_what_is_not_pinned_is_not_compared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(process, "PINS", tmp_path / "nowhere")
    assert process.other_versions() is None


def test_comparing_versions_takes_no_time_beside_importing_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    computing = ("torch", "transformers", "tokenizers", "accelerate", "safetensors", "numpy", "scipy", "datasets")
    versions = {name: metadata.version(name).partition("+")[0] for name in (*computing, "lm-eval", "jinja2")}
    pin(monkeypatch, tmp_path, *(f"{name}=={version}" for name, version in versions.items()))
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        assert process.other_versions() is None
        seconds.append(time.perf_counter() - began)
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import torch"], check=True)
    assert min(seconds) < (time.perf_counter() - began) / 20


@pytest.fixture
def shipped(tmp_path: Path) -> Project:
    """A copy of this project, of which the stage `params` ran and says whose code it is."""
    project = copy_project(tmp_path / "project")
    with open(project.folder / "stages/params.py", "a") as file:
        file.write(MARK)
    project.repro("params")
    project.commit("first")
    return project


def test_a_stage_refuses_other_versions_and_a_command_does_not_ask(shipped: Project) -> None:
    (shipped.folder / "requirements-compute.lock").write_text("numpy==0.1\n")
    done = shipped.stage("params")
    assert done.returncode == 1 and "numpy is installed as" in one_line(done)
    assert shipped.run("python", "-m", "stages.params", EXCISE_UNPINNED="1").returncode == 0
    assert shipped.excise("use").returncode == 0


@pytest.mark.parametrize("command", [("stages.params",), ("stages.ablate",), ("excise", "use", "glm-4.5-air")])
def test_another_copy_s_code_is_refused_and_writes_nothing(shipped: Project, command: tuple[str, ...]) -> None:
    before = (shipped.folder / "params.yaml").read_bytes()
    for path in (shipped.folder / "artifacts/params").iterdir():
        path.unlink()
    done = shipped.run("python", "-m", *command, PYTHONPATH=str(ROOT), PYTHONSAFEPATH="1")
    assert done.returncode == 2 and not done.stdout
    assert f"is that of {ROOT}, and the project here is {shipped.folder}" in one_line(done)
    assert not list((shipped.folder / "artifacts/params").iterdir())
    assert (shipped.folder / "params.yaml").read_bytes() == before


def code_that_ran(output: str) -> list[Path]:
    """The folders of the projects whose stage ran."""
    lines = (line.partition("own code: ")[2] for line in output.splitlines() if "own code: " in line)
    return [Path(line).parents[1] for line in lines]


def test_a_worktree_runs_its_own_code(shipped: Project, tmp_path: Path) -> None:
    shipped.check("git", "worktree", "add", "--quiet", str(tmp_path / "tree"))
    tree = Project(tmp_path / "tree")
    assert code_that_ran(tree.check("python", "-m", "stages.params")) == [tree.folder]
    done = tree.run("dvc", "repro", "--force", "params", PYTHONPATH=str(shipped.folder))
    assert code_that_ran(done.stdout) == [tree.folder], done.stderr


@pytest.mark.slow
def test_an_experiment_runs_the_code_of_its_own_tree(shipped: Project) -> None:
    """In DVC's queue and in a temporary folder, with PYTHONPATH leading to the workspace, whose code is another one."""
    options = ("--set-param", "prompts.seed=7", "params")
    shipped.check("dvc", "exp", "run", "--queue", "--name", "queued", *options)
    with open(shipped.folder / "stages/params.py", "a") as file:
        file.write('raise SystemExit("the workspace\'s code ran")\n')
    for command in (("--run-all",), ("--temp", "--name", "temporary", *options)):
        if "--temp" in command:
            shipped.check("git", "checkout", "--quiet", "stages")
        done = shipped.run("dvc", "exp", "run", *command, PYTHONPATH=str(shipped.folder))
        (place,) = code_that_ran(done.stdout)
        assert place.is_relative_to(shipped.folder / ".dvc/tmp/exps"), done.stdout + done.stderr


def test_an_experiment_that_would_run_the_workspace_s_code_fails(shipped: Project) -> None:
    done = shipped.run(
        *("dvc", "exp", "run", "--temp", "--set-param", "prompts.seed=7", "params"),
        **{"PYTHONPATH": str(shipped.folder), "PYTHONSAFEPATH": "1"},
    )
    assert done.returncode != 0 and f"is that of {shipped.folder}, and the project here is" in done.stderr
    assert not shipped.check("git", "for-each-ref", "refs/exps").strip()


def test_a_program_of_another_environment_is_not_needed() -> None:
    """`.venv/bin/python -m excise repro` finds DVC and the stages' Python without an activated environment."""
    code = "from excise.gitops.programs import environment; print(environment()['PATH'])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={"PATH": "/usr/bin"}, check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() == f"{Path(sys.executable).parent}{os.pathsep}/usr/bin"
