"""Safetensors files: the headers of a model folder, and tensors of our own files, checked against what is expected."""

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
LARGEST_HEADER = 16 * 2**20
"""Bytes, enough for a hundred thousand tensors. The library allows six times as many, which take a gigabyte to read."""
LARGEST_INDEX = 64 * 2**20  # bytes: an index names the tensors of all files
FLOATS = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}  # with torch's names
_COMPARED_AT_ONCE = 1 << 20
_OTHER_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf")
_DESCRIBES = (".json", ".txt", ".jinja", ".md", ".py", ".model", ".tiktoken")
_TERMS = ("LICENSE", "LICENCE", "NOTICE", "COPYING", "USE_POLICY")
_DEEPEST = 16
_NOT_THE_MODEL = (".git", ".cache")  # a clone's history, a download's bookkeeping
OF_THE_EDIT = EDIT_RECORD, EDIT_DIGEST, CARD = "edit.json", "edit.json.sha256", "README.md"
"""Files that an edit writes, in place of the base model's."""
Shape = tuple[int | None, ...]  # None allows any length


@dataclass(frozen=True)
class Tensor:
    """One tensor: bytes `start` to `stop` of `file`."""

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
    """Read index and headers of the checkpoint in `folder`; `only` these files belong to it, by default all. Raises
    `StageError`: a file is missing, truncated, malformed, not safetensors, or outside the folder, or two disagree."""
    index = folder / INDEX
    shard_of = read_index(index) if index.is_file() else None
    shards = sorted(set(shard_of.values())) if shard_of is not None else [SINGLE]
    if shard_of is None and not (folder / SINGLE).is_file():
        raise StageError(no_weights(folder, (path.name for path in folder.glob("*"))))

    tensors: dict[str, Tensor] = {}
    for shard in shards:
        in_shard = read_header(folder / shard)
        for name in in_shard:
            if twin := tensors.get(name):
                raise StageError(f"{folder / shard}: tensor {name} is also in {twin.file}; remove one of the two")
            if shard_of is not None and shard_of.get(name) != shard:
                raise StageError(f"{index} does not list tensor {name} of {shard}; correct the index")
        tensors |= in_shard
    if shard_of is not None and (missing := sorted(shard_of.keys() - tensors.keys())):
        raise StageError(f"{index}: {shard_of[missing[0]]} does not hold {missing[0]}; fetch the checkpoint again")

    for path in only or ():  # `regular_files` checks all others
        if not _lies_within(folder / path, folder):
            raise StageError(f"{folder / path} leads outside the model's folder; fetch the model again")
        if not (folder / path).is_file():
            raise StageError(f"{folder / path} is missing; fetch the model again")
    files = regular_files(folder) if only is None else only
    others = sorted({*files} - {*shards, *OF_THE_EDIT})
    if taken := [path for path in others if path.partition("/")[0] in OF_THE_EDIT]:
        raise StageError(f"{folder / taken[0]} is in a folder with the name of a file of the edit; rename the folder")
    # Other copies of the weights are not edited, so they do not belong beside an edited checkpoint.
    left_out = tuple(path for path in others if is_weights(path))
    companions = tuple(path for path in others if not is_weights(path))
    return Checkpoint(folder, tensors, tuple(shards), companions, left_out)


def read_header(path: Path) -> dict[str, Tensor]:
    """The tensors of one safetensors file. Raises `StageError`: it is missing or malformed, or names a tensor twice."""
    # Slow to import, and it needs numpy, which a machine that only publishes runs lacks.
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise StageError(f"{path} is missing; fetch the checkpoint again")
    _refuse_outside(path, path.parent)
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if LARGEST_HEADER < length <= path.stat().st_size - 8:
            raise StageError(f"{path} has a header of {length:,} bytes, longer than any model's; fetch it again")
        try:
            with safe_open(path, framework="numpy") as checked:  # the whole header, except for names that occur twice
                header = json.loads(file.read(length), object_pairs_hook=_without_duplicates)
                header.pop("__metadata__", None)
                tensors = {}
                for name, entry in header.items():
                    stored, (start, stop) = checked.get_slice(name), entry["data_offsets"]
                    dtype, shape = stored.get_dtype(), tuple(stored.get_shape())
                    tensors[name] = Tensor(path.name, dtype, shape, 8 + length + start, 8 + length + stop)
                return tensors
        except (SafetensorError, OSError, ValueError, TypeError, RecursionError) as error:
            why = shorten(printable(" ".join(str(error).split())), 120)
            raise StageError(f"{path} is truncated or not a safetensors file ({why}); fetch it again") from None


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) != len(pairs):
        raise ValueError("a name occurs twice")
    return mapping


def same_bytes(checkpoint: Checkpoint, first_name: str, second_name: str) -> bool:
    """Whether two tensors of a checkpoint are equal in type, shape and bytes."""
    first, second = checkpoint.tensors[first_name], checkpoint.tensors[second_name]
    if (first.dtype, first.shape) != (second.dtype, second.shape):
        return False
    with open(checkpoint.folder / first.file, "rb") as one, open(checkpoint.folder / second.file, "rb") as other:
        one.seek(first.start)
        other.seek(second.start)
        pieces = range(first.start, first.stop, _COMPARED_AT_ONCE)
        sizes = (min(_COMPARED_AT_ONCE, first.stop - start) for start in pieces)
        return all(one.read(size) == other.read(size) for size in sizes)


