"""No remote is trusted: what comes from it has the bytes that its name stands for, or is refused by name; and only such
bytes go to it."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from excise.plumbing.private.dvc_remote import WrongObject, read
from tests.projects import Project, one_line, stages_run

FILE, FOLDER = "artifacts/activations.safetensors", "models/base"
"""Outputs that a restored clone, a later run and a rebuilt model all need."""
RESULTS = "results/ablated"
WAYS: dict[str, tuple[str, ...]] = {"restore": ("restore",), "rerun": ("rerun",), "model": ("model", "HEAD", "out")}
DAMAGE: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "flipped": (FILE, lambda data: flipped(data)),
    "cut": (FILE, lambda data: data[:-1]),
    "empty": (FILE, lambda data: b""),
    "another": (FILE, lambda data: b"[]"),
    "flipped list": (FOLDER, lambda data: flipped(data)),
    "cut list": (FOLDER, lambda data: data[:-1]),
    "empty list": (FOLDER, lambda data: b""),
    "another list": (FOLDER, lambda data: json.dumps(json.loads(data)[1:]).encode()),
    "renamed list": (FOLDER, lambda data: renamed(data)),
}
"""By its name, the output, and what becomes of its object's bytes."""


def flipped(data: bytes) -> bytes:
    """The same with one bit changed."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def renamed(data: bytes) -> bytes:
    """A folder's list in which two files have each other's names."""
    first, second, *others = json.loads(data)
    names = first["relpath"], second["relpath"]
    second["relpath"], first["relpath"] = names
    return json.dumps([first, second, *others]).encode()


def of(store: Path, md5: str) -> Path:
    """An object of a cache or of a remote that is a folder."""
    return store / "files/md5" / md5[:2] / md5[2:]


def spoil(path: Path, damage: Callable[[bytes], bytes] = flipped) -> None:
    """Write other bytes under a name, as read-only as DVC leaves it."""
    data = path.read_bytes()
    path.unlink()  # what is linked to it stays
    path.write_bytes(damage(data))
    path.chmod(0o444)


def all_right(store: Path) -> bool:
    """Whether everything in a cache is what its name stands for."""
    files = [path for path in (store / "files/md5").rglob("*") if path.is_file()]
    return all(
        hashlib.md5(path.read_bytes()).hexdigest() == f"{path.parent.name}{path.name}".removesuffix(".dir")
        for path in files
    )


@pytest.fixture(scope="module")
def pushed(finished: Project, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A remote that has what the finished project pushes. Not to be changed: take a `remote`."""
    place = tmp_path_factory.mktemp("pushed")
    shutil.copytree(finished.folder, place / "project", symlinks=True)
    project = Project(place / "project")
    project.check("dvc", "remote", "add", "--local", "--default", "storage", str(place / "storage"))
    project.check("python", "-m", "excise", "push")
    return place / "storage"


@pytest.fixture
def remote(pushed: Path, tmp_path: Path) -> Path:
    """A copy of it, to be spoiled."""
    shutil.copytree(pushed, tmp_path / "storage")
    return tmp_path / "storage"


@pytest.fixture
def clone(finished: Project, remote: Path, tmp_path: Path) -> Project:
    """A new clone with a cache of its own, which is empty, and the remote."""
    finished.check("git", "clone", "--quiet", ".", str(tmp_path / "clone"))
    return with_remote(Project(tmp_path / "clone"), remote, tmp_path / "cache")


@pytest.fixture
def maker(project: Project, remote: Path, tmp_path: Path) -> Project:
    """The machine that made what was pushed, with a cache of its own, which is full."""
    shutil.copytree(project.check("dvc", "cache", "dir").strip(), tmp_path / "full")
    return with_remote(project, remote, tmp_path / "full")


def with_remote(project: Project, remote: Path, cache: Path) -> Project:
    project.check("dvc", "remote", "add", "--local", "--default", "storage", str(remote))
    project.check("dvc", "config", "--local", "cache.dir", str(cache))
    return project


