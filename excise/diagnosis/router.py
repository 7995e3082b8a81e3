"""Does the router read the direction, and do its weights carry it? Routed layers only."""

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import torch
from scipy.spatial.distance import jensenshannon
from torch import Tensor, nn
from transformers import PreTrainedModel

from excise.diagnosis.contributions import ExpertWrites
from excise.diagnosis.writers import Contrast
from excise.edit.planning.plan import CannotEdit, Edit
from excise.edit.planning.projectors import Projector
from excise.edit.planning.shifts import odds_of_use
from excise.inference.forward import Batch, in_batches, on_input, run_decoder
from excise.inference.loading.models import decoder_layers
from excise.residual.experts import chosen, held_experts, routed_experts
from excise.trials.bench import Bench, with_rules
from schemas.diagnosis import RouterReading, WeightsSplit
from schemas.model import Layout, Reader, Writer
from schemas.params.ablate import Ablate


@dataclass(frozen=True)
class Routing:
    """What the router of one layer does with one token of each prompt, ``[prompts, experts]`` on the CPU."""

    logits: Tensor
    """float64."""
    through: Tensor
    """What of the logits is due to the direction in the router's input."""
    used: Tensor
    """bool: which experts are chosen."""
    blinded: Tensor
    """The same once the direction is taken out of the router's input, everything else being as it was."""
    is_blinded: bool = True
    """Whether it could be taken out; if not, only what is used is known."""


def blind_routers(bench: Bench, ablate: Ablate, measurement: int, layers: Sequence[int]) -> list[Edit]:
    """What blinds the routers of these layers to the direction, but for those whose norm is such that nothing can."""
    edits: list[Edit] = []
    for layer in layers:
        rule = {"layers": layer, "measurement": measurement, "targets": ["router"]}
        with suppress(CannotEdit):
            edits += bench.plan(with_rules(ablate, [rule]))
    return edits


@torch.inference_mode()
def trace_routers(
    model: PreTrainedModel, layout: Layout, edits: Sequence[Edit], prompts: Sequence[Sequence[int]]
) -> dict[int, Routing]:
    """By layer. Each layer runs twice on the same input, the second time with its router blinded to the direction.

    Args:
        edits: of the routers, at scale 1; others are ignored. A layer without one runs once.
        prompts: the tokens of each.
    """
    experts, layers = routed_experts(model, layout), decoder_layers(model)
    blinding = routers(layout, edits)
    found = {}
    for layer, (_, module) in experts.items():
        logits, through = torch.zeros(2, len(prompts), held_experts(module), dtype=torch.float64)
        used, blinded = torch.zeros(2, *logits.shape, dtype=torch.bool)
        found[layer] = Routing(logits, through, used, blinded, layer in blinding)

    def compute(batch: Batch) -> None:
        with ExitStack() as undo:
            for layer, (writer, module) in experts.items():
                _RoutedLayer(writer, module, batch, found[layer]).hook(layers[layer], blinding.get(layer), undo)
            run_decoder(model, batch)

    in_batches(prompts, "auto", lambda _: None, compute)
    return found


def routers(layout: Layout, edits: Sequence[Edit]) -> dict[int, tuple[Reader, Projector]]:
    """By layer, what chooses experts, and what blinds it. A shared expert's gate is a router that chooses nothing."""
    writers = [writer for variants in layout.sublayers.values() for variant in variants for writer in variant.writers]
    gates = {writer.gate for writer in writers}
    return {
        edit.place.layer: (edit.place.part, edit.projector)
        for edit in edits
        if edit.place is not None and isinstance(edit.place.part, Reader)
        if edit.place.part.role == "router" and edit.place.part.weight not in gates
    }


@dataclass
class _RoutedLayer:
    """One layer with routed experts in one forward pass of a batch: the layer runs as it is, and, where its router can
    be blinded, once more on the same input."""

    writer: Writer
    experts: nn.Module
    batch: Batch
    found: Routing
    is_blind: bool = False
    """Whether this is the second time."""

    def hook(self, layer: nn.Module, blinding: tuple[Reader, Projector] | None, undo: ExitStack) -> None:
        """Set hooks until `undo` is closed."""
        undo.callback(self.experts.register_forward_pre_hook(self._choose).remove)
        if blinding is None:
            return
        reader, projector = blinding
        router = layer.get_submodule(reader.in_memory)
        on_input(router, lambda read: self._read(read, router.get_parameter("weight"), projector), undo)
        undo.callback(layer.register_forward_hook(self._again, with_kwargs=True).remove)

    def _choose(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        used = chosen(self.writer, module, args, self.batch)
        (self.found.blinded if self.is_blind else self.found.used)[self.batch.rows] = used

    def _read(self, stream: Tensor, weight: Tensor, projector: Projector) -> Tensor | None:
        if self.is_blind:
            return projector.transposed.remove(stream)
        seen, here = self.batch.at_end(stream).double(), projector.to(stream.device)
        self.found.logits[self.batch.rows] = (seen @ weight.double().T).cpu()
        self.found.through[self.batch.rows] = (seen @ here.left @ (weight.double() @ here.right).T).cpu()
        return None

    def _again(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], _output: Any) -> None:
        self.is_blind = True
        module.forward(*args, **kwargs)
        self.is_blind = False


