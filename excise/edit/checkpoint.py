"""The edit that the rules describe, written as a checkpoint with its card; memory holds a matrix or two a worker. The
bytes of a tensor depend only on the tensor and its edit, not on workers, shards or their order."""

import errno
import math
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from io import BufferedReader
from itertools import zip_longest
from operator import attrgetter, itemgetter
from pathlib import Path

import torch

from excise.checkpoint.base_model import SHORTER, BaseModel, float_type
from excise.checkpoint.weights import Tensor
from excise.edit.planning.layout import spare_layers
from excise.edit.planning.plan import Edit, make_plan
from excise.edit.planning.projection import project, written_square
from excise.edit.planning.projectors import read_directions, read_use
from excise.edit.planning.shifts import Shift, add, make_shifts, odds_by_layer, summary
from excise.plumbing.errors import StageError
from excise.plumbing.files import sha256_of
from excise.plumbing.progress import Advance
from excise.plumbing.templates import environment
from schemas.basis.document import ARTIFACTS, read_settings
from schemas.basis.text import ranges
from schemas.edit import PlanRow
from schemas.params.ablate import Ablate

TEMPLATES = Path(__file__).parent / "templates"

_COPIED_AT_ONCE = 1 << 26
_BUFFER = 1 << 22
_BUFFERS_AT_MOST = 1 << 30  # for all workers together; a single matrix may be larger
_ROWS_AT_ONCE = 1 << 26  # bytes of rows that are edited independently, such as an embedding's
# Errors between two file systems, or if the file system lacks the call or a container forbids it.
_COPY_UNSUPPORTED = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM)
_WORKER = threading.local()


@dataclass(frozen=True)
class Slice:
    """Consecutive matrices or rows of one tensor, which one worker edits at a time."""

    tensor: str
    amount: str  # strength of the edit for errors, such as `scale 1.5`
    change: Callable[[torch.Tensor, int], None]  # edits the slice, which starts at this byte, in place
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


class Remainder:
    """The share of each tensor's output along the direction, through norms that the edit ignores, that it leaves."""

    def __init__(self) -> None:
        self._squares: dict[str, list[tuple[int, float, float]]] = {}

    def add(self, tensor: str, start: int, before: float, after: float) -> None:
        """Add the sums of squares of the slice of a tensor that starts at this byte."""
        self._squares.setdefault(tensor, []).append((start, before, after))

    def of(self, tensor: str) -> float | None:
        """The share; None if the edit ignores no norm, or the tensor wrote nothing along the direction."""
        slices = sorted(self._squares.get(tensor, []))
        before, after = math.fsum(row[1] for row in slices), math.fsum(row[2] for row in slices)
        return math.sqrt(after / before) if before else None

    def range(self) -> tuple[float, float] | None:
        """The least and the largest share of all tensors; None if none has one."""
        shares = [share for tensor in self._squares if (share := self.of(tensor)) is not None]
        return (min(shares), max(shares)) if shares else None


def write_edited(
    base: BaseModel,
    target: Path,
    edits: Sequence[Edit],
    shifts: Sequence[Shift],
    device: torch.device,
    advance: Advance,
    digest: Callable[[Path], str] = sha256_of,
    remainder: Remainder | None = None,
) -> dict[str, str]:
    """Copy the base model into the empty folder `target`, with the planned tensors edited; the bytes do not depend on
    `device`. Returns the manifest's digest of each unchanged file, and `digest` of each other, by path. `remainder`
    receives what edits leave that ignore norms. Raises `StageError`: a tensor is not of a float type, or not finite."""
    checkpoint, known_digests = base.checkpoint, {file.path: file.sha256 for file in base.manifest.files}
    slices = _slices(base, edits, shifts, device, remainder or Remainder())
    digests: dict[str, Future[str]] = {}
    with _workers(slices) as (pool, count):
        groups = [checkpoint.shards[first : first + count] for first in range(0, len(checkpoint.shards), count)]
        for group in [*groups, checkpoint.companions]:
            parts = [_parts(base.folder / path, target / path, slices.get(path, []), device, advance) for path in group]
            # Files take turns, because the kernel writes to one file at a time.
            turns = (enumerate(turn) for turn in zip_longest(*parts))
            begun = [(file, pool.submit(part)) for turn in turns for file, part in turn if part is not None]
            # Of several errors, the first in the order of files is raised, as in `rehearse`.
            for _, done in sorted(begun, key=itemgetter(0)):
                done.result()
            # Digested while the next group is written, because this one is still in the system's cache.
            changed = [path for path in group if slices.get(path) or path not in known_digests]
            digests |= {path: pool.submit(digest, target / path) for path in changed}
        known_digests |= {path: made.result() for path, made in digests.items()}
    return {path: known_digests[path] for path in checkpoint.files}


