"""What a release consists of, and that nothing in its card acts on what is around it."""

import hashlib
import json
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from excise.gitops.releases import render_release
from excise.plumbing.files import parse_document
from schemas.basis.document import FileDigest
from schemas.evidence import Comparison, GateVerdict, GateVerdicts, Interval
from schemas.gitops import Release
from schemas.model import ModelManifest
from tests.projects import Project, one_line

HOSTILE = [
    "` @everyone <img src=x onerror=y>",
    "a | b | **c**",
    "``` \n\n# Heading\n\n| x |",
    "\u202eright to left\u202c",
    "[link](http://localhost)",
    "",
]


def released(project: Project, name: str, out: Path, folder: Path) -> str:
    """The card of a release that must succeed."""
    done = project.excise("release", name, str(out), "--model", str(folder))
    assert done.returncode == 0, done.stdout + done.stderr
    return (out / "card.md").read_text()


@pytest.mark.slow
def test_a_release_holds_the_record_the_report_and_a_card_of_both(project: Project, tmp_path: Path) -> None:
    project.check("git", "tag", "model-1")
    commit = project.check("git", "rev-parse", "HEAD").strip()
    card = released(project, "model-1", tmp_path / "out", tmp_path / "model")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "card.md",
        "edit.json",
        "edit.json.sha256",
        "report.html",
    }
    for made, source in (("edit.json", "models/ablated/edit.json"), ("report.html", "report/report.html")):
        assert (tmp_path / "out" / made).read_bytes() == (project.folder / source).read_bytes()
    assert "`model-1`" in card and commit in card and "taken from DVC's cache" in card
    assert hashlib.sha256((project.folder / "artifacts/model.json").read_bytes()).hexdigest() in card
    assert project.hashes()["models/ablated"] in card
    for path in (project.folder / "models/ablated").iterdir():
        assert f"`{hashlib.sha256(path.read_bytes()).hexdigest()}`" in card, path
    assert "`requirements.lock` here is that of the commit." in card
    assert f"make model COMMIT={commit} OUT=model" in card
    for row in json.loads((project.folder / "report/comparison.json").read_text())["rows"]:
        assert f"| `{row['metric']}` | " in card
        if row["difference_interval"] is not None:
            low, high = row["difference_interval"].values()
            assert f"| {low:+.4f} to {high:+.4f} |" in card
    assert str(tmp_path) not in card


@pytest.mark.slow
def test_a_model_that_was_brought_back_before_is_checked_against_the_commit(project: Project, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    project.check("python", "-m", "excise", "model", "HEAD", str(folder))
    assert "It was given as a folder" in released(project, "HEAD", tmp_path / "out", folder)
    project.replace("scale: 1.4", "scale: 0.5")
    project.repro("ablate")
    half = project.commit("half")
    line = one_line(project.excise("release", half, str(tmp_path / "other"), "--model", str(folder)))
    assert f"this is not the model that {half[:12]} recorded" in line
    (folder / "config.json").write_text("{}")
    line = one_line(project.excise("release", "HEAD~1", str(tmp_path / "other"), "--model", str(folder)))
    assert "config.json of this model is not what edit.json records" in line
    assert not (tmp_path / "other").exists()


@pytest.mark.nightly
def test_a_report_that_cannot_be_had_is_said_to_be_missing(project: Project, tmp_path: Path) -> None:
    project.check("python", "-m", "excise", "model", "HEAD", str(tmp_path / "model"))
    project.check("dvc", "config", "--local", "cache.dir", str(tmp_path / "empty"))
    card = released(project, "HEAD", tmp_path / "out", tmp_path / "model")
    assert "The report is not part of this release" in card
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"card.md", "edit.json", "edit.json.sha256"}


