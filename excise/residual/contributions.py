"""What each writer adds along a direction. The stream obeys h' = λ (h + Σ mᵢ cᵢ): cᵢ is what writer i adds after its
norms, mᵢ multiplies it (granite's residual multiplier, a shared expert's gate), and λ is a layer's scalar (Gemma 4).
Values are read at one token of each prompt and projected at once, so memory is prompts × writers."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from excise.checkpoint.base_model import BaseModel
from excise.edit.planning.layout import resolve_layer, sort_by_layer
from excise.edit.planning.plan import Edit
from excise.inference.forward import Batch, in_batches, on_input, on_output, run_decoder, watch_stream
from excise.inference.loading.models import decoder_layers
from excise.plumbing.errors import StageError
from excise.residual.experts import held_experts
from schemas.model import Layout, Writer, WriterRole

_UNACCOUNTED = 0.1
"""Of the stream along the direction; wide enough for 16-bit numbers."""
Source = tuple[int, WriterRole]
"""A layer and the role of a writer in it."""
Key = tuple[int, WriterRole, str]
"""The same with the writer's name, because a layer may have two of one role."""


@dataclass(frozen=True)
class Component:
    """One writer of one layer, and what its output passes through on its way to the stream."""

    layer: int
    writer: Writer
    module: nn.Module
    norms: dict[nn.Module, float]
    """In their order, each with what is added to its weight."""
    gate: nn.Module | None
    block: nn.Module
    """The module that holds the gate and reads the same input; without a gate, the layer."""
    multiplier: float

    @property
    def source(self) -> Source:
        return self.layer, self.writer.role

    @property
    def key(self) -> Key:
        return (*self.source, self.writer.weight)

    @property
    def last(self) -> nn.Module:
        """The module whose output is added to the stream."""
        return [self.module, *self.norms][-1]


class Write(NamedTuple):
    """What one component adds along a direction at the measured token; float64 on the CPU."""

    projected: Tensor
    """``[prompts]``."""
    covered: Tensor
    """The part of it that comes from edited tensors."""
    removed: Tensor
    """The part of it that the plan would remove if all inputs stayed the same."""
    experts: Tensor
    """The part of each routed expert, ``[prompts, experts]``, 0 if it is not chosen; other writers have 0 experts."""
    weights: Tensor
    """The router's weight of each expert, like `experts`; NaN if weights multiply the experts' inputs."""

    def of_expert(self, expert: int | None) -> Tensor:
        """What one of its experts adds, or for None the whole component, ``[prompts]``."""
        return self.projected if expert is None else self.experts[:, expert]


OnWrite = Callable[[Component, Write], Tensor | None]
"""Called with each write; may return what to add to it along the direction, ``[prompts]``."""


def components(model: PreTrainedModel, base: BaseModel) -> list[Component]:
    """Every writer of every layer, in the order of layers."""
    layout, names = base.layout, sort_by_layer(base.layout, base.tensors)
    listed = []
    for number, layer in enumerate(decoder_layers(model)):
        places = resolve_layer(layout, number, names[number], base.tensors)
        # A bias adds the same to every prompt.
        weights = [place.part for place in places if not place.is_bias]
        modules = {part.weight: part.in_memory for part in weights}
        for writer in dict.fromkeys(part for part in weights if isinstance(part, Writer)):
            norms = [
                (layer.get_submodule(norm.in_memory), norm.offset)
                for norm in writer.norms
                if norm.in_memory is not None
            ]
            gate = modules[writer.gate] if writer.gate is not None else None
            listed.append(
                Component(
                    layer=number,
                    writer=writer,
                    module=layer.get_submodule(writer.in_memory),
                    norms=dict(norms),
                    gate=layer.get_submodule(gate) if gate is not None else None,
                    block=layer.get_submodule(gate.rpartition(".")[0]) if gate is not None else layer,
                    multiplier=layout.residual_multiplier * writer.multiplier_in(number),
                )
            )
    return listed


