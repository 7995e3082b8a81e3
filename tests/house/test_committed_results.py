"""The results in this commit are those of its code and parameters, and the README quotes them."""

import json
import subprocess
from pathlib import Path

from schemas.families import layouts
from tests.projects import environment

ROOT = Path(__file__).resolve().parents[2]


def test_no_stage_depends_on_a_file_that_changed_since_it_ran() -> None:
    status = subprocess.run(
        ["dvc", "status", "--json"], cwd=ROOT, env=environment(), check=True, capture_output=True, text=True
    )
    changed = {
        dependency
        for stage in json.loads(status.stdout).values()
        for change in stage
        if isinstance(change, dict)
        for dependency, what in change.get("changed deps", {}).items()
        if what == "modified"  # a fresh clone has no outputs: "deleted" is no change of ours
    }
    assert not changed, "stale: run `dvc repro` and commit what it wrote"


def test_the_readme_quotes_the_report() -> None:
    report = (ROOT / "report/report.md").read_text()
    quoted = (
        (ROOT / "README.md").read_text().partition("<!-- results:begin -->")[2].partition("<!-- results:end -->")[0]
    )
    rows = [line for line in quoted.splitlines() if line.startswith("| `")]
    assert len(rows) >= 6
    for row in rows:
        assert row in report, "stale: copy the row from report/report.md"


def test_the_readme_names_every_known_model_type() -> None:
    readme = (ROOT / "README.md").read_text()
    assert f"{len(layouts())} model types are known" in readme
    assert all(f"`{model_type}`" in readme for model_type in layouts())