def read_index(path: Path) -> dict[str, str]:
    """The file of each tensor. Raises `StageError`: it is not an index of safetensors files in the same folder."""
    if not path.is_file():
        raise StageError(f"{path} is missing or not a file; fetch it again")
    if path.stat().st_size > LARGEST_INDEX:
        raise StageError(f"{path} has more than {LARGEST_INDEX:,} bytes, more than any model's index; fetch it again")
    try:
        files = json.loads(path.read_bytes().decode(), object_pairs_hook=_without_duplicates)["weight_map"]
        pairs = files.items()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise StageError(f"{path} is not an index of safetensors files; fetch it again") from None
    for name, file in pairs:
        is_plain = isinstance(file, str) and file.endswith(".safetensors") and not {"\\", "\0"} & {*file}
        if not is_plain or PurePosixPath(file).name != file:
            raise StageError(
                f"{path}: {shorten(repr(file))}, the file of {shorten(name)}, is not a safetensors file in the same "
                "folder; fetch it again"
            )
    if not files:
        raise StageError(f"{path} names no tensor; fetch it again")
    return dict(files)


def _refuse_outside(path: Path, folder: Path) -> None:
    if path.is_symlink() and not _lies_within(path, folder):
        raise StageError(f"{path} is a link that leads outside the model's folder; copy the file there instead")


def _lies_within(path: Path, folder: Path) -> bool:
    """Whether a file is in the folder, after links. The Hub's cache links its snapshots to the `blobs` of their
    repository, and these to the `blobs` that all repositories share."""
    repository = folder.parent.parent
    blobs = [repository / "blobs", repository.parent / "blobs"] if folder.parent.name == "snapshots" else []
    real = os.path.realpath(path)  # unlike `Path.resolve`, it accepts a loop of links
    return any(Path(real).is_relative_to(os.path.realpath(parent)) for parent in (folder, *blobs))


def regular_files(folder: Path) -> list[str]:
    """Every file below a model's folder, sorted, with forward slashes. Raises `StageError`: something is neither a file
    nor a folder (such as a loop of links), is a link that leads outside, or is deeper than any model's files."""
    paths = []
    for parent, folders, files in os.walk(folder, onerror=_raise):
        if len(Path(parent).relative_to(folder).parts) > _DEEPEST:
            raise StageError(f"{folder} has folders more than {_DEEPEST} levels deep; name a model's folder")
        folders[:] = sorted(name for name in folders if name not in _NOT_THE_MODEL)
        for name in (*folders, *files):
            path = Path(parent) / name
            _refuse_outside(path, folder)
            if path.is_symlink() and path.is_dir():
                raise StageError(f"{path} is a link to a folder, which would be copied twice; remove it")
            if name.encode(errors="ignore").decode() != name:
                raise StageError(f"{folder} has a file whose name is not UTF-8 ({printable(name)}); rename it")
            if not path.is_dir() and not path.is_file():
                raise StageError(f"{path} is neither a file nor a folder; remove it")
        paths += [(Path(parent) / name).relative_to(folder).as_posix() for name in files]
    return sorted(paths)


def _raise(error: OSError) -> None:
    raise error


def is_weights(path: str) -> bool:
    """Whether a file holds weights or is an index of them, other than `INDEX`."""
    indexes = (".safetensors.index.json", ".bin.index.json")
    return path.endswith(_OTHER_WEIGHTS) or (path.endswith(indexes) and path != INDEX)


def describes(path: str) -> bool:
    """Whether a file of a repository is text about the model or data of its tokenizer."""
    folder, _, name = path.rpartition("/")
    is_text = name.endswith(_DESCRIBES) or name.upper().startswith(_TERMS)
    is_in_place = folder in ("", "additional_chat_templates")
    return is_in_place and is_text and not is_weights(path) and path not in OF_THE_EDIT


def no_weights(where: Path | str, files: Iterable[str]) -> str:
    """The error of a folder or repository that holds only these files, none of them safetensors weights."""
    if any(file.endswith((".bin", ".pth", ".pt")) for file in files):
        return f"{where} holds only pickled weights, which can run code; save the model as safetensors and name that"
    return f"{where} holds neither {SINGLE} nor {INDEX}; name the folder of a model in Hugging Face format"


def read_tensors(path: Path, expected: Mapping[str, tuple[str, Shape]]) -> "dict[str, torch.Tensor]":
    """The tensors `expected`, by name, torch dtype and shape. Raises `Unreadable`: the file is damaged or lacks one."""
    from safetensors import SafetensorError, safe_open  # slow to import

    open_plain(path).close()
    try:
        with safe_open(path, framework="pt") as file:
            if missing := sorted(expected.keys() - set(file.keys())):
                raise unreadable(path, f"holds no tensor {missing[0]}")
            tensors = {name: file.get_tensor(name) for name in expected}
    except (SafetensorError, OSError, ValueError, RuntimeError, TypeError) as error:
        reason = shorten(printable(" ".join(str(error).split())), 100) or type(error).__name__
        raise unreadable(path, f"is not a whole safetensors file ({reason})") from None
    for name, (dtype, shape) in expected.items():
        tensor = tensors[name]
        lengths_fit = all(length in (None, size) for length, size in zip(shape, tensor.shape, strict=False))
        if str(tensor.dtype) != f"torch.{dtype}" or tensor.dim() != len(shape) or not lengths_fit:
            lengths = ", ".join("any" if length is None else str(length) for length in shape)
            holds = f"{name} as {tensor.dtype} {list(tensor.shape)}"
            raise unreadable(path, f"holds {holds}, where torch.{dtype} [{lengths}] is expected")
    return tensors
