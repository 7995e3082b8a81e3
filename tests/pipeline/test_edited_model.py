"""What comes with an edited model: its plan beforehand, its record, its card, and the check of its bytes."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.projects import Project, one_line

pytestmark = pytest.mark.slow


def test_the_plan_is_printed_and_nothing_is_written(project: Project) -> None:
    project.replace("layers: 2-3", "layers: 0-2")
    assert project.stage("params").returncode == 0
    before = (project.folder / "models/ablated/edit.json").stat().st_mtime_ns
    done = project.excise("plan")
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if "experts" in line or "attention" in line or "mlp" in line]
    assert [row.split("│")[1].strip() for row in rows] == ["attention", "mlp", "routed_experts", "shared_experts"]
    assert [row.split("│")[3].strip() for row in rows] == ["0-2", "0", "1-2", "1-2"]
    assert (project.folder / "models/ablated/edit.json").stat().st_mtime_ns == before
    done = project.stage("ablate", "--plan")
    assert done.returncode == 2 and "unknown argument --plan" in one_line(done)


def test_an_edited_model_is_what_its_record_says_until_a_byte_changes(project: Project) -> None:
    folder = project.folder / "models/ablated"
    assert "is what its edit.json says" in project.check("python", "-m", "excise", "verify")
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    os.chmod(weights, 0o644)
    weights.write_bytes(data)
    assert "model.safetensors is not what edit.json records" in one_line(project.excise("verify"))
    weights.unlink()
    assert "model.safetensors is missing" in one_line(project.excise("verify"))
    assert "name the folder of an edited model" in one_line(project.excise("verify", "models/base"))


def test_a_card_that_changed_is_seen_and_the_folder_asked_about_is_the_one_checked(project: Project) -> None:
    card = project.folder / "models/ablated/README.md"
    os.chmod(card, 0o644)
    card.write_text(card.read_text().replace("refuses", "answers"))
    assert "README.md is not what edit.json records" in one_line(project.excise("verify"))
    assert "unrecognized arguments: model" in one_line(project.excise("verify", "my", "model"))


def test_a_file_that_was_added_is_seen(project: Project) -> None:
    (project.folder / "models/ablated/extra.txt").write_text("not recorded")
    assert "extra.txt is not one of the files" in one_line(project.excise("verify"))


def test_the_record_and_the_card_say_what_was_edited_and_nothing_of_this_machine(finished: Project) -> None:
    folder = finished.folder / "models/ablated"
    record = json.loads((folder / "edit.json").read_text())
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nbase_model: organism\n") and "abliterated" in card
    assert "layers 2-3: the direction of measurement 5 removed, scale 1.4" in card
    assert "requests that its base refuses" in card
    assert {edit["role"] for edit in record["plan"]} == {"attention", "routed_experts", "shared_experts"}
    assert {file["path"] for file in record["files"]} == {
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    } - {"edit.json", "edit.json.sha256"}
    for text in (card, json.dumps(record)):
        assert str(finished.folder) not in text and str(Path.home()) not in text


def test_methods_and_targets_of_params_reach_the_weights(project: Project) -> None:
    project.replace("method: project ", "method: preserve_column_norms ")
    project.replace("through_norm: ignore", "through_norm: oblique")
    project.replace("targets: [attention, mlp, routed_experts, shared_experts]", "targets: [attention, router]")
    for stage in ("params", "ablate"):
        assert project.stage(stage).returncode == 0
    record = json.loads((project.folder / "models/ablated/edit.json").read_text())
    assert {edit["role"] for edit in record["plan"]} == {"attention", "router"}
    assert record["ablate"]["method"] == "preserve_column_norms"


def test_a_router_bias_reaches_the_weights_the_record_and_the_card(project: Project) -> None:
    project.replace("router_bias: null ", "router_bias: {strength: 0.25} ")
    project.replace("layers: 2-3", "layers: 0-2")
    for stage in ("params", "ablate"):
        assert project.stage(stage).returncode == 0
    use = json.loads((project.folder / "artifacts/expert_use.json").read_text())
    rows = {row["layer"]: row for row in use["layers"]}
    record = json.loads((project.folder / "models/ablated/edit.json").read_text())
    assert record["expert_use_sha256"] and [shift["layer"] for shift in record["router_bias"]] == [1, 2]
    base, edited = (load_file(project.folder / f"models/{name}/model.safetensors") for name in ("base", "ablated"))
    for shift in record["router_bias"]:
        moved = edited[shift["tensor"]].astype(np.float64) - base[shift["tensor"]]
        harmful, harmless = (np.array(rows[shift["layer"]][side]) + 0.5 for side in ("harmful", "harmless"))
        harmful_odds = harmful / (use["harmful_prompts"] + 1 - harmful)
        harmless_odds = harmless / (use["harmless_prompts"] + 1 - harmless)
        assert moved == pytest.approx(-0.25 * np.log(harmful_odds / harmless_odds), abs=1e-6)
        assert shift["selects_only"] and np.abs(moved).max() > 0.01
    assert "- layers 1-2: -0.25 times the log-odds" in (project.folder / "models/ablated/README.md").read_text()
    assert "is what its edit.json says" in project.check("python", "-m", "excise", "verify")
    (row,) = (line for line in project.excise("plan").stdout.splitlines() if "router_bias" in line)
    assert [cell.strip() for cell in row.split("│")[1:5]] == ["router_bias", "2", "1-2", "16"]


def test_a_router_bias_where_no_layer_has_a_router_is_an_error_of_one_line(project: Project) -> None:
    project.replace("router_bias: null ", "router_bias: {strength: 0.25} ")
    project.replace("layers: 2-3", "layers: 0")
    assert project.stage("params").returncode == 0
    line = one_line(project.stage("ablate"))
    assert "params.yaml: ablate.router_bias: " in line and "no routed experts" in line


def test_without_a_router_bias_the_record_names_no_counts(finished: Project) -> None:
    record = json.loads((finished.folder / "models/ablated/edit.json").read_text())
    assert record["router_bias"] == [] and record["expert_use_sha256"] is None
    assert record["ablate"]["router_bias"] is None
