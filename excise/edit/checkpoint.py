"""Writing an edited checkpoint: unchanged bytes are copied by the kernel, edited matrices pass through memory singly.

Peak memory is a matrix or two for each worker, whatever the size of the model and of its shards. Each tensor's bytes
depend on nothing but the tensor and its edit, so neither do they on workers, shards or the order in which they finish.
"""

import errno
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from pathlib import Path

import torch

from excise.checkpoint.weights import Checkpoint, Tensor
from excise.edit.plan import Edit
from excise.edit.projection import Pair, project
from excise.edit.shifts import Shift, add
from excise.plumbing.digests import sha256_of
from excise.plumbing.errors import StageError
from excise.plumbing.progress import Advance

TORCH_DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_COPIED_AT_ONCE = 1 << 26
_BUFFER = 1 << 22
_BUFFERS_AT_MOST = 1 << 30
"""Of all workers together; a single matrix may still be larger."""
# Rows that are each edited for themselves, such as an embedding's, need not be in memory all at once.
_ROWS_AT_ONCE = 1 << 26
# Two file systems, or one that has no such call, or a container that forbids it.
_COPY_UNSUPPORTED = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM)
_SHORTER = "a file of the base became shorter while it was read; run again"

_WORKER = threading.local()


@dataclass(frozen=True)
class Slice:
    """Consecutive matrices or rows of one tensor: what one worker edits at a time."""

    tensor: str
    amount: str
    """How much of an edit it is, as in `scale 1.5`: for errors."""
    change: Callable[[torch.Tensor], object]
    """Edits it in place, on the device where the arithmetic runs."""
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def read_vector(base: Checkpoint, name: str) -> torch.Tensor:
    """A small tensor of the checkpoint, such as a norm's weight.

    Raises:
        StageError: it is not of a float type.
    """
    tensor = base.tensors[name]
    _check_type(name, tensor)
    buffer = bytearray(tensor.stop - tensor.start)
    with open(base.folder / tensor.file, "rb") as file:
        _read(file.fileno(), memoryview(buffer), tensor.start)
    return torch.frombuffer(buffer, dtype=TORCH_DTYPES[tensor.dtype]).view(tensor.shape)


