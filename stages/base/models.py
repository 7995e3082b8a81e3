"""Loading a model: from a local folder, safetensors only, no code of its own by any parameter."""

import os
import re
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from stages.base.memory import GIB, Need, impossible, limits
from stages.base.stage import StageError
from stages.base.weights import read_checkpoint


def load_model(folder: Path, dtype: str, place: torch.device | Literal["balanced"]) -> PreTrainedModel:
    """The causal language model in `folder`, in evaluation mode, on a device or spread over all GPUs by accelerate.

    Raises:
        StageError: transformers cannot load it.
    """
    _refuse_what_cannot_fit(folder, dtype, place)
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            device_map={"": place} if isinstance(place, torch.device) else place,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=remote_code_is_trusted(folder),
        )
    except (ValueError, KeyError, OSError, RuntimeError) as error:
        raise StageError(f"{folder} could not be loaded: {error}") from None
    if any(parameter.is_meta for parameter in model.parameters()):
        raise StageError(
            f"{folder} does not fit onto the GPUs of this machine, and weights outside them cannot be measured; use "
            "larger ones, or a smaller model.dtype"
        )
    return model.eval()


def _refuse_what_cannot_fit(folder: Path, dtype: str, place: torch.device | Literal["balanced"]) -> None:
    """Before the system ends the process, which would leave nothing said."""
    need = weights_need(folder, without_weights(folder, dtype))
    if place != "balanced" and place.type == "cpu" and (limit := impossible(need, limits(place))):
        raise StageError(
            f"{folder} takes {need.of(limit) / GIB:,.1f} GiB of memory, and {limit.name} has "
            f"{limit.total / GIB:,.1f} GiB; use a larger machine, or GPUs that hold it (model.device: balanced). "
            "To measure it layer by layer (measure.stream) and to ablate it takes less"
        )


def without_weights(folder: Path, dtype: str) -> PreTrainedModel:
    """The same model with every parameter and buffer on the meta device, which takes no memory.

    Raises:
        StageError: transformers knows no such model.
    """
    # Here, where every way of loading begins.
    transformers.utils.logging.disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=remote_code_is_trusted(folder)
        )
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(
                config,
                dtype=config.dtype if dtype == "auto" else dtype,
                trust_remote_code=remote_code_is_trusted(folder),
            )
    except (ValueError, KeyError, OSError, RuntimeError) as error:
        raise StageError(f"{folder} could not be loaded: {error}") from None
    return model.eval()


def weights_need(folder: Path, model: PreTrainedModel) -> Need:
    """What the weights in `folder` take once they are loaded as those of `model`, which may be one without weights."""
    once = {id(tensor): tensor.nbytes for tensor in (*model.parameters(), *model.buffers())}
    files = sum((folder / shard).stat().st_size for shard in read_checkpoint(folder).shards)
    return Need(sum(once.values()), mapped=files)


def remote_code_is_trusted(folder: Path) -> bool:
    """Whether code that lies beside the model in `folder` may run. The machine's environment alone says so, and never a
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
