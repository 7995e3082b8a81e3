"""Loading a model: from a local folder, safetensors only, no code of its own by any parameter."""

import os
import re
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    GenerationConfig,
    PreTrainedModel,
)

from excise.checkpoint.weights import Checkpoint
from excise.inference.loading import exactly, in_one_line, refuse_incomplete
from excise.plumbing.bounds import bounded
from excise.plumbing.errors import StageError
from excise.plumbing.memory import GIB, Need, impossible, limits

_BUILDING = 15, 1 << 30
"""Seconds and bytes that a model without weights may take; one of 100 layers takes a second."""


def load_model(checkpoint: Checkpoint, dtype: str, placement: torch.device | Literal["balanced"]) -> PreTrainedModel:
    """The language model of a checkpoint, in evaluation mode, on a device or spread over all GPUs by accelerate.

    Raises:
        StageError: transformers cannot load it, or would make some of its weights up.
    """
    _refuse_what_cannot_fit(checkpoint, dtype, placement)
    with exactly(checkpoint) as folder, in_one_line(checkpoint.folder, folder):
        config = _config_of(folder)
        loaded: Any = _auto_class(config).from_pretrained(
            folder,
            dtype=dtype,
            device_map={"": placement} if isinstance(placement, torch.device) else placement,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=remote_code_is_trusted(folder),
            # Shapes that differ are in the report, by name.
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    model, report = loaded
    refuse_incomplete(str(checkpoint.folder), report["missing_keys"], report["mismatched_keys"], {})
    if any(parameter.is_meta for parameter in model.parameters()):
        raise StageError(
            f"{checkpoint.folder} does not fit onto the GPUs of this machine, and weights outside them cannot be "
            "measured; use larger ones, or a smaller model.dtype"
        )
    # Answers are greedy, unless a task says otherwise: what else generation_config.json says is how others sample.
    written = model.generation_config
    model.generation_config = GenerationConfig(
        **{name: getattr(written, name, None) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    )
    _refuse_what_does_not_run(checkpoint.folder, model.eval())
    return model


def _refuse_what_does_not_run(folder: Path, model: PreTrainedModel) -> None:
    """Before anything is built on it: a config may be one that no code is written for, and show it only here."""
    with in_one_line(folder, folder, "could not be run"), torch.inference_mode():
        model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=model.device), use_cache=False)


def _refuse_what_cannot_fit(checkpoint: Checkpoint, dtype: str, placement: torch.device | Literal["balanced"]) -> None:
    """Before the system ends the process, which would leave no message."""
    need = weights_need(checkpoint, without_weights(checkpoint.folder, dtype))
    if placement != "balanced" and placement.type == "cpu" and (limit := impossible(need, limits(placement))):
        raise StageError(
            f"{checkpoint.folder} takes {need.of(limit) / GIB:,.1f} GiB of memory, and {limit.name} has "
            f"{limit.total / GIB:,.1f} GiB; use a larger machine, or GPUs that hold it (model.device: balanced). "
            "To measure it layer by layer (measure.stream) and to ablate it takes less"
        )


def without_weights(folder: Path, dtype: str) -> PreTrainedModel:
    """The same model with every parameter and buffer on the meta device, which takes no memory.

    Raises:
        StageError: transformers knows no such model, or cannot make it in reasonable time and memory.
    """
    # Here, where every way of loading begins.
    transformers.utils.logging.disable_progress_bar()
    with in_one_line(folder, folder), bounded(*_BUILDING):
        config = _config_of(folder)
        with torch.device("meta"):
            model: Any = _auto_class(config).from_config(
                config,
                dtype=config.dtype if dtype == "auto" else dtype,
                trust_remote_code=remote_code_is_trusted(folder),
            )
    return model.eval()


def read_model_config(folder: Path) -> Any:
    """The config of the model in a folder, as transformers reads it: with the defaults of its class.

    Raises:
        StageError: transformers knows no such model, or cannot read it in reasonable time and memory.
    """
    with in_one_line(folder, folder), bounded(*_BUILDING):
        return _config_of(folder)


def _config_of(folder: Path) -> Any:
    return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=remote_code_is_trusted(folder))


def _auto_class(config: Any) -> Any:
    """What transformers loads a model by: one of text and images only where it has no class for text only."""
    kind = type(config)
    only_with_images = kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and kind not in MODEL_FOR_CAUSAL_LM_MAPPING
    return AutoModelForImageTextToText if only_with_images else AutoModelForCausalLM


def weights_need(checkpoint: Checkpoint, model: PreTrainedModel) -> Need:
    """What the weights of a checkpoint take once they are loaded as those of `model`, which may be without any."""
    once = {id(tensor): tensor.nbytes for tensor in (*model.parameters(), *model.buffers())}
    files = sum((checkpoint.folder / shard).stat().st_size for shard in checkpoint.shards)
    return Need(sum(once.values()), mapped=files)


def remote_code_is_trusted(folder: Path) -> bool:
    """Whether code that lies beside the model in `folder` may run. Only the machine's environment says so, and never a
    file of the project, which may come from strangers.

    Raises:
        StageError: it may, and the model names code of another repository, which nothing pins.
    """
    if os.environ.get("EXCISE_TRUST_REMOTE_CODE") != "1":
        return False
    for path in (folder / "config.json", folder / "tokenizer_config.json"):
        if path.is_file() and (named := re.search(r'"[^"\s]+--[\w.]+"', path.read_text(errors="replace"))):
            raise StageError(
                f"{path} names code of another repository, {named[0]}, which nothing pins; copy it into the model's "
                "folder, or unset EXCISE_TRUST_REMOTE_CODE"
            )
    return True


def decoder(model: PreTrainedModel) -> nn.Module:
    """The stack of decoder layers with its embeddings and final norm; the text part's where the model has several."""
    found = model.get_decoder()
    # Llama 4 answers with its causal language model, which has the stack in it.
    return found if hasattr(found, "layers") else found.model


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder layers of a causal language model."""
    layers = decoder(model).layers
    assert isinstance(layers, nn.ModuleList)
    return layers