def write_edited(
    base: Checkpoint,
    target: Path,
    plan: Sequence[Edit],
    pairs: Sequence[Pair],
    keep_column_norms: bool,
    known_digests: Mapping[str, str],
    device: torch.device,
    advance: Advance,
    digest: Callable[[Path], str] = sha256_of,
    shifts: Sequence[Shift] = (),
) -> dict[str, str]:
    """Copy every file of the base into `target`, with the planned tensors edited.

    Args:
        target: an empty folder.
        pairs: what is taken out by each edit, in the order of the plan.
        known_digests: SHA-256 of the base's files; those that do not change are not read again for theirs.
        device: where the arithmetic runs; the bytes are the same on each.
        advance: told the number of bytes written since.
        digest: gives a written file's SHA-256.
        shifts: what is added to biases of routers.

    Returns:
        SHA-256 of every file written, by its path in the folder.

    Raises:
        StageError: a tensor of the plan is not of a float type, or holds what is no finite number.
    """
    slices: dict[str, list[Slice]] = {shard: [] for shard in base.shards}
    for edit, pair in zip(plan, pairs, strict=True):
        slices[edit.file] += _slices(edit, _to(pair, device), keep_column_norms, base.tensors[edit.tensor])
    for shift in shifts:
        slices[shift.file].append(_slice_of_bias(shift, base.tensors[shift.tensor]))

    largest = max((part.stop - part.start for parts in slices.values() for part in parts), default=1)
    workers = max(1, min(_usable_cpus(), _BUFFERS_AT_MOST // largest))
    groups = [base.shards[first : first + workers] for first in range(0, len(base.shards), workers)]
    digests: dict[str, Future[str]] = {}
    # Each worker computes alone: two of them waiting for each other's threads are slower.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(max_workers=workers) as pool:
            try:
                for group in [*groups, base.companions]:
                    parts = [
                        _parts(base.folder / path, target / path, slices.get(path, []), device, advance)
                        for path in group
                    ]
                    # A part of each file by turns, because the kernel writes to one file at a time.
                    begun = [pool.submit(part) for turn in zip_longest(*parts) for part in turn if part is not None]
                    for done in begun:
                        done.result()
                    # While the next group is written, this one still lies in memory.
                    changed = [path for path in group if slices.get(path) or path not in known_digests]
                    digests |= {path: pool.submit(digest, target / path) for path in changed}
                found = {path: made.result() for path, made in digests.items()}
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    finally:
        torch.set_num_threads(threads)
    return {path: found[path] if path in found else known_digests[path] for path in base.files}


def _check_type(name: str, tensor: Tensor) -> None:
    if tensor.dtype not in TORCH_DTYPES:
        raise StageError(f"{name} is stored as {tensor.dtype}, which is no float type; use a float copy of the model")


def _slices(edit: Edit, pair: Pair, keep_norms: bool, tensor: Tensor) -> list[Slice]:
    """An edit cut into what is edited at a time, in the order of the file."""
    _check_type(edit.tensor, tensor)

    def change(weight: torch.Tensor) -> torch.Tensor:
        return project(weight, pair, edit.scale, edit.stream_axis, keep_norms and edit.has_columns, out=weight)

    part = partial(Slice, edit.tensor, f"scale {edit.scale:g}", change, tensor.dtype)
    if len(tensor.shape) == 3:
        size = (tensor.stop - tensor.start) // tensor.shape[0]
        experts = range(tensor.shape[0]) if edit.experts is None else edit.experts
        return [
            part(tensor.shape[1:], start, start + size)
            for start in (tensor.start + expert * size for expert in experts)
        ]
    if edit.stream_axis == 1 and len(tensor.shape) == 2:
        size = (tensor.stop - tensor.start) // tensor.shape[0]
        rows = max(1, _ROWS_AT_ONCE // size) if edit.experts is None else 1
        tops = range(0, tensor.shape[0], rows) if edit.experts is None else edit.experts
        return [
            part((stop - top, tensor.shape[1]), tensor.start + top * size, tensor.start + stop * size)
            for top in tops
            for stop in (min(top + rows, tensor.shape[0]),)
        ]
    return [part(tensor.shape, tensor.start, tensor.stop)]


def _slice_of_bias(shift: Shift, tensor: Tensor) -> Slice:
    _check_type(shift.tensor, tensor)
    change = partial(add, added=shift.added)
    return Slice(shift.tensor, "this strength", change, tensor.dtype, tensor.shape, tensor.start, tensor.stop)


def _to(pair: Pair, device: torch.device) -> Pair:
    return Pair(pair.left.to(device), pair.right.to(device))


def _parts(
    source: Path, target: Path, slices: list[Slice], device: torch.device, advance: Advance
) -> list[Callable[[], None]]:
    """What writes one file: its edited slices, and what lies between them. Types and shapes stay, so offsets do."""
    target.parent.mkdir(parents=True, exist_ok=True)
    size = source.stat().st_size
    with open(target, "wb") as file:
        os.truncate(file.fileno(), size)
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
    with open(source, "rb") as old, open(target, "r+b") as new:
        _read(old.fileno(), memoryview(buffer.numpy().data), part.start)
        weight = buffer.view(TORCH_DTYPES[part.dtype]).view(part.shape)
        moved = weight.to(device)
        part.change(moved)
        least, largest = torch.aminmax(moved)
        if not bool(torch.isfinite(least) & torch.isfinite(largest)):
            raise StageError(_why_not_finite(source.name, old.fileno(), part))
        if moved is not weight:
            weight.copy_(moved)
        _write_all(new.fileno(), memoryview(buffer.numpy().data), part.start)
    advance(len(buffer))


def _reused_buffer(size: int) -> torch.Tensor:
    """``[size]`` uint8: this worker's own, as large as it ever needed, because new memory is slow to come by."""
    if not hasattr(_WORKER, "buffer") or len(_WORKER.buffer) < size:
        _WORKER.buffer = torch.empty(size, dtype=torch.uint8)
    buffer: torch.Tensor = _WORKER.buffer[:size]
    return buffer


def _why_not_finite(name: str, file: int, part: Slice) -> str:
    buffer = bytearray(part.stop - part.start)
    _read(file, memoryview(buffer), part.start)
    where = f"{name}: {part.tensor}"
    if not bool(torch.isfinite(torch.frombuffer(buffer, dtype=TORCH_DTYPES[part.dtype])).all()):
        return f"{where} holds NaN or infinity; fetch the checkpoint again"
    return f"{where} leaves the range of {part.dtype} at {part.amount}; name a smaller one"


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
            raise StageError(_SHORTER)
        done += got


def _write_all(file: int, buffer: memoryview, start: int) -> None:
    done = 0
    while done < len(buffer):
        done += os.pwrite(file, buffer[done:], start + done)
