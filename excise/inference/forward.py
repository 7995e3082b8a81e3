"""Forward passes of prompts in batches, hooks on them, and the log-probabilities of a model's first token."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from excise.inference.loading.models import decoder, decoder_layers
from excise.plumbing.errors import StageError
from excise.plumbing.progress import Advance

Tokens = Sequence[Sequence[int]]
"""The tokens of each prompt."""
BatchSize = int | Literal["auto"]
"""Most prompts in a forward pass; halved on out-of-memory, with a warning."""
FIRST_BATCH = 64  # where `auto` begins
MOST_PADDING = 16, 1.125
"""A batch ends where the next prompt is longer than its first by more than this many tokens and this factor: padding
would cost more than another forward pass."""
OUT_OF_MEMORY = "the device has too little memory for a single prompt; choose another model.device or a smaller dtype"


@dataclass(frozen=True)
class Batch:
    """Some prompts, padded on the right: padding cannot reach the tokens before it, and positions do not change."""

    rows: list[int]  # indices of its prompts
    ids: Tensor  # [prompts, width] int64 on the CPU
    mask: Tensor  # the same, 1 for tokens and 0 for padding
    ends: Tensor  # [prompts]: index of the measured token

    @property
    def last(self) -> Tensor:
        """``[prompts]``: index of the last token."""
        return self.mask.sum(dim=1) - 1

    def at_end(self, output: Tensor) -> Tensor:
        """Output for the measured token, ``[prompts, hidden]``; `output` may be ``[prompts * width, hidden]``."""
        (at_end,) = self.each_at_end(output)
        return at_end

    def each_at_end(self, output: Tensor) -> Tensor:
        """The same from ``[n * prompts * width, hidden]``: ``[n, prompts, hidden]``."""
        shaped = output.reshape(-1, *self.ids.shape, output.shape[-1])
        return shaped[:, torch.arange(len(self.rows)), self.ends]


Watch = Callable[[Batch, ExitStack], None]
"""Sets hooks for one forward pass, which the stack removes afterwards."""


def no_hooks(_batch: Batch, _undo: ExitStack) -> None:
    """A `Watch` that sets none."""


def in_batches(
    prompts: Tokens, batch_size: BatchSize, advance: Advance, compute: Callable[[Batch], None], position: int = -1
) -> None:
    """Pass all prompts to `compute`, the shortest first; the measured token is `position`, -1 for a prompt's last.
    Raises `StageError`: memory is too small for a single prompt."""
    size, remaining = first_size(batch_size), _by_length(prompts)
    while remaining:
        batch = next(_batches(prompts, remaining, size, position))
        try:
            compute(batch)
        except RuntimeError as error:
            size = smaller(len(batch.rows), error, "continuing")
            continue
        remaining = remaining[len(batch.rows) :]
        advance(len(batch.rows))


def all_batches(prompts: Tokens, size: int, position: int = -1) -> list[Batch]:
    """The batches that `in_batches` makes where memory does not run out."""
    return list(_batches(prompts, _by_length(prompts), size, position))


def first_size(batch_size: BatchSize) -> int:
    """Most prompts in a batch, before memory ran out."""
    return FIRST_BATCH if batch_size == "auto" else batch_size


def smaller(size: int, error: RuntimeError, then: str) -> int:
    """Prompts per batch after memory ran out, with a warning. Raises any other error, and `StageError` for size 1."""
    if not should_reduce_batch_size(error):
        raise error
    if size == 1:
        raise StageError(OUT_OF_MEMORY) from None
    half = (size + 1) // 2
    print(f"Out of memory: {then} with {half} prompts per batch", file=sys.stderr)
    return half


def _by_length(prompts: Tokens) -> list[int]:
    return sorted(range(len(prompts)), key=lambda row: len(prompts[row]))


def _batches(prompts: Tokens, by_length: Sequence[int], size: int, position: int) -> Iterator[Batch]:
    start = 0
    while start < len(by_length):
        shortest = len(prompts[by_length[start]])
        longest = max(shortest + MOST_PADDING[0], shortest * MOST_PADDING[1])
        rows = [row for row in by_length[start : start + size] if len(prompts[row]) <= longest]
        lengths = torch.tensor([len(prompts[row]) for row in rows])
        ids = pad_sequence([torch.tensor(prompts[row], dtype=torch.long) for row in rows], batch_first=True)
        yield Batch(rows, ids, (torch.arange(ids.shape[1]) < lengths[:, None]).long(), lengths + position)
        start += len(rows)


def run_decoder(model: PreTrainedModel, batch: Batch, device: torch.device | None = None) -> None:
    """Run the decoder layers once, without the output head. `device` is where tokens go, by default the model's."""
    device = device or model.device
    decoder(model)(input_ids=batch.ids.to(device), attention_mask=batch.mask.to(device), use_cache=False)


