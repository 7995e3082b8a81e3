"""Loading a model and its tokenizer: from a local folder, safetensors only, no code of its own by any parameter."""

import os
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from stages.base.stage import StageError


def load_model(folder: Path, dtype: str, place: torch.device | Literal["balanced"]) -> PreTrainedModel:
    """The causal language model in `folder`, in evaluation mode, on a device or spread over all GPUs by accelerate.

    Raises:
        StageError: transformers cannot load it.
    """
    transformers.utils.logging.disable_progress_bar()
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            device_map={"": place} if isinstance(place, torch.device) else place,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=remote_code_is_trusted(),
        )
    except (ValueError, KeyError, OSError, RuntimeError) as error:
        raise StageError(f"{folder} could not be loaded: {error}") from None
    if any(parameter.is_meta for parameter in model.parameters()):
        raise StageError(
            f"{folder} does not fit onto the GPUs of this machine, and weights outside them cannot be measured; use "
            "larger ones, or a smaller model.dtype"
        )
    return model.eval()


def remote_code_is_trusted() -> bool:
    """Whether code that lies beside a model may run. The machine's environment alone says so, and never a file of the
    project, which may come from strangers."""
    return os.environ.get("EXCISE_TRUST_REMOTE_CODE") == "1"


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


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer in `folder`.

    Raises:
        StageError: there is none, or it has no chat template.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=remote_code_is_trusted()
        )
    except (ValueError, KeyError, OSError) as error:
        raise StageError(f"the tokenizer in {folder} could not be loaded: {error}") from None
    if tokenizer.chat_template is None:
        raise StageError(f"the tokenizer in {folder} has no chat template; refusal is measured on chat models")
    return tokenizer
