"""An edited model's folder is what its record says, and the record what its digest says, to the last bit."""

import hashlib
import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from excise.checkpoint.weights import CARD, EDIT_DIGEST, EDIT_RECORD, SINGLE, read_checkpoint
from excise.commands import runs
from excise.gitops.models import check_edited
from excise.plumbing.errors import StageError
from excise.plumbing.files import digests, sha256_line


@pytest.fixture
def edited(tmp_path: Path) -> Path:
    """A folder that passes for an edited model."""
    folder = tmp_path / "edited"
    folder.mkdir()
    (folder / SINGLE).write_bytes(save({"a": torch.arange(4.0)}))
    (folder / "config.json").write_text("{}")
    files = [digest.model_dump() for digest in digests(folder, [SINGLE, "config.json"])]
    (folder / EDIT_RECORD).write_text(json.dumps({"base": {"model_type": "x"}, "files": files}, indent=2))
    (folder / EDIT_DIGEST).write_text(sha256_line(folder / EDIT_RECORD))
    return folder


def test_every_flipped_bit_of_the_record_and_of_its_digest_is_seen(edited: Path) -> None:
    assert len(check_edited(edited)) == 2
    for name in (EDIT_RECORD, EDIT_DIGEST):
        whole = (edited / name).read_bytes()
        for place in range(len(whole)):
            spoiled = bytearray(whole)
            spoiled[place] ^= 1 << place % 8
            (edited / name).write_bytes(spoiled)
            with pytest.raises(StageError, match=r"edit\.json"):
                check_edited(edited)
        (edited / name).write_bytes(whole)
    assert check_edited(edited)


@pytest.mark.parametrize("add", [b" ", b"\n", b"0" * 64 + b"  other\n"])
def test_a_digest_with_more_in_it_is_none(edited: Path, add: bytes) -> None:
    (edited / EDIT_DIGEST).write_bytes((edited / EDIT_DIGEST).read_bytes() + add)
    with pytest.raises(StageError, match="one of the two changed"):
        check_edited(edited)


def test_the_digest_is_what_sha256sum_reads(edited: Path) -> None:
    done = subprocess.run(["sha256sum", "--check", EDIT_DIGEST], cwd=edited, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "edit.json: OK\n")
    expected = hashlib.sha256((edited / EDIT_RECORD).read_bytes()).hexdigest()
    assert (edited / EDIT_DIGEST).read_text() == f"{expected}  edit.json\n"


def test_a_model_of_an_earlier_version_still_verifies_and_is_said_not_to_be_covered(
    edited: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs.verify(edited)
    assert "not covered" not in capsys.readouterr().out
    (edited / EDIT_DIGEST).unlink()
    runs.verify(edited)
    assert "edit.json itself is not covered" in capsys.readouterr().out


def test_a_pipe_in_the_digest_s_place_is_refused_and_not_waited_for(edited: Path) -> None:
    (edited / EDIT_DIGEST).unlink()
    os.mkfifo(edited / EDIT_DIGEST)
    with pytest.raises(StageError, match=r"edit\.json\.sha256 is neither a file nor a folder"):
        check_edited(edited)


def test_what_an_edited_base_says_of_itself_is_no_companion_of_the_next_edit(edited: Path) -> None:
    (edited / CARD).write_text("mine")
    assert read_checkpoint(edited).companions == ("config.json",)
