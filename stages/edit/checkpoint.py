"""Writing an edited checkpoint: unchanged bytes are copied by the kernel, edited tensors pass through memory singly."""

import errno
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from schemas.artifacts import Projection
from stages.base.stage import StageError
from stages.base.weights import Checkpoint, Tensor
from stages.edit.projection import project

TORCH_DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_COPIED_AT_ONCE = 1 << 26
_BUFFER = 1 << 22
# Two file systems, or one that has no such call.
_COPY_UNSUPPORTED = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
_SHORTER = "a file of the base became shorter while it was read; run again"


def write_edited(
    base: Checkpoint,
    target: Path,
    plan: list[Projection],
    directions: Mapping[int, torch.Tensor],
    advance: Callable[[int], None],
) -> None:
    """Copy every file of the base into `target`, with the planned tensors edited in place.

    Args:
        target: an empty folder.
        directions: the unit vector ``[hidden]`` float64 of each measurement that the plan names.
        advance: told the number of bytes written since.

    Raises:
        StageError: a tensor of the plan is not of a float type, or holds what is no finite number.
    """
    for path in base.companions:
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        _rewrite(base.folder / path, target / path, [], directions, advance)
    edits: dict[str, list[tuple[Projection, Tensor]]] = {shard: [] for shard in base.shards}
    for projection in plan:
        tensor = base.tensors[projection.tensor]
        if tensor.dtype not in TORCH_DTYPES:
            raise StageError(
                f"{projection.tensor} is stored as {tensor.dtype}; edit a float16 or bfloat16 copy instead"
            )
        edits[tensor.file].append((projection, tensor))
    for shard in base.shards:
        edits[shard].sort(key=lambda edit: edit[1].start)
        _rewrite(base.folder / shard, target / shard, edits[shard], directions, advance)


def _rewrite(
    source: Path,
    target: Path,
    edits: list[tuple[Projection, Tensor]],
    directions: Mapping[int, torch.Tensor],
    advance: Callable[[int], None],
) -> None:
    """Copy one file, its edited tensors replaced; types and shapes stay, and with them every offset."""
    with open(source, "rb") as old, open(target, "wb") as new:
        size = os.fstat(old.fileno()).st_size
        done = 0
        for projection, tensor in edits:
            _copy(old.fileno(), new.fileno(), done, tensor.start, advance)
            new.seek(tensor.start)
            new.write(_edited(old.fileno(), projection, tensor, directions[projection.measurement]))
            new.flush()
            advance(tensor.stop - tensor.start)
            done = tensor.stop
        _copy(old.fileno(), new.fileno(), done, size, advance)


def _edited(file: int, projection: Projection, tensor: Tensor, direction: torch.Tensor) -> bytes:
    buffer = bytearray(tensor.stop - tensor.start)
    _read(file, memoryview(buffer), tensor.start)
    weight = torch.frombuffer(buffer, dtype=TORCH_DTYPES[tensor.dtype]).view(tensor.shape)
    projected = project(weight, direction, projection.scale)
    if not bool(torch.isfinite(weight).all()):
        raise StageError(f"{tensor.file}: {projection.tensor} holds NaN or infinity; fetch the checkpoint again")
    if not bool(torch.isfinite(projected).all()):
        raise StageError(
            f"{tensor.file}: {projection.tensor} leaves the range of {tensor.dtype} at scale {projection.scale:g}; "
            "name a smaller scale"
        )
    return projected.flatten().view(torch.uint8).numpy().tobytes()


def _copy(old: int, new: int, start: int, stop: int, advance: Callable[[int], None]) -> None:
    """Copy bytes `start` to `stop` to the same place of the other file, within the kernel where it can."""
    while start < stop:
        size = min(_COPIED_AT_ONCE, stop - start)
        try:
            copied = os.copy_file_range(old, new, size, start, start)
        except OSError as error:
            if error.errno not in _COPY_UNSUPPORTED:
                raise
            buffer = memoryview(bytearray(min(size, _BUFFER)))
            _read(old, buffer, start)
            copied = os.pwrite(new, buffer, start)
        if not copied:
            raise StageError(_SHORTER)
        start += copied
        advance(copied)


def _read(file: int, buffer: memoryview, start: int) -> None:
    """Fill the buffer; one call of the kernel's reads 2 GiB at most."""
    done = 0
    while done < len(buffer):
        got = os.preadv(file, [buffer[done:]], start + done)
        if not got:
            raise StageError(_SHORTER)
        done += got
