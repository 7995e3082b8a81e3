"""Whether a folder holds the edited model that its edit.json says: the same files, byte for byte."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from excise.checkpoint.weights import EDIT_DIGEST, EDIT_RECORD, regular_files
from excise.plumbing.artifacts import MAPPING, open_plain, read_document
from excise.plumbing.digests import digests, sha256_line
from excise.plumbing.errors import StageError
from schemas.document import FileDigest

_FILES = TypeAdapter(list[FileDigest])
_REMEDY = "name the folder of an edited model, or fetch it again"


@dataclass(frozen=True)
class WrongFile:
    """A file of the folder, by its path in it, and what is wrong with it, as the rest of a sentence."""

    path: str
    what: str


def recorded_files(folder: Path) -> list[FileDigest]:
    """Every file that edit.json records. Nothing else of it is read, so that models of other versions can be checked.

    Raises:
        StageError: there is no edit.json, or none that lists files.
    """
    path = folder / EDIT_RECORD
    record: dict[str, Any] = read_document(MAPPING, path, _REMEDY)
    try:
        return _FILES.validate_python(record.get("files"))
    except ValidationError:
        raise StageError(f"{path} lists no files with their digests, as excise writes it; {_REMEDY}") from None


def has_digest(folder: Path) -> bool:
    """Whether edit.json's own digest lies beside it. Models of earlier versions have none."""
    return (folder / EDIT_DIGEST).exists()


def wrong_file(folder: Path, files: list[FileDigest]) -> WrongFile | None:
    """The first file that is not as recorded, every digest computed anew; None where all are. A file beyond those
    recorded is as wrong as one that changed."""
    recorded = {file.path: file for file in files}
    there = set(regular_files(folder)) - {EDIT_RECORD, EDIT_DIGEST}
    if has_digest(folder):
        with open_plain(folder / EDIT_DIGEST, _REMEDY) as file:
            line = sha256_line(folder / EDIT_RECORD).encode()
            if file.read(len(line) + 1) != line:
                return WrongFile(EDIT_RECORD, f"is not what {EDIT_DIGEST} records: one of the two changed")
    if missing := sorted(recorded.keys() - there):
        return WrongFile(missing[0], "is missing")
    if added := sorted(there - recorded.keys()):
        return WrongFile(added[0], f"is not one of the files that {EDIT_RECORD} records")
    for found in digests(folder, there):
        if found != recorded[found.path]:
            return WrongFile(found.path, f"is not what {EDIT_RECORD} records: its bytes changed")
    return None


def check_edited(folder: Path) -> list[FileDigest]:
    """What edit.json records of a folder that is just that.

    Raises:
        StageError: it is not; with the first file that is wrong.
    """
    files = recorded_files(folder)
    if wrong := wrong_file(folder, files):
        raise StageError(f"{folder / wrong.path} {wrong.what}; {_REMEDY}")
    return files
