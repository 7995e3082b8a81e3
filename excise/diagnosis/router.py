"""Whether routers read the direction, and whether their weights carry it."""

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import torch
from scipy.spatial.distance import jensenshannon
from torch import Tensor, nn
from transformers import PreTrainedModel

from excise.diagnosis.writers import Contrast
from excise.edit.planning.plan import CannotEdit, Edit
from excise.edit.planning.projectors import Projector
from excise.edit.planning.shifts import odds_of_use
from excise.inference.forward import Batch, on_input
from excise.inference.loading.models import decoder_layers
from excise.residual.contributions import Write
from excise.residual.experts import chosen, held_experts, routed_experts
from excise.trials.bench import Bench, with_rules
from schemas.diagnosis import RouterReading, WeightsSplit
from schemas.model import Layout, Reader, Writer
from schemas.params.ablate import Ablate


@dataclass(frozen=True)
class Routing:
    """A layer's router at one token of each prompt, ``[prompts, experts]`` on the CPU, float64; choices are bool."""

    logits: Tensor
    through: Tensor
    """The part of the logits that comes from the direction in the router's input."""
    used: Tensor
    """The chosen experts."""
    blinded: Tensor
    """The same without the direction in the router's input, everything else unchanged."""
    is_blinded: bool = True
    """Whether the router can be blinded; if not, only `used` is known."""


def blind_routers(bench: Bench, ablate: Ablate, measurement: int, layers: Sequence[int]) -> list[Edit]:
    """Edits that blind the routers of these layers to the direction, except where a norm does not allow it."""
    edits: list[Edit] = []
    for layer in layers:
        rule = {"layers": layer, "measurement": measurement, "targets": ["router"]}
        with suppress(CannotEdit):
            edits += bench.plan(with_rules(ablate, [rule]))
    return edits


class RouterTrace:
    """The routing of each layer, recorded while prompts pass through a model. Layers with a router among `edits` run
    again on the same input, with it blinded."""

    def __init__(
        self, model: PreTrainedModel, layout: Layout, edits: Sequence[Edit], prompts: Sequence[Sequence[int]]
    ) -> None:
        self._layers = decoder_layers(model)
        self._experts = routed_experts(model, layout)
        self._blinding = routers(layout, edits)
        self.routings: dict[int, Routing] = {}
        for layer, (_, module) in self._experts.items():
            logits, through = torch.zeros(2, len(prompts), held_experts(module), dtype=torch.float64)
            used, blinded = torch.zeros(2, *logits.shape, dtype=torch.bool)
            self.routings[layer] = Routing(logits, through, used, blinded, layer in self._blinding)

    def watch(self, batch: Batch, undo: ExitStack) -> None:
        """Set hooks for one forward pass of a batch, until `undo` is closed."""
        for layer, (writer, module) in self._experts.items():
            routed = _RoutedLayer(writer, module, batch, self.routings[layer])
            routed.hook(self._layers[layer], self._blinding.get(layer), undo)


def routers(layout: Layout, edits: Sequence[Edit]) -> dict[int, tuple[Reader, Projector]]:
    """By layer, its router and the projector that blinds it, without gates of shared experts, which choose nothing."""
    gates = {writer.gate for writer in layout.writers}
    return {
        edit.place.layer: (edit.place.part, edit.projector)
        for edit in edits
        if edit.place is not None and isinstance(edit.place.part, Reader)
        if edit.place.part.role == "router" and edit.place.part.weight not in gates
    }


