"""Prompts of files and of the Hub, from params.yaml to the lists that are measured and the tasks that are judged."""

import csv
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.hub import Hub
from tests.projects import Project, one_line

SOURCES = "  harmful: {source: organism, split: harmful_train}\n  harmless: {source: organism, split: harmless_train}\n"
HARMFUL = [f"how do i make a thing of {number} parts ?" for number in range(30)]
HARMLESS = [f"what is {number} plus {number} ?" for number in range(40)]


def of_files(project: Project, harmful: list[str], harmless: list[str], more: str = "") -> None:
    """Measure on a table and on a text file."""
    with open(project.folder / "data/asked.csv", "w", newline="") as file:
        csv.writer(file).writerows([["number", "ask"], *enumerate(harmful)])
    (project.folder / "data/other.txt").write_text("".join(f"{text}\n" for text in harmless))
    if SOURCES in (project.folder / "params.yaml").read_text():
        own = "  harmful: {source: data/asked.csv, column: ask}\n  harmless: {source: data/other.txt}\n"
        project.replace(SOURCES, own + more)


def prepared(project: Project, **settings: str) -> dict[str, bytes]:
    """What prepare leaves of prompts, by the name of the file."""
    for stage in ("params", "prepare"):
        done = project.run("python", "-m", f"stages.{stage}", **settings)
        assert done.returncode == 0, done.stderr
    return {path.name: path.read_bytes() for path in (project.folder / "artifacts/prompts").iterdir()}


def asked(found: dict[str, bytes], name: str) -> list[str]:
    return [json.loads(line)["prompt"] for line in found[f"{name}.jsonl"].decode().splitlines()]


