"""How transformers 5.23 puts tensors of files into a model, undocumented: we do so without weights, to check that a
checkpoint would load whole, and for one part of a model at a time."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    ConversionOps,
    MergeModulelist,
    WeightConverter,
    WeightRenaming,
    convert_and_load_state_dict_in_model,
    dot_natural_key,
    rename_source_key,
)
from transformers.modeling_utils import LoadStateDictConfig


def named_as(config: Any, other: Any) -> Any:
    """Another config, with the name or path of one, by which remote code is found."""
    other._name_or_path = config._name_or_path
    return other


def use_plain_experts(config: Any) -> None:
    """Make models of a config compute experts one after another, which can be differentiated twice."""
    for part in (config, *(getattr(config, name, None) for name in config.sub_configs)):
        if part is not None:
            part._experts_implementation = "eager"


def conversions(model: PreTrainedModel) -> list[Any]:
    """The renamings and conversions by which a model's class reads tensors, such as those of experts as one."""
    return list(get_model_conversion_mapping(model))


def loading_as(
    model: PreTrainedModel, dtype: torch.dtype, device: torch.device, transforms: list[Any]
) -> LoadStateDictConfig:
    """How transformers loads tensors into a model: with these conversions, and what it keeps in float32 so."""
    return LoadStateDictConfig(
        device_map={"": device}, dtype=dtype, dtype_plan=model._get_dtype_plan(dtype), weight_mapping=transforms
    )


def load(model: PreTrainedModel, tensors: dict[str, Any], settings: LoadStateDictConfig) -> Any:
    """Convert tensors and put them into a model. Returns a report of problems; `end_loading` completes it."""
    found, _ = convert_and_load_state_dict_in_model(model, tensors, settings)
    return found


def end_loading(model: PreTrainedModel, found: Any) -> None:
    """Tie weights, and take expected names out of a report: the last steps of `from_pretrained`."""
    model.tie_weights(missing_keys=found.missing_keys, recompute_mapping=False)
    model._adjust_missing_and_unexpected_keys(found)


def targets(
    model: PreTrainedModel, tensors: Iterable[str], transforms: Sequence[Any]
) -> dict[str, tuple[str, str | None]]:
    """By name in the files, the tensor in memory that it becomes or becomes part of, the first of several, and its
    conversion's pattern, or None. Tensors that the model has no place for are left out."""
    renamings = [each for each in transforms if isinstance(each, WeightRenaming)]
    converters = [each for each in transforms if isinstance(each, WeightConverter)]
    there = model.state_dict()
    found = {}
    for name in sorted(tensors, key=dot_natural_key):
        renamed, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, there)
        if renamed not in there and name in there:
            renamed, pattern = rename_source_key(name, [], [], model.base_model_prefix, there)
        if renamed in there:
            found[name] = renamed, pattern
    return found


def attend_alike(model: PreTrainedModel, config: Any) -> None:
    """Have a model compute attention as one of this config does."""
    model.set_attn_implementation(config._attn_implementation)


class Fuse(ConversionOps):
    """transformers' `MergeModulelist` and `Concatenate` in one, without a copy between them."""

    def convert(
        self, input_dict: dict[str, Any], source_patterns: list[str], target_patterns: list[str], **_given: Any
    ) -> dict[str, Any]:
        """Per pattern, the matrices ``[rows, columns]`` of all experts → ``[experts, rows of all, columns]``. Raises
        `ValueError`: an expert lacks a matrix, or has one of another shape."""
        lists = [input_dict.pop(pattern) for pattern in source_patterns]
        shapes = [matrices[0].shape for matrices in lists]
        if {len(matrices) for matrices in lists} != {len(lists[0])} or any(
            matrix.shape != shape for matrices, shape in zip(lists, shapes, strict=True) for matrix in matrices
        ):
            raise ValueError(f"the experts of {target_patterns[0]} are not all alike")
        fused = lists[0][0].new_empty(len(lists[0]), sum(rows for rows, _ in shapes), shapes[0][1])
        start = 0
        for matrices, (rows, _) in zip(lists, shapes, strict=True):
            for expert, matrix in enumerate(matrices):
                fused[expert, start : start + rows].copy_(matrix)
            start += rows
        return {target_patterns[0]: fused}


def without_copies(transform: Any) -> Any:
    """The same conversion with `Fuse` where it does that."""
    if isinstance(transform, WeightConverter):
        kinds = [(type(operation), getattr(operation, "dim", None)) for operation in transform.operations]
        if kinds == [(MergeModulelist, 0), (Concatenate, 1)]:
            transform.operations = [Fuse()]
    return transform
