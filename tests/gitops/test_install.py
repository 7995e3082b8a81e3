"""Before a job holds a token it installs packages, and only those whose bytes a lock names."""

import hashlib
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from tests.projects import ROOT, Project, environment

pytestmark = pytest.mark.slow

LOCK = "requirements-publish.lock"


def wheel(folder: Path, name: str, needs: str = "", code: str = "") -> str:
    """Write a package of one module, as an index would offer it; its SHA-256."""
    path = folder / f"{name}-1.0-py3-none-any.whl"
    folder.mkdir(exist_ok=True)
    about = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(f"{name}.py", code)
        file.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{needs}")
        file.writestr(
            f"{about}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{about}/RECORD", "")
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def job(tmp_path: Path) -> Project:
    """A checkout whose lock pins one package, which a folder offers in place of an index."""
    (tmp_path / "checkout").mkdir()
    shutil.copyfile(ROOT / "Makefile", tmp_path / "checkout/Makefile")
    sha256 = wheel(tmp_path / "index", "pinned")
    (tmp_path / "checkout" / LOCK).write_text(f"pinned==1.0 \\\n    --hash=sha256:{sha256}\n")
    return Project(tmp_path / "checkout")


def make(job: Project, *targets: str) -> "subprocess.CompletedProcess[str]":
    index = str(job.folder.parent / "index")
    settings = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": index, "PIP_NO_CACHE_DIR": "1", "GITHUB_TOKEN": "ghs_secret"}
    command = ["make", f"LOCK={LOCK}", *targets]
    return subprocess.run(command, cwd=job.folder, env=environment(**settings), capture_output=True, text=True)


@pytest.mark.nightly
def test_a_package_whose_bytes_are_pinned_is_installed(job: Project) -> None:
    done = make(job, "environment")
    assert done.returncode == 0, done.stderr
    assert list((job.folder / ".venv").rglob("pinned.py"))


@pytest.mark.parametrize("attack", ["other bytes", "another package"])
def test_what_no_lock_names_is_not_installed(job: Project, attack: str) -> None:
    """Other bytes under a pinned name and version, and a package that a pinned one asks for."""
    index = job.folder.parent / "index"
    if attack == "other bytes":
        wheel(index, "pinned", code="print('code of another package')")
    else:
        sha256 = wheel(index, "pinned", needs="Requires-Dist: unpinned\n")
        wheel(index, "unpinned")
        (job.folder / LOCK).write_text(f"pinned==1.0 \\\n    --hash=sha256:{sha256}\n")
    done = make(job, "environment", "attach")
    says = "DO NOT MATCH THE HASHES" if attack == "other bytes" else "In --require-hashes mode"
    assert done.returncode == 2 and says in done.stderr, done.stderr
    # What is half installed is not taken for an environment, and no command of excise ran.
    assert not (job.folder / ".venv/requirements.lock").exists() and "excise" not in done.stderr
    assert not list((job.folder / ".venv").rglob("*pinned.py"))
