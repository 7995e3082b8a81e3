"""`python -m stages.params`: everything is validated before anything is written."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from schemas.params.document import parse, settings_of_stages

ROOT = Path(__file__).resolve().parents[2]


def run(folder: Path, text: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run the stage in a folder of its own, with this text as params.yaml."""
    if text is not None:
        (folder / "params.yaml").write_text(text, encoding="utf-8")
    return subprocess.run(
        [sys.executable, "-m", "stages.params"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )


def written(folder: Path) -> dict[str, str]:
    return {path.stem: path.read_text(encoding="utf-8") for path in (folder / "artifacts/params").iterdir()}


def test_every_section_is_written_with_its_defaults(tmp_path: Path) -> None:
    done = run(tmp_path, "measure: {batch_size: 8}")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert written(tmp_path) == settings_of_stages(parse("measure: {batch_size: 8}"))


def test_a_section_that_did_not_change_keeps_its_file(tmp_path: Path) -> None:
    run(tmp_path, "measure: {batch_size: 8}")
    folder = tmp_path / "artifacts/params"
    before = {path.name: path.stat() for path in folder.iterdir()}
    assert run(tmp_path, "measure: {batch_size: 9}").returncode == 0
    changed = {
        path.name
        for path in folder.iterdir()
        if (path.stat().st_ino, path.stat().st_mtime_ns) != (before[path.name].st_ino, before[path.name].st_mtime_ns)
    }
    assert changed == {"measure.json"}


@pytest.mark.parametrize("before", [True, False], ids=["after a good run", "first"])
def test_a_bad_file_writes_nothing(tmp_path: Path, before: bool) -> None:
    if before:
        run(tmp_path, "{}")
    done = run(tmp_path, "measure: {batch_size: 8}\nablate: {rules: [{layers: 1, measurement: 1, scal: 2}]}")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == 'ERROR: params.yaml: ablate.rules.0.scal is not a key; did you mean "scale"?\n'
    if before:
        assert written(tmp_path) == settings_of_stages(parse("{}"))
    else:
        assert not (tmp_path / "artifacts").exists()


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    done = run(tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("ERROR: params.yaml: there is no such file") and done.stderr.count("\n") == 1


def test_the_stage_starts_without_torch() -> None:
    code = "import sys, stages.params; print({'torch', 'transformers', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
