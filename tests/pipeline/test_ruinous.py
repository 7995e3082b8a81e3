"""Rules that would ruin the model are warned of before a byte is written, by `make plan` and by `dvc repro`."""

from pathlib import Path

import pytest

from tests.projects import Project, copy_project, quicken

pytestmark = pytest.mark.nightly

WARNING = "WARNING: these rules ruin the model: its own answers to harmless prompts become "
EXACT = {
    "through_norm: ignore    ": "through_norm: orthogonal",
    "orthogonalize: source   ": "orthogonalize: none     ",
    "layers: 2-3, measurement: 5, scale: 1.4": "layers: 1-4, measurement: 4, scale: 1.0",
}
"""What excise's own defaults were, until a real Gemma was ruined by them."""


@pytest.fixture
def gemma(tmp_path: Path) -> Project:
    """A project of a Gemma 3 whose attention relies on a massive activation, trained for a moment."""
    project = copy_project(tmp_path / "project")
    quicken(project)
    project.replace("pretrain_steps: 30", "pretrain_steps: 150")
    project.replace("architecture: glm4_moe", "architecture: gemma3_text")
    return project


def test_rules_that_ruin_are_warned_of_before_a_byte_is_written(gemma: Project) -> None:
    done = gemma.run("dvc", "repro", "simulate", "ablate")
    assert done.returncode == 0 and "WARNING" not in done.stdout + done.stderr
    record = gemma.folder / "models/ablated/edit.json"
    before = record.read_bytes()

    for old, new in EXACT.items():
        gemma.replace(old, new)
    gemma.repro("directions")  # as `make plan` does
    planned = gemma.excise("plan", "--simulate")
    assert planned.returncode == 0 and WARNING in planned.stderr
    assert "leave out layer 1, write through_norm: ignore or write orthogonalize: source" in planned.stderr
    assert record.read_bytes() == before

    gemma.replace("scale: 1.0", "scale: 0.99")
    done = gemma.run("dvc", "repro", "simulate", "ablate")
    assert done.returncode == 0
    said = done.stdout.index("Running stage 'simulate'"), done.stdout.index("Running stage 'ablate'")
    assert said[0] < said[1] and done.stderr.count(WARNING) == 2
