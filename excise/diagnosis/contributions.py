"""What each writer adds along a direction. The stream obeys h' = λ (h + Σ mᵢ cᵢ): cᵢ is what writer i adds after its
norms, mᵢ multiplies it (granite's residual multiplier, a shared expert's gate), and λ is a layer's scalar (Gemma 4).

Values are read at one token of each prompt and projected at once, so memory is prompts × writers.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from excise.checkpoint.base_model import BaseModel
from excise.edit.planning.layout import resolve_layer, sort_by_layer
from excise.edit.planning.plan import Edit
from excise.inference.forward import Batch, in_batches, on_input, on_output, run_decoder, watch_stream
from excise.inference.loading.models import decoder_layers
from excise.residual.experts import held_experts
from schemas.model import Layout, Writer, WriterRole

Source = tuple[int, WriterRole]
"""A layer and the role of a writer in it."""


@dataclass(frozen=True)
class Component:
    """One writer of one layer, and what its output passes through on its way to the stream."""

    layer: int
    writer: Writer
    module: nn.Module
    norms: dict[nn.Module, Tensor]
    """In their order, each with its gain, ``[hidden]`` float64."""
    gate: nn.Module | None
    block: nn.Module
    """The module that holds the gate and reads the same input; without a gate, the layer."""
    multiplier: float

    @property
    def source(self) -> Source:
        return self.layer, self.writer.role

    @property
    def last(self) -> nn.Module:
        """The module whose output is added to the stream."""
        return [self.module, *self.norms][-1]


@dataclass(frozen=True)
class Write:
    """What one component adds along a direction at the measured token; ``[prompts]`` float64 on the CPU."""

    projected: Tensor
    covered: Tensor
    """The part of it that comes from edited tensors."""
    removed: Tensor
    """The part of it that the plan would remove if all inputs stayed the same."""
    experts: "ExpertWrites | None" = None

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors, each ``[prompts, ...]``."""
        of_experts = [] if self.experts is None else [self.experts.projected, self.experts.weights]
        return [self.projected, self.covered, self.removed, *of_experts]

    def empty(self, prompts: int) -> "Write":
        """Zeros of the same form for another number of prompts."""
        projected, covered, removed, *of_experts = (each.new_zeros(prompts, *each.shape[1:]) for each in self.tensors)
        return Write(projected, covered, removed, ExpertWrites(*of_experts) if of_experts else None)

    def of_expert(self, expert: int | None) -> Tensor:
        """What one of its experts adds, or for None the whole component, ``[prompts]``."""
        if expert is None:
            return self.projected
        assert self.experts is not None
        return self.experts.projected[:, expert]


@dataclass(frozen=True)
class ExpertWrites:
    """The same for each routed expert, ``[prompts, experts]`` float64, 0 if it is not chosen."""

    projected: Tensor
    weights: Tensor
    """Its weight from the router; NaN if weights multiply the experts' inputs."""


OnWrite = Callable[[Component, Write], Tensor | None]
"""Called with each write; may return what to add to it along the direction, ``[prompts]``."""


@dataclass
class Trace:
    """The stream and all writes to it, projected onto one direction, for all prompts."""

    stream: Tensor
    """``[prompts, layers + 1]``: entering each layer, and leaving the last."""
    writes: dict[Source, Write]
    scales: list[float]
    """λ of each layer."""

    def reach(self, layer: int) -> float:
        """The factor on a write in a layer when it arrives at the last measurement."""
        return math.prod(self.scales[layer:])


def components(model: PreTrainedModel, base: BaseModel) -> list[Component]:
    """Every writer of every layer, in the order of layers."""
    layout, names = base.layout, sort_by_layer(base.layout, base.tensors)
    listed = []
    for number, layer in enumerate(decoder_layers(model)):
        places = resolve_layer(layout, number, names[number], base.tensors)
        for writer in dict.fromkeys(place.part for place in places if isinstance(place.part, Writer)):
            norms = [(layer.get_submodule(norm.weight.removesuffix(".weight")), norm.offset) for norm in writer.norms]
            gate = writer.gate.removesuffix(".weight") if writer.gate is not None else None
            listed.append(
                Component(
                    layer=number,
                    writer=writer,
                    module=layer.get_submodule(writer.in_memory),
                    norms={norm: norm.get_parameter("weight").detach().double() + offset for norm, offset in norms},
                    gate=layer.get_submodule(gate) if gate is not None else None,
                    block=layer.get_submodule(gate.rpartition(".")[0]) if gate is not None else layer,
                    multiplier=layout.residual_multiplier,
                )
            )
    return listed


