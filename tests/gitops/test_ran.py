"""Nothing is shown as evidence of a run that never was: in a folder and in a commit, whatever else lies there."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from excise.gitops.git import commit_of
from excise.gitops.sides import Commit, WorkingTree, check_ran
from excise.plumbing.errors import StageError
from schemas.wording import ParamsError
from tests.projects import Project, one_line


def append(path: str, text: str) -> Callable[[Project], None]:
    def change(project: Project) -> None:
        with open(project.folder / path, "a") as file:
            file.write(text)

    return change


def replace(path: str, old: str, new: str) -> Callable[[Project], None]:
    def change(project: Project) -> None:
        file = project.folder / path
        text = file.read_text()
        file.unlink()  # a link to DVC's cache, which other tests share
        file.write_text(text.replace(old, new, 1))
        assert text != file.read_text()

    return change


def remove(path: str) -> Callable[[Project], None]:
    return lambda project: (project.folder / path).unlink()


CONFLICT = "<<<<<<< HEAD\n=======\n>>>>>>> main\n"
OF_THE_COMMIT = [
    (replace("params.yaml", "scale: 1.4", "scale: 0.5"), "params.yaml changed since params ran"),
    (replace("params.yaml", "at_most: 0.15", "at_most: 0.9"), "params.yaml changed since params ran"),
    (replace("gates.json", '"warn"', '"pass"'), "gates.json is not what report wrote"),
    (replace("metrics.json", "0", "1"), "metrics.json is not what report wrote"),
    (remove("gates.json"), "gates.json is missing"),
    (remove("report/report.md"), "report/report.md is missing"),
    (remove("dvc.lock"), "there is no dvc.lock"),
    (remove("dvc.yaml"), "there is no dvc.yaml"),
    (append("gates.json", CONFLICT), "holds conflict markers of a merge"),
    (append("metrics.json", CONFLICT), "holds conflict markers of a merge"),
    (append("dvc.lock", CONFLICT), "holds conflict markers of a merge"),
    (append("dvc.lock", "- {"), "dvc.lock is not what DVC writes"),
    (replace("dvc.lock", "    - path: params.yaml", "    - place: params.yaml"), "dvc.lock is not what DVC writes"),
    (append("stages/evaluate.py", "# another\n"), "stages/evaluate.py changed since evaluate@base ran"),
    (append("schemas/params/gates.py", "# another\n"), "schemas/params changed since params ran"),
    (append("excise/organism/notes.txt", "new\n"), "excise/organism changed since organism ran"),
    (append("excise/verdicts/new.py", "\n"), "excise/verdicts changed since evaluate@base ran"),
    (
        replace("dvc.yaml", "cmd: exec python -m stages.report", "cmd: python -m stages.report"),
        "report is another stage",
    ),
    (replace("dvc.yaml", "      - stages/report.py\n", ""), "report is another stage"),
    (
        replace("dvc.yaml", "  params:\n    desc", "  first:\n    cmd: x\n  params:\n    desc"),
        "first is in dvc.yaml and not",
    ),
]
IN_THE_FOLDER = [
    (replace("artifacts/params/report.json", "0.15", "0.99"), "artifacts/params/report.json is not what params wrote"),
    (replace("artifacts/model.json", "organism", "organist"), "artifacts/model.json is not what prepare wrote"),
    (replace("results/ablated/results.json", "0", "1"), "results/ablated is not what evaluate@ablated wrote"),
    (append("results/ablated/samples/more.jsonl", "{}\n"), "results/ablated is not what evaluate@ablated wrote"),
    (append("models/ablated/more", "x"), "models/ablated is not what ablate wrote"),
]


def refusal(side: WorkingTree | Commit) -> str:
    with pytest.raises(StageError) as caught:
        check_ran(side)
    assert len(str(caught.value)) <= 400 and str(caught.value).isprintable()
    return str(caught.value)


@pytest.mark.parametrize(("change", "says"), [*OF_THE_COMMIT, *IN_THE_FOLDER])
def test_a_folder_that_is_not_as_the_stages_left_it_is_refused(
    project: Project, change: Callable[[Project], None], says: str
) -> None:
    check_ran(WorkingTree(project.folder))
    change(project)
    assert says in refusal(WorkingTree(project.folder))


@pytest.mark.slow
def test_a_commit_is_refused_for_the_same_reasons(project: Project) -> None:
    folder = project.folder
    first = project.check("git", "rev-parse", "HEAD").strip()
    check_ran(Commit(folder, first))
    for change, says in OF_THE_COMMIT[::3]:
        change(project)
        commit = project.commit("changed")
        found = refusal(Commit(folder, commit))
        assert says in found and commit[:12] in found
        project.check("git", "reset", "--hard", "--quiet", first)


def test_results_that_a_later_stage_did_not_follow_are_refused(project: Project) -> None:
    lock = project.folder / "dvc.lock"
    md5 = project.hashes()["results/ablated"]
    before, report = lock.read_text().split("  report:\n")
    lock.write_text(f"{before}  report:\n{report.replace(md5, '0' * 32 + '.dir')}")
    assert "results/ablated was made again after report ran" in refusal(WorkingTree(project.folder))


def test_what_changes_no_result_is_no_reason(project: Project) -> None:
    folder = project.folder
    project.replace("# What is removed from which model", "# Another comment: what is removed from which model")
    (folder / "excise/organism/__pycache__").mkdir(exist_ok=True)
    (folder / "excise/organism/__pycache__/world.cpython-311.pyc").write_bytes(b"compiled")
    (folder / "README.md").write_text("another")
    check_ran(WorkingTree(folder))
    commit = project.commit("comments")
    check_ran(Commit(folder, commit_of(folder, commit)))


def test_a_fresh_clone_has_evidence_without_models(project: Project, tmp_path: Path) -> None:
    project.check("git", "clone", "--quiet", ".", str(tmp_path / "clone"))
    clone = Project(tmp_path / "clone")
    assert not (clone.folder / "artifacts").exists()
    assert "organism_harmful" in clone.check("python", "-m", "excise", "gate")
    assert clone.check("python", "-m", "excise", "comment", "--base", "HEAD")


def test_parameters_that_are_wrong_are_named(project: Project) -> None:
    project.replace("scale: 1.4", "scale: much")
    with pytest.raises(ParamsError, match=r"ablate\.rules\.0\.scale"):
        check_ran(WorkingTree(project.folder))
    assert project.excise("gate").returncode == 2


@pytest.mark.parametrize("command", [("gate",), ("gate", "--show"), ("comment", "--base", "HEAD"), ("report",)])
def test_gates_comment_and_report_of_another_model_are_one_line(project: Project, command: tuple[str, ...]) -> None:
    project.replace("scale: 1.4", "scale: 0.5")
    done = project.excise(*command)
    assert "the stages have not run for what lies here: params.yaml changed" in one_line(done)
    assert not done.stdout and not (project.folder / "report/comment.md").exists()


def test_gates_that_another_version_wrote_are_one_line(project: Project) -> None:
    (project.folder / "gates.json").write_text(json.dumps({"verdict": "pass"}))
    project.check("dvc", "commit", "--force", "report")
    done = project.excise("gate")
    assert "gates.json is not what this version of excise writes" in one_line(done) and done.returncode == 2


def test_outputs_that_are_not_here_are_no_change_for_dvc_either(project: Project) -> None:
    shutil.rmtree(project.folder / "models")
    shutil.rmtree(project.folder / "artifacts/prompts")
    check_ran(WorkingTree(project.folder))
    changed = json.loads(project.check("dvc", "status", "--json"))
    assert "modified" not in str(changed)
