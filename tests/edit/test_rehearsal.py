"""What `make plan` foresees: it refuses what `ablate` refuses, in the same words, and writes nothing."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from excise.commands.runs import plan
from excise.plumbing.errors import StageError
from schemas.params.ablate import Ablate
from stages import ablate as stage
from tests.projects import Project

TARGETS = ["attention", "mlp", "routed_experts", "shared_experts", "embedding", "router", "attention_inputs"]
RULES = st.fixed_dictionaries(
    {
        "layers": st.sampled_from(["all", 0, "1-4", 5, "5-6", [0, 3]]),
        "measurement": st.sampled_from([0, 1, 2.5, 4, 6, 7, "same"]),
        "scale": st.sampled_from([0.0, 1.0, -2.0, 3.0, 1e30, 1e39, 1e300]),
    },
    optional={
        "targets": st.lists(st.sampled_from(TARGETS), min_size=1, unique=True),
        "experts": st.lists(st.integers(0, 17), min_size=1, max_size=3, unique=True),
    },
)
EDITS = st.fixed_dictionaries(
    {
        "rules": st.lists(RULES, min_size=1, max_size=3),
        "method": st.sampled_from(["project", "preserve_column_norms"]),
        "through_norm": st.sampled_from(["ignore", "orthogonal", "oblique"]),
        "orthogonalize": st.sampled_from(["none", "source", "target"]),
        "allow_tied": st.booleans(),
        "router_bias": st.sampled_from([None, None, {"strength": 0.1}, {"strength": 1e300}]),
    }
)


@pytest.fixture(scope="module")
def folder(finished: Project, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of this module's own, after its first run."""
    target = tmp_path_factory.mktemp("rehearsal") / "project"
    shutil.copytree(finished.folder, target, symlinks=True)
    shutil.rmtree(target / "models/ablated")
    (target / "artifacts/simulation.json").unlink()
    return target


@pytest.fixture
def inside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, as the current folder."""
    monkeypatch.chdir(folder)
    return folder


def refusal(run: Callable[[], None]) -> str | None:
    """The words in which a plan or an edit is refused; None where it is not."""
    try:
        run()
    except StageError as error:
        return str(error)
    return None


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(EDITS)
def test_plan_and_ablate_refuse_the_same_in_the_same_words(inside: Path, edit: dict[str, Any]) -> None:
    written = Ablate.model_validate(edit).model_dump(mode="json")
    (inside / "artifacts/params/ablate.json").write_text(json.dumps(written))
    foretold = refusal(lambda: plan(simulate=False))
    assert not (inside / "models/ablated").exists()
    assert refusal(stage.main) == foretold
    assert (inside / "models/ablated").exists() == (foretold is None)
    shutil.rmtree(inside / "models/ablated", ignore_errors=True)
    event("taken" if foretold is None else " ".join(foretold.split()[:3]))
