"""dvc.yaml names what each stage's code depends on, as the code itself says."""

import time
from pathlib import Path

import pytest

from excise.plumbing import dependencies
from excise.plumbing.errors import StageError
from tests.projects import ROOT

TREE = {
    "excise/__init__.py": "",
    "excise/used.py": "import numpy\n\n\ndef late():\n    from excise import later\n",
    "excise/later.py": "from pathlib import Path\nDATA = Path(__file__).parent / 'data'\n",
    "excise/unused.py": "",
    "excise/data/tasks.yaml": "process_results: !function scores.judge\n",
    "excise/data/scores.py": "from excise.scored import judge\n",
    "excise/scored.py": "",
    "excise/typed.py": "",
    "excise/plumbing/progress.py": "import excise.unused\n",
    "stages/first.py": "from typing import TYPE_CHECKING\nfrom excise.plumbing import progress\n"
    "from excise.used import late\nif TYPE_CHECKING:\n    from excise.typed import T\n",
    "stages/second.py": "",
    "requirements-compute.lock": "numpy==2.4.6\n",
    "dvc.yaml": "stages:\n  first:\n    cmd: exec python -m stages.first\n    deps:\n      - data\n      # old\n"
    "      - stages/gone.py\n",
}


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small project, in which the test runs."""
    for name, text in TREE.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    for cached in (dependencies._files_of, dependencies._read, dependencies._compute_libraries):
        cached.cache_clear()
    return tmp_path


def test_a_stage_depends_on_what_it_imports_and_reads_and_on_nothing_else(tree: Path) -> None:
    assert dependencies.of_module("stages.first") == [
        "excise/data",
        "excise/later.py",
        "excise/scored.py",
        "excise/used.py",
        "requirements-compute.lock",
        "stages/first.py",
    ]


def test_a_folder_stands_for_its_files_where_all_are_needed(tree: Path) -> None:
    for name in ("unused.py", "typed.py"):
        (tree / "excise" / name).unlink()
    (tree / "excise/plumbing/progress.py").rename(tree / "excise/used_too.py")
    (tree / "stages/first.py").write_text("import excise.used, excise.used_too\n")
    (tree / "excise/used_too.py").write_text("")
    assert dependencies.of_module("stages.first") == ["excise", "requirements-compute.lock", "stages/first.py"]


def test_what_people_wrote_stays_and_old_code_goes(tree: Path) -> None:
    assert dependencies.write() and not dependencies.write()
    text = (tree / "dvc.yaml").read_text()
    assert "- data\n" in text and "stages/gone.py" not in text and "      - stages/first.py\n" in text
    dependencies.check()


def test_a_module_that_dvc_does_not_know_of_is_one_line(tree: Path) -> None:
    dependencies.write()
    (tree / "excise/used.py").write_text("import excise.unused\n")
    dependencies._read.cache_clear()
    with pytest.raises(StageError, match=r"first lacks excise/unused.py; run `python -m excise deps --write`"):
        dependencies.check()


@pytest.mark.parametrize("place", ["Path(__file__).parent.glob('*')", "open(__file__)"])
def test_data_is_read_in_one_form_only(tree: Path, place: str) -> None:
    (tree / "excise/later.py").write_text(f"from pathlib import Path\nDATA = {place}\n")
    with pytest.raises(StageError, match=r"excise/later.py must read its data as"):
        dependencies.of_module("stages.first")


def test_dvc_yaml_is_what_the_code_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    began = time.monotonic()
    dependencies.check()
    assert time.monotonic() - began < 5  # one second, on a machine that does nothing else


def test_what_is_left_out_is_there_and_has_a_reason() -> None:
    assert all((ROOT / path).is_file() and reason for path, reason in dependencies.LEFT_OUT.items())
    assert not {"excise/plumbing/machine.py"} & dependencies.LEFT_OUT.keys()
