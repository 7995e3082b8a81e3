"""Rules that ruin a model are told of before it is made, in words that say where and what to do."""

import json
from pathlib import Path
from typing import Any

import pytest

from excise.edit.forecast import current_simulation, print_forecast, warning
from excise.plumbing.errors import LONGEST_LINE
from excise.plumbing.files import sha256_of, write_json
from schemas.params.ablate import Ablate
from tests.diagnoses import simulation

THIRDS = [
    {"first": 0, "last": 8, "perplexity": 27.04},
    {"first": 9, "last": 16, "perplexity": 1.2},
    {"first": 17, "last": 17, "perplexity": 1.0},
]
EXACT = Ablate.model_validate({"through_norm": "orthogonal", "orthogonalize": "none"})


def ruinous(perplexity: float | None = 225.0, **given: Any) -> Any:
    tried = json.loads(simulation().model_dump_json())["scales"]
    tried[1]["perplexity"] = perplexity
    known = {"ruinous": True, "thirds": THIRDS, "ablate": EXACT.model_dump(mode="json"), "scales": tried}
    return simulation(**{**known, **given})


def test_a_warning_says_how_bad_it_is_which_layers_make_it_and_what_to_do() -> None:
    assert warning(ruinous()) == (
        "these rules ruin the model: its own answers to harmless prompts become 225 times as perplexing (by themselves "
        "layers 0-8: 27 times, layers 9-16: 1.2 times, layer 17: 1 times); in params.yaml: ablate, lower the scale, "
        "leave out layers 0-8, write through_norm: ignore or write orthogonalize: source"
    )


def test_it_advises_nothing_that_is_so_already() -> None:
    settings = Ablate.model_validate({"through_norm": "ignore", "orthogonalize": "source"}).model_dump(mode="json")
    found = warning(ruinous(None, thirds=THIRDS[2:], ablate=settings))
    assert found.endswith("become infinitely as perplexing; in params.yaml: ablate, lower the scale")


def test_it_is_one_line_for_any_model() -> None:
    parts = [{"first": 100, "last": 199, "perplexity": 1.2345e300}] * 3
    found = warning(ruinous(1.2345e300, thirds=parts))
    assert found.isprintable() and len(f"WARNING: {found}") <= LONGEST_LINE


@pytest.fixture
def artifacts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project in which rules were simulated that are ruinous."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "artifacts"
    folder.mkdir()
    (folder / "directions.safetensors").write_bytes(b"directions")
    digest = sha256_of(folder / "directions.safetensors")
    write_json(folder / "simulation.json", ruinous(directions_sha256=digest))
    return folder


def test_only_what_was_simulated_of_these_rules_along_these_directions_counts(artifacts: Path) -> None:
    found = current_simulation(EXACT)
    assert found is not None and found.ruinous
    assert current_simulation(EXACT.model_copy(update={"through_norm": "ignore"})) is None
    (artifacts / "directions.safetensors").write_bytes(b"others")
    assert current_simulation(EXACT) is None
    (artifacts / "simulation.json").unlink()
    assert current_simulation(EXACT) is None


def test_it_is_said_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    print_forecast(simulation())
    assert capsys.readouterr() == ("", "")
    print_forecast(ruinous())
    assert capsys.readouterr().err.startswith("WARNING: these rules ruin the model")
    print_forecast(None)
    assert "`dvc repro simulate`" in capsys.readouterr().err
