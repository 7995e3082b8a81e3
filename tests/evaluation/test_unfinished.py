"""Unfinished work is found again where everything that the stage depends on is what it was, and nowhere else."""

from pathlib import Path

import pytest

from excise.plumbing import unfinished
from excise.plumbing.unfinished import UNFINISHED
from excise.plumbing.unfinished import unfinished_work as work_of_stage

GRAPH = """
stages:
  answer:
    foreach:
      base: {model: models/base, reference: artifacts/model.json}
      ablated: {model: models/ablated, reference: answers/base}
    do:
      cmd: python -m stages.answer ${key}
      deps:
        - ${item.model}
        - ${item.reference}
        - artifacts/params/answer.json
        - artifacts/prompts
        - data
        - excise/prompts/chats.py
        - stages/answer.py
      outs:
        - answers/${key}
"""
MACHINE = {"device": "cpu"}
FILES = (
    *("models/base/model.safetensors", "models/ablated/model.safetensors", "models/ablated/edit.json"),
    *("artifacts/model.json", "artifacts/params/answer.json", "artifacts/params/evaluate.json"),
    *("artifacts/prompts/format.json", "artifacts/prompts/lists/drift.jsonl", "data/README.md"),
    *("answers/base/answers.json", "answers/base/responses/gsm8k.jsonl"),
    *("excise/prompts/chats.py", "excise/judges/keywords.py", "stages/answer.py"),
)
OF_BOTH = {
    *("artifacts/params/answer.json", "artifacts/prompts/format.json", "artifacts/prompts/lists/drift.jsonl"),
    *("data/README.md", "excise/prompts/chats.py", "stages/answer.py"),
}
ALONE = {
    "base": {"artifacts/model.json"},
    "ablated": {"models/ablated/edit.json", "answers/base/answers.json", "answers/base/responses/gsm8k.jsonl"},
}


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    Path("dvc.yaml").write_text(GRAPH)
    for name in FILES:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(name)


def unfinished_work(key: str, machine: dict[str, str]) -> Path:
    return work_of_stage(f"answer@{key}", machine)


def test_the_same_inputs_find_the_same_work() -> None:
    for key in ("base", "ablated"):
        assert unfinished_work(key, MACHINE) == unfinished_work(key, dict(MACHINE))
    assert unfinished_work("base", MACHINE) != unfinished_work("ablated", MACHINE)


@pytest.mark.parametrize("key", ["base", "ablated"])
@pytest.mark.parametrize("name", FILES)
def test_each_file_that_dvc_knows_of_counts_and_no_other(key: str, name: str) -> None:
    """Also code, such as a chat template that was broken for a while. Of weights, the record that pins them."""
    before = unfinished_work(key, MACHINE)
    Path(name).write_text("something else")
    assert (unfinished_work(key, MACHINE) != before) == (name in OF_BOTH | ALONE[key])


def test_a_file_that_is_new_or_gone_or_renamed_counts_but_not_what_python_compiled() -> None:
    seen = [unfinished_work("base", MACHINE)]
    Path("artifacts/prompts/__pycache__").mkdir()
    Path("artifacts/prompts/__pycache__/a.pyc").touch()
    assert unfinished_work("base", MACHINE) == seen[0]
    Path("data/mine.txt").touch()
    seen.append(unfinished_work("base", MACHINE))
    Path("data/mine.txt").rename("data/other.txt")
    seen.append(unfinished_work("base", MACHINE))
    Path("data/README.md").unlink()
    seen.append(unfinished_work("base", MACHINE))
    assert len(set(seen)) == 4


def test_another_device_or_library_finds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = [unfinished_work("base", MACHINE), unfinished_work("base", {"device": "cuda"})]
    monkeypatch.setattr(unfinished, "version", lambda name: f"another {name}")
    seen.append(unfinished_work("base", MACHINE))
    assert len(set(seen)) == 3


def test_what_other_inputs_left_is_swept() -> None:
    kept = [unfinished_work(key, MACHINE) for key in ("base", "ablated")]
    for folder in (*kept, UNFINISHED / "answer@base/older"):
        folder.mkdir(parents=True)
        (folder / "gsm8k.json").touch()
    assert unfinished_work("base", MACHINE) == kept[0]
    assert sorted(UNFINISHED.glob("*/*")) == sorted(kept)
    Path("stages/answer.py").write_text("another")
    unfinished_work("base", MACHINE)
    assert list(UNFINISHED.glob("*/*")) == [kept[1]]
