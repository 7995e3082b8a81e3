"""Where streams wait for the next layer: in memory up to a limit, beyond it in files that have no name."""

import os
import tempfile
import weakref

import numpy as np
import torch
from torch import Tensor

from excise.plumbing.errors import StageError
from excise.plumbing.files import SCRATCH


class Spool:
    """Keeps streams until nothing refers to them."""

    def __init__(self, device: torch.device, limit: int) -> None:
        """`limit`: bytes on the device; what does not fit there goes to files."""
        self._device, self._limit = device, limit
        self._held = 0

    def keep(self, stream: Tensor) -> Tensor:
        """A copy that waits. Raises `StageError`: the disk is full."""
        if self._held + stream.nbytes > self._limit:
            return _in_file(stream)
        waits = stream.to(self._device, copy=True)
        self._held += stream.nbytes
        weakref.finalize(waits, self._free, stream.nbytes)
        return waits

    def _free(self, size: int) -> None:
        self._held -= size


def _in_file(stream: Tensor) -> Tensor:
    SCRATCH.mkdir(exist_ok=True)
    with tempfile.TemporaryFile(dir=SCRATCH) as file:
        try:
            # A write to a file with holes would end the process where the disk is full.
            os.posix_fallocate(file.fileno(), 0, stream.nbytes)
        except OSError as error:
            raise StageError(
                f"{SCRATCH}: {stream.nbytes >> 20:,} MiB for streams between layers: {error.strerror}; free some of "
                "the disk, or take fewer prompts"
            ) from None
        # The mapping outlives the open file, and the file its name.
        mapped = torch.from_numpy(np.memmap(file, dtype=np.uint8, mode="r+"))
    waits = mapped.view(stream.dtype).view(stream.shape)
    waits.copy_(stream)
    return waits