@contextmanager
def _workers(slices: Mapping[str, Sequence[Slice]]) -> Iterator[tuple[ThreadPoolExecutor, int]]:
    """Threads that edit slices, and their number, for which memory has buffers."""
    largest = max((part.stop - part.start for parts in slices.values() for part in parts), default=1)
    count = max(1, min(_usable_cpus(), _BUFFERS_AT_MOST // largest))
    # One thread for each worker: workers that wait for each other's threads are slower.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    pool = ThreadPoolExecutor(max_workers=count)
    try:
        yield pool, count
    finally:
        pool.shutdown(cancel_futures=True)  # after an error, nothing else begins
        torch.set_num_threads(threads)


def _slices(
    base: BaseModel, edits: Sequence[Edit], shifts: Sequence[Shift], device: torch.device, remainder: Remainder
) -> dict[str, list[Slice]]:
    slices: dict[str, list[Slice]] = {shard: [] for shard in base.checkpoint.shards}
    for edit in edits:
        slices[edit.file] += _slices_of_edit(edit, device, base.tensors[edit.tensor], remainder)
    for shift in shifts:
        tensor = base.tensors[shift.tensor]
        part = partial(Slice, shift.tensor, "this strength", partial(_shifted, shift.added))
        slices[shift.file].append(part(float_type(shift.tensor, tensor), tensor.shape, tensor.start, tensor.stop))
    return slices


def _shifted(added: torch.Tensor, bias: torch.Tensor, _start: int) -> None:
    add(bias, added)


def _slices_of_edit(edit: Edit, device: torch.device, tensor: Tensor, remainder: Remainder) -> Iterator[Slice]:
    """The slices of an edit, in the order of the file."""
    projector, through = edit.projector.to(device), None if edit.through is None else edit.through.to(device)

    def change(weight: torch.Tensor, start: int) -> None:
        before = None if through is None else written_square(weight, through, edit.stream_axis)
        project(weight, projector, edit.scale, edit.stream_axis, edit.keep_column_norms, out=weight)
        if through is not None and before is not None:
            remainder.add(edit.tensor, start, before, written_square(weight, through, edit.stream_axis))

    part = partial(Slice, edit.tensor, f"scale {edit.scale:g}", change, float_type(edit.tensor, tensor))
    if len(tensor.shape) == 1 or (len(tensor.shape) == 2 and edit.stream_axis == 0):
        yield part(tensor.shape, tensor.start, tensor.stop)
        return
    # Experts, and rows that are edited independently, are cut along the first axis.
    size = (tensor.stop - tensor.start) // tensor.shape[0]
    step = 1 if len(tensor.shape) == 3 or edit.experts is not None else max(1, _ROWS_AT_ONCE // size)
    for top in edit.experts if edit.experts is not None else range(0, tensor.shape[0], step):
        stop = min(top + step, tensor.shape[0])
        shape = tensor.shape[1:] if len(tensor.shape) == 3 else (stop - top, tensor.shape[1])
        yield part(shape, tensor.start + top * size, tensor.start + stop * size)


def _parts(
    source: Path, target: Path, slices: list[Slice], device: torch.device, advance: Advance
) -> list[Callable[[], None]]:
    """Tasks that write one file: edits of its slices, and copies of what is between them, at the same offsets."""
    target.parent.mkdir(parents=True, exist_ok=True)
    size = source.stat().st_size
    with open(target, "wb") as file:
        file.truncate(size)
    parts: list[Callable[[], None]] = []
    done = 0
    for part in [*sorted(slices, key=attrgetter("start")), None]:
        stop = size if part is None else part.start
        while done < stop:
            # Pieces end with blocks of the disk, so that some file systems share them instead of copying.
            end = min(stop, (done // _COPIED_AT_ONCE + 1) * _COPIED_AT_ONCE)
            parts.append(partial(_copy, source, target, done, end, advance))
            done = end
        if part is not None:
            parts.append(partial(_edit, source, target, part, device, advance))
            done = part.stop
    return parts


def _edit(source: Path, target: Path | None, part: Slice, device: torch.device, advance: Advance) -> None:
    """Read a slice, change it, and write it to `target`, unless that is None."""
    size = part.stop - part.start
    if not hasattr(_WORKER, "buffer") or len(_WORKER.buffer) < size:
        _WORKER.buffer = torch.empty(size, dtype=torch.uint8)  # kept by each worker, because allocating is slow
    buffer: torch.Tensor = _WORKER.buffer[:size]
    data, weight = memoryview(buffer.numpy().data), buffer.view(part.dtype).view(part.shape)
    with open(source, "rb") as old:
        _read(old, data, part.start)
        moved = weight.to(device)
        part.change(moved, part.start)
        least, largest = torch.aminmax(moved)
        if not bool(torch.isfinite(least) & torch.isfinite(largest)):
            _read(old, data, part.start)
            where = f"{source.name}: {part.tensor}"
            if not bool(torch.isfinite(weight).all()):
                raise StageError(f"{where} holds NaN or infinity; fetch the checkpoint again")
            dtype = str(part.dtype).removeprefix("torch.")
            raise StageError(f"{where} exceeds the range of {dtype} at {part.amount}; choose a smaller one")
    if target is not None:
        if moved is not weight:
            weight.copy_(moved)
        with open(target, "r+b") as new:
            new.seek(part.start)
            new.write(data)
    advance(size)


def _copy(source: Path, target: Path, start: int, stop: int, advance: Advance) -> None:
    """Copy bytes `start` to `stop` to the same position of the other file, within the kernel if possible."""
    with open(source, "rb") as old, open(target, "r+b") as new:
        while start < stop:
            copied = _copy_in_kernel(old.fileno(), new.fileno(), start, stop - start)
            if not copied:
                buffer = memoryview(bytearray(min(stop - start, _BUFFER)))
                _read(old, buffer, start)
                new.seek(start)
                copied = new.write(buffer)
            start += copied
            advance(copied)


def _copy_in_kernel(old: int, new: int, start: int, size: int) -> int:
    """Number of bytes copied; 0 if the kernel cannot, which some file systems return instead of an error."""
    try:
        return os.copy_file_range(old, new, size, start, start) if sys.platform == "linux" else 0
    except OSError as error:
        if error.errno not in _COPY_UNSUPPORTED:
            raise
        return 0


def _usable_cpus() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _read(file: BufferedReader, buffer: memoryview, start: int) -> None:
    file.seek(start)
    if file.readinto(buffer) < len(buffer):
        raise StageError(SHORTER)


@dataclass(frozen=True)
class ResolvedEdit:
    """The rules, resolved against the base model."""

    settings: Ablate
    base: BaseModel
    edits: list[Edit]
    shifts: list[Shift]

    @property
    def rows(self) -> list[PlanRow]:
        return summary([*self.edits, *self.shifts], self.base.tensors)

    @property
    def spare_layers(self) -> list[str]:
        """Prefixes of layers in the files that the model does not use."""
        return spare_layers(self.base.layout, self.base.tensors)


def resolve_edit() -> ResolvedEdit:
    """Resolve the rules of artifacts/params. Raises `StageError`: a file is damaged, or the model forbids this edit."""
    settings = read_settings(Ablate, ARTIFACTS / "params/ablate.json")
    base = BaseModel.open()
    _, directions = read_directions(ARTIFACTS, base.layout)
    edits = make_plan(settings, base, directions)
    shifts = make_shifts(settings, base, odds_by_layer(read_use(ARTIFACTS, base.layout)))
    return ResolvedEdit(settings, base, edits, shifts)


def rehearse(edit: ResolvedEdit, device: torch.device, remainder: Remainder, advance: Advance) -> None:
    """Do what `write_edited` does, but write nothing. Raises as it does."""
    slices = _slices(edit.base, edit.edits, edit.shifts, device, remainder)
    with _workers(slices) as (pool, _):
        begun = [
            pool.submit(_edit, edit.base.folder / file, None, part, device, advance)
            for file, parts in slices.items()
            for part in sorted(parts, key=attrgetter("start"))
        ]
        for done in begun:
            done.result()


def render_card(edit: ResolvedEdit, remainder: Remainder) -> str:
    """README.md of the model's folder: what was edited, and what that means for whoever serves it."""
    card = environment(TEMPLATES).get_template("card.md.j2")
    return card.render(edit=edit, base=edit.base.manifest, ablate=edit.settings, left=remainder.range(), ranges=ranges)
