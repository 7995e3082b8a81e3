"""Who writes a direction. The stream obeys h' = λ (h + Σ mᵢ cᵢ): cᵢ is what writer i adds after its norms, mᵢ what
multiplies it (granite's residual multiplier, a shared expert's gate), λ a layer's scalar, which Gemma 4 has.

Everything is taken at one token of each prompt and projected at once, so that memory is prompts × writers.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from excise.checkpoint import weights
from excise.edit.layout import resolve_layer, sort_by_layer
from excise.edit.plan import Edit
from excise.edit.projection import Pair
from excise.inference.forward import Batch, in_batches, run_decoder
from excise.inference.models import decoder_layers
from excise.residual.activations import watch_stream
from excise.residual.experts import count
from schemas.layout import Layout, ModelLayout, Writer, WriterRole

Source = tuple[int, WriterRole]
"""A layer and what writes there."""


@dataclass(frozen=True)
class Component:
    """One writer of one layer, and what its output passes on its way to the stream."""

    layer: int
    writer: Writer
    module: nn.Module
    norms: tuple[nn.Module, ...]
    gains: tuple[Tensor, ...]
    """What each norm multiplies by, ``[hidden]`` float64."""
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
        return self.norms[-1] if self.norms else self.module


@dataclass(frozen=True)
class Removal:
    """What a plan takes out of one writer: all of it, or some experts'."""

    pair: Pair
    experts: tuple[int, ...] | None


@dataclass(frozen=True)
class Write:
    """What one component adds along a direction at the token that is asked about; ``[prompts]`` float64 on the CPU."""

    projected: Tensor
    covered: Tensor
    """Of that, what comes from what the plan edits."""
    removed: Tensor
    """What one unit of scale would take out of it if all inputs stayed the same."""
    experts: "ExpertWrites | None" = None

    def part(self, expert: int | None) -> Tensor:
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


Seen = Callable[[Component, Write], Tensor | None]
"""Told of each write; may answer what shall be added to it along the direction, ``[prompts]``."""


@dataclass
class Trace:
    """The stream and every write to it, projected on one direction, for all prompts."""

    stream: Tensor
    """``[prompts, layers + 1]``: entering each layer, and leaving the last."""
    writes: dict[Source, Write]
    scales: list[float] = field(default_factory=list)
    """λ of each layer."""

    def reach(self, layer: int) -> float:
        """What a write in a layer is multiplied by on its way to the last measurement."""
        return math.prod(self.scales[layer:])


def components(
    model: PreTrainedModel,
    layout: ModelLayout,
    tensors: Mapping[str, weights.Tensor],
) -> list[Component]:
    """Every writer of every layer, in the order of layers.

    Args:
        tensors: every tensor of the checkpoint by name.
    """
    names = sort_by_layer(layout, tensors)
    found = []
    for number, layer in enumerate(decoder_layers(model)):
        places = resolve_layer(layout, number, names[number], tensors)
        writers = dict.fromkeys(place.part for place in places if isinstance(place.part, Writer))
        for writer in writers:
            norms = tuple(layer.get_submodule(norm.weight.removesuffix(".weight")) for norm in writer.norms)
            gate = writer.gate.removesuffix(".weight") if writer.gate is not None else None
            found.append(
                Component(
                    layer=number,
                    writer=writer,
                    module=layer.get_submodule(writer.in_memory),
                    norms=norms,
                    gains=tuple(
                        norm.get_parameter("weight").detach().double() + named.offset
                        for norm, named in zip(norms, writer.norms, strict=True)
                    ),
                    gate=layer.get_submodule(gate) if gate is not None else None,
                    block=layer.get_submodule(gate.rpartition(".")[0]) if gate is not None else layer,
                    multiplier=layout.residual_multiplier,
                )
            )
    return found


def layer_scales(model: PreTrainedModel, layout: Layout) -> list[float]:
    """λ of each layer; 1 where there is none."""
    name = layout.layer_scalar
    return [1.0 if name is None else float(getattr(layer, name)) for layer in decoder_layers(model)]