def explain_routers(harmful: Mapping[int, Routing], harmless: Mapping[int, Routing]) -> list[RouterReading]:
    """Does the router read it?"""
    rows = []
    for layer, routing in harmful.items():
        other = harmless[layer]
        use, other_use = routing.used.sum(0), other.used.sum(0)
        rows.append(
            RouterReading(
                layer=layer,
                share=share_through(routing, other) if routing.is_blinded else None,
                distance=distance_of_use(routing, other),
                changed=changed_choices(routing) if routing.is_blinded else None,
                harmful_use=use.tolist(),
                harmless_use=other_use.tolist(),
                log_odds=odds_of_use(use, len(routing.used), other_use, len(other.used)).tolist(),
            )
        )
    return rows


def explain_weights(contrast: Contrast) -> list[WeightsSplit]:
    """Do the combination weights carry it?"""
    rows = []
    for (layer, role), write in contrast.harmful.writes.items():
        other = contrast.harmless.writes[layer, role]
        if write.experts is None or other.experts is None:
            continue
        parts: list[float | None] = [None, None]
        if not write.experts.weights.isnan().any():
            parts = [float(part.sum()) for part in split(write.experts, other.experts)]
        difference = contrast.difference((layer, role, None))
        rows.append(WeightsSplit(layer=layer, difference=difference, by_weights=parts[0], by_outputs=parts[1]))
    return rows


def share_through(harmful: Routing, harmless: Routing) -> float | None:
    """Of the difference between the two sides' mean logits, the share that goes through the direction. What raises all
    logits alike chooses nothing and is left out first. 1 is all of it; below 0 the direction pulls the other way. None
    where there is no difference."""
    sides = ((harmful.logits, harmless.logits), (harmful.through, harmless.through))
    raised = (of_harmful.mean(0) - of_harmless.mean(0) for of_harmful, of_harmless in sides)
    difference, through = (logits - logits.mean() for logits in raised)
    square = float(difference @ difference)
    return float(through @ difference) / square if square > 0 else None


def distance_of_use(harmful: Routing, harmless: Routing) -> float:
    """Jensen-Shannon distance between the two sides' use of experts: 0 the same, 1 no expert in common (base 2)."""
    sides = [side.used.double().sum(0).numpy() for side in (harmful, harmless)]
    distance = float(jensenshannon(*sides, base=2))
    return distance if math.isfinite(distance) else 0.0  # the root of what rounding made negative


def changed_choices(routing: Routing) -> float:
    """The share of chosen experts that are no longer chosen once the router is blinded."""
    return float((routing.used & ~routing.blinded).sum() / routing.used.sum())


def split(harmful: ExpertWrites, harmless: ExpertWrites) -> tuple[Tensor, Tensor]:
    """Split the difference of what experts write along the direction, on prompts of two kinds, into what weights and
    what outputs carry.

    With w̄ = E[w], 0 where an expert is not chosen, and ȳ = E[w y] / E[w], which is the other side's for an expert that
    one side does not use: Δ = Σ Δw̄ (ȳ₁ + ȳ₂) / 2 + Δȳ (w̄₁ + w̄₂) / 2.

    Returns:
        ``[experts]`` float64 each: what is due to being chosen or weighted otherwise, and to writing otherwise. They
        add up to the difference exactly.
    """
    weights = [side.weights.mean(0) for side in (harmful, harmless)]
    writes = [side.projected.mean(0) for side in (harmful, harmless)]
    unused = [weight == 0 for weight in weights]
    alone = [torch.where(no, 0.0, write / weight) for no, write, weight in zip(unused, writes, weights, strict=True)]
    outputs = [torch.where(unused[0], alone[1], alone[0]), torch.where(unused[1], alone[0], alone[1])]
    return (
        (weights[0] - weights[1]) * (outputs[0] + outputs[1]) / 2,
        (outputs[0] - outputs[1]) * (weights[0] + weights[1]) / 2,
    )
