"""A model whose weights stay in their files: one part at a time, such as a decoder layer, is loaded and freed again.
transformers names, converts and casts the tensors, so every model that it loads can be loaded in parts."""

import itertools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    ConversionOps,
    MergeModulelist,
    WeightConverter,
    convert_and_load_state_dict_in_model,
)

from excise.checkpoint.weights import Checkpoint
from excise.inference.loading.models import (
    decoder,
    decoder_layers,
    loading_as,
    refuse_incomplete,
    targets,
    without_weights,
)
from excise.plumbing.errors import StageError
from excise.plumbing.machine import give_back

_READ_AT_ONCE = 128 << 10
"""Bytes of one request to the system, which cuts longer ones to the size of its own read-ahead."""


class LayeredModel:
    """A model without weights whose parts can be loaded. A part is a decoder layer, by its number, or the frame: the
    decoder's embeddings and final norm. The output head, vision towers and unused layers (multi-token prediction)
    belong to no part."""

    def __init__(self, checkpoint: Checkpoint, dtype: str, device: torch.device) -> None:
        """Build the model and find its tensors. `dtype` is a torch name: the type of loaded parameters, except for
        those that transformers keeps in float32. Raises `StageError`: transformers does not know the model, or the
        checkpoint is incomplete."""
        self.model = without_weights(checkpoint.folder, dtype)
        self.device = device
        self._checkpoint = checkpoint
        self._empty: dict[str, Any] = self.model.state_dict(keep_vars=True)
        transforms = [_without_copies(transform) for transform in get_model_conversion_mapping(self.model)]
        self._settings = loading_as(self.model, getattr(torch, dtype), device, transforms)
        in_memory = {name: target for name, (target, _) in targets(self.model, checkpoint.tensors, transforms).items()}
        self.frame = len(decoder_layers(self.model))
        """The frame's number, which follows those of the layers."""
        self._wanted = [_inside(self.model, self._empty, part) for part in range(self.frame + 1)]
        self._stored = [_stored(self.model, wanted, in_memory) for wanted in self._wanted]
        for name, buffer in list(self.model.named_non_persistent_buffers()):
            _put(self.model, name, torch.empty_like(buffer, device=device))
        # Fills buffers that no file holds; parameters are on the meta device, where it does nothing.
        self.model.initialize_weights()

    @property
    def largest_part(self) -> int:
        """Bytes of the largest part in memory."""
        return max(sum(self._empty[name].nbytes for name in part) for part in self._wanted)

    @contextmanager
    def loaded(self, part: int) -> Iterator[None]:
        """Keep a part in memory until the block ends. Raises `StageError`: the files lack some of it."""
        try:
            self._load(part)
            yield
        finally:
            for name, tensor in self._empty.items():
                _put(self.model, name, tensor)
            give_back()

    @contextmanager
    def reading_ahead(self) -> Iterator[Callable[[int], object]]:
        """Yields a function that asks the system to read a part into its file cache, in the background. The cache is
        not this process's memory; reading stops when the block ends."""
        stop = threading.Event()
        with ThreadPoolExecutor(1) as reader:
            try:
                yield lambda part: reader.submit(_advise, self._checkpoint, self._stored[part], stop)
            finally:
                stop.set()

    def _load(self, part: int) -> None:
        folder = self._checkpoint.folder
        file_of = {name: self._checkpoint.tensors[name].file for name in self._stored[part]}
        try:
            with ExitStack() as opened:
                files = {file: opened.enter_context(safe_open(folder / file, "pt")) for file in set(file_of.values())}
                slices = {name: files[file].get_slice(name) for name, file in file_of.items()}
                report, _ = convert_and_load_state_dict_in_model(self.model, slices, self._settings)
        except torch.OutOfMemoryError:
            raise
        except (ValueError, KeyError, OSError, RuntimeError, SafetensorError) as error:
            raise StageError(f"{folder} could not be loaded: {error}; fetch it again") from None
        for name, other in _tied_pairs(self.model):  # the file may hold either name, and the part needs one of them
            tensor = self.model.get_parameter_or_buffer(other)
            if name in self._wanted[part] and self.model.get_parameter_or_buffer(name).is_meta and not tensor.is_meta:
                _put(self.model, name, tensor)
        missing = [name for name in self._wanted[part] if self.model.get_parameter_or_buffer(name).is_meta]
        refuse_incomplete(str(folder), missing, report.mismatched_keys, report.conversion_errors)


