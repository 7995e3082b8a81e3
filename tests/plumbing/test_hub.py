"""What goes wrong with the Hub is one line that says what to do, and holds no secret."""

import errno
import json
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError

from excise.plumbing.errors import StageError
from excise.plumbing.hub import Kind, hub_error, hub_errors
from tests.hub import TOKEN, Hub

WHERE = "params.yaml: model.source"
NAME = "some/thing"


@pytest.fixture(autouse=True)
def home(local_hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    local_hub.use(monkeypatch, tmp_path / "home", TOKEN)
    return tmp_path / "home"


def line(fetch: Callable[[], object], kind: Kind = "model") -> str:
    with pytest.raises(StageError) as caught, hub_errors(WHERE, NAME, kind):
        fetch()
    told = str(caught.value)
    assert told.startswith(f"{WHERE}: ") and "\n" not in told and TOKEN not in told
    return told.removeprefix(f"{WHERE}: ")


@pytest.mark.parametrize("status", [401, 403])
def test_a_gated_repository_says_where_its_licence_is_accepted(local_hub: Hub, status: int) -> None:
    commit = local_hub.add(NAME, {"config.json": b"{}"})
    local_hub.gated = 401 if status == 401 else 403
    assert line(lambda: snapshot_download(NAME, revision=commit)) == (
        f"{NAME} is gated; accept its licence on its page ({local_hub.address}/{NAME}), "
        "and set HF_TOKEN to a token of yours"
    )


def test_what_is_not_there_is_named() -> None:
    assert line(lambda: HfApi().model_info(NAME)) == (
        f"the Hub has no model {NAME}, or none that HF_TOKEN may see; check the name"
    )
    assert "the Hub has no dataset" in line(lambda: HfApi().dataset_info(NAME), "dataset")


def test_a_commit_that_is_not_there_is_found_by_make_pin(local_hub: Hub) -> None:
    local_hub.add(NAME, {})
    local_hub.add(NAME, {}, "datasets")
    assert line(lambda: snapshot_download(NAME, revision="0" * 40)) == (
        f"{NAME} has no such commit on the Hub; `make pin MODEL={NAME}` finds the newest"
    )
    asked = line(lambda: snapshot_download(NAME, revision="0" * 40, repo_type="dataset"), "dataset")
    assert f"`make pin DATASET={NAME}`" in asked


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_hub_out_of_order_is_asked_again_later(local_hub: Hub, status: int) -> None:
    commit = local_hub.add(NAME, {"config.json": b"{}"})
    local_hub.broken = status
    again = "later, run again: what was fetched whole is kept"
    assert line(lambda: snapshot_download(NAME, revision=commit)) == f"the Hub answered {status} for {NAME}; {again}"


def test_a_hub_that_cannot_be_reached_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert "the Hub cannot be reached" in line(lambda: snapshot_download(NAME, revision="0" * 40))


def test_offline_and_not_in_the_cache_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "is not wholly in the Hub's cache, and HF_HUB_OFFLINE is set" in line(
        lambda: snapshot_download(NAME, revision="0" * 40)
    )


def test_a_connection_that_breaks_off_for_good_says_that_running_again_goes_on(local_hub: Hub) -> None:
    commit = local_hub.add(NAME, {"model.safetensors": bytes(5000)})
    local_hub.cut_after, local_hub.cuts = 0, 100
    assert "broke off" in line(lambda: hf_hub_download(NAME, "model.safetensors", revision=commit))


@pytest.mark.parametrize("text", ["Task error: CAS Client Error: 403", "File reconstruction error", "xet: no route"])
def test_what_xet_raises_is_a_connection_that_broke(text: str) -> None:
    """It fetches large files, and has no class of error for that."""

    def fetch() -> None:
        raise RuntimeError(text)

    assert "broke off" in line(fetch) and text not in line(fetch)


@pytest.mark.parametrize(
    "error", [json.JSONDecodeError("x", "<html>", 0), httpx2.TooManyRedirects("x"), httpx2.DecodingError("x")]
)
def test_what_answers_and_is_no_hub_is_called_that(error: Exception) -> None:
    def fetch() -> None:
        raise error

    assert "is no Hub; check HF_ENDPOINT" in line(fetch)


def test_a_full_disk_says_where_the_cache_may_be() -> None:
    def fill() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    assert "the disk is full" in line(fill) and "HF_HOME" in line(fill)


def test_what_another_library_says_of_it_is_put_into_the_same_words() -> None:
    """As transformers does, with a text of several lines."""

    def fetch() -> None:
        try:
            HfApi().model_info(NAME)
        except OSError as error:
            raise OSError("you are trying\nto access a gated repo") from error

    assert line(fetch).startswith("the Hub has no model")


def test_what_is_not_of_the_hub_stays_what_it_is() -> None:
    for error in (KeyError("x"), RuntimeError("size mismatch"), StageError("one line"), OSError("not found")):
        with pytest.raises(type(error)) as caught, hub_errors(WHERE, NAME):
            raise error
        assert caught.value is error


def test_what_was_dealt_with_is_not_told_again() -> None:
    try:
        try:
            raise LocalEntryNotFoundError("gone")
        except LocalEntryNotFoundError:
            raise StageError("dealt with") from None
    except StageError as error:
        assert hub_error(error, WHERE, NAME) is None