@torch.inference_mode()
def first_token_log_probabilities(
    model: PreTrainedModel, prompts: Tokens, batch_size: BatchSize, advance: Advance, watch: Watch = no_hooks
) -> Tensor:
    """Log-probabilities of the first token of each answer, in nats: ``[prompts, vocabulary]`` float32 on the CPU."""
    log_probabilities: dict[int, Tensor] = {}

    def compute(batch: Batch) -> None:
        with ExitStack() as undo:
            watch(batch, undo)
            log_probabilities.update(zip(batch.rows, first_token_of(model, batch), strict=True))

    in_batches(prompts, batch_size, advance, compute)
    return torch.stack([log_probabilities[row] for row in range(len(prompts))])


def first_token_of(model: PreTrainedModel, batch: Batch) -> Tensor:
    """The same of one batch: ``[prompts, vocabulary]``."""
    ends = batch.last.unique()
    logits = logits_at(model, batch, ends)
    last = logits[torch.arange(len(batch.rows)), torch.searchsorted(ends, batch.last)].float()
    return torch.log_softmax(last, dim=-1).cpu()


def logits_at(model: PreTrainedModel, batch: Batch, positions: Tensor) -> Tensor:
    """The logits at these positions of each prompt, ``[prompts, positions, vocabulary]`` on the last layer's device."""
    ids, mask = batch.ids.to(model.device), batch.mask.to(model.device)
    # A tensor of positions would have to be on the device of the last layer; a list need not be.
    return model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=positions.tolist()).logits


def kl(base: Tensor, edited: Tensor) -> Tensor:
    """KL(base‖edited) in nats, ``[prompts]`` float64, from log-probabilities ``[prompts, vocabulary]``."""
    return torch.nn.functional.kl_div(edited.double(), base.double(), reduction="none", log_target=True).sum(dim=-1)


def kl_without(base: Tensor, edited: Tensor, tokens: Sequence[int]) -> Tensor:
    """The same without some tokens: both distributions are those of an answer that begins with none of them."""
    others = torch.ones(base.shape[-1], dtype=torch.bool)
    others[list(tokens)] = False
    return kl(*(torch.log_softmax(side[:, others].double(), dim=-1) for side in (base, edited)))


Change = Callable[[Tensor], Tensor | None]
"""Receives what a module reads or writes, and returns its replacement, or None to keep it."""


def split_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, tuple[Any, ...], dict[str, Any]]:
    """The stream among the arguments of a module, and the others: positions, masks, what layers share."""
    if args:
        return args[0], args[1:], kwargs
    return kwargs["hidden_states"], (), {name: value for name, value in kwargs.items() if name != "hidden_states"}


def stream_of(output: Any) -> Tensor:
    """The stream in the output of a module."""
    return output[0] if isinstance(output, tuple) else output


def on_input(module: nn.Module, change: Change, undo: ExitStack) -> None:
    """Pass what the module reads through `change` in every forward pass, until `undo` is closed."""

    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        stream, others, named = split_call(args, kwargs)
        changed = change(stream)
        return None if changed is None else ((changed, *others), named)

    undo.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)


def on_output(module: nn.Module, change: Change, undo: ExitStack) -> None:
    """Pass what the module writes through `change` in every forward pass, until `undo` is closed."""

    def hook(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        changed = change(stream_of(output))
        return (changed, *output[1:]) if changed is not None and isinstance(output, tuple) else changed

    undo.callback(module.register_forward_hook(hook).remove)


def change_stream(model: PreTrainedModel, measurement: int, change: Change, undo: ExitStack) -> None:
    """Pass the stream at a measurement, ``[prompts, width, hidden]``, through `change`, until `undo` is closed."""
    layer, side = place_of(model, measurement)
    (on_input if side == "input" else on_output)(decoder_layers(model)[layer], change, undo)


def place_of(model: PreTrainedModel, measurement: int) -> tuple[int, Literal["input", "output"]]:
    """The layer that reads the stream at a measurement, or the last one, which writes it."""
    layers = len(decoder_layers(model))
    return (measurement, "input") if measurement < layers else (layers - 1, "output")


def watch_stream(model: PreTrainedModel, keep: Callable[[int, Tensor], None], undo: ExitStack) -> None:
    """Call `keep` with each measurement and the whole stream there, until `undo` is closed."""
    for measurement in range(len(decoder_layers(model)) + 1):
        change_stream(model, measurement, partial(keep, measurement), undo)
