"""The reader of every file that excise itself writes. Whatever lies in such a file's place, the answer is what its
schema allows, or one line that names the file, what is wrong with it and what makes it again."""

import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from excise.plumbing.errors import StageError
from schemas.text import dotted, printable, shorten

if TYPE_CHECKING:
    from torch import Tensor

LARGEST = 32 * 2**20
"""Bytes of a document, and of one line of a file that has a document a line. The record of an edit of every expert of a
large model takes half of it."""

MADE_BY = {
    "artifacts/params": "params",
    "models/base": "organism",
    "artifacts/layout.json": "prepare",
    "artifacts/model.json": "prepare",
    "artifacts/prompts": "prepare",
    "artifacts/activations.safetensors": "measure",
    "artifacts/directions.safetensors": "directions",
    "artifacts/directions.json": "directions",
    "artifacts/expert_use.json": "measure",
    "artifacts/diagnosis.json": "diagnose",
    "artifacts/plots": "diagnose",
    "artifacts/simulation": "simulate",
    "artifacts/simulation.json": "simulate",
    "models/ablated": "ablate",
    "answers/base": "answer@base",
    "answers/ablated": "answer@ablated",
    "results/base": "evaluate@base",
    "results/ablated": "evaluate@ablated",
    "gates.json": "report",
    "metrics.json": "report",
    "report": "report",
}
"""The stage that writes a file, by its path or that of a folder above it."""

T = TypeVar("T")
Shape = tuple[int | None, ...]
"""None where any length will do."""

MAPPING = TypeAdapter(dict[str, Any])
"""A document of which no more is known than that it is a mapping, as metrics.json is."""

_CONFLICT = re.compile(rb"^(<<<<<<<|>>>>>>>) ", re.MULTILINE)


class Unreadable(StageError):
    """A file of ours that is missing, or does not hold what is written to it."""


def read_document(schema: type[T] | TypeAdapter[T], path: Path, remedy: str | None = None, largest: int = LARGEST) -> T:
    """What a JSON file holds.

    Args:
        schema: a class of `schemas`, or an adapter for what is none.
        remedy: what to do where the file cannot be read; by default, to run the stage that writes it.
        largest: bytes that it may have.

    Raises:
        Unreadable: it is missing, or something else than that.
    """
    with open_plain(path, remedy) as file:
        data = file.read(largest + 1)
    if len(data) > largest:
        raise unreadable(path, f"has more than {largest:,} bytes", remedy)
    return _parsed(schema, data, path, "", remedy)


def read_lines(schema: type[T], path: Path) -> list[T]:
    """What a file holds that has a JSON document a line. Raises as `read_document` does."""
    adapter, found = TypeAdapter(schema), []
    with open_plain(path) as file:
        # Lines of bytes end with \n alone: a prompt may hold U+2028 and the like.
        for number, line in enumerate(iter(lambda: file.readline(LARGEST + 1), b""), 1):
            if len(line) > LARGEST:
                raise unreadable(path, f"has a line of more than {LARGEST:,} bytes")
            if line != b"\n":
                found.append(_parsed(adapter, line, path, f": line {number}"))
    return found


def parse_document(schema: type[T] | TypeAdapter[T], data: bytes | str, name: str, remedy: str) -> T:
    """The same of bytes that come from elsewhere, such as a commit; `name` is what errors call them.

    Raises:
        Unreadable: they are not that document.
    """
    return _parsed(schema, data.encode() if isinstance(data, str) else data, Path(name), "", remedy)


def read_tensors(path: Path, expected: Mapping[str, tuple[str, Shape]]) -> "dict[str, Tensor]":
    """Tensors of a safetensors file by name: those that are expected, each of its dtype and shape; others are not read.

    Args:
        expected: dtype, as torch names it, and shape, by name.

    Raises:
        Unreadable: it is missing or not whole, or lacks one of them.
    """
    # Slow to import, and needed only here.
    from safetensors import SafetensorError, safe_open

    open_plain(path).close()
    try:
        with safe_open(path, framework="pt") as file:
            if missing := sorted(expected.keys() - set(file.keys())):
                raise unreadable(path, f"holds no tensor {missing[0]}")
            found = {name: file.get_tensor(name) for name in expected}
    except (SafetensorError, OSError, ValueError, RuntimeError, TypeError) as error:
        raise unreadable(path, f"is not a whole safetensors file ({_told(error)})") from None
    for name, (dtype, shape) in expected.items():
        there = found[name]
        fits = len(there.shape) == len(shape) and all(
            length in (None, size) for length, size in zip(shape, there.shape, strict=True)
        )
        if str(there.dtype) != f"torch.{dtype}" or not fits:
            wanted = ", ".join("any" if length is None else str(length) for length in shape)
            raise unreadable(
                path, f"holds {name} as {there.dtype} {list(there.shape)}, where torch.{dtype} [{wanted}] is expected"
            )
    return found


def open_plain(path: Path, remedy: str | None = None) -> Any:
    """A file opened to read bytes, which is neither a pipe nor a device: those would never end.

    Raises:
        Unreadable: it is missing or no such file.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise unreadable(path, "is not a file", remedy)
        return open(path, "rb")
    except FileNotFoundError:
        stage = _stage_of(path)
        how = remedy or (f"run `dvc repro {stage}`" if stage else "run what makes it")
        raise Unreadable(f"{path} is missing; {how}") from None
    except OSError as error:
        raise unreadable(path, f"cannot be read ({error.strerror})", remedy) from None


def _parsed(schema: type[T] | TypeAdapter[T], data: bytes, path: Path, where: str, remedy: str | None = None) -> T:
    adapter = schema if isinstance(schema, TypeAdapter) else TypeAdapter(schema)
    try:
        return adapter.validate_json(data)
    except ValidationError as error:
        raise unreadable(path, _mistake(error, data), remedy, where) from None


def _mistake(error: ValidationError, data: bytes) -> str:
    """What is wrong, as the rest of a sentence about the file."""
    if not data.strip():
        return "is empty"
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    message = shorten(" ".join(first["msg"].split()), 100)
    if first["type"] == "json_invalid":
        if has_conflict(data):
            return "holds the conflict of a merge, of which git can keep one side"
        return f"is not whole JSON ({message.removeprefix('Invalid JSON: ')})"
    return f"is not what this version of excise writes ({dotted(first['loc'])}: {message})"


def has_conflict(data: bytes) -> bool:
    """Whether a file holds a conflict that git left in it."""
    return _CONFLICT.search(data) is not None


def _stage_of(path: Path) -> str | None:
    parts = path.as_posix()
    places = [place for place in MADE_BY if parts == place or parts.startswith(f"{place}/")]
    return MADE_BY[max(places, key=len)] if places else None


def unreadable(path: Path, what: str, remedy: str | None = None, where: str = "") -> Unreadable:
    """The error of a file of ours: `what` is wrong with it, as the rest of a sentence, and what makes it again."""
    stage = _stage_of(path)
    how = remedy or (f"run `dvc repro --force --single-item {stage}`" if stage else "delete it and make it again")
    return Unreadable(f"{path}{where} {what}; {how}")


def _told(error: Exception) -> str:
    return shorten(printable(" ".join(str(error).split())), 100) or type(error).__name__
