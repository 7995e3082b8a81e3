"""`python -m excise report`: what the report stage read, on one page, with where it comes from."""

import sys
from pathlib import Path

import pytest

from excise import cli
from tests.evidence_documents import provenance, report

ORIGIN = provenance(changed_files=["params.yaml"])


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run, as far as the report stage reads it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("excise.gitops.sides.check_ran", lambda side: None)
    monkeypatch.setattr("excise.report.reading.read_report", report)
    monkeypatch.setattr("excise.gitops.difference.provenance", lambda folder: ORIGIN)
    return tmp_path


@pytest.mark.parametrize(("arguments", "path"), [([], "report/shown.html"), (["--out", "a/b.html"], "a/b.html")])
def test_the_page_is_written_with_its_provenance(
    there: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    path: str,
) -> None:
    monkeypatch.setattr(sys, "argv", ["excise", "report", *arguments])
    cli.main()
    assert capsys.readouterr().out == f"{path}\n"
    shown = (there / path).read_text()
    assert f"git checkout {ORIGIN.commit}" in shown and "All gates pass" in shown
