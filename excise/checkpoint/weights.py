"""Safetensors files: those of a model folder, read without loading them (names, shapes and places of every tensor), and
our own, whose tensors are held against what is expected."""

import json
import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from excise.plumbing.errors import StageError
from excise.plumbing.files import open_plain, unreadable
from schemas.basis.text import printable, shorten

if TYPE_CHECKING:
    import torch

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
BITS_PER_ELEMENT = {
    "C64": 64, "F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "BF16": 16, "F16": 16, "I16": 16,
    "U16": 16, "I8": 8, "U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E4M3FNUZ": 8, "F8_E5M2": 8, "F8_E5M2FNUZ": 8,
    "F8_E8M0": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip
"""Every type that a safetensors file may hold. `FLOATS` are the ones that are edited, with torch's names."""
LARGEST_HEADER = 16 * 2**20
"""Bytes: those of a hundred thousand tensors. The library takes six times as many, which fill a gigabyte when read."""
LARGEST_INDEX = 64 * 2**20
"""Bytes: an index names the tensors of all files."""
_LARGEST_NUMBER = 2**64  # a shape's, as the library counts
FLOATS = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_COMPARED_AT_ONCE = 1 << 20
_OTHER_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf")
_DESCRIBES = (".json", ".txt", ".jinja", ".md", ".py", ".model", ".tiktoken")
_TERMS = ("LICENSE", "LICENCE", "NOTICE", "COPYING", "USE_POLICY")
_DEEPEST = 16
_NOT_THE_MODEL = (".git", ".cache")  # a clone's history, a download's bookkeeping
OF_THE_EDIT = EDIT_RECORD, EDIT_DIGEST, CARD = "edit.json", "edit.json.sha256", "README.md"
"""What an edited model says of itself, for programs and for people. A base's own are replaced by them."""

Shape = tuple[int | None, ...]
"""None where any length will do."""


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
    """Read index and headers of the checkpoint in `folder` and check that they agree. Raises `StageError`: a file is
    missing, truncated, malformed, not safetensors, or named outside the folder.

    Args:
        only: the files that belong to the model, where others may lie beside them; by default all that lie there.
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
            if twin := tensors.get(name):
                raise StageError(f"{folder / shard}: tensor {name} is also in {twin.file}; mend the checkpoint")
            if named is not None and named.get(name) != shard:
                raise StageError(f"{index}: tensor {name} of {shard} is not listed there; mend the index")
        tensors |= found
    if named is not None and (missing := sorted(named.keys() - tensors.keys())):
        raise StageError(f"{index}: {named[missing[0]]} does not hold {missing[0]}; fetch the checkpoint again")

    for path in only or ():  # checked as `regular_files` checks all
        if not _lies_within(folder / path, folder):
            raise StageError(f"{folder / path} leads outside the model's folder; fetch the model again")
        if not (folder / path).is_file():
            raise StageError(f"{folder / path} is missing; fetch the model again")
    files = regular_files(folder) if only is None else only
    others = sorted({*files} - {*shards, *OF_THE_EDIT})
    if taken := [path for path in others if path.partition("/")[0] in OF_THE_EDIT]:
        raise StageError(f"{folder / taken[0]} lies where an edited model has a file of its own; rename that folder")
    # Left beside an edited checkpoint, further copies of its weights would be the unedited model.
    left_out = tuple(path for path in others if is_weights(path))
    companions = tuple(path for path in others if not is_weights(path))
    return Checkpoint(folder, tensors, tuple(shards), companions, left_out)


def read_header(path: Path) -> dict[str, Tensor]:
    """The tensors of one safetensors file, checked against its size; reads the header alone. Raises `StageError`: it is
    missing, or is not one that the safetensors library opens."""
    if not path.is_file():
        raise StageError(f"{path} is missing; fetch the checkpoint again")
    if _leads_outside(path, path.parent):
        raise StageError(f"{path} is a link that leads outside the model's folder; copy the file there instead")
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise StageError(f"{path} is truncated or not a safetensors file; fetch it again")
        if length > LARGEST_HEADER:
            raise StageError(f"{path} has a header of {length:,} bytes, longer than any model's; fetch it again")
        text = file.read(length)
    try:
        header = json.loads(text.decode(), object_pairs_hook=_without_duplicates, parse_constant=_no_number)
        header.pop("__metadata__", None)
        tensors = {name: _tensor(path.name, entry, 8 + length) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _malformed(path, error) from None

    end = 8 + length
    for name, tensor in sorted(tensors.items(), key=lambda named: (named[1].start, named[1].stop)):
        if tensor.start != end:
            raise StageError(f"{path}: tensor {shorten(name)} overlaps another or leaves a gap; fetch the file again")
        end = tensor.stop
    if end != size:
        raise StageError(f"{path} is truncated: {size:,} bytes where its header tells of {end:,}; fetch it again")
    # Whatever the library refuses, which reads the model elsewhere, is refused: its JSON is narrower than Python's. It
    # needs numpy, which what publishes a run does without; its reader of headers loads no tensor.
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy"):
            return tensors
    except (SafetensorError, OSError) as error:
        raise _malformed(path, error) from None


def _tensor(file: str, entry: dict[str, Any], data: int) -> Tensor:
    dtype, shape, (start, stop) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    if not all(type(number) is int and 0 <= number < _LARGEST_NUMBER for number in (*shape, start, stop)):
        raise ValueError("shapes and offsets must be integers from 0 to 2^64")
    if dtype not in BITS_PER_ELEMENT:
        raise ValueError(f"there is no type {shorten(str(dtype))}")
    bits = BITS_PER_ELEMENT[dtype]
    for length in shape:
        bits *= length
        if bits >= _LARGEST_NUMBER:
            raise ValueError("a shape of more elements than can be counted")
    if 8 * (stop - start) != bits:
        raise ValueError(f"{stop - start} bytes for {dtype} of shape {list(shape)}")
    return Tensor(file, dtype, shape, data + start, data + stop)


def _malformed(path: Path, error: Exception) -> StageError:
    why = shorten(printable(" ".join(str(error).split())), 120)
    return StageError(f"{path} has a malformed safetensors header ({why or type(error).__name__}); fetch it again")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands in it twice")
    return found


def _no_number(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def same_bytes(checkpoint: Checkpoint, one: str, other: str) -> bool:
    """Whether two tensors of a checkpoint are equal in type, shape and bytes."""
    first, second = checkpoint.tensors[one], checkpoint.tensors[other]
    if (first.dtype, first.shape) != (second.dtype, second.shape):
        return False
    with open(checkpoint.folder / first.file, "rb") as mine, open(checkpoint.folder / second.file, "rb") as theirs:
        mine.seek(first.start)
        theirs.seek(second.start)
        pieces = range(first.start, first.stop, _COMPARED_AT_ONCE)
        sizes = (min(_COMPARED_AT_ONCE, first.stop - start) for start in pieces)
        return all(mine.read(size) == theirs.read(size) for size in sizes)


def read_index(path: Path) -> dict[str, str]:
    """The name of each tensor, and that of the file beside the index which holds it. Raises `StageError`: it is no
    index of safetensors files, or names one elsewhere."""
    if not path.is_file():
        raise StageError(f"{path} is missing or no file; fetch it again")
    if path.stat().st_size > LARGEST_INDEX:
        raise StageError(f"{path} has more than {LARGEST_INDEX:,} bytes, more than any model's index; fetch it again")
    try:
        named = json.loads(path.read_bytes().decode(), object_pairs_hook=_without_duplicates)["weight_map"]
        pairs = named.items()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise StageError(f"{path} is not an index of safetensors files; fetch it again") from None
    for name, file in pairs:
        plain = isinstance(file, str) and file.endswith(".safetensors") and not {"\\", "\0"} & {*file}
        if not plain or PurePosixPath(file).name != file:
            raise StageError(
                f"{path}: {shorten(name)} lies in {shorten(repr(file))}, which is not the name of a safetensors file "
                "beside it"
            )
    if not named:
        raise StageError(f"{path} names no tensor; fetch it again")
    return dict(named)


def _leads_outside(path: Path, folder: Path) -> bool:
    return path.is_symlink() and not _lies_within(path, folder)


def _lies_within(path: Path, folder: Path) -> bool:
    """Whether a file is the folder's, links followed. The Hub's cache links its snapshots to the `blobs` of their
    repository, and these to the `blobs` that all repositories share."""
    repository = folder.parent.parent
    blobs = [repository / "blobs", repository.parent / "blobs"] if folder.parent.name == "snapshots" else []
    real = os.path.realpath(path)  # which answers for a loop of links too, unlike `Path.resolve`
    return any(Path(real).is_relative_to(os.path.realpath(place)) for place in (folder, *blobs))


def regular_files(folder: Path) -> list[str]:
    """Every file below a model's folder, sorted, with forward slashes. Raises `StageError`: something is neither a file
    nor a folder (as a loop of links), is a link that leads outside, or lies deeper than any model's files."""
    found = []
    for parent, folders, files in os.walk(folder, onerror=_cannot_be_listed):
        if len(Path(parent).relative_to(folder).parts) > _DEEPEST:
            raise StageError(f"{folder} has folders in folders, more than {_DEEPEST} deep; name a model's folder")
        folders[:] = sorted(name for name in folders if name not in _NOT_THE_MODEL)
        for name in (*folders, *files):
            path = Path(parent) / name
            if _leads_outside(path, folder):
                raise StageError(f"{path} is a link that leads outside the model's folder; copy the file there instead")
            if path.is_symlink() and path.is_dir():
                raise StageError(f"{path} is a link to a folder, which would be copied twice; remove it")
            if name.encode(errors="ignore").decode() != name:
                raise StageError(f"{folder} has a file whose name is not UTF-8 ({printable(name)}); rename it")
            if not path.is_dir() and not path.is_file():
                raise StageError(f"{path} is neither a file nor a folder; remove it")
        found += [(Path(parent) / name).relative_to(folder).as_posix() for name in files]
    return sorted(found)


def _cannot_be_listed(error: OSError) -> None:
    raise error


def is_weights(path: str) -> bool:
    """Whether a file holds weights, or says which file does; the index that is read here is none such."""
    indexes = (".safetensors.index.json", ".bin.index.json")
    return path.endswith(_OTHER_WEIGHTS) or (path.endswith(indexes) and path != INDEX)


def describes(path: str) -> bool:
    """Whether a file of a repository is a text about the model, or data of its tokenizer: all that is fetched of it
    beside the weights."""
    folder, _, name = path.rpartition("/")
    is_text = name.endswith(_DESCRIBES) or name.upper().startswith(_TERMS)
    in_place = folder in ("", "additional_chat_templates")
    return in_place and is_text and not is_weights(path) and path not in OF_THE_EDIT


def no_weights(where: Path | str, files: Iterable[str]) -> str:
    """What is wrong with a folder or repository of these files, none of which holds weights that are read here."""
    if any(file.endswith((".bin", ".pth", ".pt")) for file in files):
        return (
            f"{where} holds pickled weights alone, which can run code when they are read; "
            "save the model as safetensors and name that folder"
        )
    return f"{where} holds neither {SINGLE} nor {INDEX}; name the folder of a model in Hugging Face format"


def read_tensors(path: Path, expected: Mapping[str, tuple[str, Shape]]) -> "dict[str, torch.Tensor]":
    """Tensors of a safetensors file by name: those that are expected, each of its dtype, as torch names it, and shape;
    others are not read. Raises `Unreadable`: it is missing or not whole, or lacks one of them."""
    # Slow to import, and needed only here.
    from safetensors import SafetensorError, safe_open

    open_plain(path).close()
    try:
        with safe_open(path, framework="pt") as file:
            if missing := sorted(expected.keys() - set(file.keys())):
                raise unreadable(path, f"holds no tensor {missing[0]}")
            found = {name: file.get_tensor(name) for name in expected}
    except (SafetensorError, OSError, ValueError, RuntimeError, TypeError) as error:
        what = shorten(printable(" ".join(str(error).split())), 100) or type(error).__name__
        raise unreadable(path, f"is not a whole safetensors file ({what})") from None
    for name, (dtype, shape) in expected.items():
        there = found[name]
        fits = len(there.shape) == len(shape) and all(
            length in (None, size) for length, size in zip(shape, there.shape, strict=True)
        )
        if str(there.dtype) != f"torch.{dtype}" or not fits:
            wanted = ", ".join("any" if length is None else str(length) for length in shape)
            holds = f"{name} as {there.dtype} {list(there.shape)}"
            raise unreadable(path, f"holds {holds}, where torch.{dtype} [{wanted}] is expected")
    return found
