"""A project that an earlier version recorded goes on with this one."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.projects import ROOT, Project, copy_project, quicken

pytestmark = pytest.mark.slow

EARLIER = "fcf53c6926bea3351462e93ef0ca717c3df834fd"
"""The last commit of the earlier version."""

RECORDS = ("params.yaml", "dvc.lock", "metrics.json", "gates.json")
SAME = (
    *("models/base/model.safetensors", "models/ablated/model.safetensors", "artifacts/activations.safetensors"),
    "artifacts/directions.safetensors",
)
OF_VERDICTS = ("refusal_rate", "compliance_rate", "degenerate_rate")
"""Metrics of verdicts, which this version reaches in another order, and more of them."""


@pytest.fixture
def recorded(tmp_path: Path) -> Project:
    """A quick project that the earlier version made and recorded. A shallow clone, as GitHub's machines have, lacks its
    code, and so has nothing to upgrade from."""
    if subprocess.run(["git", "cat-file", "-e", f"{EARLIER}^{{commit}}"], cwd=ROOT, capture_output=True).returncode:
        pytest.skip("this clone's history does not reach back to the earlier version")
    project = Project(tmp_path / "project")
    subprocess.run(["git", "clone", "--quiet", "--no-checkout", ROOT, project.folder], check=True)
    project.check("git", "checkout", "--quiet", "-B", "main", EARLIER)
    quicken(project)
    # Of a limit it asked the first samples, where this version draws some, so that all are asked again.
    project.replace("limit: 16  # samples", "limit: null  # samples")
    project.check("dvc", "repro")
    project.commit("recorded by the earlier version")
    return project


@pytest.mark.nightly
def test_nothing_is_trained_measured_or_asked_again_and_no_byte_differs(recorded: Project, tmp_path: Path) -> None:
    before = {path: (recorded.folder / path).read_bytes() for path in SAME}
    metrics = metrics_of(recorded)
    take_over_this_version(recorded, tmp_path / "this-version")
    done = recorded.excise("upgrade")
    assert "organism, measure, answer@base, answer@ablated; `make repro` makes the rest" in done.stdout, done.stderr
    ran = recorded.repro()
    assert not {"organism", "measure", "answer@base", "answer@ablated"} & {*ran}, ran
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
    for name in project.check("git", "ls-files", "-z").split("\0"):
        if name and name not in RECORDS:
            (project.folder / name).unlink()
    new = copy_project(folder).folder
    (new / "params.yaml").unlink()
    shutil.rmtree(new / ".git")
    shutil.copytree(new, project.folder, dirs_exist_ok=True)
    project.commit("the version after it")
