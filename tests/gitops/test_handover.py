"""What a run hands on is checked before anything is made of it."""

import os
from pathlib import Path

import pytest

from excise.gitops.handover import DOCUMENTS, MOST_BYTES, accept, hand_over
from excise.plumbing.errors import StageError
from tests.projects import ROOT


@pytest.fixture
def handover(tmp_path: Path) -> Path:
    """As a good run leaves it."""
    project = tmp_path / "project"
    for path in DOCUMENTS:
        (project / path).parent.mkdir(parents=True, exist_ok=True)
        (project / path).write_bytes((ROOT / path).read_bytes())
    (project / "report/pictures").mkdir()
    (project / "report/pictures/writers.svg").write_text("<svg/>")
    (project / "report/report.html").write_text("<html>")
    assert len(hand_over(project, tmp_path / "handover")) == len(DOCUMENTS) + 2
    return tmp_path / "handover"


def refused(handover: Path, reason: str) -> None:
    with pytest.raises(StageError, match=reason) as error:
        accept(handover)
    assert "\n" not in str(error.value)


def test_a_good_run_is_accepted_byte_for_byte_and_its_page_is_not_committed(handover: Path) -> None:
    accepted = accept(handover)
    assert accepted["dvc.lock"] == (ROOT / "dvc.lock").read_bytes()
    assert accepted["report/pictures/writers.svg"] == b"<svg/>"
    assert (handover / "report/report.html").is_file() and "report/report.html" not in accepted


def test_what_else_lies_there_is_not_accepted(handover: Path) -> None:
    (handover / "stages").mkdir()
    (handover / "stages/params.py").write_text("import os")
    (handover / ".github").mkdir()
    assert set(accept(handover)) == {*DOCUMENTS, "report/pictures/writers.svg"}


@pytest.mark.parametrize("path", DOCUMENTS)
def test_a_missing_file_is_refused(handover: Path, path: str) -> None:
    (handover / path).unlink()
    refused(handover, "is missing")


@pytest.mark.parametrize("path", [*DOCUMENTS, "report/pictures/writers.svg"])
def test_a_link_is_refused_wherever_it_leads(handover: Path, path: str) -> None:
    secret = handover.parent / "secret"
    secret.write_bytes((handover / path).read_bytes())
    (handover / path).unlink()
    (handover / path).symlink_to(secret)
    refused(handover, "is not a plain file")


@pytest.mark.parametrize("path", ["report/pictures", "report"])
def test_a_folder_that_is_a_link_is_refused(handover: Path, path: str) -> None:
    (handover / path).rename(handover.parent / "elsewhere")
    (handover / path).symlink_to(handover.parent / "elsewhere")
    refused(handover, "is a link")


def test_a_pipe_is_refused_and_not_read(handover: Path) -> None:
    (handover / "dvc.lock").unlink()
    os.mkfifo(handover / "dvc.lock")
    refused(handover, "is not a plain file")


def test_a_huge_file_is_refused_and_not_read(handover: Path) -> None:
    os.truncate(handover / "report/report.md", MOST_BYTES + 1)
    refused(handover, "more than")


@pytest.mark.parametrize(
    ("path", "data"),
    [
        ("gates.json", b'{"verdict": "pass"}'),
        ("gates.json", b"{"),
        ("report/comparison.json", b'{"rows": [{}]}'),
        ("metrics.json", b"[]"),
        ("metrics.json", b"["),
        ("metrics.json", b"[" * 100_000),
        ("gates.json", (ROOT / "gates.json").read_bytes().replace(b'"verdict": "pass",', b'"verdict": "fail",', 1)),
        (
            "gates.json",
            (ROOT / "gates.json").read_bytes().replace(b'"pass",\n      "reason"', b'"void",\n      "reason"', 1),
        ),
        ("dvc.lock", b"- a list"),
        ("dvc.lock", b"\xff"),
        ("report/report.md", b"\xff"),
    ],
)
def test_what_no_run_writes_is_refused(handover: Path, path: str, data: bytes) -> None:
    (handover / path).write_bytes(data)
    refused(handover, "is not what a run writes")


def test_a_picture_that_is_none_is_refused(handover: Path) -> None:
    for name in ("index.html", "a\nb.svg", "x" * 100 + ".svg"):
        (handover / "report/pictures" / name).write_text("<svg/>")
        refused(handover, "is not an SVG picture")
        (handover / "report/pictures" / name).unlink()


def test_a_flood_of_pictures_is_refused(handover: Path) -> None:
    for number in range(101):
        (handover / f"report/pictures/{number}.svg").write_text("<svg/>")
    refused(handover, "holds 102 files")


def test_a_run_that_left_something_out_is_not_handed_on(handover: Path, tmp_path: Path) -> None:
    (tmp_path / "project/gates.json").unlink()
    with pytest.raises(StageError, match=r"gates\.json is not there"):
        hand_over(tmp_path / "project", tmp_path / "another")
    assert not (tmp_path / "another").exists()


def test_a_folder_that_holds_something_is_not_written_to(handover: Path, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="is not empty"):
        hand_over(tmp_path / "project", handover)