def refused(clone: Project, remote: Path, output: str, way: str, cache: Path) -> None:
    """It fails in one line that names the object and what to do, and leaves nothing wrong."""
    done = clone.excise(*WAYS[way])
    line = one_line(done)
    assert done.returncode == 1 and len(line) <= 400
    wrong = of(remote, clone.hashes()[output])
    assert f"the DVC remote has other bytes at {wrong}, of {output}, than the name stands for" in line
    assert "delete it there, then `make push` on a machine that has it" in line
    assert all_right(cache) and not list(cache.rglob("*.tmp"))
    assert not (clone.folder / output).exists() and not (clone.folder / "out").exists()


@pytest.mark.parametrize("how", ["flipped", "cut", "flipped list"])
def test_an_object_with_other_bytes_is_not_restored(clone: Project, remote: Path, tmp_path: Path, how: str) -> None:
    output, damage = DAMAGE[how]
    spoil(of(remote, clone.hashes()[output]), damage)
    refused(clone, remote, output, "restore", tmp_path / "cache")


IN_SLOW = {("rerun", "flipped"), ("model", "another list"), ("restore", "renamed list")}
"""Of all damage on all ways, what `make test-slow` runs; the others run at night, as three do in every run, above."""


@pytest.mark.parametrize(
    ("way", "how"),
    [
        pytest.param(way, how, marks=pytest.mark.slow if (way, how) in IN_SLOW else pytest.mark.nightly)
        for way in WAYS
        for how in DAMAGE
    ],
)
def test_no_command_takes_an_object_with_other_bytes(
    clone: Project, remote: Path, tmp_path: Path, way: str, how: str
) -> None:
    output, damage = DAMAGE[how]
    spoil(of(remote, clone.hashes()[output]), damage)
    refused(clone, remote, output, way, tmp_path / "cache")


@pytest.mark.slow
def test_objects_that_were_exchanged_are_refused_though_both_are_known(
    clone: Project, remote: Path, tmp_path: Path
) -> None:
    one, other = (of(remote, clone.hashes()[output]) for output in (FILE, "artifacts/directions.safetensors"))
    data = one.read_bytes()
    spoil(one, lambda _: other.read_bytes())
    spoil(other, lambda _: data)
    line = one_line(clone.excise("restore"))
    assert "the DVC remote has other bytes at " in line and "than the name stands for (and 1 more)" in line
    assert str(one) in line or str(other) in line
    assert all_right(tmp_path / "cache") and not (clone.folder / FILE).exists()


KNOWN = "an object that the remote has"
LISTS: dict[str, object] = {
    "leads out of its folder": [{"md5": KNOWN, "relpath": "../../../escaped"}],
    "leads to a place": [{"md5": KNOWN, "relpath": "/escaped"}],
    "names an object that lies elsewhere": [{"md5": "../../../../escaped", "relpath": "model.safetensors"}],
    "lists no files": {"relpath": "model.safetensors"},
}
"""What a commit can record as the files of a folder, by what is wrong with it."""


@pytest.mark.parametrize(
    ("how", "way"),
    [
        ("leads out of its folder", "restore"),
        pytest.param("leads out of its folder", "fetch", marks=pytest.mark.slow),
        *(
            pytest.param(how, way, marks=pytest.mark.nightly)
            for how in LISTS
            for way in ("restore", "fetch")
            if how != "leads out of its folder"
        ),
    ],
)
def test_a_list_that_dvc_does_not_write_is_refused_though_its_digest_is_right(
    clone: Project, remote: Path, tmp_path: Path, how: str, way: str
) -> None:
    """Whoever commits may record any list; DVC itself follows it out of the folder."""
    data = json.dumps(LISTS[how]).replace(KNOWN, clone.hashes()[FILE]).encode()
    md5 = f"{hashlib.md5(data).hexdigest()}.dir"
    of(remote, md5).parent.mkdir(exist_ok=True)
    of(remote, md5).write_bytes(data)
    lock = clone.folder / "dvc.lock"
    lock.write_text(lock.read_text().replace(clone.hashes()[FOLDER], md5))
    commit = clone.commit("hostile")
    arguments = ["restore"] if way == "restore" else ["fetch", f"--cache={tmp_path / 'cache'}", commit]
    done = clone.excise(*arguments)
    line = one_line(done)
    assert done.returncode == 1 and len(line) <= 400 and "which DVC does not write; nothing was taken from it" in line
    assert not [path for path in tmp_path.rglob("escaped*")] and not (clone.folder / FOLDER).exists()


