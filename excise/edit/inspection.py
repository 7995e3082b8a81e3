"""Checks from config.json and the headers of weights that a model can be measured, edited and judged."""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedModel

from excise.checkpoint.base_model import quantization, read_config_file
from excise.checkpoint.weights import Checkpoint, Tensor, same_bytes
from excise.edit.planning.layout import as_named, check_layout, embedding_and_head, layer_match
from excise.inference.loading.models import (
    check_loads,
    in_one_line,
    read_model_config,
    register_packages,
    without_weights,
)
from excise.plumbing.errors import StageError
from schemas.basis.text import listed, shorten
from schemas.families import layout_of, layouts
from schemas.model import Layout, MeasuredFamily, ModelLayout

_OTHER_FILES = {
    "transformers_weights": "makes transformers read other weights than those that are edited",
    "configuration_files": "makes transformers read another config.json, chosen by its version",
}
_KERNELS = ("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation")
_COUNTS = re.compile(r"(?:num|n)_(?:\w+_)?(?:layers?|experts?|blocks?)|depth")  # keys that count modules
_SIZES = ("num_hidden_layers", "hidden_size", "vocab_size", "num_attention_heads")
_EXTRA_LAYERS = ("num_nextn_predict_layers", "num_mtp_modules")  # for multi-token prediction, after those in use
_REMEDY = "correct it, or name a complete copy of the model"
_CHOSEN = ("num_experts_per_tok", "top_k_experts", "moe_topk")


Measure = Callable[[Any, PreTrainedModel, Collection[str]], MeasuredFamily]
"""Measures an unknown model type from its config, its model on the meta device, and the names of its tensors."""


def inspect(
    folder: Path,
    tensors: Mapping[str, Tensor],
    files: Collection[str],
    dtype: str,
    name: str | None = None,
    measure: Measure | None = None,
    measure_all: bool = False,
) -> ModelLayout:
    """The layout of the model in a folder. `dtype` is a torch name or `auto`, `name` the model's in errors, by default
    the folder. `measure` finds the layout of a type that no file describes, or with `measure_all` of any. Raises
    `StageError`: the model cannot be measured, edited or judged."""
    where = name or str(folder)
    with in_one_line(folder, folder):  # a config may hold anything, and transformers and torch may raise anything
        stored = read_config_file(folder)
        _refuse_other_files(folder, stored, files)
        _refuse_excess_modules(folder, stored, tensors)
        if method := quantization(stored, tensors):
            raise StageError(
                f"{where} is quantized ({method}), and such weights cannot be edited; name a bfloat16 copy: the "
                "publisher's, or one that transformers dequantized and saved"
            )
        # Checked before transformers, whose error for an unknown type would not help.
        part = stored.get("text_config", stored)
        if isinstance(part, Mapping) and isinstance(model_type := part.get("model_type"), str):
            register_packages()
            if measure is None or model_type not in CONFIG_MAPPING:
                _declared(where, model_type)
        config = read_model_config(folder)
        if config.is_encoder_decoder:
            raise StageError(f"{where} has an encoder; name a model that has only a decoder")
        text = config.get_text_config()
        is_known = measure is None or (not measure_all and is_declared(text.model_type))
        family = _declared(where, text.model_type) if is_known else None
        counts = (getattr(text, key, None) for key in (family.expert_count if family is not None else ()))
        count = next((count for count in counts if count is not None), None)
        experts = count if type(count) is int else None
        _refuse_degenerate(folder, text, experts)

        model = without_weights(folder, "float32" if dtype == "auto" else dtype)
        unread = check_loads(model, tensors, where)
        if family is None:
            assert measure is not None
            measured = measure(config, model, tensors.keys())
            family, experts = measured.layout, measured.experts
        multiplier = family.residual_multiplier
        layout = ModelLayout(
            model_type=text.model_type,
            layers=text.num_hidden_layers,
            hidden_size=text.hidden_size,
            experts=experts,
            residual_multiplier=1.0 if multiplier is None else float(getattr(text, multiplier)),
            tied=is_tied(model),
            measured=not is_known,
            family=as_named(family, tensors),
        )
        extra = max(int(getattr(text, key, None) or 0) for key in _EXTRA_LAYERS)
        if unused := [name for name in unread if not _may_be_unread(name, layout, extra, text_only=text is config)]:
            raise StageError(
                f"{where}: transformers does not use {listed(unused)}, so they would not be measured; remove them, or "
                "name a copy of the model that it loads completely"
            )
        check_layout(layout, tensors)
        return layout


