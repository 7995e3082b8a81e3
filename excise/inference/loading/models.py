"""Loading models, and whether transformers makes a whole one of a checkpoint, and of these very tensors: told from
headers. What a checkpoint lacks it makes up, and of two tensors for one parameter it reads one, in silence."""

import contextlib
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

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

from excise.checkpoint.weights import FLOATS, Checkpoint, Tensor
from excise.plumbing.errors import StageError
from excise.plumbing.machine import GIB, Need, Placement, UsedUp, bounded, impossible, limits
from excise.plumbing.private.transformers import conversions, end_loading, load, loading_as, targets
from schemas.basis.text import listed, shorten

_MEND = "name a whole copy of the model"
_BUILDING = 15, 1 << 30
"""Seconds and bytes that a model without weights may take; one of 100 layers takes a second."""


@contextlib.contextmanager
def exactly(checkpoint: Checkpoint) -> Iterator[Path]:
    """A folder with the files of a checkpoint and no others, as links, until the block ends: beside an index other
    weights may lie, which libraries prefer."""
    with tempfile.TemporaryDirectory(prefix="excise-") as place:
        # Under the model's name, as libraries keep a model's code by the name of its folder.
        folder = Path(place) / checkpoint.folder.name
        for path in checkpoint.files:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).symlink_to((checkpoint.folder / path).resolve())
        yield folder


@contextlib.contextmanager
def in_one_line(folder: Path, read: Path, what: str = "could not be loaded") -> Iterator[None]:
    """Within the block, what transformers raises about the model in `folder` is one line. It may be any of Python's
    errors: config.json chooses which code runs, and with which numbers. The name of the folder that transformers `read`
    is of no use to a user."""
    try:
        yield
    except StageError:
        raise
    except UsedUp as much:
        raise StageError(
            f"{folder}: to build what its config.json describes {much}; look for a number in it that is too large"
        ) from None
    except Exception as error:  # see above: which ones config.json decides
        told = " ".join(str(error).replace(str(read), str(folder)).split()) or type(error).__name__
        raise StageError(f"{folder} {what}: {shorten(told, 250)}") from None


def check_loads(model: PreTrainedModel, tensors: Mapping[str, Tensor], where: str) -> list[str]:
    """Load tensors without content into a model on the meta device, as transformers loads the true ones, and return
    those that it leaves in the file. Raises `StageError` that begins with `where`, the model's name or folder: a
    parameter is left without a value, or has two, or one of another shape or of no float type."""
    transforms = conversions(model)
    becomes, there = targets(model, tensors, transforms), model.state_dict()
    _refuse_twins(becomes, where)
    for name, (target, _) in becomes.items():
        if there[target].is_floating_point() and tensors[name].dtype not in FLOATS:
            raise StageError(
                f"{where}: {name} is stored as {tensors[name].dtype}, which transformers would take for plain numbers; "
                "name a copy of the model in bfloat16, float16 or float32"
            )
    meta = torch.device("meta")
    # Of a kind and a shape: loading casts to the type of the parameter.
    kinds = {name: torch.float32 if tensor.dtype in FLOATS else torch.int64 for name, tensor in tensors.items()}
    empty = {name: torch.empty(tensor.shape, dtype=kinds[name], device=meta) for name, tensor in tensors.items()}
    found = load(model, empty, loading_as(model, model.dtype, meta, transforms))
    end_loading(model, found)
    refuse_incomplete(where, found.missing_keys, found.mismatched_keys, found.conversion_errors)
    return sorted(found.unexpected_keys)


def refuse_incomplete(
    where: str,
    missing: Iterable[str],
    mismatched: Iterable[tuple[str, Sequence[int], Sequence[int]]],
    failed: Mapping[str, str],
) -> None:
    """Raises `StageError` unless each parameter got its value, as transformers' loading report tells: of `mismatched`
    ones, the shapes that file and config give them, and of `failed` ones the traceback of the conversion."""
    for name, in_file, in_memory in sorted(mismatched):
        raise StageError(
            f"{where}: {name} has the shape {list(in_file)}, where its config.json says {list(in_memory)}; {_MEND}"
        )
    for name, trace in sorted(failed.items()):
        # What was raised is in its last line but one, before a line of what was converted.
        raise StageError(f"{where}: {name} could not be loaded: {shorten(trace.splitlines()[-2], 150)}; {_MEND}")
    if names := sorted(missing):
        raise StageError(
            f"{where} does not hold {listed(names)}, which transformers would fill with random numbers; {_MEND}"
        )


def _refuse_twins(becomes: Mapping[str, tuple[str, str | None]], where: str) -> None:
    """Two tensors may make one parameter only where a conversion joins them; elsewhere one of them is not read."""
    first: dict[tuple[str, str | None], str] = {}
    plain = {target: name for name, (target, pattern) in becomes.items() if pattern is None}
    for name, (target, pattern) in becomes.items():
        # A pattern with a star takes a tensor of each expert.
        is_one_of_many = pattern is not None and "*" in pattern
        twin = name if is_one_of_many else first.setdefault((target, pattern), name)
        if pattern is not None:
            twin = plain.get(target, twin)
        if twin != name:
            raise StageError(f"{where}: {twin} and {name} are two names of one tensor; keep one set of names")


def load_model(checkpoint: Checkpoint, dtype: str, placement: Placement) -> PreTrainedModel:
    """The language model of a checkpoint, in evaluation mode, on a device or spread over all GPUs by accelerate. Raises
    `StageError`: transformers cannot load it, or would make some of its weights up."""
    need = weights_need(checkpoint, without_weights(checkpoint.folder, dtype))
    # Before the system ends the process, which would leave no message.
    if placement != "balanced" and placement.type == "cpu" and (limit := impossible(need, limits(placement))):
        raise StageError(
            f"{checkpoint.folder} takes {need.of(limit) / GIB:,.1f} GiB of memory, and {limit.name} has "
            f"{limit.total / GIB:,.1f} GiB; use a larger machine, or GPUs that hold it (model.device: balanced). "
            "To measure it layer by layer (measure.stream) and to ablate it takes less"
        )
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
    model.eval()
    # Before anything is built on it: a config may be one that no code is written for, and show it only here.
    with in_one_line(checkpoint.folder, checkpoint.folder, "could not be run"), torch.inference_mode():
        model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=model.device), use_cache=False)
    return model


def without_weights(folder: Path, dtype: str) -> PreTrainedModel:
    """The same model with every parameter and buffer on the meta device, which takes no memory. Raises `StageError`:
    transformers knows no such model, or cannot make it in reasonable time and memory."""
    # Here, where every way of loading begins.
    transformers.utils.logging.disable_progress_bar()
    with in_one_line(folder, folder), bounded(*_BUILDING):
        config = _config_of(folder)
        dtype = config.dtype if dtype == "auto" else dtype
        with torch.device("meta"):
            model: Any = _auto_class(config).from_config(
                config, dtype=dtype, trust_remote_code=remote_code_is_trusted(folder)
            )
    return model.eval()


def read_model_config(folder: Path) -> Any:
    """The config of the model in a folder, as transformers reads it: with the defaults of its class. Raises
    `StageError`: transformers knows no such model, or cannot read it in reasonable time and memory."""
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
    file of the project, which may come from strangers. Raises `StageError`: it may, and the model names code of another
    repository, which nothing pins."""
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