@dataclass
class Trace:
    """The stream and the writes to it, projected onto a direction, recorded while prompts pass through a model."""

    model: PreTrainedModel
    layout: Layout
    watched: Sequence[Component]
    direction: Tensor
    """``[hidden]``, a unit vector."""
    prompts: Sequence[Sequence[int]]
    edits: Sequence[Edit] = ()
    """The edits that `Write.covered` and `Write.removed` refer to."""

    def __post_init__(self) -> None:
        self._edits: dict[Key, list[Edit]] = {}
        for edit in self.edits:
            # A bias goes with its weight.
            if edit.place is not None and isinstance(edit.place.part, Writer) and not edit.place.is_bias:
                key = (edit.place.layer, edit.place.part.role, edit.place.part.weight)
                self._edits.setdefault(key, []).append(edit)
        self._layers = list(decoder_layers(self.model))
        self.stream = torch.zeros(len(self.prompts), len(self._layers) + 1, dtype=torch.float64)
        """``[prompts, layers + 1]``: entering each layer, and leaving the last."""
        self.parts: dict[Key, Write] = {}
        self.scales = list(self.layout.layer_factors) or [1.0 for _ in self._layers]
        """λ of each layer; those that are stored are known when prompts have passed."""

    @property
    def writes(self) -> dict[Source, Write]:
        """What all writers of one role in a layer add together."""
        sums: dict[Source, Write] = {}
        for (layer, role, _), write in self.parts.items():
            before = sums.get((layer, role))
            sums[layer, role] = write if before is None else Write(*(a + b for a, b in zip(before, write, strict=True)))
        return sums

    def reach(self, layer: int) -> float:
        """The factor on a write in a layer when it arrives at the last measurement."""
        return math.prod(self.scales[layer:])

    def unaccounted(self) -> Tensor:
        """The largest share of the stream behind each layer, ``[layers]``, that the layer adds and none of its writers
        does, less what it adds to every prompt alike, as biases of no weight are not watched; 0 but for rounding if
        every writer is watched."""
        expected = self.stream[:, :-1].clone()
        for (layer, _, _), write in self.parts.items():
            expected[:, layer] += write.projected
        left = self.stream[:, 1:] - expected * torch.tensor(self.scales, dtype=torch.float64)
        return (left - left.mean(dim=0)).abs().amax(dim=0) / self.stream.abs().amax(dim=0)[1:]

    def check(self) -> Self:
        """Raises `StageError`: a layer adds much that none of its writers adds, so the layout is wrong."""
        shares = self.unaccounted()
        layer, share = int(shares.argmax()), float(shares.max())
        if share > _UNACCOUNTED:
            raise StageError(
                f"layer {layer} adds to the stream what none of its known writers adds ({share:.0%} of it), "
                f"so the layout of {', '.join(self.layout.model_types)} is wrong; correct it in schemas/architectures/"
            )
        return self

    @torch.inference_mode()
    def run(self) -> Self:
        """Trace the prompts in a separate pass."""

        def compute(batch: Batch) -> None:
            with ExitStack() as undo:
                self.watch(batch, undo)
                run_decoder(self.model, batch)

        in_batches(self.prompts, "auto", lambda _: None, compute)
        return self

    def watch(self, batch: Batch, undo: ExitStack) -> None:
        """Set hooks for one forward pass of a batch, until `undo` is closed."""

        def keep(measurement: int, stream: Tensor) -> None:
            direction = self.direction.to(stream.device)
            self.stream[batch.rows, measurement] = (batch.at_end(stream).double() @ direction).cpu()

        def keep_write(component: Component, write: Write) -> None:
            if component.key not in self.parts:
                empty = (values.new_zeros(len(self.prompts), *values.shape[1:]) for values in write)
                self.parts[component.key] = Write(*empty)
            for values, of_batch in zip(self.parts[component.key], write, strict=True):
                values[batch.rows] = of_batch

        if self.layout.layer_scalar is not None:
            for number, layer in enumerate(self._layers):
                scalar = attrgetter(self.layout.layer_scalar)(layer)
                if not scalar.is_meta:
                    self.scales[number] = float(scalar.detach())
        watch_stream(self.model, keep, undo)
        watch_writes(self.watched, self.direction, self._edits, batch, keep_write, undo)