def resolve_tied(layout: ModelLayout, checkpoint: Checkpoint) -> ModelLayout:
    """The layout with `tied` corrected: if a checkpoint holds both tensors, transformers ties them only if equal."""
    embedding, head = embedding_and_head(layout, checkpoint.tensors)
    if not layout.tied or head is None:
        return layout
    if checkpoint.tensors[head].dtype != checkpoint.tensors[embedding].dtype:
        raise StageError(f"{embedding} and {head} are tied and stored in two types; keep one of them")
    return layout if same_bytes(checkpoint, embedding, head) else layout.model_copy(update={"tied": False})


def _refuse_other_files(folder: Path, config: Mapping[str, Any], files: Collection[str]) -> None:
    path, adapter = folder / "config.json", folder / "adapter_config.json"
    for key, why in _OTHER_FILES.items():
        if config.get(key):
            raise StageError(f"{path}: {key} {why}; remove it")
    for part in _mappings(config):
        for key in _KERNELS:
            if "/" in str(part.get(key, "")):
                repository = shorten(str(part[key]), 80)
                raise StageError(f"{path}: {key} fetches code from {repository}, which is not pinned; remove it")
    if adapter.name in files:
        raise StageError(
            f"{adapter}: transformers would add this adapter to the weights; merge it (PEFT's merge_and_unload), and "
            "name the merged model's folder"
        )


def _refuse_excess_modules(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Layers and experts cannot outnumber tensors, or the rows of a tensor; checked before modules are built."""
    most = max((len(tensors), *(size for tensor in tensors.values() for size in tensor.shape)))
    path = folder / "config.json"
    for part in _mappings(config):
        for key, value in part.items():
            if _COUNTS.fullmatch(key) and isinstance(value, int) and value > most:
                raise StageError(f"{path}: {key} is {shorten(str(value), 20)}, more than its weights hold; {_REMEDY}")


def _mappings(value: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(value, Mapping):
        yield value
        for inner in value.values():
            yield from _mappings(inner)


def is_declared(model_type: str) -> bool:
    """Whether a file of `schemas/architectures` describes a model type."""
    return model_type in layouts()


def _declared(where: str, model_type: str) -> Layout:
    try:
        return layout_of(model_type)
    except KeyError as error:
        raise StageError(f"{where}: {error.args[0]}") from None


def _refuse_degenerate(folder: Path, text: Any, experts: int | None) -> None:
    path = folder / "config.json"
    for key in _SIZES:
        value = getattr(text, key, None)
        if key == "num_attention_heads" and value is None and not is_declared(text.model_type):
            continue  # a state-space model has no heads
        if type(value) is not int or value < 1:
            raise StageError(f"{path}: {key} is {shorten(repr(value), 40)}, not an integer of at least 1; {_REMEDY}")
    for key in _CHOSEN:
        chosen = getattr(text, key, None)
        if experts and chosen is not None and not (type(chosen) is int and 1 <= chosen <= experts):
            raise StageError(f"{path}: {key} is {shorten(repr(chosen), 40)} of {experts} experts; {_REMEDY}")


def is_tied(model: PreTrainedModel) -> bool:
    """Whether the output head is the embeddings."""
    head = model.get_output_embeddings()
    weights = {f"{name}.weight" for name, module in model.named_modules() if module is head}
    return any(weights & {*pair} for pair in model.all_tied_weights_keys.items())


def _may_be_unread(name: str, layout: ModelLayout, extra: int, text_only: bool) -> bool:
    """Whether a tensor belongs to one of the extra layers, or to a part of the model that does not process text."""
    if match := layer_match(layout.family, name):
        return layout.layers <= int(match["layer"]) < layout.layers + extra
    if name.startswith(layout.family.spare):
        return True
    return not text_only and name not in (*layout.family.embeddings, *layout.family.heads)
