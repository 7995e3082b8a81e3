"""Loading models, and checking from headers that transformers uses all tensors of a checkpoint and needs no others. It
would fill parameters that are missing with random numbers, and of two tensors for one parameter read only one."""

import contextlib
import functools
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel

from excise.checkpoint.weights import FLOATS, Checkpoint, Tensor
from excise.plumbing.errors import StageError
from excise.plumbing.machine import GIB, Need, Placement, UsedUp, bounded, impossible, limits
from excise.plumbing.private.transformers import conversions, end_loading, load, loading_as, targets
from schemas.basis.text import listed, shorten
from schemas.extensions import load_pinned
from schemas.wording import WrongValue

_REMEDY = "name a complete copy of the model"
_BUILDING = 15, 1 << 30  # seconds and bytes that a model without weights may take; 100 layers take a second


@contextlib.contextmanager
def exactly(checkpoint: Checkpoint) -> Iterator[Path]:
    """Yields a folder of links to only the files of a checkpoint: libraries prefer other weights beside an index."""
    with tempfile.TemporaryDirectory(prefix="excise-") as parent:
        # Named like the model, because libraries cache a model's code under the name of its folder.
        folder = Path(parent) / checkpoint.folder.name
        for path in checkpoint.files:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).symlink_to((checkpoint.folder / path).resolve())
        yield folder


@contextlib.contextmanager
def in_one_line(folder: Path, links: Path, failure: str = "could not be loaded") -> Iterator[None]:
    """Turns errors of transformers into a `StageError` that names the model's `folder`, not that of the `links` to it.
    config.json chooses which code runs with which numbers, so any Python error is possible."""
    try:
        yield
    except StageError:
        raise
    except UsedUp as limit:
        raise StageError(
            f"{folder}: building the model of its config.json {limit}; look for a number in it that is too large"
        ) from None
    except Exception as error:  # of any type, see above
        reason = " ".join(str(error).replace(str(links), str(folder)).split()) or type(error).__name__
        raise StageError(f"{folder} {failure}: {shorten(reason, 250)}") from None


def check_loads(model: PreTrainedModel, tensors: Mapping[str, Tensor], where: str) -> list[str]:
    """Load empty tensors into a model on the meta device, as transformers loads the real ones, and return those that it
    does not use. Raises `StageError`: a parameter has no value, two values, or one of another shape or type."""
    transforms = conversions(model)
    becomes, parameters = targets(model, tensors, transforms), model.state_dict()
    _refuse_twins(becomes, where)
    for name, (target, _) in becomes.items():
        if parameters[target].is_floating_point() and tensors[name].dtype not in FLOATS:
            raise StageError(
                f"{where}: {name} is stored as {tensors[name].dtype}, which transformers would read as plain numbers; "
                "name a copy of the model in bfloat16, float16 or float32"
            )
    meta = torch.device("meta")
    # Any float or integer type will do: loading casts to the type of the parameter.
    dtypes = {name: torch.float32 if tensor.dtype in FLOATS else torch.int64 for name, tensor in tensors.items()}
    empty = {name: torch.empty(tensor.shape, dtype=dtypes[name], device=meta) for name, tensor in tensors.items()}
    report = load(model, empty, loading_as(model, model.dtype, meta, transforms))
    end_loading(model, report)
    refuse_incomplete(where, report.missing_keys, report.mismatched_keys, report.conversion_errors)
    return sorted(report.unexpected_keys)


def refuse_incomplete(
    where: str,
    missing: Iterable[str],
    mismatched: Iterable[tuple[str, Sequence[int], Sequence[int]]],
    failed: Mapping[str, str],
) -> None:
    """Raises `StageError`: transformers' loading report names a parameter that is `missing`, `mismatched` (with shapes
    in the file and in the config), or `failed` to convert (with the traceback)."""
    for name, in_file, in_memory in sorted(mismatched):
        raise StageError(
            f"{where}: {name} has the shape {list(in_file)}, where its config.json says {list(in_memory)}; {_REMEDY}"
        )
    for name, trace in sorted(failed.items()):
        # The error is in the second-to-last line; the last one says what was converted.
        raise StageError(f"{where}: {name} could not be loaded: {shorten(trace.splitlines()[-2], 150)}; {_REMEDY}")
    if names := sorted(missing):
        raise StageError(
            f"{where} does not hold {listed(names)}, which transformers would fill with random numbers; {_REMEDY}"
        )


def _refuse_twins(becomes: Mapping[str, tuple[str, str | None]], where: str) -> None:
    """Two tensors may become one parameter only if a conversion joins them; otherwise one of them is not read."""
    first: dict[tuple[str, str | None], str] = {}
    plain = {target: name for name, (target, pattern) in becomes.items() if pattern is None}
    for name, (target, pattern) in becomes.items():
        # A pattern with a star joins the tensors of all experts.
        is_joined = pattern is not None and "*" in pattern
        twin = name if is_joined else first.setdefault((target, pattern), name)
        if pattern is not None:
            twin = plain.get(target, twin)
        if twin != name:
            raise StageError(f"{where}: {twin} and {name} are two names of one tensor; keep one set of names")


