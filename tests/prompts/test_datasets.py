"""Data sets of the Hub: pinned rows, over real HTTP from a Hub on this machine, and what goes wrong in one line."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from excise.plumbing.errors import StageError
from excise.prompts.gathering import Gathered, gather
from schemas.params.sources import CustomPrompts
from tests.hub import TOKEN, Hub
from tests.projects import ROOT, environment, one_line

NAME = "some/questions"
CARD = b"""---
configs:
- config_name: easy
  data_files: [{split: train, path: easy.jsonl}, {split: test, path: test.jsonl}]
  default: true
- config_name: hard
  data_files: [{split: train, path: hard.jsonl}]
---
"""

READ = """
import json, sys
from schemas.params.sources import CustomPrompts
from excise.prompts.gathering import gather
from excise.plumbing.errors import run_stage

def main():
    found = gather(CustomPrompts(**json.loads(sys.argv[1])))
    print(json.dumps([prompt.prompt for prompt in found.prompts]))

run_stage(main)
"""


def rows(*texts: str) -> bytes:
    return "".join(json.dumps({"prompt": text, "ask": text.upper()}) + "\n" for text in texts).encode()


FILES = {
    "README.md": CARD,
    "easy.jsonl": rows("one", "two", "three", "two", "four"),
    "test.jsonl": rows("five"),
    "hard.jsonl": rows("six", "seven"),
}


class Reader:
    """Reads data sets of the test's Hub, in this process or in another."""

    def __init__(self, hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.hub, self.home, self.folder, self._monkeypatch = hub, folder / "home", folder / "project", monkeypatch
        self.folder.mkdir()
        monkeypatch.chdir(self.folder)
        hub.use(monkeypatch, self.home, TOKEN)
        monkeypatch.setattr("datasets.config.HF_ENDPOINT", hub.address)
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", self.home / "datasets")
        monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)

    def unplug(self) -> None:
        """As with HF_HUB_OFFLINE in the environment."""
        self._monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        self._monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)

    def gather(self, revision: str, **source: Any) -> Gathered:
        """What a data set gives."""
        given = {"source": NAME, "revision": revision, "split": "train", "column": "prompt", **source}
        return gather(CustomPrompts(**given))

    def prompts(self, revision: str, **source: Any) -> list[str]:
        """The texts of that."""
        return [prompt.prompt for prompt in self.gather(revision, **source).prompts]

    def line(self, revision: str, **source: Any) -> str:
        """Why it gives none."""
        with pytest.raises(StageError) as caught:
            self.gather(revision, **source)
        assert str(caught.value).isprintable() and TOKEN not in str(caught.value)
        return str(caught.value)

    def apart(self, revision: str, **settings: str) -> subprocess.CompletedProcess[str]:
        """The same in a process that has all this from its environment alone."""
        given = json.dumps({"source": NAME, "revision": revision, "split": "train", "column": "prompt"})
        known = self.hub.environment(self.home, TOKEN) | {"PYTHONPATH": str(ROOT)} | settings
        command = [sys.executable, "-c", READ, given]
        return subprocess.run(
            command, cwd=self.folder, env=environment(**known), capture_output=True, text=True, timeout=120
        )


