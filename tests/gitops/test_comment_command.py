"""`python -m excise.gitops.comment` in a project that ran: on a laptop, and where there is nothing but files."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from excise.gitops.comment import MARKER
from schemas.gitops import SampleFile
from tests.projects import ROOT, Project, one_line

HEAVY = ("torch", "transformers", "dvc", "lm_eval", "numpy", "scipy", "matplotlib", "datasets", "rich")


def comment(project: Project, *arguments: str) -> str:
    """What is written for a pull request."""
    path = project.check("python", "-m", "excise", "comment", *arguments).strip()
    return (project.folder / path).read_text()


def rows(text: str, heading: str) -> list[list[str]]:
    """The cells of the table below a heading."""
    lines = text.partition(f"### {heading}\n")[2].partition("\n### ")[0].splitlines()
    return [line.strip("| ").split(" | ") for line in lines if line.startswith("| `")]


@pytest.mark.slow
def test_a_change_is_told_with_the_parameters_stages_and_verdict_that_it_brings(project: Project) -> None:
    project.replace("at_most: 0.15}", "at_most: 0.999}")
    assert project.repro() == ["params", "report"]
    text = comment(project, "--base", "HEAD")
    assert text.startswith(f"{MARKER}\n## ")
    assert rows(text, "Parameters") == [["`gates.0.at_most`", "`0.15`", "`0.999`"]]
    assert [(stage, why) for stage, why, _ in rows(text, "Stages that ran")] == [
        ("`params`", "`params.yaml`"),
        ("`report`", "`artifacts/params/report.json`"),
    ]
    assert "11 stages have the same entry in dvc.lock." in text and "No metric moved beyond noise." in text
    assert "**Not committed yet**: `params.yaml`, `dvc.lock`, `gates.json`." in text
    base = project.check("git", "rev-parse", "HEAD").strip()
    head = project.commit("another limit")
    committed = comment(project, "--base", base)
    assert f"git checkout {head} && make repro" in committed and "Not committed" not in committed
    assert committed == comment(project, "--base", base, "--head", head, "--out", "elsewhere/comment.md")


def test_the_comment_itself_is_no_part_of_the_project(project: Project) -> None:
    assert project.check("python", "-m", "excise", "comment", "--base", "HEAD") == "report/comment.md\n"
    assert project.check("git", "status", "--porcelain") == ""


def test_a_checkout_is_told_of_from_outside_of_it(project: Project, tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "excise",
            "comment",
            "--base",
            "HEAD",
            "--folder",
            str(project.folder),
            "--out",
            "x.md",
        ],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "x.md").read_text() == comment(project, "--base", "HEAD")


@pytest.mark.nightly
def test_answers_are_shown_only_when_asked_for(project: Project) -> None:
    project.replace("{layers: 2-3, measurement: 5, scale: 1.4}", "{layers: all, measurement: 5, scale: 3.0}")
    project.repro()
    silent, asked = comment(project, "--base", "HEAD"), comment(project, "--base", "HEAD", "--samples", "2")
    assert "```text" not in silent and "changed most" not in silent
    assert "```text" in asked and 0 < asked.count("**Prompt**") <= 2 * 4


def test_answers_come_the_same_from_a_file_where_there_are_no_results(project: Project) -> None:
    here = comment(project, "--base", "HEAD", "--samples", "1", "--write-samples", "answers.json")
    tasks = SampleFile.model_validate_json((project.folder / "answers.json").read_bytes()).tasks
    assert tasks and all(len(task.shown) <= 1 for task in tasks)
    shutil.rmtree(project.folder / "results")
    assert comment(project, "--base", "HEAD", "--samples", "1", "--samples-from", "answers.json") == here


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--base", "nowhere"], "nowhere is no commit of this repository"),
        (["--base", "HEAD", "--head", "nowhere"], "nowhere is no commit of this repository"),
        (["--base", "HEAD", "--pictures", "javascript:alert(1)"], "--pictures must be the https address"),
        (["--base", "HEAD", "--pictures", "https://x.example/a)b"], "--pictures must be the https address"),
        (["--base", "HEAD", "--folder", "data"], "(data): there is no dvc.lock"),
        (["--base", "HEAD", "--head", "HEAD", "--samples", "1"], "which need not be --head"),
        (["--base", "HEAD", "--samples", "1", "--samples-from", "no.json"], "no.json is not a file of less than"),
        (["--base", "HEAD", "--samples", "1", "--samples-from", "gates.json"], "write it again with --write-samples"),
    ],
)
def test_what_is_wrong_is_one_line_and_nothing_is_written(project: Project, arguments: list[str], says: str) -> None:
    done = project.excise("comment", *arguments)
    assert done.returncode == 1 and says in one_line(done)
    assert not (project.folder / "report/comment.md").exists()


def test_answers_without_results_are_one_line(project: Project) -> None:
    shutil.rmtree(project.folder / "results")
    assert "results is not there" in one_line(project.excise("comment", "--base", "HEAD", "--samples", "1"))


def test_a_file_of_answers_has_a_size_and_is_no_link(project: Project) -> None:
    (project.folder / "large.json").write_text(json.dumps({"tasks": []}) + " " * (5 * 2**20))
    (project.folder / "empty.json").write_text(json.dumps({"tasks": []}))
    (project.folder / "link.json").symlink_to("empty.json")
    for name in ("large.json", "link.json"):
        done = project.excise("comment", "--base", "HEAD", "--samples", "1", "--samples-from", name)
        assert f"{name} is not a file of less than 4 MiB" in one_line(done)


def test_a_light_environment_renders_it() -> None:
    code = f"import sys, excise.gitops.comment; sys.exit(', '.join(set({HEAVY}) & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
