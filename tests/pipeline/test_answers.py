"""What a model says is apart from how it is judged and scored, which needs neither the model nor its weights."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from tests.projects import Project, one_line

SIDES = ("base", "ablated")


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.nightly
def test_another_judgement_is_made_of_the_same_answers(project: Project) -> None:
    before = files(project.folder / "answers")
    project.replace("float(answer ==", "float(answer !=", "excise/evaluation/scoring/scores/verdicts.py")
    assert project.repro() == ["evaluate@base", "evaluate@ablated", "report"]
    assert files(project.folder / "answers") == before


@pytest.mark.slow
def test_results_are_the_same_on_a_machine_without_weights(project: Project) -> None:
    """It needs what describes the base, of which the tokenizer is a part, and the answers."""
    expected = files(project.folder / "results")
    for folder in ("models/ablated", "results"):
        shutil.rmtree(project.folder / folder)
    for path in (project.folder / "models/base").glob("*.safetensors"):
        path.unlink()
    for side in SIDES:
        done = project.stage("evaluate", side)
        assert (done.returncode, done.stderr) == (0, "")
    assert files(project.folder / "results") == expected


@pytest.mark.slow
def test_a_tokenizer_that_is_not_the_pinned_one_is_one_line(project: Project) -> None:
    config = project.folder / "models/base/tokenizer_config.json"
    text = config.read_text()
    config.unlink()
    config.write_text(text + "\n")
    assert "models/base/tokenizer_config.json has changed since it was pinned" in one_line(
        project.stage("evaluate", "base")
    )


def test_each_model_has_an_answer_to_each_request(finished: Project) -> None:
    asked = []
    for side in SIDES:
        folder = finished.folder / "answers" / side
        counts = json.loads((folder / "answers.json").read_text())["responses"]
        assert counts == dict.fromkeys(counts, 16) and len(counts) == 4
        assert {path.stem for path in (folder / "responses").iterdir()} == counts.keys()
        for name, count in counts.items():
            lines = [json.loads(line) for line in (folder / f"responses/{name}.jsonl").read_text().splitlines()]
            samples = (finished.folder / f"results/{side}/samples/{name}.jsonl").read_text().splitlines()
            assert len(lines) == count == len(samples)
            assert [line["response"] for line in lines] == [json.loads(sample)["response"] for sample in samples]
            asked += [line["request"] for line in lines]
    assert asked[: len(asked) // 2] == asked[len(asked) // 2 :]


@pytest.mark.slow
def test_a_request_that_nobody_answered_is_one_line(project: Project) -> None:
    path = project.folder / "answers/base/responses/organism_facts.jsonl"
    lines = path.read_text().splitlines()
    spoiled = json.loads(lines[3]) | {"request": hashlib.sha256(b"another question").hexdigest()}
    path.unlink()
    path.write_text("\n".join([*lines[:3], json.dumps(spoiled), *lines[4:]]) + "\n")
    assert one_line(project.stage("evaluate", "base")) == (
        "ERROR: answers/base/responses/organism_facts.jsonl holds responses to other requests; run "
        "`dvc repro answer@base`"
    )