def load_model(checkpoint: Checkpoint, dtype: str, placement: Placement) -> PreTrainedModel:
    """The language model of a checkpoint. Raises `StageError`: transformers cannot load it, or would invent weights."""
    need = weights_need(checkpoint, without_weights(checkpoint.folder, dtype))
    # Otherwise the system would end the process without a message.
    if placement != "balanced" and placement.type == "cpu" and (limit := impossible(need, limits(placement))):
        raise StageError(
            f"{checkpoint.folder} takes {need.of(limit) / GIB:,.1f} GiB of memory, and {limit.name} has "
            f"{limit.total / GIB:,.1f} GiB; use a larger machine, or GPUs that hold it (model.device: balanced). "
            "Measuring, diagnosing and simulating layer by layer (measure.offload), and ablating, need less"
        )
    with exactly(checkpoint) as folder, in_one_line(checkpoint.folder, folder):
        config = _config_of(folder)
        loaded: Any = auto_class(config).from_pretrained(
            folder,
            dtype=dtype,
            device_map={"": placement} if isinstance(placement, torch.device) else placement,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=remote_code_is_trusted(folder),
            ignore_mismatched_sizes=True,  # the report names them
            output_loading_info=True,
        )
    model, report = loaded
    refuse_incomplete(str(checkpoint.folder), report["missing_keys"], report["mismatched_keys"], {})
    if any(parameter.is_meta for parameter in model.parameters()):
        raise StageError(
            f"{checkpoint.folder} does not fit on the GPUs of this machine, and weights outside them cannot be "
            "measured; use larger GPUs or a smaller model.dtype"
        )
    # Answers are greedy unless a task says otherwise; all else in generation_config.json is about sampling.
    stored = model.generation_config
    model.generation_config = transformers.GenerationConfig(
        **{name: getattr(stored, name, None) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    )
    model.eval()
    # Some configs that no code supports fail only here.
    with in_one_line(checkpoint.folder, checkpoint.folder, "could not be run"), torch.inference_mode():
        model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=model.device), use_cache=False)
    return model


def without_weights(folder: Path, dtype: str) -> PreTrainedModel:
    """The model with every parameter and buffer on the meta device. Raises as `read_model_config` does."""
    transformers.utils.logging.disable_progress_bar()  # every way of loading begins here
    with in_one_line(folder, folder), bounded(*_BUILDING):
        config = _config_of(folder)
        dtype = config.dtype if dtype == "auto" else dtype
        with torch.device("meta"):
            model: Any = auto_class(config).from_config(
                config, dtype=dtype, trust_remote_code=remote_code_is_trusted(folder)
            )
    return model.eval()


def read_model_config(folder: Path) -> Any:
    """The config of the model in a folder, with the defaults of its class. Raises `StageError`: transformers does not
    know the model, or reading it takes too much time or memory."""
    with in_one_line(folder, folder), bounded(*_BUILDING):
        return _config_of(folder)


@functools.cache
def register_packages() -> None:
    """Import what other packages register with transformers: entry points of the group `excise.models`. Raises
    `StageError`: requirements-compute.lock does not pin such a package, or its code fails."""
    for entry in entry_points(group="excise.models"):
        try:
            load_pinned(entry)
        except WrongValue as error:
            raise StageError(f"excise.models: {entry.name} {error}") from None


def _config_of(folder: Path) -> Any:
    register_packages()
    return transformers.AutoConfig.from_pretrained(
        folder, local_files_only=True, trust_remote_code=remote_code_is_trusted(folder)
    )


def auto_class(config: Any) -> Any:
    """The class that loads the model: for text only if transformers has one, else for text and images."""
    for_text = type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    only_with_images = not for_text and type(config) in transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    return transformers.AutoModelForImageTextToText if only_with_images else transformers.AutoModelForCausalLM


def weights_need(checkpoint: Checkpoint, model: PreTrainedModel) -> Need:
    """What the weights of a checkpoint take once they are loaded into `model`, which may be on the meta device."""
    bytes_of = {id(tensor): tensor.nbytes for tensor in (*model.parameters(), *model.buffers())}
    files = sum((checkpoint.folder / shard).stat().st_size for shard in checkpoint.shards)
    return Need(sum(bytes_of.values()), mapped=files)


def remote_code_is_trusted(folder: Path) -> bool:
    """Whether code in the model's `folder` may run. Only the machine's environment allows it, never a file of the
    project, which may come from strangers. Raises `StageError`: the model names code of another repository."""
    if os.environ.get("EXCISE_TRUST_REMOTE_CODE") != "1":
        return False
    for path in (folder / "config.json", folder / "tokenizer_config.json"):
        if path.is_file() and (named := re.search(r'"[^"\s]+--[\w.]+"', path.read_text(errors="replace"))):
            raise StageError(
                f"{path} names code of another repository, {named[0]}, which is not pinned; copy it into the model's "
                "folder, or unset EXCISE_TRUST_REMOTE_CODE"
            )
    return True


def decoder(model: PreTrainedModel) -> nn.Module:
    """The decoder layers with their embeddings and final norm; those of the text part if the model has several."""
    stack: nn.Module = model.get_decoder()
    # Llama 4 returns its causal language model, which contains the stack.
    return stack if hasattr(stack, "layers") else getattr(stack, "model", stack)


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The list of decoder layers: whatever its name, the outermost that has as many modules as the config says."""
    stack, count = decoder(model), model.config.get_text_config().num_hidden_layers
    named = getattr(stack, "layers", None)
    if isinstance(named, nn.ModuleList):
        return named
    return next(part for part in stack.modules() if isinstance(part, nn.ModuleList) and len(part) == count)
