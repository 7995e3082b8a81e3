"""Files and folders are whole or not there, and one writer at a time."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from excise.plumbing.errors import StageError
from excise.plumbing.files import whole_folder, write_bytes, write_json, write_text
from schemas.prompts import ChatFormat

ROOT = Path(__file__).resolve().parents[2]


def make(folder: Path, text: str) -> None:
    with whole_folder(folder) as partial:
        (partial / "file").write_text(text)


def left_beside(folder: Path) -> set[str]:
    """What lies beside a folder, but for the lock, which may stay."""
    return {path.name for path in folder.parent.iterdir()} - {folder.name, f".{folder.name}.lock"}


def test_a_folder_is_there_once_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "made"
    with whole_folder(target) as partial:
        assert partial.parent == target.parent and not list(partial.iterdir())
        (partial / "file").write_text("new")
        assert not target.exists()
    assert (target / "file").read_text() == "new"
    assert not left_beside(target)


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    target = tmp_path / "made"
    target.mkdir()
    (target / "old").write_text("old")
    make(target, "new")
    assert [path.name for path in target.iterdir()] == ["file"]


def test_read_only_files_of_dvc_s_cache_are_replaced_and_not_written_to(tmp_path: Path) -> None:
    target, cached = tmp_path / "made", tmp_path / "cached"
    make(target, "old")
    os.link(target / "file", cached)
    cached.chmod(0o444)
    make(target, "new")
    assert ((target / "file").read_text(), cached.read_text()) == ("new", "old")


@pytest.mark.parametrize("error", [StageError, OSError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_folder_and_nothing_else(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "made"
    make(target, "old")
    with pytest.raises(error), whole_folder(target) as partial:
        (partial / "file").write_text("new")
        raise error
    assert (target / "file").read_text() == "old"
    assert not left_beside(target)


def test_what_a_killed_run_left_is_swept(tmp_path: Path) -> None:
    target = tmp_path / "made"
    killed = f"""
import os, signal
from pathlib import Path
from excise.plumbing.files import whole_folder
with whole_folder(Path({str(target)!r})) as partial:
    (partial / "half").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", killed], cwd=ROOT, check=False, timeout=60)
    assert done.returncode == -9 and not target.exists() and left_beside(target)
    make(target, "new")
    assert [path.name for path in target.iterdir()] == ["file"] and not left_beside(target)


def test_a_second_writer_is_refused_and_the_first_one_goes_on(tmp_path: Path) -> None:
    target = tmp_path / "made"
    with whole_folder(target) as partial:
        (partial / "file").write_text("first")
        with pytest.raises(StageError, match="is being written by another run") as caught:
            make(target, "second")
        assert str(caught.value).isprintable()
    assert (target / "file").read_text() == "first"
    make(target, "third")
    assert (target / "file").read_text() == "third"


def test_a_file_is_written_with_its_folders_for_all_to_read(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file"
    write_bytes(path, b"\0\xff")
    assert path.read_bytes() == b"\0\xff" and stat.S_IMODE(path.stat().st_mode) == 0o644
    assert [each.name for each in path.parent.iterdir()] == ["file"]


def test_an_identical_file_is_kept_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"same")
    before = path.stat()
    write_bytes(path, b"same")
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_another_content_is_another_file_so_that_links_keep_theirs(tmp_path: Path) -> None:
    path, link = tmp_path / "file", tmp_path / "link"
    write_bytes(path, b"old")
    os.link(path, link)
    write_bytes(path, b"new")
    assert (path.read_bytes(), link.read_bytes()) == (b"new", b"old")


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_file_is_the_old_one_until_the_new_one_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"old")

    def fail(*_: Any) -> None:
        assert path.read_bytes() == b"old"
        raise error

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(error):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_text_is_utf_8_with_line_ends_as_given(tmp_path: Path) -> None:
    write_text(tmp_path / "file", "ä\r\n‖\n")
    assert (tmp_path / "file").read_bytes() == "ä\r\n‖\n".encode()


def test_json_is_the_same_bytes_for_the_same_value(tmp_path: Path) -> None:
    document = ChatFormat(system="a", chat_template_kwargs={"z": 1, "b": [True, None]}, date="2025-01-01")
    write_json(tmp_path / "file", document)
    text = (tmp_path / "file").read_text()
    assert text.startswith('{\n  "system": "a",\n') and text.endswith("}\n")
    assert ChatFormat.model_validate(json.loads(text)) == document


KILLED = """
import os, signal, sys
from pathlib import Path
from excise.plumbing import files

if sys.argv[2] == "no exchange":
    files._exchanged = lambda one, other: False
left = int(sys.argv[3])

def count(event, arguments):
    global left
    if event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "open", "ctypes.dlopen"):
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

with files.whole_folder(Path(sys.argv[1])) as partial:
    for number in range(3):
        (partial / str(number)).write_text("new")
    sys.addaudithook(count)
"""
"""Killed before one of the steps that put the new folder into the old one's place."""


@pytest.mark.parametrize("how", ["exchange", "no exchange"])
def test_whenever_it_is_killed_the_target_is_the_old_or_the_new_folder(tmp_path: Path, how: str) -> None:
    target, seen = tmp_path / "made", set()
    for steps in range(20):
        with whole_folder(target) as partial:
            for number in range(3):
                (partial / str(number)).write_text("old")
        done = subprocess.run([sys.executable, "-c", KILLED, str(target), how, str(steps)], cwd=ROOT, timeout=60)
        if how == "exchange":
            assert target.exists()
        # The next run restores what it finds moved aside, before it begins.
        with pytest.raises(StageError), whole_folder(target):
            raise StageError
        assert sorted(path.name for path in target.iterdir()) == ["0", "1", "2"]
        (content,) = {path.read_text() for path in target.iterdir()}
        assert not left_beside(target)
        seen.add(content)
        if done.returncode == 0:
            break
    assert done.returncode == 0 and seen == {"old", "new"} and steps > 2
