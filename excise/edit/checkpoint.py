"""The edit that the rules describe, written as a checkpoint with its card: unchanged bytes are copied by the kernel,
edited matrices pass through memory singly.

Peak memory is a matrix or two for each worker, whatever the model's size. Each tensor's bytes depend on nothing but the
tensor and its edit: not on workers, on shards, or on the order in which they finish.
"""

import errno
import math
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from pathlib import Path

import torch

from excise.checkpoint.base_model import SHORTER, BaseModel, float_type
from excise.checkpoint.weights import Tensor
from excise.edit.planning.layout import spare_layers
from excise.edit.planning.plan import Edit, make_plan
from excise.edit.planning.projection import project
from excise.edit.planning.projectors import read_directions, read_use
from excise.edit.planning.shifts import Shift, add, make_shifts, odds_by_layer
from excise.plumbing.errors import StageError
from excise.plumbing.files import sha256_of
from excise.plumbing.progress import Advance
from excise.plumbing.templates import environment
from schemas.basis.document import read_settings
from schemas.basis.text import ranges
from schemas.edit import PlanRow
from schemas.model import ModelManifest
from schemas.params.ablate import Ablate

ARTIFACTS = Path("artifacts")
TEMPLATES = Path(__file__).parent / "templates"

_COPIED_AT_ONCE = 1 << 26
_BUFFER = 1 << 22
_BUFFERS_AT_MOST = 1 << 30
"""Of all workers together; a single matrix may still be larger."""
# Rows that are each edited for themselves, such as an embedding's, need not be in memory all at once.
_ROWS_AT_ONCE = 1 << 26
# Two file systems, or one that has no such call, or a container that forbids it.
_COPY_UNSUPPORTED = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM)
_WORKER = threading.local()


@dataclass(frozen=True)
class Slice:
    """Consecutive matrices or rows of one tensor: what one worker edits at a time."""

    tensor: str
    amount: str
    """How much of an edit it is, as in `scale 1.5`: for errors."""
    change: Callable[[torch.Tensor], object]
    """Edits it in place, on the device where the arithmetic runs."""
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


