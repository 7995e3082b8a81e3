"""`make pin`: the newest commit of a Hub model, written into params.yaml."""

from pathlib import Path

import pytest
from huggingface_hub import HfApi

from excise import cli
from excise.plumbing.errors import FAILED, WRONG_INPUT
from schemas.pinning import pinned
from tests.hub import TOKEN, Hub
from tests.projects import ROOT

NAME = "some/model"
SHIPPED = (ROOT / "params.yaml").read_bytes()
PARAMS = Path("params.yaml")


@pytest.fixture(autouse=True)
def project(local_hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    local_hub.use(monkeypatch, tmp_path / "home", TOKEN)
    PARAMS.write_bytes(SHIPPED)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr("sys.argv", ["excise", "pin", *arguments])
    cli.main()


def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], code: int, *arguments: str) -> str:
    before = PARAMS.read_bytes()
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, *arguments)
    line = capsys.readouterr().err
    assert caught.value.code == code and PARAMS.read_bytes() == before
    assert line.startswith("ERROR: ") and line.count("\n") == 1 and TOKEN not in line
    return line


def test_both_keys_are_written_and_nothing_else(local_hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    local_hub.add(NAME, {"config.json": b"old"})
    newest = local_hub.add(NAME, {"config.json": b"new"})
    run(monkeypatch, NAME)
    assert PARAMS.read_text() == pinned(SHIPPED.decode(), NAME, newest)


@pytest.mark.parametrize("arguments", [(), ("",)])
def test_without_a_model_the_current_one_is_pinned_again(
    local_hub: Hub, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    local_hub.add(NAME, {})
    run(monkeypatch, NAME)
    newest = local_hub.add(NAME, {"config.json": b"new"})
    run(monkeypatch, *arguments)
    assert PARAMS.read_text() == pinned(SHIPPED.decode(), NAME, newest)


def test_of_a_dataset_the_commit_is_printed(
    local_hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    newest = local_hub.add("some/data", {}, "datasets")
    run(monkeypatch, "--dataset", "some/data")
    assert capsys.readouterr().out == f"{newest}\n" and PARAMS.read_bytes() == SHIPPED


def no_repository(*_arguments: object, **_settings: object) -> None:
    """As the library does with JSON that is not the Hub's."""
    raise KeyError("id")


def test_what_goes_wrong_leaves_the_file_as_it_is(
    local_hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "model.source is not a model of the Hub" in refused(monkeypatch, capsys, FAILED)
    assert f"make pin: the Hub has no model {NAME}" in refused(monkeypatch, capsys, FAILED, NAME)
    assert "gpt2 is not a Hub id" in refused(monkeypatch, capsys, FAILED, "gpt2")
    local_hub.add(NAME, {})
    PARAMS.write_text("model: {dtype: x}\n")
    assert "model.dtype must be one of" in refused(monkeypatch, capsys, WRONG_INPUT, NAME)
    with monkeypatch.context() as other:
        other.setattr(HfApi, "repo_info", no_repository)
        assert f"what answered for {NAME} is no Hub" in refused(monkeypatch, capsys, FAILED, NAME)
    local_hub.broken = 503
    assert "the Hub answered 503" in refused(monkeypatch, capsys, FAILED, NAME)
