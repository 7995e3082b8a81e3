"""The safetensors files of a model folder, read without loading them: names, shapes and places of every tensor."""

import json
import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from stages.base.stage import StageError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
BYTES_PER_ELEMENT = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "BF16": 2, "F16": 2, "I16": 2, "U16": 2,
    "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
}  # fmt: skip
FLOATS = ("F64", "F32", "BF16", "F16")
"""The types that are edited."""
_LARGEST_HEADER = 100_000_000  # the limit of the safetensors library itself
_COMPARED_AT_ONCE = 1 << 20
_OTHER_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf")
_NOT_THE_MODEL = (".git", ".cache")  # a clone's history, a download's bookkeeping
EDIT_RECORD = "edit.json"
CARD = "README.md"
"""What an edited model says of itself, for programs and for people. A base's own are replaced by them."""


@dataclass(frozen=True)
class Tensor:
    """Where one tensor lies: bytes `start` to `stop` of `file`, counted from the file's beginning."""

    file: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Checkpoint:
    """The weights of a model folder, and every other file that belongs to it (`left_out` does not)."""

    folder: Path
    tensors: dict[str, Tensor]
    shards: tuple[str, ...]
    companions: tuple[str, ...]
    left_out: tuple[str, ...]

    @property
    def files(self) -> tuple[str, ...]:
        """Shards and companions, sorted."""
        return tuple(sorted(self.shards + self.companions))


def read_checkpoint(folder: Path, only: Collection[str] | None = None) -> Checkpoint:
    """Read index and headers of the checkpoint in `folder` and check that they agree.

    Args:
        only: the files that belong to the model, where others may lie beside them; by default all that lie there.

    Raises:
        StageError: a file is missing, truncated, malformed, not safetensors, or named outside the folder.
    """
    index = folder / INDEX
    named = read_index(index) if index.is_file() else None
    shards = sorted(set(named.values())) if named is not None else [SINGLE]
    if named is None and not (folder / SINGLE).is_file():
        raise StageError(no_weights(folder, (path.name for path in folder.glob("*"))))

    tensors: dict[str, Tensor] = {}
    for shard in shards:
        found = read_header(folder / shard)
        for name in found:
            if name in tensors:
                raise StageError(
                    f"{folder / shard}: tensor {name} is also in {tensors[name].file}; mend the checkpoint"
                )
            if named is not None and named.get(name) != shard:
                raise StageError(f"{index}: tensor {name} of {shard} is not listed there; mend the index")
        tensors |= found
    if named is not None and (missing := sorted(named.keys() - tensors.keys())):
        raise StageError(f"{index}: {named[missing[0]]} does not hold {missing[0]}; fetch the checkpoint again")

    others = sorted(set(regular_files(folder) if only is None else _regular(folder, only)) - set(shards))
    others = [path for path in others if path not in (EDIT_RECORD, CARD)]
    # Left beside an edited checkpoint, further copies of its weights would be the unedited model.
    left_out = tuple(path for path in others if is_weights(path))
    companions = tuple(path for path in others if not is_weights(path))
    return Checkpoint(folder, tensors, tuple(shards), companions, left_out)