@pytest.fixture
def reader(local_hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Reader:
    return Reader(local_hub, tmp_path, monkeypatch)


def test_pinned_rows_stay_when_main_moves_and_when_the_network_goes(reader: Reader) -> None:
    first = reader.hub.add(NAME, FILES, "datasets")
    second = reader.hub.add(NAME, {**FILES, "easy.jsonl": rows("another")}, "datasets")
    assert reader.prompts(first) == ["one", "two", "three", "four"]
    assert reader.prompts(second) == ["another"]
    reader.hub.broken = 500
    assert reader.prompts(first) == ["one", "two", "three", "four"]
    # `datasets` by itself would now take the newest in its cache, whatever the revision.
    reader.unplug()
    assert reader.prompts(first) == ["one", "two", "three", "four"]


@pytest.mark.nightly
def test_another_process_has_address_token_and_cache_from_its_environment(reader: Reader) -> None:
    commit = reader.hub.add(NAME, FILES, "datasets")
    read = reader.apart(commit)
    assert (read.returncode, read.stderr) == (0, "")
    assert json.loads(read.stdout) == ["one", "two", "three", "four"]
    assert {asked.token for asked in reader.hub.asked} == {f"Bearer {TOKEN}"}
    asked = len(reader.hub.asked)
    again = reader.apart(commit, HF_HUB_OFFLINE="1", HF_ENDPOINT="http://127.0.0.1:9")
    assert (again.stdout, again.stderr, len(reader.hub.asked)) == (read.stdout, "", asked)
    assert one_line(reader.apart("0" * 40)) == (
        f"ERROR: params.yaml: {NAME} has no such commit on the Hub; `make pin DATASET={NAME}` finds the newest"
    )


def test_configuration_split_slice_and_column_say_which_rows(reader: Reader) -> None:
    commit = reader.hub.add(NAME, FILES, "datasets")
    assert reader.prompts(commit, config="hard", slice="1:", column="ask") == ["SEVEN"]
    assert reader.prompts(commit, split="test") == ["five"]


def test_what_was_read_of_one_configuration_is_not_taken_for_another(reader: Reader) -> None:
    commit = reader.hub.add(NAME, FILES, "datasets")
    assert reader.prompts(commit, config="hard") == ["six", "seven"]
    reader.unplug()
    assert reader.prompts(commit, config="hard") == ["six", "seven"]
    assert reader.line(commit).startswith(f"params.yaml: {NAME} could not be loaded: Couldn't reach '{NAME}'")


def test_the_origin_pins_what_was_read(reader: Reader) -> None:
    commit = reader.hub.add(NAME, FILES, "datasets")
    assert reader.gather(commit, slice=":4").origin.model_dump() == {
        "kind": "dataset",
        "source": NAME,
        "revision": commit,
        "config": None,
        "split": "train",
        "slice": ":4",
        "column": "prompt",
        "sha256": None,
        "rows": 4,
        "empty": 0,
        "duplicates": 1,
    }


def test_conversations_in_parquet_are_read(reader: Reader, tmp_path: Path) -> None:
    talk = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "1"},
        {"role": "user", "content": "two"},
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"messages": talk}]), tmp_path / "train.parquet")
    files = {"data/train.parquet": (tmp_path / "train.parquet").read_bytes()}
    assert reader.prompts(reader.hub.add(NAME, files, "datasets"), column="messages") == ["two"]


def test_a_folder_of_the_same_name_is_not_taken_for_the_data_set(reader: Reader) -> None:
    commit = reader.hub.add(NAME, FILES, "datasets")
    (reader.folder / NAME).mkdir(parents=True)
    (reader.folder / NAME / "train.jsonl").write_bytes(rows("from here"))
    assert reader.prompts(commit)[0] == "one"


def test_what_the_data_set_lacks_is_named_with_what_it_has(reader: Reader) -> None:
    commit = reader.hub.add(NAME, FILES, "datasets")
    assert reader.line(commit, split="validation") == f"{NAME} has no split 'validation'; it has train, test"
    assert reader.line(commit, column="question") == f"{NAME} (train) has no column 'question'; it has 'prompt', 'ask'"
    told = reader.line(commit, config="harder")
    assert told == (
        f"params.yaml: {NAME} could not be loaded: BuilderConfig 'harder' not found. Available: ['easy', 'hard']"
    )
    assert reader.line(commit, slice="9:") == f"{NAME} has no prompts in rows 9: of its 5"


def test_what_the_hub_refuses_is_one_line(reader: Reader) -> None:
    assert reader.line("0" * 40) == (
        f"params.yaml: the Hub has no dataset {NAME}, or none that HF_TOKEN may see; check the name"
    )
    commit = reader.hub.add(NAME, FILES, "datasets")
    assert reader.line("0" * 40) == (
        f"params.yaml: {NAME} has no such commit on the Hub; `make pin DATASET={NAME}` finds the newest"
    )
    for status in (401, 403):
        reader.hub.gated = 401 if status == 401 else 403
        told = reader.line(commit)
        assert told.startswith(f"params.yaml: {NAME} is gated; accept its licence on its page ")
        assert f"/datasets/{NAME})" in told
    reader.hub.gated, reader.hub.broken = None, 500
    assert reader.line(commit).startswith(f"params.yaml: the Hub answered 500 for {NAME}; later, run again")


def test_offline_and_not_in_the_cache_it_is_one_line(reader: Reader) -> None:
    commit = reader.hub.add(NAME, FILES, "datasets")
    reader.unplug()
    assert "HF_HUB_OFFLINE is set" in reader.line(commit)


def test_a_hub_that_cannot_be_reached_is_one_line(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("huggingface_hub.constants.ENDPOINT", "datasets.config.HF_ENDPOINT"):
        monkeypatch.setattr(name, "http://127.0.0.1:9")
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
        "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}",
    )
    assert reader.line("0" * 40).startswith(f"params.yaml: the Hub cannot be reached for {NAME}; check the network")


def test_code_of_a_data_set_s_is_not_run(reader: Reader) -> None:
    commit = reader.hub.add(NAME, {"questions.py": b"open('run', 'w')"}, "datasets")
    told = reader.line(commit)
    assert told.startswith(f"params.yaml: {NAME} could not be loaded: ") and "script" in told
    assert not (reader.folder / "run").exists()