@pytest.mark.nightly
def test_metrics_of_another_model_are_not_released_with_it(project: Project, tmp_path: Path) -> None:
    project.replace("scale: 1.4", "scale: 0.5")
    project.repro("ablate", "simulate")
    project.commit("not evaluated")
    line = one_line(project.excise("release", "HEAD", str(tmp_path / "out"), "--model", str(tmp_path / "model")))
    assert "answer@ablated had not run on the models/ablated that was recorded" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_metrics_that_were_changed_by_hand_are_not_released(project: Project, tmp_path: Path) -> None:
    path = project.folder / "gates.json"
    path.write_text(path.read_text().replace("at most", "at least"))
    project.commit("by hand")
    line = one_line(project.excise("release", "HEAD", str(tmp_path / "out"), "--model", str(tmp_path / "model")))
    assert "dvc.lock is not of its own gates.json" in line


def test_a_place_that_is_taken_is_left_alone(project: Project, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("mine")
    line = one_line(project.excise("release", "HEAD", str(tmp_path / "out"), "--model", str(tmp_path / "model")))
    assert "is there already" in line and not (tmp_path / "model").exists()


@pytest.mark.parametrize("text", HOSTILE)
def test_no_name_breaks_out_of_the_card(text: str) -> None:
    plain, hostile = (MarkdownIt("commonmark").enable("table").parse(render_release(of(name))) for name in ("x", text))
    assert [token.type for token in hostile] == [token.type for token in plain]
    inside = [[child.type for child in token.children or []] for token in hostile]
    assert inside == [[child.type for child in token.children or []] for token in plain]
    assert not any("html" in kind or "link" in kind for kinds in inside for kind in kinds)
    assert "\u202e" not in render_release(of(text))


def test_a_base_of_the_hub_is_named_with_its_commit() -> None:
    release = of("x")
    base = release.base.model_copy(update={"source": "hub", "id": "some/model", "revision": "1" * 40})
    assert f"| base | `some/model at {'1' * 40}`, " in render_release(release.model_copy(update={"base": base}))


def test_a_release_without_evidence_says_so() -> None:
    card = render_release(of("x").model_copy(update={"rows": [], "gates": None, "origin": "rebuilt", "locked": True}))
    assert card.count("None were recorded at this commit.") == 2
    assert "It was rebuilt" in card and "made with what that one pins" in card


def test_gates_that_an_earlier_version_recorded_are_part_of_the_card() -> None:
    gates = of("x").gates
    assert gates is not None
    document = gates.model_dump(mode="json")
    document["verdict"] = document["gates"][0]["verdict"] = "warn"
    del document["gates"][0]["inconclusive"]
    read = parse_document(GateVerdicts, json.dumps(document), "gates.json", "make it there")
    card = render_release(of("x").model_copy(update={"gates": read}))
    assert "**A gate is inconclusive**" in card and "| **inconclusive** |" in card


def of(name: str) -> Release:
    """A release in which whatever can be named is called this."""
    interval = Interval(low=0.0, high=1.0)
    row = Comparison(
        metric=name,
        base=0.0,
        ablated=1.0,
        difference=1.0,
        base_interval=interval,
        ablated_interval=interval,
        difference_interval=interval,
        higher_is_better=None,
        samples=3,
        clusters=3,
        rose=3,
        fell=0,
        p_value=None,
        reason=None,
    )
    gate = GateVerdict(
        metric=name,
        bound="at_most",
        limit=1.0,
        confidence=0.95,
        words=name,
        value=0.5,
        interval=interval,
        verdict="pass",
        reason=name,
        samples_needed=None,
    )
    return Release(
        tag=name,
        commit="0" * 40,
        origin="cache",
        versions={name: name},
        lock="other",
        locked=False,
        base=ModelManifest(source="folder", model_type=name, dtype="float32", layers=1, hidden_size=8, files=[]),
        base_sha256="0" * 64,
        folder_md5="0" * 32 + ".dir",
        files=[FileDigest(path=name, size=1, sha256="0" * 64)],
        rows=[row],
        gates=GateVerdicts(verdict="pass", gates=[gate]),
        report=True,
    )
