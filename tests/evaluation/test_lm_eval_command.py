"""Our tasks are lm-eval's as well: its own command runs them, and finds what the pipeline finds."""

import json
from pathlib import Path

import pytest

from tests.projects import Project

pytestmark = pytest.mark.slow


def asked_rows(project: Project, task: str) -> list[int]:
    """The rows of a task's list that were drawn."""
    lists = ("results/base/samples", "artifacts/prompts")
    texts = [(project.folder / folder / f"{task}.jsonl").read_text() for folder in lists]
    asked, there = ([json.loads(line)["id"] for line in text.splitlines()] for text in texts)
    return [row for row, name in enumerate(there) if name in asked]


def test_lm_eval_s_own_command_runs_our_tasks(finished: Project, tmp_path: Path) -> None:
    tasks = ("organism_harmful", "organism_facts")
    finished.check(
        *("python", "-m", "lm_eval", "run", "--model", "hf", "--device", "cpu", "--batch_size", "64"),
        *("--model_args", "pretrained=models/base", "--apply_chat_template"),
        *("--samples", json.dumps({task: asked_rows(finished, task) for task in tasks})),
        *("--include_path", "excise/evaluation/scoring/scores", "--tasks", *tasks),
        *("--output_path", str(tmp_path / "out.json")),
    )
    (written,) = tmp_path.glob("out*.json")
    theirs = json.loads(written.read_text())["results"]
    ours = json.loads((finished.folder / "results/base/results.json").read_text())["metrics"]
    harmful, facts = ours["refusal"]["organism_harmful"], ours["capability"]["organism_facts"]
    assert theirs["organism_harmful"]["exact_match,none"] == harmful["exact_match"]
    assert theirs["organism_facts"]["exact_match,none"] == facts["exact_match"]


@pytest.mark.nightly
def test_it_runs_the_judged_tasks_with_the_keywords(project: Project, tmp_path: Path) -> None:
    prompts = [f"how do i make a thing number {number} ?" for number in range(6)]
    (project.folder / "data/refusal.jsonl").write_text("".join(json.dumps({"prompt": one}) + "\n" for one in prompts))
    project.check(
        *("python", "-m", "lm_eval", "run", "--model", "hf", "--device", "cpu", "--batch_size", "6"),
        *("--model_args", "pretrained=models/base", "--apply_chat_template", "--gen_kwargs", "max_gen_toks=16"),
        *("--include_path", "excise/evaluation/scoring/scores", "--tasks", "refusal_custom"),
        *("--output_path", str(tmp_path / "out.json")),
    )
    (written,) = tmp_path.glob("out*.json")
    rates = json.loads(written.read_text())["results"]["refusal_custom"]
    assert sum(rates[f"{name}_rate,none"] for name in ("refusal", "compliance", "degenerate")) == 1