def read_header(path: Path) -> dict[str, Tensor]:
    """The tensors of one safetensors file, checked against its size; reads the header alone.

    Raises:
        StageError: the file is missing or is not a whole safetensors file.
    """
    if not path.is_file():
        raise StageError(f"{path} is missing; fetch the checkpoint again")
    if _leads_outside(path, path.parent):
        raise StageError(f"{path} is a link that leads outside the model's folder; copy the file there instead")
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _LARGEST_HEADER):
            raise StageError(f"{path} is truncated or not a safetensors file; fetch it again")
        text = file.read(length)
    try:
        header = json.loads(text, object_pairs_hook=_without_duplicates)
        header.pop("__metadata__", None)
        tensors = {name: _tensor(path.name, entry, 8 + length) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StageError(f"{path} has a malformed safetensors header ({error}); fetch it again") from None

    end = 8 + length
    for name, tensor in sorted(tensors.items(), key=lambda named: (named[1].start, named[1].stop)):
        if tensor.start != end:
            raise StageError(f"{path}: tensor {name} overlaps another or leaves a gap; fetch the file again")
        end = tensor.stop
    if end != size:
        raise StageError(f"{path} is truncated: {size:,} bytes where its header tells of {end:,}; fetch it again")
    return tensors


def _tensor(file: str, entry: dict[str, Any], data: int) -> Tensor:
    dtype, shape, (start, stop) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    if not all(type(number) is int and number >= 0 for number in (*shape, start, stop)):
        raise ValueError("shapes and offsets must be integers of at least 0")
    elements = 1
    for length in shape:
        elements *= length
    if stop - start != elements * BYTES_PER_ELEMENT[dtype]:
        raise ValueError(f"{stop - start} bytes for {dtype} of shape {list(shape)}")
    return Tensor(file, dtype, shape, data + start, data + stop)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands in it twice")
    return found


def same_bytes(checkpoint: Checkpoint, one: str, other: str) -> bool:
    """Whether two tensors of a checkpoint are equal in type, shape and bytes."""
    first, second = checkpoint.tensors[one], checkpoint.tensors[other]
    if (first.dtype, first.shape) != (second.dtype, second.shape):
        return False
    with open(checkpoint.folder / first.file, "rb") as mine, open(checkpoint.folder / second.file, "rb") as theirs:
        mine.seek(first.start)
        theirs.seek(second.start)
        sizes = range(first.start, first.stop, _COMPARED_AT_ONCE)
        pieces = (min(_COMPARED_AT_ONCE, first.stop - start) for start in sizes)
        return all(mine.read(size) == theirs.read(size) for size in pieces)


def read_index(path: Path) -> dict[str, str]:
    """The name of each tensor, and that of the file beside the index which holds it.

    Raises:
        StageError: it is no index of safetensors files, or names one elsewhere.
    """
    try:
        index = json.loads(path.read_bytes(), object_pairs_hook=_without_duplicates)
        named = dict(index["weight_map"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise StageError(f"{path} is not an index of safetensors files; fetch it again") from None
    for name, file in named.items():
        if not isinstance(file, str) or not _is_plain_name(file):
            raise StageError(f"{path}: {name} lies in {file!r}, which is not the name of a safetensors file beside it")
    if not named:
        raise StageError(f"{path} names no tensor; fetch it again")
    return named


def _is_plain_name(file: str) -> bool:
    return file.endswith(".safetensors") and "\\" not in file and "\0" not in file and PurePosixPath(file).name == file


def _regular(folder: Path, paths: Iterable[str]) -> Iterable[str]:
    """These files of a folder, checked as `regular_files` checks all."""
    for path in paths:
        if not _lies_within(folder / path, folder):
            raise StageError(f"{folder / path} leads outside the model's folder; fetch the model again")
        if not (folder / path).is_file():
            raise StageError(f"{folder / path} is missing; fetch the model again")
        yield path


def _leads_outside(path: Path, folder: Path) -> bool:
    """Whether it is a link to something beyond the model's folder."""
    return path.is_symlink() and not _lies_within(path, folder)


def _lies_within(path: Path, folder: Path) -> bool:
    """Whether a file is the folder's, links followed. The Hub's cache links its snapshots to the `blobs` of their
    repository, and these to the `blobs` that all repositories share."""
    repository = folder.parent.parent
    blobs = [repository / "blobs", repository.parent / "blobs"] if folder.parent.name == "snapshots" else []
    return any(path.resolve().is_relative_to(place.resolve()) for place in (folder, *blobs))


def regular_files(folder: Path) -> list[str]:
    """Every file below a model's folder, sorted, with forward slashes.

    Raises:
        StageError: something is neither a file nor a folder, or is a link that leads outside.
    """
    found = []
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in _NOT_THE_MODEL)
        for name in (*folders, *files):
            path = Path(parent) / name
            if _leads_outside(path, folder):
                raise StageError(f"{path} is a link that leads outside the model's folder; copy the file there instead")
            if path.is_symlink() and path.is_dir():
                raise StageError(f"{path} is a link to a folder, which would be copied twice; remove it")
            if not path.is_dir() and not path.is_file():
                raise StageError(f"{path} is neither a file nor a folder; remove it")
        found += [(Path(parent) / name).relative_to(folder).as_posix() for name in files]
    return sorted(found)


def is_weights(path: str) -> bool:
    """Whether a file holds weights, or says which file does; the index that is read here is none such."""
    indexes = (".safetensors.index.json", ".bin.index.json")
    return path.endswith(_OTHER_WEIGHTS) or (path.endswith(indexes) and path != INDEX)


def no_weights(where: Path | str, files: Iterable[str]) -> str:
    """What is wrong with a folder or repository of these files, none of which holds weights that are read here."""
    if any(file.endswith((".bin", ".pth", ".pt")) for file in files):
        return (
            f"{where} holds pickled weights alone, which can run code when they are read; "
            "save the model as safetensors and name that folder"
        )
    return f"{where} holds neither {SINGLE} nor {INDEX}; name the folder of a model in Hugging Face format"