def removals(plan: Sequence[Edit], pairs: Sequence[Pair]) -> dict[Source, list[Removal]]:
    """What a plan takes out of each writer; a bias goes with its weight."""
    found: dict[Source, list[Removal]] = {}
    for edit, pair in zip(plan, pairs, strict=True):
        if edit.place is not None and isinstance(edit.place.part, Writer) and not edit.place.is_bias:
            single = (edit.place.expert,) if edit.place.expert is not None else None
            removal = Removal(pair, edit.experts if edit.experts is not None else single)
            found.setdefault((edit.place.layer, edit.place.part.role), []).append(removal)
    return found


@torch.inference_mode()
def trace(
    model: PreTrainedModel,
    layout: Layout,
    watched: Sequence[Component],
    direction: Tensor,
    removed: Mapping[Source, Sequence[Removal]],
    prompts: Sequence[Sequence[int]],
    advance: Callable[[int], None],
) -> Trace:
    """Follow the stream along a direction through every layer.

    Args:
        direction: ``[hidden]``, a unit vector.
        removed: what an edit would take out of each writer.
        prompts: the tokens of each.
        advance: told the number of prompts done since.
    """
    stream = torch.zeros(len(prompts), len(decoder_layers(model)) + 1, dtype=torch.float64)
    parts: dict[Source, list[tuple[list[int], Write]]] = {}

    def compute(batch: Batch) -> None:
        seen: dict[Source, Write] = {}

        def keep(measurement: int, entering: Tensor) -> None:
            stream[batch.rows, measurement] = _project(batch.at_end(entering).double(), direction).cpu()

        def note(component: Component, write: Write) -> None:
            seen[component.source] = write

        with ExitStack() as undo:
            watch_stream(model, keep, undo)
            watch_writes(watched, direction, removed, batch, note, undo)
            run_decoder(model, batch)
        for source, write in seen.items():
            parts.setdefault(source, []).append((batch.rows, write))

    in_batches(prompts, "auto", advance, compute)
    writes = {source: _joined(found, len(prompts)) for source, found in parts.items()}
    return Trace(stream, writes, layer_scales(model, layout))


