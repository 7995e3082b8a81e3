"""The base model of a project: what it is, how its tensors are laid out, and where they lie."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch

from excise.checkpoint.manifest import base_checkpoint, base_folder, read_layout, read_manifest, verify
from excise.checkpoint.weights import Checkpoint, Tensor
from excise.plumbing.errors import StageError
from schemas.layout import ModelLayout
from schemas.model import ModelManifest

_TORCH_DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
SHORTER = "a file of the base became shorter while it was read; run again"


@dataclass(frozen=True)
class BaseModel:
    """The model that is measured and edited; none of its weights are in memory."""

    manifest: ModelManifest
    layout: ModelLayout
    checkpoint: Checkpoint

    @classmethod
    def open(cls) -> Self:
        """Find the base model that prepare pinned, and check that it is still that.

        Raises:
            StageError: it is not there, or has changed, or prepare has not run.
        """
        manifest, folder = read_manifest(), base_folder()
        verify(folder, manifest)
        return cls(manifest, read_layout(), base_checkpoint(folder, manifest))

    @property
    def folder(self) -> Path:
        """Where it lies on this machine."""
        return self.checkpoint.folder

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Where each tensor lies, by name."""
        return self.checkpoint.tensors

    def vector(self, name: str) -> torch.Tensor:
        """A small tensor, such as a norm's weight, read from its file.

        Raises:
            StageError: it is not of a float type.
        """
        tensor = self.tensors[name]
        dtype, size = float_type(name, tensor), tensor.stop - tensor.start
        with open(self.folder / tensor.file, "rb") as file:
            file.seek(tensor.start)
            data = bytearray(file.read(size))
        if len(data) < size:
            raise StageError(SHORTER)
        return torch.frombuffer(data, dtype=dtype).view(tensor.shape)


def float_type(name: str, tensor: Tensor) -> torch.dtype:
    """The type of a tensor that can be edited.

    Raises:
        StageError: it is not a float type.
    """
    if tensor.dtype not in _TORCH_DTYPES:
        raise StageError(
            f"{name} is stored as {tensor.dtype}, which is not a float type; use a float copy of the model"
        )
    return _TORCH_DTYPES[tensor.dtype]
