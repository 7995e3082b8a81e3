"""Trials: what each of them changes of a model, layer by layer, in a form that shows where two are alike."""

import hashlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Literal

from torch import Tensor, nn
from transformers import PreTrainedModel

from excise.edit.planning.plan import Edit
from excise.edit.planning.projectors import Projector
from excise.edit.planning.shifts import Shift
from excise.inference.forward import Batch, Watch, on_input, on_output
from excise.residual.contributions import Component, Write, watch_writes
from excise.trials.simulation import grouped, simulated

ENTERING = -1
"""The layer of what changes before the first one."""


@dataclass(frozen=True)
class OnModule:
    """A change of what a module reads or writes, at every token. Two are alike if all but the function are."""

    layer: int
    module: nn.Module
    side: Literal["input", "output"]
    key: Hashable
    change: Callable[[Tensor], Tensor] = field(compare=False)

    def hook(self, change: Callable[[Tensor], Tensor], undo: ExitStack) -> None:
        """Pass what the module reads or writes through a function, until `undo` is closed."""
        (on_input if self.side == "input" else on_output)(self.module, change, undo)


@dataclass(frozen=True)
class InWeights:
    """Edits of parameters that no change of a module's input or output equals, and shifts of routers' biases. Before
    the first layer it is the embeddings that are edited, and the output head if it is tied to them."""

    layer: int
    key: Hashable
    edits: tuple[Edit, ...] = field(compare=False)
    shifts: tuple[Shift, ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class Patched:
    """A change of what components of a layer write along a direction, at the last token only."""

    layer: int
    key: Hashable
    watched: tuple[Component, ...] = field(compare=False)
    direction: Tensor = field(compare=False)
    patch: Callable[[Component, Write], Tensor | None] = field(compare=False)


Change = OnModule | InWeights | Patched


@dataclass(frozen=True)
class Trial:
    """What is tried; none of its changes is the base."""

    changes: tuple[Change, ...] = ()

    @property
    def is_last_only(self) -> bool:
        """Whether only the last token of each prompt is another."""
        return bool(self.changes) and all(isinstance(change, Patched) for change in self.changes)

    def at(self, layer: int) -> tuple[Change, ...]:
        return self._by_layer.get(layer, ())

    @cached_property
    def _by_layer(self) -> dict[int, tuple[Change, ...]]:
        layers = {change.layer for change in self.changes}
        return {layer: tuple(change for change in self.changes if change.layer == layer) for layer in layers}

    def digest(self, names: Mapping[nn.Module, str]) -> str:
        """The SHA-256 of what it changes, by the names of modules: the same in every process."""
        said: list[object] = []
        for change in self.changes:
            where = (names[change.module], change.side) if isinstance(change, OnModule) else ()
            along = change.direction.numpy().tobytes() if isinstance(change, Patched) else b""
            said.append((type(change).__name__, change.layer, where, change.key, along))
        return hashlib.sha256(repr(said).encode()).hexdigest()

    def watch(self, model: PreTrainedModel) -> Watch:
        """Hooks by which a whole forward pass of the model is that of the trial."""

        def watch(batch: Batch, undo: ExitStack) -> None:
            for change in self.changes:
                match change:
                    case OnModule():
                        change.hook(change.change, undo)
                    case InWeights():
                        undo.enter_context(simulated(model, change.edits, change.shifts))
                    case Patched():
                        watch_writes(change.watched, change.direction, {}, batch, change.patch, undo)

        return watch


def of_edits(model: PreTrainedModel, edits: Sequence[Edit], shifts: Sequence[Shift] = ()) -> Trial:
    """The trial of a plan."""
    embeddings = tuple(edit for edit in edits if edit.place is None)
    changes: list[Change] = [InWeights(ENTERING, _key(embeddings), embeddings)] if embeddings else []
    for group in grouped(model, edits):
        if group.is_whole:
            projector = group.edits[0].projector if group.writes else group.edits[0].projector.transposed
            change = partial(projector.remove, scale=group.edits[0].scale)
            side: Literal["input", "output"] = "output" if group.writes else "input"
            changes.append(OnModule(group.layer, group.module, side, _key(group.edits[:1]), change))
        else:
            changes.append(InWeights(group.layer, _key(group.edits), tuple(group.edits)))
    for edit in edits:
        if edit.place is not None and edit.place.is_alone:
            changes.append(InWeights(edit.place.layer, _key([edit]), (edit,)))
    for shift in shifts:
        key = shift.bias.in_memory, shift.added.numpy().tobytes()
        changes.append(InWeights(shift.layer, key, (), (shift,)))
    return Trial(tuple(sorted(changes, key=lambda change: change.layer)))


def _key(edits: Sequence[Edit]) -> Hashable:
    """The same for edits that do the same."""
    return tuple(
        (edit.tensor, edit.scale, edit.keep_column_norms, edit.experts, _digest(edit.projector)) for edit in edits
    )


def _digest(projector: Projector) -> bytes:
    sides = (projector.left, projector.right)
    return hashlib.sha256(b"".join(side.cpu().contiguous().numpy().tobytes() for side in sides)).digest()