def watch_writes(
    watched: Sequence[Component],
    direction: Tensor,
    removed: Mapping[Source, Sequence[Removal]],
    batch: Batch,
    seen: Seen,
    undo: ExitStack,
) -> None:
    """Tell `seen` of each write of a forward pass of `batch`, until `undo` is closed, and change it as that says."""
    shrinks: dict[nn.Module, Tensor] = {}
    gains = {norm: gain for component in watched for norm, gain in zip(component.norms, component.gains, strict=True)}

    def normed(norm: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        scaled = batch.at_end(args[0]).double() * gains[norm].to(output.device)
        # One over the root mean square, as the norm itself took it.
        shrinks[norm] = (batch.at_end(output).double() * scaled).sum(-1) / scaled.square().sum(-1)

    for norm in gains:
        undo.callback(norm.register_forward_hook(normed).remove)
    for component in watched:
        _watch(component, direction, removed.get(component.source, ()), batch, shrinks, seen, undo)


def _watch(
    component: Component,
    direction: Tensor,
    removed: Sequence[Removal],
    batch: Batch,
    shrinks: Mapping[nn.Module, Tensor],
    seen: Seen,
    undo: ExitStack,
) -> None:
    gate, experts = component.gate, component.writer.role == "routed_experts"
    factor: Tensor
    each: Tensor
    index: Tensor
    given: Tensor

    def gated(_block: nn.Module, args: tuple[Any, ...]) -> None:
        nonlocal factor
        assert gate is not None
        factor = component.multiplier * torch.sigmoid(gate(batch.at_end(args[0]))).double()[:, 0]

    def written(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        nonlocal factor, each, index, given
        if gate is None:
            factor = torch.full((len(batch.rows),), component.multiplier, dtype=torch.float64, device=output.device)
        if experts:
            each, index, given = _by_expert(component.writer, module, args, output, batch)
        else:
            each = batch.at_end(output)[:, None]

    def added(_module: nn.Module, _args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        gain = torch.ones_like(direction)
        shrunk = factor
        for norm, its_gain in zip(component.norms, component.gains, strict=True):
            gain = gain * its_gain.cpu()
            shrunk = shrunk * shrinks[norm]
        exact = each.double() * shrunk[:, None, None]
        projected = _project(exact, gain * direction).cpu()
        covered, taken = torch.zeros_like(projected), torch.zeros_like(projected)
        for removal in removed:
            here = _is_of(removal, index) if experts else torch.ones_like(projected)
            covered += here * projected
            taken += here * float(direction @ (gain * removal.pair.left)) * _project(exact, removal.pair.right).cpu()
        of_experts = None
        if experts:
            held = count(component.module)
            of_experts = ExpertWrites(_by_number(projected, index, held), _by_number(given, index, held))
        change = seen(component, Write(projected.sum(1), covered.sum(1), taken.sum(1), of_experts))
        if change is None:
            return None
        changed = output.clone()
        places = changed.view(-1, *batch.ids.shape, output.shape[-1])
        # What is multiplied by nothing cannot be changed.
        wanted = torch.where(factor != 0, change.to(output.device) / factor, 0.0)
        along = wanted[:, None] * direction.to(output.device)
        # A module that answers for each expert in turn is summed afterwards: the first answer stands for all.
        places[0, torch.arange(len(batch.rows)), batch.ends] += along.to(output.dtype)
        return changed

    if gate is not None:
        undo.callback(component.block.register_forward_pre_hook(gated).remove)
    undo.callback(component.module.register_forward_hook(written).remove)
    undo.callback(component.last.register_forward_hook(added).remove)


def _by_expert(
    writer: Writer, experts: nn.Module, args: tuple[Any, ...], output: Tensor, batch: Batch
) -> tuple[Tensor, Tensor, Tensor]:
    """What each chosen expert wrote ``[prompts, chosen, hidden]``, its number and its weight ``[prompts, chosen]``."""
    if writer.routed == "input":
        each = batch.each_at_end(output).transpose(0, 1)
        index = torch.arange(each.shape[1]).expand(len(each), -1)
        return each, index, torch.full(index.shape, math.nan, dtype=torch.float64)
    tokens, index, given = (batch.at_end(argument) for argument in args[:3])
    chosen = index.shape[1]
    # Not the module itself, whose hooks have seen this token.
    alone = experts.forward(tokens.repeat_interleave(chosen, 0), index.reshape(-1, 1), given.reshape(-1, 1))
    return alone.view(len(tokens), chosen, -1), index.cpu(), given.double().cpu()


def _is_of(removal: Removal, index: Tensor) -> Tensor:
    if removal.experts is None:
        return torch.ones(index.shape, dtype=torch.float64)
    return torch.isin(index, torch.tensor(removal.experts)).double()


def _by_number(values: Tensor, index: Tensor, experts: int) -> Tensor:
    return torch.zeros(len(values), experts, dtype=torch.float64).scatter_add_(1, index, values)


def _project(vectors: Tensor, direction: Tensor) -> Tensor:
    return vectors @ direction.to(vectors.device)


def _joined(parts: Sequence[tuple[list[int], Write]], prompts: int) -> Write:
    """The writes of all batches, in the order of the prompts."""

    def join(pieces: Sequence[Tensor]) -> Tensor:
        whole = torch.zeros(prompts, *pieces[0].shape[1:], dtype=torch.float64)
        for (rows, _), piece in zip(parts, pieces, strict=True):
            whole[rows] = piece
        return whole

    of_experts = [write.experts for _, write in parts if write.experts is not None]
    return Write(
        projected=join([write.projected for _, write in parts]),
        covered=join([write.covered for _, write in parts]),
        removed=join([write.removed for _, write in parts]),
        experts=ExpertWrites(join([e.projected for e in of_experts]), join([e.weights for e in of_experts]))
        if of_experts
        else None,
    )
