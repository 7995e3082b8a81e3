"""A model whose weights stay in their files: one part at a time, such as a decoder layer, is loaded and freed again."""

import itertools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from accelerate.utils.memory import should_reduce_batch_size
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedModel

from excise.checkpoint.weights import Checkpoint
from excise.inference.loading.models import decoder, decoder_layers, refuse_incomplete, without_weights
from excise.plumbing.errors import StageError
from excise.plumbing.machine import give_back
from excise.plumbing.private.transformers import conversions, load, loading_as, targets, without_copies

_READ_AT_ONCE = 128 << 10  # bytes; the system cuts longer requests to the size of its own read-ahead


class LayeredModel:
    """A model without weights whose parts can be loaded. A part is a decoder layer, by its number; the frame, which is
    the decoder's embeddings and final norm; or the output head. Vision towers and unused layers (multi-token
    prediction) belong to no part."""

    def __init__(self, checkpoint: Checkpoint, dtype: str, device: torch.device) -> None:
        """`dtype` is a torch name: the type of loaded parameters, except for those that transformers keeps in float32.
        Raises `StageError`: transformers does not know the model, or the checkpoint is incomplete."""
        self.model = without_weights(checkpoint.folder, dtype)
        self.device = device
        self._checkpoint = checkpoint
        self._empty: dict[str, Any] = self.model.state_dict(keep_vars=True)
        transforms = [without_copies(transform) for transform in conversions(self.model)]
        self._settings = loading_as(self.model, getattr(torch, dtype), device, transforms)
        in_memory = {name: target for name, (target, _) in targets(self.model, checkpoint.tensors, transforms).items()}
        self.frame = len(decoder_layers(self.model))  # the frame's number, which follows those of the layers
        self.head = self.frame + 1
        self._wanted = [_inside(self.model, self._empty, part) for part in range(self.head + 1)]
        self._stored = [_stored(self.model, wanted, in_memory) for wanted in self._wanted]
        for name, buffer in list(self.model.named_non_persistent_buffers()):
            _put(self.model, name, torch.empty_like(buffer, device=device))
        # Fills buffers that no file holds; parameters are on the meta device, where it does nothing.
        self.model.initialize_weights()

    @property
    def largest_part(self) -> int:
        """Bytes of the largest part in memory; the head is there together with the frame."""
        *layers, frame, head = (sum(self._empty[name].nbytes for name in part) for part in self._wanted)
        return max(*layers, frame + head)

    def passing(self, with_head: bool = False) -> Iterator[int]:
        """The parts in the order in which prompts pass through them, each in memory until the next one is asked for:
        the frame, the layers, and, `with_head`, the head, which needs the frame too. Raises `StageError`: the files
        lack some of a part."""
        with self.reading_ahead() as read:
            read(0)
            with self.loaded(self.frame):
                yield self.frame
            for layer in range(self.frame):
                with self.loaded(layer):
                    if layer + 1 < self.frame:
                        read(layer + 1)
                    yield layer
            if with_head:
                with self.loaded(self.frame, self.head):
                    yield self.head

    @contextmanager
    def loaded(self, *parts: int) -> Iterator[None]:
        """Keep parts in memory until the block ends. Raises `StageError`: the files lack some of them."""
        try:
            for part in parts:
                self._load(part)
            yield
        finally:
            for name, tensor in self._empty.items():
                _put(self.model, name, tensor)
            give_back()

    @contextmanager
    def reading_ahead(self) -> Iterator[Callable[[int], object]]:
        """Yields a function that asks the system to read a part into its file cache, until the block ends."""
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
                report = load(self.model, slices, self._settings)
        except (ValueError, KeyError, OSError, RuntimeError, SafetensorError) as error:
            if should_reduce_batch_size(error):
                raise
            raise StageError(f"{folder} could not be loaded: {error}; fetch it again") from None
        for name, other in _tied_pairs(self.model):  # the file may hold either name, and the part needs one of them
            tensor = self.model.get_parameter_or_buffer(other)
            if name in self._wanted[part] and self.model.get_parameter_or_buffer(name).is_meta and not tensor.is_meta:
                _put(self.model, name, tensor)
        missing = [name for name in self._wanted[part] if self.model.get_parameter_or_buffer(name).is_meta]
        refuse_incomplete(str(folder), missing, report.mismatched_keys, report.conversion_errors)


def _inside(model: PreTrainedModel, names: dict[str, Any], part: int) -> list[str]:
    stack, listed, head = decoder(model), decoder_layers(model), model.get_output_embeddings()
    paths = {module: f"{path}." for path, module in model.named_modules() if module in (stack, listed, head)}
    if part == len(listed) + 1:
        return [] if head is None else [name for name in names if name.startswith(paths[head])]
    if part == len(listed):
        inside = [name for name in names if name.startswith(paths[stack])]
        return [name for name in inside if not name.startswith(paths[listed])]
    return [name for name in names if name.startswith(f"{paths[listed]}{part}.")]


def _stored(model: PreTrainedModel, wanted: list[str], in_memory: dict[str, str]) -> list[str]:
    """The stored tensors from which these are made; for a missing one, those of the parameter that it is tied to."""
    missing = set(wanted) - set(in_memory.values())
    needed = {*wanted, *(other for name, other in _tied_pairs(model) if name in missing)}
    return [name for name, target in in_memory.items() if target in needed]


def _tied_pairs(model: PreTrainedModel) -> list[tuple[str, str]]:
    """Pairs of parameters that are one, in both orders."""
    tied = model.all_tied_weights_keys
    return [*tied.items(), *((other, name) for name, other in tied.items())]


def _put(model: PreTrainedModel, name: str, tensor: Tensor) -> None:
    module, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(module), attribute, tensor)


def _advise(checkpoint: Checkpoint, names: Sequence[str], stop: threading.Event) -> None:
    tensors = sorted((checkpoint.tensors[name] for name in names), key=lambda tensor: (tensor.file, tensor.start))
    for name, tensors_of_file in itertools.groupby(tensors, key=lambda tensor: tensor.file):
        with open(checkpoint.folder / name, "rb") as file:
            for tensor in tensors_of_file:
                for start in range(tensor.start, tensor.stop, _READ_AT_ONCE):
                    if stop.is_set():
                        return
                    length = min(_READ_AT_ONCE, tensor.stop - start)
                    os.posix_fadvise(file.fileno(), start, length, os.POSIX_FADV_WILLNEED)
