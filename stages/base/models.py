"""Loading a model and its tokenizer: from a local folder, safetensors only, no code of the model's own."""

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from schemas.params import Device, read_section
from stages.base.stage import StageError

_DEVICE_PARAMS = Path("artifacts/params/device.json")


def chosen_device() -> torch.device:
    """Where params.yaml says that models run; `auto` is a GPU if there is one.

    Raises:
        StageError: it names a GPU that is not there.
    """
    name = read_section(Device, _DEVICE_PARAMS).device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise StageError(f"params.yaml: model.device: {name} is not there ({torch.cuda.device_count()} GPUs are)")
    return device


def load_model(folder: Path, dtype: str, device: torch.device) -> PreTrainedModel:
    """The causal language model in `folder`, in evaluation mode.

    Raises:
        StageError: transformers cannot load it.
    """
    transformers.utils.logging.disable_progress_bar()
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, local_files_only=True, use_safetensors=True, trust_remote_code=False
        )
    except (ValueError, KeyError, OSError, RuntimeError) as error:
        raise StageError(f"{folder} could not be loaded: {error}") from None
    model.to(device)
    return model.eval()


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer in `folder`.

    Raises:
        StageError: there is none, or it has no chat template.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (ValueError, KeyError, OSError) as error:
        raise StageError(f"the tokenizer in {folder} could not be loaded: {error}") from None
    if tokenizer.chat_template is None:
        raise StageError(f"the tokenizer in {folder} has no chat template; refusal is measured on chat models")
    return tokenizer
