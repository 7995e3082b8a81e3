"""`python -m excise layout`: what measurement finds of any model, and whether that is what a file declares."""

import io
import itertools
import re
import tempfile
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ruamel.yaml import YAML
from transformers import CONFIG_MAPPING

from excise.checkpoint.weights import Tensor
from excise.discovery.family import measure_family
from excise.discovery.stream import NoLayout, run
from excise.discovery.twin import MOST_LAYERS, build, double_precision, filled, twin_config
from excise.edit.inspection import inspect, is_declared
from excise.edit.planning.layout import (
    Place,
    layer_match,
    norms_of,
    resolve_layer,
    sort_by_layer,
    spare_layers,
    variants_of,
)
from excise.inference.loading.models import auto_class, register_packages
from excise.plumbing.errors import StageError
from excise.plumbing.files import write_text
from schemas.basis.text import listed, shorten
from schemas.families import FOLDER
from schemas.model import Layout, LayoutProof, MeasuredFamily, ModelLayout, Norm, Writer


@dataclass(frozen=True)
class Examined:
    """A model whose layout was measured."""

    layout: ModelLayout
    proof: LayoutProof
    tensors: Mapping[str, Tensor]
    differences: list[str] | None
    """Where the declared layout says otherwise; None if there is none."""

    def rows(self) -> dict[tuple[str, str], list[int]]:
        """The layers in which a tensor, named within its layer, does the same."""
        family = self.layout.family
        found: dict[tuple[str, str], list[int]] = defaultdict(list)
        for tensor, what in described(self.layout, self.tensors).items():
            match = layer_match(family, tensor)
            assert match is not None  # only tensors of layers are described
            expert = re.sub(r"\.\d+\.", ".{expert}.", tensor[match.end() :])
            layers = found[expert, what]
            if (layer := int(match["layer"])) not in layers:
                layers.append(layer)
        return found

    def copied(self) -> list[str]:
        """Prefixes of layers that are not in use, and tensors of layers that neither write nor read."""
        return [*spare_layers(self.layout, self.tensors), *self.layout.family.others]


def measured_family(config: Any, whole: Any, stored: Collection[str]) -> MeasuredFamily:
    """As `measure_family`. Raises `StageError` where that finds no layout."""
    try:
        return measure_family(config, whole, stored)
    except NoLayout as reason:
        model_type = shorten(config.get_text_config().model_type, 60)
        raise StageError(f"the model type {model_type!r} cannot be edited: {reason}") from None


def examine(folder: Path, tensors: Mapping[str, Tensor], files: Collection[str], name: str) -> Examined:
    """Measure the layout of a model, declared or not, from its description and the headers of its weights. `name` is
    the model's in errors. Raises `StageError`: it has none, or the model cannot be loaded."""
    proofs: list[LayoutProof] = []

    def measure(config: Any, whole: Any, stored: Collection[str]) -> MeasuredFamily:
        family = measured_family(config, whole, stored)
        proofs.append(family.proof)
        return family

    layout = inspect(folder, tensors, files, "auto", name, measure, measure_all=True)
    differences = None
    if is_declared(layout.model_type):
        differences = compare(inspect(folder, tensors, files, "auto", name), layout, tensors)
    return Examined(layout, proofs[0], tensors, differences)


@contextmanager
def example(model_type: str) -> Iterator[Path]:
    """A folder with a small random model of a type, in the form that its default config has. Raises `StageError`:
    transformers does not know the type, or no small model of it can be made."""
    register_packages()
    if model_type not in CONFIG_MAPPING:
        raise StageError(
            f"{shorten(model_type, 60)} is neither a folder, nor a model on the Hub (organization/name), nor a model "
            "type that transformers knows; correct it"
        )
    failure = ""
    for fill, layers in itertools.product((False, True), (MOST_LAYERS, 12, 6, 4)):
        try:
            default = CONFIG_MAPPING[model_type]()
            small = twin_config(filled(default) if fill else default, layers)
            model = build(small, auto_class(small))
            with double_precision(), torch.no_grad():
                run(model, torch.full((1, 4), 5))
            break
        except Exception as error:  # config classes and models check sizes in ways of their own
            failure = failure or shorten(" ".join(str(error).split()), 150)
    else:
        raise StageError(f"no small model of the type {model_type} can be made and run from its defaults: {failure}")
    with tempfile.TemporaryDirectory(prefix="excise-") as work:
        folder = Path(work) / model_type
        model.float().save_pretrained(folder)
        small.save_pretrained(folder)
        yield folder


def declare(layout: Layout) -> Path:
    """Write a layout to `schemas/architectures/`, named after its model type. Raises `StageError`: there is one."""
    (model_type,) = layout.model_types
    path = FOLDER / f"{model_type}.yaml"
    if is_declared(model_type) or path.exists():
        raise StageError(f"{model_type} is declared in {FOLDER} already; remove it there to write it again")
    yaml, text = YAML(pure=True), io.StringIO()
    yaml.width = 150
    yaml.dump(layout.model_dump(mode="json", exclude_defaults=True), text)
    write_text(path, f"# Found by measurement: `python -m excise layout {model_type} --write`.\n{text.getvalue()}")
    return path


def compare(declared: ModelLayout, measured: ModelLayout, tensors: Mapping[str, Tensor]) -> list[str]:
    """What two layouts of one checkpoint say of its tensors that differs, in words."""
    both = [described(layout, tensors) for layout in (declared, measured)]
    found = []
    for name in sorted({name for said in both for name in said}):
        one, other = (said.get(name, "nothing of the kind") for said in both)
        if one != other:
            found.append(f"{name}: {one} by its file, {other} by measurement")
    if declared.family.reads_elsewhere != measured.family.reads_elsewhere:
        found.append("by measurement, something that no reader names reads the stream")
    for what in ("experts", "hidden_size", "layers", "tied"):
        if getattr(declared, what) != getattr(measured, what):
            found.append(f"{what}: {getattr(declared, what)} by its file, {getattr(measured, what)} by measurement")
    return found


def described(layout: ModelLayout, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """By tensor, what the layout says of it."""
    found: dict[str, str] = {}
    for layer, names in enumerate(sort_by_layer(layout, tensors)):
        for place in resolve_layer(layout, layer, names, tensors):
            found[place.tensor] = _does(place, layout.residual_multiplier)
        for variant in variants_of(layout, layer, names):
            bias = variant.router_bias
            if bias is not None and bias.weight in names:
                what = "chooses experts" if bias.selects_only else "chooses and weighs experts"
                found[names[bias.weight]] = f"router bias that {what}"
    return found


def _does(place: Place, residual_multiplier: float) -> str:
    """What a tensor does, in words."""
    part = place.part
    norms = norms_of(part)
    through = f" through {listed([_norm(norm) for norm in norms])}" if norms else ""
    said = [f"{part.role}, stream on axis {place.stream_axis}{through}"]
    if isinstance(part, Writer):
        factor = residual_multiplier * part.multiplier_in(place.layer)
        said += [f"gated by {part.gate}"] if part.gate else []
        said += ["multiplied by its router before it is read"] if part.routed == "input" else []
        said += [f"times {factor:.4g}"] if factor != 1 else []
    return ", ".join(said)


def _norm(norm: Norm) -> str:
    name = norm.weight or "a norm without weights"
    return f"{'LayerNorm ' if norm.kind == 'layer' else ''}{'1 + ' if norm.offset else ''}{name}"
