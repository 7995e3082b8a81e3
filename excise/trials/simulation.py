"""A plan as hooks on a loaded model, so that an edit is tried in one forward pass, before any byte is written.
A writer's output y becomes y − s left (rightᵀ y), a reader's input x becomes x − s right (leftᵀ x), which equals the
edited weights up to rounding. Edits that are not linear in a module's output (old column norms) or do not cover it
(single experts) change the parameter itself, as do shifts of a router's bias; it is restored afterwards."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn
from transformers import PreTrainedModel

from excise.edit.planning.plan import Edit
from excise.edit.planning.projection import project
from excise.edit.planning.projectors import Projector
from excise.edit.planning.shifts import Shift, add
from excise.inference.forward import on_input, on_output
from excise.inference.loading.models import decoder_layers


@dataclass(frozen=True)
class Group:
    """Edits of what one module of a layer writes, or of what it reads."""

    layer: int
    module: nn.Module
    writes: bool
    edits: list[Edit]

    @property
    def is_whole(self) -> bool:
        """Whether one hook has the same effect: all that the module holds is edited alike, by a linear edit."""
        if len({(edit.scale, edit.projector) for edit in self.edits}) > 1:
            return False
        if any(edit.keep_column_norms for edit in self.edits):
            return False
        experts = _experts_of(self.module)
        return experts is None or {each for edit in self.edits for each in edit.of_experts or experts} == {*experts}


def grouped(model: PreTrainedModel, edits: Sequence[Edit]) -> list[Group]:
    """Edits of layers by module, but for biases of no weight, which no module writes."""
    layers, groups = decoder_layers(model), dict[tuple[nn.Module, bool], Group]()
    for edit in edits:
        if edit.place is not None and not edit.place.is_alone:
            module = layers[edit.place.layer].get_submodule(edit.place.part.in_memory)
            group = Group(edit.place.layer, module, edit.place.writes, [])
            groups.setdefault((module, edit.place.writes), group).edits.append(edit)
    return list(groups.values())


@contextmanager
def simulated(model: PreTrainedModel, edits: Sequence[Edit], shifts: Sequence[Shift] = ()) -> Iterator[None]:
    """Within the block, the model behaves as if the edits and shifts were written to its weights."""
    layers = decoder_layers(model)
    with ExitStack() as undo:
        for edit in edits:
            if edit.place is not None and edit.place.is_alone:
                _project(layers[edit.place.layer].get_parameter(edit.place.part.in_memory), edit, undo)
        embeddings = [(edit, edit.embedding.parameter) for edit in edits if edit.embedding is not None]
        # A tied embedding may be planned twice, as two tensors of the file.
        for edit in [edit for edit, parameter in embeddings if parameter is None][:1]:
            embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
            assert embedding is not None
            if next(embedding.children(), None) is not None:  # what it returns is not what it looked up
                _project(embedding.get_parameter("weight"), edit, undo)
                continue
            _hook(embedding, True, edit.projector, edit.scale, undo)
            if head is not None and head.weight is embedding.weight:
                _hook(head, False, edit.projector, edit.scale, undo)
        for edit, parameter in embeddings:
            if parameter is not None:
                _project(model.get_parameter(parameter), edit, undo)
        for group in grouped(model, edits):
            if group.is_whole:
                _hook(group.module, group.writes, group.edits[0].projector, group.edits[0].scale, undo)
            else:
                _replace(group.module, group.writes, group.edits, undo)
        for shift in shifts:
            owner, _, name = shift.bias.in_memory.rpartition(".")
            bias = getattr(layers[shift.layer].get_submodule(owner), name).data
            undo.callback(bias.copy_, bias.clone())
            add(bias, shift.added)
        yield


def _project(parameter: nn.Parameter, edit: Edit, undo: ExitStack) -> None:
    """Edit a parameter in place, and restore it when `undo` is closed."""
    value = parameter.data
    undo.callback(value.copy_, value.clone())
    project(value, edit.projector.to(value.device), edit.scale, edit.stream_axis, out=value)


def _experts_of(module: nn.Module) -> range | None:
    """Indices of the experts that a module holds in one parameter; None for other modules."""
    fused = getattr(module, "down_proj", None)
    return range(fused.shape[0]) if isinstance(fused, Tensor) else None


def _hook(module: nn.Module, writes: bool, projector: Projector, scale: float, undo: ExitStack) -> None:
    if writes:
        on_output(module, partial(projector.remove, scale=scale), undo)
    else:
        on_input(module, partial(projector.transposed.remove, scale=scale), undo)


def _replace(module: nn.Module, writes: bool, planned: Sequence[Edit], undo: ExitStack) -> None:
    experts = _experts_of(module)
    fused = "down_proj" if writes else "gate_up_proj"
    names = ("weight", "bias") if experts is None else (fused, f"{fused}_bias")
    done: set[tuple[str, int | None]] = set()
    for edit in planned:
        name = names[edit.place is not None and edit.place.is_bias]
        numbers: Sequence[int | None] = [None] if experts is None else edit.of_experts or experts
        # Gate and up projections, two tensors in the file, may be one parameter in memory.
        for number in (number for number in numbers if (name, number) not in done):
            done.add((name, number))
            whole = getattr(module, name).data
            parameter = whole if number is None else whole[number]
            undo.callback(parameter.copy_, parameter.clone())
            projector = edit.projector.to(parameter.device)
            project(parameter, projector, edit.scale, edit.stream_axis, edit.keep_column_norms, out=parameter)