def watch_writes(
    watched: Sequence[Component],
    direction: Tensor,
    edits: Mapping[Key, Sequence[Edit]],
    batch: Batch,
    on_write: OnWrite,
    undo: ExitStack,
) -> None:
    """Call `on_write` for each write in a forward pass of a batch until `undo` is closed, and add what it returns."""
    shrinks: dict[nn.Module, Tensor] = {}
    # Read now, as weights may be in memory for a while only.
    gains = {
        norm: norm.get_parameter("weight").detach().double() + offset
        for component in watched
        for norm, offset in component.norms.items()
    }

    def keep_shrink(norm: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        scaled = batch.at_end(args[0]).double() * gains[norm].to(output.device)
        # One over the root mean square, as the norm itself computed it.
        shrinks[norm] = (batch.at_end(output).double() * scaled).sum(-1) / scaled.square().sum(-1)

    for norm in gains:
        undo.callback(norm.register_forward_hook(keep_shrink).remove)
    for component in watched:
        own = {norm: gains[norm] for norm in component.norms}
        _WatchedComponent(component, direction, edits.get(component.key, ()), batch, own, shrinks, on_write).hook(undo)


@dataclass
class _WatchedComponent:
    """One component in a forward pass of a batch: its block is entered, its module returns, then each of its norms."""

    component: Component
    direction: Tensor
    edits: Sequence[Edit]
    batch: Batch
    gains: Mapping[nn.Module, Tensor]  # of its norms, ``[hidden]`` float64
    shrinks: Mapping[nn.Module, Tensor]  # one over what each norm divides by, ``[prompts]``; set when the norm returns
    on_write: OnWrite
    gate: Tensor | None = None  # ``[prompts]``; set when the block is entered, if it has a gate
    # Set when the module returns: the output of each chosen expert, or one in all, ``[prompts, chosen, hidden]``; and
    # the indices and weights of these experts, ``[prompts, chosen]``, or ``[prompts, 0]`` if there are none.
    written: tuple[Tensor, Tensor, Tensor] | None = None

    def hook(self, undo: ExitStack) -> None:
        if self.component.gate is not None:
            on_input(self.component.block, self._keep_gate, undo)
        undo.callback(self.component.module.register_forward_hook(self._keep_output).remove)
        on_output(self.component.last, self._report, undo)

    def _keep_gate(self, block_input: Tensor) -> None:
        assert self.component.gate is not None
        self.gate = torch.sigmoid(self.component.gate(self.batch.at_end(block_input))).double()[:, 0]

    def _keep_output(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        if self.component.writer.role != "routed_experts":
            written = self.batch.at_end(output)[:, None]
            index = torch.empty(len(written), 0, dtype=torch.long)
            weights = index.double()
        elif self.component.writer.routed == "input":
            written = self.batch.each_at_end(output).transpose(0, 1)
            index = torch.arange(written.shape[1]).expand(len(written), -1)
            weights = torch.full(index.shape, math.nan, dtype=torch.float64)
        else:
            tokens, index, weights = (self.batch.at_end(argument) for argument in args[:3])
            repeated = tokens.repeat_interleave(index.shape[1], 0)
            # `forward`, because a call would run this module's hooks again.
            single = module.forward(repeated, index.reshape(-1, 1), weights.reshape(-1, 1))
            written, index, weights = single.view(*index.shape, -1), index.cpu(), weights.double().cpu()
        self.written = written, index, weights

    def _report(self, output: Tensor) -> Tensor | None:
        factor = torch.full_like(self.batch.ends, self.component.multiplier, dtype=torch.float64, device=output.device)
        factor = factor if self.gate is None else factor * self.gate
        change = self.on_write(self.component, self._write(factor))
        if change is None:
            return None
        changed = output.clone()
        tokens = changed.view(-1, *self.batch.ids.shape, output.shape[-1])
        # An output that is multiplied by 0 cannot be changed.
        needed = torch.where(factor != 0, change.to(output.device) / factor, 0.0)
        along = needed[:, None] * self.direction.to(output.device)
        # Outputs of single experts are summed afterwards, so it is enough to change the first.
        tokens[0, torch.arange(len(self.batch.rows)), self.batch.ends] += along.to(output.dtype)
        return changed

    def _write(self, factor: Tensor) -> Write:
        """The write; `factor` ``[prompts]`` multiplies the output of the norms."""
        assert self.written is not None
        written, index, weights = self.written
        gain = torch.ones_like(self.direction)
        for norm, norm_gain in self.gains.items():
            gain, factor = gain * norm_gain.cpu(), factor * self.shrinks[norm]
        exact = written.double() * (factor * self.component.writer.before_norms)[:, None, None]
        projected = (exact @ (gain * self.direction).to(exact.device)).cpu()
        covered, removed = torch.zeros_like(projected), torch.zeros_like(projected)
        for edit in self.edits:
            edited = 1.0 if edit.of_experts is None else torch.isin(index, torch.tensor(edit.of_experts)).double()
            along = edit.projector.left.T @ (gain * self.direction)
            covered += edited * projected
            removed += edit.scale * edited * ((exact @ edit.projector.right.to(exact.device)).cpu() @ along)
        experts = held_experts(self.component.module) if self.component.writer.role == "routed_experts" else 0
        empty = projected.new_zeros(len(projected), experts)
        of_experts = (empty.scatter_add(1, index, values) for values in (projected, weights))
        return Write(projected.sum(1), covered.sum(1), removed.sum(1), *of_experts)