class _Fuse(ConversionOps):
    """transformers' `MergeModulelist` and `Concatenate` in one, without a copy between them."""

    def convert(
        self, input_dict: dict[str, Any], source_patterns: list[str], target_patterns: list[str], **_others: Any
    ) -> dict[str, Any]:
        """Per pattern, the matrices ``[rows, columns]`` of all experts → ``[experts, rows of all, columns]``. Raises
        `ValueError`: an expert lacks a matrix, or has one of another shape."""
        lists = [input_dict.pop(pattern) for pattern in source_patterns]
        shapes = [matrices[0].shape for matrices in lists]
        if {len(matrices) for matrices in lists} != {len(lists[0])} or any(
            matrix.shape != shape for matrices, shape in zip(lists, shapes, strict=True) for matrix in matrices
        ):
            raise ValueError(f"the experts of {target_patterns[0]} are not all alike")
        fused = lists[0][0].new_empty(len(lists[0]), sum(rows for rows, _ in shapes), shapes[0][1])
        start = 0
        for matrices, (rows, _) in zip(lists, shapes, strict=True):
            for expert, matrix in enumerate(matrices):
                fused[expert, start : start + rows].copy_(matrix)
            start += rows
        return {target_patterns[0]: fused}


def _without_copies(transform: Any) -> Any:
    """The conversion, with `_Fuse` in place of the operations that it joins."""
    if isinstance(transform, WeightConverter):
        operations = [(type(operation), getattr(operation, "dim", None)) for operation in transform.operations]
        if operations == [(MergeModulelist, 0), (Concatenate, 1)]:
            transform.operations = [_Fuse()]
    return transform


def _inside(model: PreTrainedModel, names: dict[str, Any], part: int) -> list[str]:
    stack = decoder(model)
    (prefix,) = (f"{path}." for path, module in model.named_modules() if module is stack)
    layers = f"{prefix}layers."
    if part == len(decoder_layers(model)):
        return [name for name in names if name.startswith(prefix) and not name.startswith(layers)]
    return [name for name in names if name.startswith(f"{layers}{part}.")]


def _stored(model: PreTrainedModel, wanted: list[str], in_memory: dict[str, str]) -> list[str]:
    """The stored tensors from which these are made; for a missing one, those of the parameter that it is tied to."""
    missing = set(wanted) - set(in_memory.values())
    needed = {*wanted, *(other for name, other in _tied_pairs(model) if name in missing)}
    return [name for name, target in in_memory.items() if target in needed]


def _tied_pairs(model: PreTrainedModel) -> list[tuple[str, str]]:
    """Pairs of parameters that are one, in both orders."""
    tied = list(model.all_tied_weights_keys.items())
    return [*tied, *((other, name) for name, other in tied)]


def _put(model: PreTrainedModel, name: str, tensor: Tensor) -> None:
    module, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(module), attribute, tensor)


def _advise(checkpoint: Checkpoint, names: Sequence[str], stop: threading.Event) -> None:
    """Ask the system to read the bytes of these tensors, in the order of the files."""
    tensors = sorted((checkpoint.tensors[name] for name in names), key=lambda tensor: (tensor.file, tensor.start))
    for name, tensors_of_file in itertools.groupby(tensors, key=lambda tensor: tensor.file):
        with open(checkpoint.folder / name, "rb") as file:
            for tensor in tensors_of_file:
                for start in range(tensor.start, tensor.stop, _READ_AT_ONCE):
                    if stop.is_set():
                        return
                    length = min(_READ_AT_ONCE, tensor.stop - start)
                    os.posix_fadvise(file.fileno(), start, length, os.POSIX_FADV_WILLNEED)
