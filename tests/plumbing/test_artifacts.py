"""Files of ours are what they should be, or one line names the file, what is wrong with it and what makes it again."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML
from safetensors.torch import save_file

from excise.checkpoint.weights import read_tensors
from excise.plumbing import files
from excise.plumbing.files import Unreadable, parse_document, read_document, read_lines
from schemas.basis.document import FileDigest
from schemas.directions import ExpertUse
from schemas.prompts import PromptList

ROOT = Path(__file__).resolve().parents[2]
WHOLE = PromptList(prompts=3, sha256="0" * 64)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    (tmp_path / "artifacts").mkdir()
    return Path("artifacts/expert_use.json")


def refused(read: Any, *given: Any) -> str:
    with pytest.raises(Unreadable) as caught:
        read(*given)
    line = str(caught.value)
    assert line.isprintable() and len(line) <= 400
    return line


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b'{"harmful_prompts": 3, ', "is not whole JSON"),
        (b"\xff\xfe{}", "is not whole JSON"),
        (b"[" * 100_000, "is not whole JSON"),
        (b'{\n<<<<<<< HEAD\n  "a": 1\n=======\n  "a": 2\n>>>>>>> main\n}', "holds the conflict of a merge"),
        (b"null", "is not what this version of excise writes"),
        (b'{"gates": [], "verdict": "pass"}', "is not what this version of excise writes"),
        (b'{"harmful_prompts": ' + b"9" * 5000 + b"}", "is not whole JSON"),
    ],
)
def test_a_damaged_document_is_one_line_with_its_stage(path: Path, data: bytes, says: str) -> None:
    path.write_bytes(data)
    line = refused(read_document, ExpertUse, path)
    assert line.startswith(f"{path} {says}") and line.endswith("run `dvc repro --force --single-item measure`")


def test_a_missing_document_names_the_stage_that_makes_it(path: Path) -> None:
    assert refused(read_document, ExpertUse, path) == f"{path} is missing; run `dvc repro measure`"


def test_a_document_that_fills_the_machine_is_not_read(path: Path) -> None:
    with open(path, "wb") as file:
        file.truncate(2**40)
    assert "has more than" in refused(read_document, ExpertUse, path)
    assert "has a line of more than" in refused(read_lines, ExpertUse, path)


def test_what_comes_from_elsewhere_is_told_by_its_name_and_its_own_remedy() -> None:
    line = refused(parse_document, PromptList, "{}", "gates.json of abc", "check that commit out")
    assert line.startswith("gates.json of abc is not what") and line.endswith("; check that commit out")
    assert parse_document(PromptList, WHOLE.model_dump_json(), "x", "y") == WHOLE


def test_a_line_that_is_none_is_told_by_its_number_and_line_ends_within_texts_are_none(path: Path) -> None:
    path.write_text(f"{WHOLE.model_dump_json()}\n\n{WHOLE.model_dump_json()}\n")
    assert read_lines(PromptList, path) == [WHOLE, WHOLE]
    path.write_text(f"{WHOLE.model_dump_json()}\n{{\n")
    assert refused(read_lines, PromptList, path).startswith(f"{path}: line 2 is not whole JSON")
    path.write_text('{"path": "a\u2028b", "size": 1, "sha256": "' + "0" * 64 + '"}\n')
    assert read_lines(FileDigest, path)[0].path == "a\u2028b"


def test_tensors_are_those_expected_or_one_line(path: Path) -> None:
    path = path.with_name("directions.safetensors")
    expected = {"a": ("float32", (None, 3))}
    save_file({"a": torch.ones(2, 3), "b": torch.ones(1)}, path)
    assert read_tensors(path, expected)["a"].shape == (2, 3)
    assert "holds no tensor c" in refused(read_tensors, path, {"c": ("float32", (1,))})
    assert "where torch.float64 [any, 3] is expected" in refused(read_tensors, path, {"a": ("float64", (None, 3))})
    assert "where torch.float32 [any, 4] is expected" in refused(read_tensors, path, {"a": ("float32", (None, 4))})
    path.write_bytes(path.read_bytes()[:-1])
    assert refused(read_tensors, path, expected).endswith("run `dvc repro --force --single-item directions`")
    path.unlink()
    assert "is missing; run `dvc repro directions`" in refused(read_tensors, path, expected)


def test_every_output_of_the_pipeline_has_its_stage_in_the_remedies(path: Path) -> None:
    outputs: dict[str, str] = {}
    for name, stage in YAML(typ="safe", pure=True).load((ROOT / "dvc.yaml").read_text())["stages"].items():
        for key in stage.get("foreach", {"": None}):
            listed = stage.get("do", stage)
            for out in [*listed["outs"], *listed.get("metrics", [])]:
                output = (out if isinstance(out, str) else next(iter(out))).replace("${key}", key)
                outputs[output] = f"{name}@{key}" if key else name
    found = {output: files._stage_of(Path(output)) for output in outputs}
    assert found == outputs
    assert files._stage_of(Path("results/ablated/samples/gsm8k.jsonl")) == "evaluate@ablated"
    assert files._stage_of(Path("results/ablated2")) is None


@pytest.mark.parametrize(
    "graph",
    [
        None,
        "",
        "stages: [",
        "- a",
        "stages: {}",
        "stages: 3",
        "stages: {a: 3}",
        "stages: {a: {outs: 3}}",
        "stages: {a: {outs: [3]}}",
        "stages: {a: {foreach: [3], do: {outs: [x]}}}",
        "\0",
    ],
)
def test_without_a_graph_the_remedy_names_no_stage(path: Path, graph: str | None) -> None:
    Path("dvc.yaml").unlink()
    if graph is not None:
        Path("dvc.yaml").write_text(graph)
    assert refused(read_document, ExpertUse, path) == f"{path} is missing; run what makes it"
