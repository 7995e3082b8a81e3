"""The changes of several forks of a tree that pass through a layer as one batch."""

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor

from excise.inference.forward import Batch
from excise.residual.contributions import Component, Write, watch_writes
from excise.trials.changes import Change, OnModule, Patched


def change_modules(by_fork: Sequence[Sequence[Change]], undo: ExitStack) -> list[int]:
    """Change what modules read and write of each fork's rows, until `undo` is closed. The list that is returned has to
    hold the number of rows of a fork."""
    rows = [0]
    on_modules = [[each for each in changes if isinstance(each, OnModule)] for changes in by_fork]
    for place in dict.fromkeys((each.module, each.side) for changes in on_modules for each in changes):
        of_fork = [[each for each in changes if (each.module, each.side) == place] for changes in on_modules]
        next(each for changes in of_fork for each in changes).hook(partial(_changed, of_fork, rows), undo)
    return rows


def _changed(of_fork: Sequence[Sequence[OnModule]], rows: Sequence[int], whole: Tensor) -> Tensor:
    # Experts may have an axis of their own before that of the forks.
    shaped = whole.reshape(-1, len(of_fork), rows[0], whole.shape[-1])
    parts = []
    for number, changes in enumerate(of_fork):
        part = shaped[:, number]
        for each in changes:
            part = each.change(part)
        parts.append(part)
    return torch.stack(parts, dim=1).view(whole.shape)


def patch(by_fork: Sequence[Sequence[Change]], ids: Tensor, ends: Tensor, undo: ExitStack) -> None:
    """Change what components write at `ends` of each fork's prompts ``[prompts, width]``, until `undo` is
    closed."""
    patches = [[each for each in changes if isinstance(each, Patched)] for changes in by_fork]
    first = next((each for changes in patches for each in changes), None)
    if first is None:
        return
    count, times = len(ids), len(patches)
    watched = {id(component): component for changes in patches for each in changes for component in each.watched}
    ids = ids.repeat(times, 1)
    batch = Batch(list(range(len(ids))), ids, torch.ones_like(ids), ends.repeat(times))

    def on_write(component: Component, write: Write) -> Tensor | None:
        added = torch.zeros_like(write.projected)
        for fork, changes in enumerate(patches):
            own = slice(fork * count, (fork + 1) * count)
            for each in changes:
                if any(other is component for other in each.watched):
                    patched = each.patch(component, Write(*(values[own] for values in write)))
                    added[own] += 0 if patched is None else patched
        return added

    watch_writes([*watched.values()], first.direction, {}, batch, on_write, undo)