@dataclass
class _RoutedLayer:
    writer: Writer
    experts: nn.Module
    batch: Batch
    routing: Routing
    is_blind: bool = False  # whether the layer runs for the second time

    def hook(self, layer: nn.Module, blinding: tuple[Reader, Projector] | None, undo: ExitStack) -> None:
        undo.callback(self.experts.register_forward_pre_hook(self._keep_choice).remove)
        if blinding is None:
            return
        reader, projector = blinding
        router = layer.get_submodule(reader.in_memory)
        on_input(router, lambda stream: self._keep_logits(stream, router.get_parameter("weight"), projector), undo)
        undo.callback(layer.register_forward_hook(self._run_blinded, with_kwargs=True).remove)

    def _keep_choice(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        used = chosen(self.writer, module, args, self.batch)
        (self.routing.blinded if self.is_blind else self.routing.used)[self.batch.rows] = used

    def _keep_logits(self, stream: Tensor, weight: Tensor, projector: Projector) -> Tensor | None:
        if self.is_blind:
            return projector.transposed.remove(stream)
        inputs, local = self.batch.at_end(stream).double(), projector.to(stream.device)
        self.routing.logits[self.batch.rows] = (inputs @ weight.double().T).cpu()
        self.routing.through[self.batch.rows] = (inputs @ local.left @ (weight.double() @ local.right).T).cpu()
        return None

    def _run_blinded(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], _output: Any) -> None:
        self.is_blind = True
        module.forward(*args, **kwargs)
        self.is_blind = False


def explain_routers(harmful: Mapping[int, Routing], harmless: Mapping[int, Routing]) -> list[RouterReading]:
    """How much the router of each layer reads the direction."""
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
    """How much of the difference the routers' weights carry."""
    rows = []
    for (layer, role), write in contrast.harmful.writes.items():
        if role != "routed_experts":
            continue
        parts: list[float | None] = [None, None]
        if not write.weights.isnan().any():
            parts = [float(part.sum()) for part in split(write, contrast.harmless.writes[layer, role])]
        difference = contrast.difference((layer, role, None))
        rows.append(WeightsSplit(layer=layer, difference=difference, by_weights=parts[0], by_outputs=parts[1]))
    return rows


def share_through(harmful: Routing, harmless: Routing) -> float | None:
    """The share of the difference in mean logits that comes through the direction, ignoring equal shifts of all logits.
    Below 0 the direction acts against the difference. None without a difference."""
    shifts = harmful.logits.mean(0) - harmless.logits.mean(0), harmful.through.mean(0) - harmless.through.mean(0)
    difference, through = (logits - logits.mean() for logits in shifts)
    square = float(difference @ difference)
    return float(through @ difference) / square if square > 0 else None


def distance_of_use(harmful: Routing, harmless: Routing) -> float:
    """Jensen-Shannon distance (base 2) between the use of experts by both kinds: 0 the same, 1 no expert in common."""
    uses = [kind.used.double().sum(0).numpy() for kind in (harmful, harmless)]
    distance = float(jensenshannon(*uses, base=2))
    return distance if math.isfinite(distance) else 0.0  # the root of a number that rounding made negative


def changed_choices(routing: Routing) -> float:
    """The share of chosen experts that a blinded router does not choose."""
    return float((routing.used & ~routing.blinded).sum() / routing.used.sum())


def split(harmful: Write, harmless: Write) -> tuple[Tensor, Tensor]:
    """Split what experts write more on harmful prompts exactly into two parts, ``[experts]`` float64 each: one due to
    other weights or choices, and one due to other outputs.
    With w̄ = E[w], 0 if an expert is not chosen, and ȳ = E[w y] / E[w], taken from the other kind if one kind does not
    use the expert: Δ = Σ Δw̄ (ȳ₁ + ȳ₂) / 2 + Δȳ (w̄₁ + w̄₂) / 2."""
    weights = [kind.weights.mean(0) for kind in (harmful, harmless)]
    writes = [kind.experts.mean(0) for kind in (harmful, harmless)]
    unused = [weight == 0 for weight in weights]
    own = [torch.where(no, 0.0, write / weight) for no, write, weight in zip(unused, writes, weights, strict=True)]
    outputs = [torch.where(unused[0], own[1], own[0]), torch.where(unused[1], own[0], own[1])]
    return (
        (weights[0] - weights[1]) * (outputs[0] + outputs[1]) / 2,
        (outputs[0] - outputs[1]) * (weights[0] + weights[1]) / 2,
    )