@pytest.mark.parametrize(
    "output", [pytest.param(FILE, marks=pytest.mark.nightly), pytest.param(FOLDER, marks=pytest.mark.slow)]
)
def test_what_the_line_says_mends_it(clone: Project, maker: Project, remote: Path, tmp_path: Path, output: str) -> None:
    """Also where the object is a file of a folder whose list the remote has, which DVC would take for pushed."""
    wrong = of(remote, clone.hashes()[output])
    if output == FOLDER:
        wrong = of(remote, json.loads(wrong.read_text())[0]["md5"])
    spoil(wrong)
    assert str(wrong) in one_line(clone.excise("restore"))
    wrong.unlink()
    assert "1 file pushed" in maker.check("python", "-m", "excise", "push")
    clone.check("python", "-m", "excise", "restore")
    assert all_right(tmp_path / "cache") and (clone.folder / output).exists()


def test_results_that_were_changed_in_the_remote_are_not_read(clone: Project, remote: Path) -> None:
    listed = json.loads(of(remote, clone.hashes()[RESULTS]).read_text())
    results = of(remote, next(file["md5"] for file in listed if file["relpath"] == "results.json"))
    head = clone.check("git", "rev-parse", "HEAD").strip()
    whole = results.read_bytes()
    spoil(results, lambda data: data.replace(b"0", b"1"))
    with pytest.raises(WrongObject, match=f"{results}, of {RESULTS}"):
        read(clone.folder, head, f"{RESULTS}/results.json")
    results.unlink()
    assert read(clone.folder, head, f"{RESULTS}/results.json") is None
    results.write_bytes(whole)
    assert read(clone.folder, head, f"{RESULTS}/results.json") == whole


@pytest.mark.slow
def test_what_a_remote_says_of_earlier_runs_is_not_believed(clone: Project, maker: Project, tmp_path: Path) -> None:
    """Whoever may write to it could say so which results any parameters have."""
    maker.check("dvc", "push", "--run-cache")
    assert list((tmp_path / "storage/runs").rglob("*"))
    done = clone.excise("rerun")
    assert done.returncode == 0, done.stdout + done.stderr
    assert stages_run(done.stdout) == ["ablate"]
    assert len([path for path in (tmp_path / "cache/runs").rglob("*") if path.is_file()]) == 1


def test_a_spoiled_object_of_the_cache_is_not_pushed(maker: Project, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "storage")
    spoiled = of(tmp_path / "full", maker.hashes()[FILE])
    spoil(spoiled)
    done = maker.excise("push")
    line = one_line(done)
    assert done.returncode == 1 and f"{spoiled} in DVC's cache, of {FILE}, has other bytes" in line
    assert "nothing was pushed" in line and "make rerun" in line
    assert not [path for path in (tmp_path / "storage").rglob("*") if path.is_file()]


@pytest.mark.nightly
def test_what_replaces_a_spoiled_object_is_pushed(maker: Project, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "storage")
    spoiled = of(tmp_path / "full", maker.hashes()[FILE])
    spoil(spoiled)
    one_line(maker.excise("push"))
    spoiled.unlink()
    maker.check("python", "-m", "excise", "rerun")
    assert "files pushed" in maker.check("python", "-m", "excise", "push")
    assert all_right(tmp_path / "storage") and of(tmp_path / "storage", maker.hashes()[FILE]).is_file()


def test_what_a_killed_push_left_in_part_is_pushed_again(maker: Project, remote: Path) -> None:
    object_ = of(remote, maker.hashes()[FILE])
    spoil(object_, lambda data: data[:-1])
    assert "1 file pushed" in maker.check("python", "-m", "excise", "push")
    assert all_right(remote)
    assert "up to date" in maker.check("python", "-m", "excise", "push")


def test_a_fetched_object_is_read_only_and_of_the_group(clone: Project, tmp_path: Path) -> None:
    clone.check("python", "-m", "excise", "restore", "--cache", str(tmp_path / "shared"))
    fetched = of(tmp_path / "shared", clone.hashes()[FILE])
    assert fetched.stat().st_mode & 0o777 == 0o444
    assert fetched.parent.stat().st_mode & 0o2770 == 0o2770
    assert os.path.samefile(fetched, clone.folder / FILE)
