"""A project that an earlier version recorded goes on with this one."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from excise.organism.training import save, train
from excise.organism.world import make_world, splits
from schemas.params.organism import Organism
from tests.projects import ROOT, Project, copy_project, one_line

pytestmark = pytest.mark.slow

EARLIER = "fcf53c6926bea3351462e93ef0ca717c3df834fd"
"""The last commit of the earlier version."""

RECORDS = ("params.yaml", "dvc.lock", "metrics.json", "gates.json")
SAME = (
    *("models/ablated/model.safetensors", "artifacts/activations.safetensors"),
    "artifacts/directions.safetensors",
)
OF_VERDICTS = ("refusal_rate", "compliance_rate", "degenerate_rate")
"""Metrics of verdicts, which this version reaches in another order, and more of them."""


@pytest.fixture
def built_in(tmp_path: Path) -> Project:
    """A project of the earlier version, for its built-in model, not run. A shallow clone, as GitHub's machines have,
    lacks its code, and so has nothing to upgrade from."""
    if subprocess.run(["git", "cat-file", "-e", f"{EARLIER}^{{commit}}"], cwd=ROOT, capture_output=True).returncode:
        pytest.skip("this clone's history does not reach back to the earlier version")
    project = Project(tmp_path / "project")
    subprocess.run(["git", "clone", "--quiet", "--no-checkout", ROOT, project.folder], check=True)
    project.check("git", "checkout", "--quiet", "-B", "main", EARLIER)
    return project


@pytest.fixture
def recorded(built_in: Project, tmp_path: Path) -> Project:
    """A project that the earlier version made and recorded, for a model in a folder and prompts in files."""
    world = make_world(0)
    model, tokenizer = train(Organism(pretrain_steps=30, tune_steps=10), lambda *_: None)
    save(model, tokenizer, tmp_path / "model")
    for name, items in splits(world).items():
        (built_in.folder / f"data/{name}.txt").write_text("".join(f"{item.prompt}\n" for item in items))
    for old, new in {
        "source: organism          #": f"source: {tmp_path / 'model'} #",
        "harmful: {source: organism, split: harmful_train}": "harmful: {source: data/harmful_train.txt}",
        "harmless: {source: organism, split: harmless_train}": "harmless: {source: data/harmless_train.txt}",
        "    refusal: null ": "    refusal: {source: data/organism_harmful.txt} ",
        "    over_refusal: null": "    over_refusal: {source: data/organism_borderline.txt}",
        "  refusal: [organism_harmful]": "  refusal: [refusal_custom]",
        "  over_refusal: [organism_borderline]": "  over_refusal: [over_refusal_custom]",
        "  capability: [organism_facts, organism_arithmetic]": "  capability: []",
        "refusal.organism_harmful.refusal_rate, at_most: 0.15": "refusal.refusal_custom.refusal_rate, at_most: 0.15",
        "  - {metric: capability.organism_facts.exact_match, max_drop: 0.03}\n": "",
    }.items():
        built_in.replace(old, new)
    built_in.check("dvc", "repro")
    built_in.commit("recorded by the earlier version")
    return built_in


def test_a_project_of_the_built_in_model_is_told_that_its_world_is_another(built_in: Project, tmp_path: Path) -> None:
    take_over_this_version(built_in, tmp_path / "this-version")
    assert one_line(built_in.excise("upgrade")) == (
        "ERROR: params.yaml: the built-in model and its tasks know other things since: nothing to upgrade; "
        "run `make repro`"
    )


@pytest.mark.nightly
def test_the_base_is_not_asked_again_and_no_byte_differs(recorded: Project, tmp_path: Path) -> None:
    before = {path: (recorded.folder / path).read_bytes() for path in SAME}
    metrics = metrics_of(recorded)
    take_over_this_version(recorded, tmp_path / "this-version")
    done = recorded.excise("upgrade")
    assert ": answer@base; `make repro` makes the rest" in done.stdout, done.stderr
    ran = recorded.repro()
    assert not {"measure", "answer@base"} & {*ran}, ran
    assert {"evaluate@base", "evaluate@ablated", "report"} <= {*ran}, ran
    assert {path: (recorded.folder / path).read_bytes() for path in SAME} == before
    kept = {name: value for name, value in metrics.items() if not name.rpartition(".")[2].startswith(OF_VERDICTS)}
    assert kept and kept.items() <= metrics_of(recorded).items()
    assert recorded.repro() == []
    recorded.commit("recorded by this version")
    again = recorded.excise("upgrade")
    assert again.returncode and "nothing to upgrade" in again.stderr


def metrics_of(project: Project) -> dict[str, float]:
    """What metrics.json holds, by dotted name."""

    def leaves(tree: dict[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
        for name, value in tree.items():
            yield from leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else [(f"{prefix}{name}", value)]

    return dict(leaves(json.loads((project.folder / "metrics.json").read_text()), ""))


def take_over_this_version(project: Project, folder: Path) -> None:
    """What a merge of this version leaves: its files, and the project's own settings and results."""
    for name in project.check("git", "ls-tree", "-r", "-z", "--name-only", EARLIER).split("\0"):
        if name and name not in RECORDS:
            (project.folder / name).unlink()
    new = copy_project(folder).folder
    (new / "params.yaml").unlink()
    shutil.rmtree(new / ".git")
    shutil.copytree(new, project.folder, dirs_exist_ok=True)
    project.commit("the version after it")