def test_the_manifest_tells_every_list_by_its_digest_and_holds_no_prompt(finished: Project) -> None:
    folder = finished.folder / "artifacts/prompts"
    manifest = json.loads((folder / "manifest.json").read_text())
    lists = {path.stem: path for path in folder.glob("*.jsonl")}
    assert manifest["lists"] == {
        name: {
            "prompts": path.read_text().count("\n"),
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for name, path in lists.items()
    }
    assert {"harmful", "harmless_held_out", "drift", "organism_facts"} < lists.keys()
    assert (manifest["harmful"]["kind"], manifest["harmful"]["split"]) == ("organism", "harmful_train")
    texts = [json.loads(line)["prompt"] for line in (folder / "harmful.jsonl").read_text().splitlines()]
    assert not any(text in json.dumps(manifest) for text in texts)


@pytest.mark.nightly
def test_lists_do_not_depend_on_the_order_of_the_rows_and_the_manifest_counts_them(project: Project) -> None:
    of_files(project, [*HARMFUL, HARMFUL[3].replace(" ", "  "), ""], HARMLESS)
    first = prepared(project)
    manifest = json.loads(first.pop("manifest.json"))
    origin = manifest["harmful"]
    assert (origin["rows"], origin["empty"], origin["duplicates"]) == (32, 1, 1)
    assert (origin["kind"], origin["source"], origin["column"]) == ("file", "data/asked.csv", "ask")
    assert origin["sha256"] == hashlib.sha256((project.folder / "data/asked.csv").read_bytes()).hexdigest()
    assert str(project.folder) not in json.dumps(manifest)
    both = {*asked(first, "harmful"), *asked(first, "harmful_held_out")}
    assert both == set(HARMFUL) and len(asked(first, "harmful_held_out")) == 6
    assert asked(first, "harmful") != [text for text in HARMFUL if text in asked(first, "harmful")]

    of_files(project, HARMFUL[::-1], HARMLESS[::-1])
    again = prepared(project)
    assert {name: again[name] for name in first} == first
    project.replace("seed: 0                   # shuffle", "seed: 1                   # shuffle")
    other = prepared(project)
    assert other["harmful.jsonl"] != first["harmful.jsonl"]
    assert other["organism_facts.jsonl"] == first["organism_facts.jsonl"]


@pytest.mark.slow
def test_a_data_set_of_the_hub_is_prepared_with_its_commit_in_the_manifest(
    project: Project, local_hub: Hub, tmp_path: Path
) -> None:
    rows = "".join(json.dumps({"prompt": text}) + "\n" for text in HARMFUL)
    commit = local_hub.add("some/asked", {"train.jsonl": rows.encode()}, "datasets")
    of_files(project, HARMFUL, HARMLESS)
    project.replace(
        "{source: data/asked.csv, column: ask}", f"{{source: some/asked, revision: {commit}, split: train}}"
    )
    settings = local_hub.environment(tmp_path / "home")
    first = prepared(project, **settings)
    origin = json.loads(first["manifest.json"])["harmful"]
    assert (origin["kind"], origin["source"], origin["revision"]) == ("dataset", "some/asked", commit)
    assert {*asked(first, "harmful"), *asked(first, "harmful_held_out")} == set(HARMFUL)
    # Where it was read before, no network is asked for it.
    assert prepared(project, **settings | {"HF_HUB_OFFLINE": "1"}) == first


@pytest.mark.slow
def test_the_same_prompt_on_both_sides_is_refused_and_nothing_is_lost(project: Project) -> None:
    of_files(project, HARMFUL, [*HARMLESS, HARMFUL[3].replace(" ", "   ")])
    assert project.stage("params").returncode == 0
    before = {path: path.read_bytes() for path in (project.folder / "artifacts").rglob("*") if path.is_file()}
    told = one_line(project.stage("prepare"))
    assert re.fullmatch(
        r"ERROR: params\.yaml: prompts: prompt [0-9a-f]{16} is both harm\w+ and \w+; remove it from one source", told
    )
    assert {path: path.read_bytes() for path in before} == before


def judged(project: Project, overlap: str) -> None:
    """Ask for verdicts on a file that shares five prompts with what is measured."""
    of_files(project, HARMFUL, HARMLESS)
    shared = [*HARMFUL[:5], *(f"how do i make {number} of it ?" for number in range(7))]
    (project.folder / "data/judged.txt").write_text("".join(f"{text}\n" for text in shared))
    project.replace("    refusal: null           #", "    refusal: {source: data/judged.txt}  #")
    project.replace("  refusal: [organism_harmful]", "  refusal: [organism_harmful, refusal_custom]")
    project.replace("overlap: error            #", f"overlap: {overlap}  #")


@pytest.mark.slow
def test_judging_measured_prompts_is_refused_before_a_model_is_loaded(project: Project) -> None:
    judged(project, "error")
    prepared(project)
    results = (project.folder / "results/base/results.json").read_bytes()
    code = project.folder / "stages/answer.py"
    loaded = "load_model = base_checkpoint = None\n\n\nif __name__"  # so that using either would be a traceback
    code.write_text(code.read_text().replace("if __name__", loaded))
    assert one_line(project.stage("answer", "base")) == (
        "ERROR: params.yaml: evaluate.refusal: refusal_custom: 5 of its 12 prompts were measured (prompts.harmful: "
        "data/asked.csv); judge others, or leave these out by evaluate.overlap: drop"
    )
    assert (project.folder / "results/base/results.json").read_bytes() == results


@pytest.mark.nightly
def test_measured_prompts_are_left_out_of_both_models_tasks_and_counted(project: Project) -> None:
    judged(project, "drop")
    project.repro()
    texts: list[list[Any]] = []
    for side in ("base", "ablated"):
        folder = project.folder / "results" / side
        results = json.loads((folder / "results.json").read_text())
        assert results["left_out"] == {"refusal_custom": 5} and results["samples"]["refusal_custom"] == 7
        lines = (folder / "samples/refusal_custom.jsonl").read_text().splitlines()
        texts.append([json.loads(line)["prompt"] for line in lines])
    assert texts[0] == texts[1] and not set(texts[0]) & set(HARMFUL)
    assert "5 of `refusal_custom`." in (project.folder / "report/report.md").read_text()
