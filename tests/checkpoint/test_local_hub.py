"""The Hub of the tests itself, asked by the library that asks the real one."""

from pathlib import Path

import pytest
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

from tests.hub import TOKEN, Hub

FILES = {"config.json": b"{}", "model.safetensors": b"weights" * 1000, "folder/notes.txt": b"text"}


@pytest.fixture(autouse=True)
def home(local_hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    local_hub.use(monkeypatch, tmp_path / "home", TOKEN)
    return tmp_path / "home"


@pytest.mark.parametrize("kind", ["models", "datasets"])
def test_a_snapshot_has_every_byte(local_hub: Hub, kind: str) -> None:
    commit = local_hub.add("some/thing", FILES, "models" if kind == "models" else "datasets")
    folder = Path(snapshot_download("some/thing", revision=commit, repo_type=kind[:-1]))
    assert {path: (folder / path).read_bytes() for path in FILES} == FILES
    assert {asked.token for asked in local_hub.asked} == {f"Bearer {TOKEN}"}


def test_main_moves_and_commits_stay(local_hub: Hub) -> None:
    first, second = (local_hub.add("thing", {"config.json": data}) for data in (b"1", b"2"))
    api = HfApi()
    assert api.model_info("thing").sha == second != first
    described = api.model_info("thing", revision=first, files_metadata=True)
    assert described.sha == first and [file.size for file in described.siblings or []] == [1]
    assert Path(hf_hub_download("thing", "config.json", revision=first)).read_bytes() == b"1"


def test_trees_and_paths_are_listed(local_hub: Hub) -> None:
    local_hub.add("some/data", FILES, "datasets")
    api = HfApi()
    whole = {entry.path for entry in api.list_repo_tree("some/data", repo_type="dataset", recursive=True)}
    assert whole == {*FILES, "folder"}
    top = {entry.path for entry in api.list_repo_tree("some/data", repo_type="dataset")}
    assert top == {"config.json", "model.safetensors", "folder"}
    (found,) = api.get_paths_info("some/data", ["model.safetensors"], repo_type="dataset")
    assert found.path == "model.safetensors"


def test_what_goes_wrong_is_what_the_library_knows(local_hub: Hub) -> None:
    commit = local_hub.add("some/thing", FILES)
    with pytest.raises(RepositoryNotFoundError):
        HfApi().model_info("no/thing")
    with pytest.raises(RevisionNotFoundError):
        HfApi().model_info("some/thing", revision="0" * 40)
    local_hub.gated = 401
    with pytest.raises(GatedRepoError):
        hf_hub_download("some/thing", "config.json", revision=commit)
    local_hub.gated, local_hub.broken = None, 500
    with pytest.raises(HfHubHTTPError):
        HfApi().model_info("some/thing")


def test_a_cut_connection_is_taken_up_where_it_was_cut(local_hub: Hub) -> None:
    commit = local_hub.add("some/thing", FILES)
    local_hub.cut_after, local_hub.cuts = 3000, 1
    path = Path(hf_hub_download("some/thing", "model.safetensors", revision=commit))
    assert path.read_bytes() == FILES["model.safetensors"]
    assert [asked.range for asked in local_hub.asked if asked.method == "GET"] == [None, "bytes=3000-"]
