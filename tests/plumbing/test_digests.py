"""Digests are remembered while a file is the same, and only then."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from excise.gitops.models import wrong_file
from excise.plumbing import files
from excise.plumbing.files import SETTLED_NS, Memory, memory_file, sha256_of


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files whose bytes were read for their digest."""
    seen: list[Path] = []

    def watched(path: Path, advance: Callable[[int], None] = lambda _: None) -> str:
        seen.append(path)
        return sha256_of(path, advance)

    monkeypatch.setattr(files, "sha256_of", watched)
    return seen


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file, at a time when it has long been there."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    path = tmp_path / "folder/file"
    path.parent.mkdir()
    path.write_bytes(b"first")
    later(monkeypatch, path)
    return path


def later(monkeypatch: pytest.MonkeyPatch, path: Path, nanoseconds: int = 10 * SETTLED_NS) -> None:
    now = path.stat().st_ctime_ns + nanoseconds
    monkeypatch.setattr("time.time_ns", lambda: now)


def memory() -> Path:
    place = memory_file()
    assert place is not None
    return place


def digest(path: Path) -> str:
    (found,) = files.digests(path.parent, [path.name], remembered=True)
    return found.sha256


def test_a_file_that_did_not_change_is_read_once(file: Path, read: list[Path]) -> None:
    assert digest(file) == digest(file) == sha256_of(file)
    assert read == [file]


def same_size(path: Path) -> None:
    path.write_bytes(b"other")


def same_size_and_time(path: Path) -> None:
    before = path.stat()
    path.write_bytes(b"other")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def another_file_in_its_place(path: Path) -> None:
    before = path.stat()
    other = path.with_name("new")
    other.write_bytes(b"other")
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    os.replace(other, path)


@pytest.mark.parametrize("change", [same_size, same_size_and_time, another_file_in_its_place])
def test_whatever_changes_is_read_again(file: Path, change: Callable[[Path], None]) -> None:
    digest(file)
    change(file)
    assert digest(file) == sha256_of(file)


def test_a_file_that_changed_a_moment_ago_is_not_remembered(
    file: Path, read: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    later(monkeypatch, file, SETTLED_NS)
    digest(file)
    digest(file)
    assert read == [file, file] and not memory().exists()


def test_a_file_that_changes_while_it_is_read_is_read_again(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def change(path: Path, advance: object = None) -> str:
        path.write_bytes(b"other")
        return "0" * 64

    with monkeypatch.context() as during:
        during.setattr(files, "sha256_of", change)
        digest(file)
    assert digest(file) == sha256_of(file)


def test_one_file_by_two_names_is_read_once(file: Path, read: list[Path]) -> None:
    link = file.with_name("link")
    link.symlink_to(file.name)
    assert digest(link) == digest(file)
    assert read == [file]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"x": 1}', "\0", '{"x": {"size": 1}}'])
def test_a_memory_that_cannot_be_read_is_none(file: Path, read: list[Path], text: str) -> None:
    memory().parent.mkdir(parents=True)
    memory().write_text(text)
    assert digest(file) == digest(file) == sha256_of(file)
    assert read == [file]


def test_a_memory_that_cannot_be_written_costs_time_alone(file: Path) -> None:
    memory().parent.parent.write_text("no folder")
    assert digest(file) == digest(file) == sha256_of(file)


def test_files_that_are_gone_are_forgotten(file: Path) -> None:
    digest(file)
    other = file.with_name("other")
    file.rename(other)
    assert digest(other) == sha256_of(other)
    assert list(json.loads(memory().read_text())) == [str(other)]


def test_two_at_once_forget_nothing_of_each_other(file: Path) -> None:
    other = file.with_name("other")
    other.write_bytes(b"other")
    first, second = Memory(memory()), Memory(memory())
    first.sha256(file)
    second.sha256(other)
    first.keep()
    second.keep()
    assert sorted(json.loads(memory().read_text())) == [str(file), str(other)]


def test_an_edited_model_is_always_read_anew(file: Path) -> None:
    """`make verify` promises that, so it must find what the memory is wrong about."""
    (recorded,) = files.digests(file.parent, [file.name], remembered=True)
    known = json.loads(memory().read_text())
    file.write_bytes(b"other")
    status = file.stat()
    known[str(file)] |= {"modified_ns": status.st_mtime_ns, "changed_ns": status.st_ctime_ns}
    memory().write_text(json.dumps(known))
    assert digest(file) == recorded.sha256 != sha256_of(file)
    assert wrong_file(file.parent, [recorded]) is not None


def test_nothing_is_remembered_on_a_runner_or_in_a_workspace(
    file: Path, read: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A reviewed stranger's job could write what later jobs would believe."""
    monkeypatch.chdir(tmp_path / "folder")
    digest(file)
    assert memory().is_file() and not memory().is_relative_to(Path.cwd())
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    assert digest(file) == digest(file) == sha256_of(file)
    assert read == [file, file, file]
