"""The plan: every rule resolved against one checkpoint, tensor by tensor, with nothing skipped in silence."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from schemas.artifacts import ModelManifest, Projection
from schemas.layout import Layout, Variant, Writer, layouts, matcher
from schemas.params import Ablate, Rule
from stages.base.stage import StageError
from stages.base.weights import Tensor


@dataclass
class LayerTensors:
    """The tensors of one decoder layer, as its layout names them."""

    writers: list[tuple[Writer, str]] = field(default_factory=list)
    """Each writing tensor (a weight or a bias) with its full name."""
    unknown: list[str] = field(default_factory=list)


def make_plan(
    ablate: Ablate,
    manifest: ModelManifest,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    reasons: Sequence[str | None],
) -> list[Projection]:
    """Resolve the rules, the later one winning where two name the same tensor.

    Args:
        config: the base model's config.json, its text part.
        tensors: every tensor of the checkpoint by name.
        reasons: for each measurement, why it has no direction; None where it has one.

    Returns:
        One projection a tensor, in the order of layers and names; those of scale 0 are left out.

    Raises:
        StageError: a rule names what the model does not have, or the checkpoint and its layout disagree.
    """
    layout = layouts()[manifest.model_type]
    layers = by_layer(layout, manifest, tensors)
    planned: dict[str, Projection] = {}
    for number, rule in enumerate(ablate.rules):
        chosen = _layers_of(rule, number, manifest)
        _check_measurement(rule, number, manifest, reasons)
        targets = ablate.targets_of(rule)
        found = 0
        for layer in chosen:
            check_complete(layout, manifest, config, layer, layers[layer], tensors)
            for writer, name in layers[layer].writers:
                if writer.role in targets:
                    found += 1
                    planned[name] = Projection(
                        tensor=name,
                        file=tensors[name].file,
                        role=writer.role,
                        layer=layer,
                        measurement=rule.measurement,
                        scale=rule.scale,
                    )
        if not found:
            roles = sorted({writer.role for layer in chosen for writer, _ in layers[layer].writers})
            raise StageError(
                f"params.yaml: ablate.rules.{number}: the layers it names have none of {', '.join(targets)}; "
                f"they have {', '.join(roles)}"
            )
    return sorted(
        (projection for projection in planned.values() if projection.scale != 0),
        key=lambda projection: (projection.layer, projection.role, projection.tensor),
    )


def by_layer(layout: Layout, manifest: ModelManifest, tensors: Mapping[str, Tensor]) -> list[LayerTensors]:
    """Sort the tensors of the layers in use by layer; others (embeddings, spare layers) are left alone."""
    prefixes = [matcher(prefix) for prefix in layout.layers]
    writers = [
        (matcher(pattern), writer)
        for variants in layout.sublayers.values()
        for variant in variants
        for writer in variant.writers
        for pattern in (writer.weight, writer.bias)
        if pattern is not None
    ]
    others = [matcher(pattern) for pattern in layout.others]
    layers = [LayerTensors() for _ in range(manifest.layers)]
    for name in sorted(tensors):
        found = next((match for prefix in prefixes if (match := prefix.match(name))), None)
        if found is None or int(found["layer"]) >= manifest.layers:
            continue
        layer, rest = layers[int(found["layer"])], name[found.end() :]
        writer = next((writer for pattern, writer in writers if pattern.fullmatch(rest)), None)
        if writer is not None:
            layer.writers.append((writer, name))
        elif not any(pattern.fullmatch(rest) for pattern in others):
            layer.unknown.append(name)
    return layers


def check_complete(
    layout: Layout,
    manifest: ModelManifest,
    config: Mapping[str, Any],
    layer: int,
    found: LayerTensors,
    tensors: Mapping[str, Tensor],
) -> None:
    """Check that a layer holds what its layout declares and nothing else.

    Raises:
        StageError: it names the tensors that are missing, unknown or of another shape.
    """
    where = f"layer {layer} of this {manifest.model_type} model"
    if found.unknown:
        raise StageError(
            f"{where} has tensors that its layout does not name: {_listed(found.unknown)}; "
            "add them to schemas/architectures/"
        )
    names = {name for _, name in found.writers}
    for sublayer, variants in layout.sublayers.items():
        present = [variant for variant in variants if any(writer in variant.writers for writer, _ in found.writers)]
        if len(present) != 1:
            there = [name for writer, name in found.writers if any(writer in variant.writers for variant in variants)]
            lacking = [_missing(variant, layout, config, names, layer) for variant in variants]
            told = f"has two forms of its {sublayer}: {_listed(there)}"
            if not present:
                told = f"lacks its {sublayer}: {' or '.join(map(_listed, lacking))}"
            raise StageError(f"{where} {told}; fetch the checkpoint again")
        if missing := _missing(present[0], layout, config, names, layer):
            raise StageError(f"{where} lacks {_listed(missing)}; fetch the checkpoint again")
        declared = {name for writer in present[0].writers for name in _names(writer, layout, config, layer)}
        written = {
            name for writer, name in found.writers if writer in present[0].writers and "{expert}" in writer.weight
        }
        if surplus := sorted(written - declared):
            raise StageError(f"{where} has experts beyond those that config.json counts: {_listed(surplus)}")
    for writer, name in found.writers:
        shape = tensors[name].shape
        expected = 1 if writer.bias is not None and name.endswith(writer.bias) else 2
        if len(shape) != expected or shape[0] != manifest.hidden_size:
            raise StageError(
                f"{name} has shape {list(shape)}, which cannot write to a stream of {manifest.hidden_size}"
            )


def _missing(variant: Variant, layout: Layout, config: Mapping[str, Any], names: set[str], layer: int) -> list[str]:
    """Names that a variant's weights must have and the layer does not, under whichever prefix it uses."""
    missing: list[str] = []
    for writer in variant.writers:
        candidates = _names(writer, layout, config, layer)
        for first in range(0, len(candidates), len(layout.layers)):
            forms = candidates[first : first + len(layout.layers)]
            if not names.intersection(forms):
                missing.append(forms[0])
    return missing


def _names(writer: Writer, layout: Layout, config: Mapping[str, Any], layer: int) -> list[str]:
    """Full names of a writer's weights in one layer: expert by expert, each under every prefix."""
    experts = range(1)
    if "{expert}" in writer.weight:
        count = config.get(layout.expert_count or "")
        if not isinstance(count, int):
            raise StageError(f"config.json does not say how many experts there are ({layout.expert_count})")
        experts = range(count)
    return [
        prefix.replace("{layer}", str(layer)) + writer.weight.replace("{expert}", str(expert))
        for expert in experts
        for prefix in layout.layers
    ]


def _layers_of(rule: Rule, number: int, manifest: ModelManifest) -> Sequence[int]:
    if rule.layers == "all":
        return range(manifest.layers)
    if (last := max(rule.layers)) >= manifest.layers:
        raise StageError(
            f"params.yaml: ablate.rules.{number}.layers: there is no layer {last}; "
            f"this {manifest.model_type} model has layers 0-{manifest.layers - 1}"
        )
    return rule.layers


def _check_measurement(rule: Rule, number: int, manifest: ModelManifest, reasons: Sequence[str | None]) -> None:
    key = f"params.yaml: ablate.rules.{number}.measurement"
    if rule.measurement >= len(reasons):
        raise StageError(
            f"{key}: there is no measurement {rule.measurement}; "
            f"this {manifest.model_type} model has measurements 0-{manifest.layers}"
        )
    if reason := reasons[rule.measurement]:
        raise StageError(f"{key}: measurement {rule.measurement} has no direction: {reason}; name another")


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
