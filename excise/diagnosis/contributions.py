"""Who writes a direction. The stream obeys h' = λ (h + Σ mᵢ cᵢ): cᵢ is what writer i adds after its norms, mᵢ what
multiplies it (granite's residual multiplier, a shared expert's gate), λ a layer's scalar, which Gemma 4 has.

Everything is taken at one token of each prompt and projected at once, so that memory is prompts × writers.
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
"""A layer and what writes there."""


@dataclass(frozen=True)
class Component:
    """One writer of one layer, and what its output passes on its way to the stream."""

    layer: int
    writer: Writer
    module: nn.Module
    norms: dict[nn.Module, Tensor]
    """In their order, each with what it multiplies by, ``[hidden]`` float64."""
    gate: nn.Module | None
    block: nn.Module
    """What holds the gate, and is given what the gate reads; the layer where there is none."""
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
    """What one component adds along a direction at the token that is asked about; ``[prompts]`` float64 on the CPU."""

    projected: Tensor
    covered: Tensor
    """Of that, what comes from what the plan edits."""
    removed: Tensor
    """What the plan would take out of it if all inputs stayed the same."""
    experts: "ExpertWrites | None" = None

    @property
    def tensors(self) -> list[Tensor]:
        """All of it, each ``[prompts, ...]``."""
        of_experts = [] if self.experts is None else [self.experts.projected, self.experts.weights]
        return [self.projected, self.covered, self.removed, *of_experts]

    def empty(self, prompts: int) -> "Write":
        """One of the same form for so many prompts, filled with zeros."""
        projected, covered, removed, *of_experts = (each.new_zeros(prompts, *each.shape[1:]) for each in self.tensors)
        return Write(projected, covered, removed, ExpertWrites(*of_experts) if of_experts else None)

    def of_expert(self, expert: int | None) -> Tensor:
        """What one of its experts adds, or all of it for None, ``[prompts]``."""
        if expert is None:
            return self.projected
        assert self.experts is not None
        return self.experts.projected[:, expert]


@dataclass(frozen=True)
class ExpertWrites:
    """The same of each routed expert, ``[prompts, experts]`` float64, zeros where it is not chosen."""

    projected: Tensor
    weights: Tensor
    """What the router gave it; NaN where that multiplies what it reads."""


OnWrite = Callable[[Component, Write], Tensor | None]
"""Told of each write; may answer what shall be added to it along the direction, ``[prompts]``."""


@dataclass
class Trace:
    """The stream and every write to it, projected on one direction, for all prompts."""

    stream: Tensor
    """``[prompts, layers + 1]``: entering each layer, and leaving the last."""
    writes: dict[Source, Write]
    scales: list[float]
    """λ of each layer."""

    def reach(self, layer: int) -> float:
        """What a write in a layer is multiplied by on its way to the last measurement."""
        return math.prod(self.scales[layer:])


def components(model: PreTrainedModel, base: BaseModel) -> list[Component]:
    """Every writer of every layer, in the order of layers."""
    layout, names = base.layout, sort_by_layer(base.layout, base.tensors)
    found = []
    for number, layer in enumerate(decoder_layers(model)):
        places = resolve_layer(layout, number, names[number], base.tensors)
        for writer in dict.fromkeys(place.part for place in places if isinstance(place.part, Writer)):
            norms = [(layer.get_submodule(norm.weight.removesuffix(".weight")), norm.offset) for norm in writer.norms]
            gate = writer.gate.removesuffix(".weight") if writer.gate is not None else None
            found.append(
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
    return found


@dataclass
class Tracer:
    """Follows the stream along a direction, and what is written to it, while prompts pass through a model."""

    model: PreTrainedModel
    layout: Layout
    watched: Sequence[Component]
    """Whose writes are followed."""
    direction: Tensor
    """``[hidden]``, a unit vector."""
    prompts: Sequence[Sequence[int]]
    """The tokens of each."""
    edits: Sequence[Edit] = ()
    """Of which `Write.covered` and `Write.removed` are told."""

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
        """Trace the prompts in a pass of their own."""

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

        def note(component: Component, write: Write) -> None:
            if component.source not in self._writes:
                self._writes[component.source] = write.empty(len(self._stream))
            for values, of_batch in zip(self._writes[component.source].tensors, write.tensors, strict=True):
                values[batch.rows] = of_batch

        watch_stream(self.model, keep, undo)
        watch_writes(self.watched, self.direction, self._edits, batch, note, undo)

    def trace(self) -> Trace:
        """What was seen, once all prompts have passed."""
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
    """Tell `on_write` of each write in a forward pass of a batch until `undo` is closed, and change it as that says."""
    shrinks: dict[nn.Module, Tensor] = {}
    gains = {norm: gain for component in watched for norm, gain in component.norms.items()}

    def normed(norm: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        scaled = batch.at_end(args[0]).double() * gains[norm].to(output.device)
        # One over the root mean square, as the norm itself took it.
        shrinks[norm] = (batch.at_end(output).double() * scaled).sum(-1) / scaled.square().sum(-1)

    for norm in gains:
        undo.callback(norm.register_forward_hook(normed).remove)
    for component in watched:
        _Watched(component, direction, edits.get(component.source, ()), batch, shrinks, on_write).hook(undo)


@dataclass
class _Watched:
    """One component in one forward pass of a batch. Its block is entered, then its module returns, then its norms do,
    one after another. What each shows is kept here; when the last of them returns, the write is known."""

    component: Component
    direction: Tensor
    edits: Sequence[Edit]
    batch: Batch
    shrinks: Mapping[nn.Module, Tensor]
    """One over what each norm divides by, ``[prompts]``: there once the norm has returned."""
    on_write: OnWrite
    gate: Tensor | None = None
    """``[prompts]``: there once the block is entered, where it has a gate."""
    written: Tensor | None = None
    """``[prompts, chosen, hidden]``: there once the module has returned; by chosen expert, and else as one."""
    index: Tensor | None = None
    """``[prompts, chosen]``: of routed experts, which they are; `weights` is what the router gave them."""
    weights: Tensor | None = None

    def hook(self, undo: ExitStack) -> None:
        """Set hooks until `undo` is closed."""
        if self.component.gate is not None:
            on_input(self.component.block, self._keep_gate, undo)
        undo.callback(self.component.module.register_forward_hook(self._keep_output).remove)
        on_output(self.component.last, self._tell, undo)

    def _keep_gate(self, read: Tensor) -> None:
        assert self.component.gate is not None
        self.gate = torch.sigmoid(self.component.gate(self.batch.at_end(read))).double()[:, 0]

    def _keep_output(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        if self.component.writer.role != "routed_experts":
            self.written = self.batch.at_end(output)[:, None]
        elif self.component.writer.routed == "input":
            self.written = self.batch.each_at_end(output).transpose(0, 1)
            self.index = torch.arange(self.written.shape[1]).expand(len(self.written), -1)
            self.weights = torch.full(self.index.shape, math.nan, dtype=torch.float64)
        else:
            tokens, index, weights = (self.batch.at_end(argument) for argument in args[:3])
            each = tokens.repeat_interleave(index.shape[1], 0)
            # Not the module itself, whose hooks have seen this token.
            alone = module.forward(each, index.reshape(-1, 1), weights.reshape(-1, 1))
            self.written = alone.view(*index.shape, -1)
            self.index, self.weights = index.cpu(), weights.double().cpu()

    def _tell(self, output: Tensor) -> Tensor | None:
        factor = torch.full_like(self.batch.ends, self.component.multiplier, dtype=torch.float64, device=output.device)
        factor = factor if self.gate is None else factor * self.gate
        change = self.on_write(self.component, self._write(factor))
        if change is None:
            return None
        changed = output.clone()
        tokens = changed.view(-1, *self.batch.ids.shape, output.shape[-1])
        # What is multiplied by nothing cannot be changed.
        wanted = torch.where(factor != 0, change.to(output.device) / factor, 0.0)
        along = wanted[:, None] * self.direction.to(output.device)
        # A module that answers for each expert in turn is summed afterwards: the first answer stands for all.
        tokens[0, torch.arange(len(self.batch.rows)), self.batch.ends] += along.to(output.dtype)
        return changed

    def _write(self, factor: Tensor) -> Write:
        """The write, of which `factor` ``[prompts]`` multiplies what comes out of the norms."""
        assert self.written is not None
        gain = torch.ones_like(self.direction)
        for norm, its_gain in self.component.norms.items():
            gain, factor = gain * its_gain.cpu(), factor * self.shrinks[norm]
        exact = self.written.double() * factor[:, None, None]
        projected = _project(exact, gain * self.direction).cpu()
        covered, removed = torch.zeros_like(projected), torch.zeros_like(projected)
        for edit in self.edits:
            here = torch.ones_like(projected)
            if self.index is not None and edit.of_experts is not None:
                here = torch.isin(self.index, torch.tensor(edit.of_experts)).double()
            along = edit.projector.left.T @ (gain * self.direction)
            covered += here * projected
            removed += edit.scale * here * (_project(exact, edit.projector.right).cpu() @ along)
        of_experts = None
        if self.index is not None and self.weights is not None:
            empty, index = projected.new_zeros(len(projected), held_experts(self.component.module)), self.index
            of_experts = ExpertWrites(*(empty.scatter_add(1, index, each) for each in (projected, self.weights)))
        return Write(projected.sum(1), covered.sum(1), removed.sum(1), of_experts)


def _project(vectors: Tensor, direction: Tensor) -> Tensor:
    return vectors @ direction.to(vectors.device)