@dataclass
class Tracer:
    """Records the stream and the writes to it, along a direction, while prompts pass through a model."""

    model: PreTrainedModel
    layout: Layout
    watched: Sequence[Component]
    """The components whose writes are recorded."""
    direction: Tensor
    """``[hidden]``, a unit vector."""
    prompts: Sequence[Sequence[int]]
    """The tokens of each."""
    edits: Sequence[Edit] = ()
    """The edits that `Write.covered` and `Write.removed` refer to."""

    def __post_init__(self) -> None:
        self._edits: dict[Source, list[Edit]] = {}
        for edit in self.edits:
            # A bias goes with its weight.
            if edit.place is not None and isinstance(edit.place.part, Writer) and not edit.place.is_bias:
                self._edits.setdefault((edit.place.layer, edit.place.part.role), []).append(edit)
        self._stream = torch.zeros(len(self.prompts), len(decoder_layers(self.model)) + 1, dtype=torch.float64)
        self._writes: dict[Source, Write] = {}

    @torch.inference_mode()
    def run(self) -> Trace:
        """Trace the prompts in a separate pass."""

        def compute(batch: Batch) -> None:
            with ExitStack() as undo:
                self.watch(batch, undo)
                run_decoder(self.model, batch)

        in_batches(self.prompts, "auto", lambda _: None, compute)
        return self.trace()

    def watch(self, batch: Batch, undo: ExitStack) -> None:
        """Set hooks for one forward pass of a batch, until `undo` is closed."""

        def keep(measurement: int, stream: Tensor) -> None:
            self._stream[batch.rows, measurement] = _project(batch.at_end(stream).double(), self.direction).cpu()

        def keep_write(component: Component, write: Write) -> None:
            if component.source not in self._writes:
                self._writes[component.source] = write.empty(len(self._stream))
            for values, of_batch in zip(self._writes[component.source].tensors, write.tensors, strict=True):
                values[batch.rows] = of_batch

        watch_stream(self.model, keep, undo)
        watch_writes(self.watched, self.direction, self._edits, batch, keep_write, undo)

    def trace(self) -> Trace:
        """The record, once all prompts have passed."""
        scalar = self.layout.layer_scalar
        scales = [1.0 if scalar is None else float(getattr(layer, scalar)) for layer in decoder_layers(self.model)]
        return Trace(self._stream, self._writes, scales)


def watch_writes(
    watched: Sequence[Component],
    direction: Tensor,
    edits: Mapping[Source, Sequence[Edit]],
    batch: Batch,
    on_write: OnWrite,
    undo: ExitStack,
) -> None:
    """Call `on_write` for each write in a forward pass of a batch until `undo` is closed, and add what it returns."""
    shrinks: dict[nn.Module, Tensor] = {}
    gains = {norm: gain for component in watched for norm, gain in component.norms.items()}

    def keep_shrink(norm: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        scaled = batch.at_end(args[0]).double() * gains[norm].to(output.device)
        # One over the root mean square, as the norm itself computed it.
        shrinks[norm] = (batch.at_end(output).double() * scaled).sum(-1) / scaled.square().sum(-1)

    for norm in gains:
        undo.callback(norm.register_forward_hook(keep_shrink).remove)
    for component in watched:
        _WatchedComponent(component, direction, edits.get(component.source, ()), batch, shrinks, on_write).hook(undo)


@dataclass
class _WatchedComponent:
    """One component in one forward pass of a batch: its block is entered, then its module returns, then each of its
    norms. Their values are kept here until the last one returns and the write is known."""

    component: Component
    direction: Tensor
    edits: Sequence[Edit]
    batch: Batch
    shrinks: Mapping[nn.Module, Tensor]
    """One over what each norm divides by, ``[prompts]``; set when the norm returns."""
    on_write: OnWrite
    gate: Tensor | None = None
    """``[prompts]``; set when the block is entered, if it has a gate."""
    written: Tensor | None = None
    """``[prompts, chosen, hidden]``, one entry for each chosen expert, or one in all; set when the module returns."""
    index: Tensor | None = None
    """``[prompts, chosen]``: indices of routed experts, whose weights from the router are `weights`."""
    weights: Tensor | None = None

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
            self.written = self.batch.at_end(output)[:, None]
        elif self.component.writer.routed == "input":
            self.written = self.batch.each_at_end(output).transpose(0, 1)
            self.index = torch.arange(self.written.shape[1]).expand(len(self.written), -1)
            self.weights = torch.full(self.index.shape, math.nan, dtype=torch.float64)
        else:
            tokens, index, weights = (self.batch.at_end(argument) for argument in args[:3])
            repeated = tokens.repeat_interleave(index.shape[1], 0)
            # `forward`, because a call would run this module's hooks again.
            single = module.forward(repeated, index.reshape(-1, 1), weights.reshape(-1, 1))
            self.written = single.view(*index.shape, -1)
            self.index, self.weights = index.cpu(), weights.double().cpu()

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
        gain = torch.ones_like(self.direction)
        for norm, norm_gain in self.component.norms.items():
            gain, factor = gain * norm_gain.cpu(), factor * self.shrinks[norm]
        exact = self.written.double() * factor[:, None, None]
        projected = _project(exact, gain * self.direction).cpu()
        covered, removed = torch.zeros_like(projected), torch.zeros_like(projected)
        for edit in self.edits:
            edited = torch.ones_like(projected)
            if self.index is not None and edit.of_experts is not None:
                edited = torch.isin(self.index, torch.tensor(edit.of_experts)).double()
            along = edit.projector.left.T @ (gain * self.direction)
            covered += edited * projected
            removed += edit.scale * edited * (_project(exact, edit.projector.right).cpu() @ along)
        of_experts = None
        if self.index is not None and self.weights is not None:
            empty, index = projected.new_zeros(len(projected), held_experts(self.component.module)), self.index
            of_experts = ExpertWrites(*(empty.scatter_add(1, index, values) for values in (projected, self.weights)))
        return Write(projected.sum(1), covered.sum(1), removed.sum(1), of_experts)


def _project(vectors: Tensor, direction: Tensor) -> Tensor:
    return vectors @ direction.to(vectors.device)