def write_edited(
    base: BaseModel,
    target: Path,
    edits: Sequence[Edit],
    shifts: Sequence[Shift],
    device: torch.device,
    advance: Advance,
    digest: Callable[[Path], str] = sha256_of,
) -> dict[str, str]:
    """Copy every file of the base into `target`, with the planned tensors edited.

    Args:
        target: an empty folder.
        shifts: what is added to biases of routers.
        device: where the arithmetic runs; the bytes are the same on each.
        advance: told the number of bytes written since.
        digest: gives a written file's SHA-256; files that do not change have the one in the manifest.

    Returns SHA-256 of every file written, by its path in the folder. Raises `StageError` where a tensor of the plan is
    not of a float type, or holds NaN or infinity.
    """
    checkpoint, known_digests = base.checkpoint, {file.path: file.sha256 for file in base.manifest.files}
    slices: dict[str, list[Slice]] = {shard: [] for shard in checkpoint.shards}
    for edit in edits:
        slices[edit.file] += _slices_of_edit(edit, device, base.tensors[edit.tensor])
    for shift in shifts:
        tensor, change = base.tensors[shift.tensor], partial(add, added=shift.added)
        dtype, size = float_type(shift.tensor, tensor), (tensor.shape, tensor.start, tensor.stop)
        slices[shift.file].append(Slice(shift.tensor, "this strength", change, dtype, *size))

    largest = max((part.stop - part.start for parts in slices.values() for part in parts), default=1)
    workers = max(1, min(_usable_cpus(), _BUFFERS_AT_MOST // largest))
    groups = [checkpoint.shards[first : first + workers] for first in range(0, len(checkpoint.shards), workers)]
    digests: dict[str, Future[str]] = {}
    # Each worker computes alone: two of them waiting for each other's threads are slower.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    pool = ThreadPoolExecutor(max_workers=workers)
    try:
        for group in [*groups, checkpoint.companions]:
            parts = [_parts(base.folder / path, target / path, slices.get(path, []), device, advance) for path in group]
            # A part of each file by turns, because the kernel writes to one file at a time.
            begun = [pool.submit(part) for turn in zip_longest(*parts) for part in turn if part is not None]
            for done in begun:
                done.result()
            # While the next group is written, this one still lies in memory.
            changed = [path for path in group if slices.get(path) or path not in known_digests]
            digests |= {path: pool.submit(digest, target / path) for path in changed}
        known_digests |= {path: made.result() for path, made in digests.items()}
    finally:
        pool.shutdown(cancel_futures=True)  # where something went wrong, what has not begun never does
        torch.set_num_threads(threads)
    return {path: known_digests[path] for path in checkpoint.files}


def _slices_of_edit(edit: Edit, device: torch.device, tensor: Tensor) -> Iterator[Slice]:
    """An edit cut into what is edited at a time, in the order of the file."""
    projector = edit.projector.to(device)

    def change(weight: torch.Tensor) -> torch.Tensor:
        return project(weight, projector, edit.scale, edit.stream_axis, edit.keep_column_norms, out=weight)

    part = partial(Slice, edit.tensor, f"scale {edit.scale:g}", change, float_type(edit.tensor, tensor))
    if len(tensor.shape) == 1 or (len(tensor.shape) == 2 and edit.stream_axis == 0):
        yield part(tensor.shape, tensor.start, tensor.stop)
        return
    # Matrices of experts, and rows of which each is edited for itself, are cut along the first axis.
    size = (tensor.stop - tensor.start) // tensor.shape[0]
    each = 1 if len(tensor.shape) == 3 or edit.experts is not None else max(1, _ROWS_AT_ONCE // size)
    for top in edit.experts if edit.experts is not None else range(0, tensor.shape[0], each):
        stop = min(top + each, tensor.shape[0])
        shape = tensor.shape[1:] if len(tensor.shape) == 3 else (stop - top, tensor.shape[1])
        yield part(shape, tensor.start + top * size, tensor.start + stop * size)


def _parts(
    source: Path, target: Path, slices: list[Slice], device: torch.device, advance: Advance
) -> list[Callable[[], None]]:
    """What writes one file: its edited slices, and what lies between them. Types and shapes stay, so offsets do."""
    target.parent.mkdir(parents=True, exist_ok=True)
    size = source.stat().st_size
    with open(target, "wb") as file:
        file.truncate(size)
    parts: list[Callable[[], None]] = []
    done = 0
    for part in [*sorted(slices, key=lambda part: part.start), None]:
        stop = size if part is None else part.start
        while done < stop:
            # Pieces end where blocks of the disk do: a file system that can then shares them instead of copying.
            end = min(stop, (done // _COPIED_AT_ONCE + 1) * _COPIED_AT_ONCE)
            parts.append(partial(_copy, source, target, done, end, advance))
            done = end
        if part is not None:
            parts.append(partial(_edit, source, target, part, device, advance))
            done = part.stop
    return parts


def _edit(source: Path, target: Path, part: Slice, device: torch.device, advance: Advance) -> None:
    buffer = _reused_buffer(part.stop - part.start)
    data, weight = memoryview(buffer.numpy().data), buffer.view(part.dtype).view(part.shape)
    with open(source, "rb") as old, open(target, "r+b") as new:
        _read(old.fileno(), data, part.start)
        moved = weight.to(device)
        part.change(moved)
        least, largest = torch.aminmax(moved)
        if not bool(torch.isfinite(least) & torch.isfinite(largest)):
            _read(old.fileno(), data, part.start)
            where = f"{source.name}: {part.tensor}"
            if not bool(torch.isfinite(weight).all()):
                raise StageError(f"{where} holds NaN or infinity; fetch the checkpoint again")
            stored = str(part.dtype).removeprefix("torch.")
            raise StageError(f"{where} leaves the range of {stored} at {part.amount}; name a smaller one")
        if moved is not weight:
            weight.copy_(moved)
        _write_all(new.fileno(), data, part.start)
    advance(len(buffer))


def _reused_buffer(size: int) -> torch.Tensor:
    """``[size]`` uint8: this worker's own, as large as it ever needed, because new memory is slow to come by."""
    if not hasattr(_WORKER, "buffer") or len(_WORKER.buffer) < size:
        _WORKER.buffer = torch.empty(size, dtype=torch.uint8)
    buffer: torch.Tensor = _WORKER.buffer[:size]
    return buffer


def _copy(source: Path, target: Path, start: int, stop: int, advance: Advance) -> None:
    """Copy bytes `start` to `stop` to the same place of the other file, within the kernel where it can."""
    with open(source, "rb") as old, open(target, "r+b") as new:
        while start < stop:
            copied = _copy_some(old.fileno(), new.fileno(), start, stop - start)
            start += copied
            advance(copied)


def _copy_some(old: int, new: int, start: int, size: int) -> int:
    if sys.platform == "linux":
        try:
            # Some file systems answer 0 where they mean that they cannot.
            if copied := os.copy_file_range(old, new, size, start, start):
                return copied
        except OSError as error:
            if error.errno not in _COPY_UNSUPPORTED:
                raise
    buffer = memoryview(bytearray(min(size, _BUFFER)))
    _read(old, buffer, start)
    _write_all(new, buffer, start)
    return len(buffer)


def _usable_cpus() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _read(file: int, buffer: memoryview, start: int) -> None:
    """Fill the buffer; one call of the kernel's reads 2 GiB at most."""
    done = 0
    while done < len(buffer):
        got = os.preadv(file, [buffer[done:]], start + done)
        if not got:
            raise StageError(SHORTER)
        done += got


def _write_all(file: int, buffer: memoryview, start: int) -> None:
    done = 0
    while done < len(buffer):
        done += os.pwrite(file, buffer[done:], start + done)


@dataclass(frozen=True)
class ResolvedEdit:
    """What is edited, and how."""

    settings: Ablate
    base: BaseModel
    edits: list[Edit]
    shifts: list[Shift]

    @property
    def rows(self) -> list[PlanRow]:
        """The plan by role."""
        return summary([*self.edits, *self.shifts], self.base.tensors)

    @property
    def spare_layers(self) -> list[str]:
        """Prefixes of layers that the file holds and the model does not use."""
        return spare_layers(self.base.layout, self.base.tensors)


def summary(changes: Sequence[Edit | Shift], tensors: Mapping[str, Tensor]) -> list[PlanRow]:
    """A plan by role: how many tensors, in which layers, and how much of them."""
    rows = []
    for role in dict.fromkeys(change.role for change in changes):
        of_role = [change for change in changes if change.role == role]
        touched = [(tensors[each.tensor], each.experts) for each in of_role]
        parts = [(tensor, 1.0 if some is None else len(some) / tensor.shape[0]) for tensor, some in touched]
        rows.append(
            PlanRow(
                role=role,
                tensors=len({change.tensor for change in of_role}),
                layers=sorted({change.layer for change in of_role if change.layer is not None}),
                parameters=sum(round(share * math.prod(tensor.shape)) for tensor, share in parts),
                bytes=sum(round(share * (tensor.stop - tensor.start)) for tensor, share in parts),
            )
        )
    return rows


def resolve_edit() -> ResolvedEdit:
    """Resolve the rules of artifacts/params against what the stages before `ablate` left. Raises `StageError` where
    something of that is missing or not whole, the base is not what was pinned, or the model does not take this edit."""
    settings = read_settings(Ablate, ARTIFACTS / "params/ablate.json")
    base = BaseModel.open()
    _, directions = read_directions(ARTIFACTS, base.layout)
    edits = make_plan(settings, base, directions)
    shifts = make_shifts(settings, base, odds_by_layer(read_use(ARTIFACTS, base.layout)))
    return ResolvedEdit(settings, base, edits, shifts)


def render_card(
    base: ModelManifest, ablate: Ablate, rows: list[PlanRow], spare_layers: list[str], left_out: Sequence[str]
) -> str:
    """README.md of the model's folder: what was edited, and what that means for whoever serves it."""
    card = environment(TEMPLATES).get_template("card.md.j2")
    return card.render(base=base, ablate=ablate, rows=rows, spare_layers=spare_layers, left_out=left_out, ranges=ranges)
