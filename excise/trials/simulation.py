"""The same plan on a loaded model: an edit tried in one forward pass, before any byte is written.

A writer's output y becomes y - s l (r · y), a reader's input x becomes x - s r (l · x): what the edited weights would
give, to rounding. What is not linear in a module's output (old column norms) or is no whole module (single experts) is
done to the parameter itself, which is put back afterwards; so is what is added to a router's bias.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from excise.edit.plan import Edit
from excise.edit.projection import Pair, project
from excise.edit.shifts import Shift, add
from excise.inference.models import decoder_layers
from schemas.layout import Writer

Planned = tuple[Edit, Pair]


@contextlib.contextmanager
def simulated(
    model: PreTrainedModel,
    plan: Sequence[Edit],
    pairs: Sequence[Pair],
    keep_column_norms: bool = False,
    shifts: Sequence[Shift] = (),
) -> Iterator[None]:
    """Within the block, the model behaves as if the plan had been written to its weights.

    Args:
        pairs: what is taken out by each edit, in the order of the plan.
        keep_column_norms: the method `preserve_column_norms`.
        shifts: what is added to biases of routers.
    """
    modules: dict[tuple[int, str, bool], list[Planned]] = {}
    embedded = False
    with contextlib.ExitStack() as undo:
        for edit, pair in zip(plan, pairs, strict=True):
            if edit.place is None:
                # A tied embedding may be planned twice, as two tensors of the file.
                if not embedded:
                    _edit_embedding(model, pair, edit.scale, undo)
                embedded = True
            else:
                part = edit.place.part
                key = (edit.place.layer, part.in_memory, isinstance(part, Writer))
                modules.setdefault(key, []).append((edit, pair))
        layers = decoder_layers(model)
        for (layer, name, writes), planned in modules.items():
            module = layers[layer].get_submodule(name)
            if _is_whole(module, planned) and not (keep_column_norms and writes):
                edit, pair = planned[0]
                _hook(module, writes, pair, edit.scale, undo)
            else:
                _replace(module, writes, planned, keep_column_norms, undo)
        for shift in shifts:
            _shift(layers[shift.layer], shift, undo)
        yield


def _is_whole(module: nn.Module, planned: list[Planned]) -> bool:
    """Whether everything that the module holds on this side is edited alike."""
    if len({(edit.scale, id(pair)) for edit, pair in planned}) > 1:
        return False
    experts = _experts_of(module)
    return experts is None or len(_numbers(planned, experts)) == experts


def _experts_of(module: nn.Module) -> int | None:
    fused = getattr(module, "down_proj", None)
    return fused.shape[0] if isinstance(fused, Tensor) else None


def _numbers(planned: list[Planned], experts: int) -> set[int]:
    return {number for edit, _ in planned for number in _numbers_of(edit, experts)}


def _numbers_of(edit: Edit, experts: int) -> Sequence[int]:
    if edit.experts is not None:
        return edit.experts
    expert = edit.place.expert if edit.place is not None else None
    return range(experts) if expert is None else (expert,)


def _hook(module: nn.Module, writes: bool, pair: Pair, scale: float, undo: contextlib.ExitStack) -> None:
    if writes:

        def after(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
            return _without(output, pair.left, pair.right, scale)

        undo.callback(module.register_forward_hook(after).remove)
        return

    def before(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (_without(args[0], pair.right, pair.left, scale), *args[1:])

    undo.callback(module.register_forward_pre_hook(before).remove)


def _without(stream: Tensor, taken: Tensor, measured: Tensor, scale: float) -> Tensor:
    """``[..., hidden]``: minus `scale` times `taken`, as often as `measured` finds it; in float64, as the edit is."""
    exact = stream.double()
    found = exact @ measured.to(exact.device)
    return (exact - scale * found[..., None] * taken.to(exact.device)).to(stream.dtype)


def _replace(
    module: nn.Module, writes: bool, planned: list[Planned], keep_column_norms: bool, undo: contextlib.ExitStack
) -> None:
    """Edit the module's parameters, experts one by one, and put them back at the end."""
    experts = _experts_of(module)
    done: set[tuple[str, int | None]] = set()
    for edit, pair in planned:
        assert edit.place is not None
        part, is_bias = edit.place.part, edit.place.is_bias
        if experts is None:
            targets: list[tuple[str, int | None]] = [("bias" if is_bias else "weight", None)]
        else:
            name = "down_proj" if writes else "gate_up_proj"
            targets = [(name + "_bias" * is_bias, number) for number in _numbers_of(edit, experts)]
        # Gate and up projections are two tensors in the file and may be one parameter in memory.
        for name, number in (target for target in targets if target not in done):
            done.add((name, number))
            whole = getattr(module, name).data
            parameter = whole if number is None else whole[number]
            undo.callback(parameter.copy_, parameter.clone())
            axis = 0 if writes == part.axes.endswith("out in") else 1
            keep = keep_column_norms and edit.has_columns
            here = Pair(pair.left.to(parameter.device), pair.right.to(parameter.device))
            project(parameter, here, edit.scale, axis, keep, out=parameter)


def _shift(layer: nn.Module, shift: Shift, undo: contextlib.ExitStack) -> None:
    owner, _, name = shift.bias.in_memory.rpartition(".")
    bias = getattr(layer.get_submodule(owner), name).data
    undo.callback(bias.copy_, bias.clone())
    add(bias, shift.added)


def _edit_embedding(model: PreTrainedModel, pair: Pair, scale: float, undo: contextlib.ExitStack) -> None:
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert embedding is not None
    _hook(embedding, True, pair, scale, undo)
    if head is not None and head.weight is embedding.weight:
        _hook(head, False, pair, scale, undo)
