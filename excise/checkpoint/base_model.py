"""The base model of a project: what it is, how its tensors are laid out, and where they lie."""

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, cast, get_args

from excise.checkpoint.weights import FLOATS, Checkpoint, Tensor, read_checkpoint
from excise.plumbing.errors import StageError
from excise.plumbing.files import digests, open_plain, read_document
from schemas.basis.document import FileDigest, read_settings
from schemas.basis.text import shorten
from schemas.model import Dtype, ModelLayout, ModelManifest
from schemas.params.model import PLACE, Model, Place

if TYPE_CHECKING:
    import torch  # within functions otherwise: commands that read a manifest need not wait for it

MANIFEST = Path("artifacts/model.json")
LAYOUT = Path("artifacts/layout.json")
ORGANISM = Path("models/base")
_LARGEST_CONFIG = 1 << 24
_DTYPES: tuple[str, ...] = get_args(Dtype)
SHORTER = "a file of the base became shorter while it was read; run again"


@dataclass(frozen=True)
class BaseModel:
    """The model that is measured and edited; none of its weights are in memory."""

    manifest: ModelManifest
    layout: ModelLayout
    checkpoint: Checkpoint

    @classmethod
    def open(cls) -> Self:
        """Find the base model that prepare pinned. Raises `StageError`: it is not there, or no longer what it was, or
        prepare has not run."""
        manifest, folder = read_manifest(), base_folder()
        verify(folder, manifest)
        return cls(manifest, read_layout(), base_checkpoint(folder, manifest))

    @property
    def folder(self) -> Path:
        """Where it lies on this machine."""
        return self.checkpoint.folder

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Where each tensor lies, by name."""
        return self.checkpoint.tensors

    def vector(self, name: str) -> "torch.Tensor":
        """A small tensor, such as a norm's weight, read from its file. Raises as `float_type` does."""
        import torch

        tensor = self.tensors[name]
        dtype, size = float_type(name, tensor), tensor.stop - tensor.start
        with open(self.folder / tensor.file, "rb") as file:
            file.seek(tensor.start)
            data = bytearray(file.read(size))
        if len(data) < size:
            raise StageError(SHORTER)
        return torch.frombuffer(data, dtype=dtype).view(tensor.shape)


def float_type(name: str, tensor: Tensor) -> "torch.dtype":
    """The type of a tensor that can be edited. Raises `StageError`: it is not a float type."""
    import torch

    if tensor.dtype not in FLOATS:
        raise StageError(
            f"{name} is stored as {tensor.dtype}, which is not a float type; use a float copy of the model"
        )
    return cast("torch.dtype", getattr(torch, FLOATS[tensor.dtype]))


def base_folder() -> Path:
    """Where the base model lies on this machine; its manifest says what it is. One of the Hub's is fetched if it is not
    there yet, as after a run on another machine. Raises `StageError`: it cannot be had, or the folder that params.yaml
    names is not there."""
    manifest = read_manifest()
    if manifest.id is not None and manifest.revision is not None:
        from excise.checkpoint.snapshots import fetch  # slow to import

        return fetch(manifest.id, manifest.revision, [file.path for file in manifest.files])
    place = read_settings(Place, PLACE).folder
    folder = ORGANISM if place is None else Path(place)
    if not folder.is_dir():
        raise StageError(f"params.yaml: model.source: {folder} is not a folder; name one that holds a model")
    return folder


def make_manifest(
    folder: Path, model: Model, layout: ModelLayout, files: Collection[str] | None = None
) -> ModelManifest:
    """Describe and pin the model in `folder`. Raises `StageError`: it is not a whole model in Hugging Face format with
    safetensors weights.

    Args:
        model: its dtype may be `auto`, which takes the config's.
        files: of the Hub, those of the snapshot that are the model's.
    """
    proven = _proven(folder, files) if files is not None else None
    checkpoint = read_checkpoint(folder, files)
    config = read_config(folder)
    dtype = model.dtype if model.dtype != "auto" else config.get("dtype") or config.get("torch_dtype") or "float32"
    if dtype not in _DTYPES:
        raise StageError(
            f"{folder / 'config.json'}: dtype {shorten(repr(dtype), 60)} is not one of {', '.join(_DTYPES)}; name "
            "one of them as model.dtype in params.yaml"
        )
    local: Literal["organism", "folder"] = "organism" if model.source == "organism" else "folder"
    return ModelManifest(
        source=local if model.revision is None else "hub",
        id=None if model.revision is None else model.source,
        revision=model.revision,
        model_type=layout.model_type,
        dtype=cast(Dtype, dtype),
        layers=layout.layers,
        hidden_size=layout.hidden_size,
        files=proven or digests(folder, checkpoint.files, remembered=True),
    )


def base_checkpoint(folder: Path, manifest: ModelManifest) -> Checkpoint:
    """The base model's weights and what belongs to them. Beside a Hub model's files the cache may hold others of its
    repository, which are not read. Raises `StageError`: a file is missing or malformed."""
    return read_checkpoint(folder, [file.path for file in manifest.files] if manifest.source == "hub" else None)


def read_config(folder: Path) -> dict[str, Any]:
    """The config of the model in `folder`: of its text part where it has several. Raises as `read_config_file` does."""
    config = read_config_file(folder)
    text = config.get("text_config")
    return {**config, **text} if isinstance(text, dict) else config


def read_config_file(folder: Path) -> dict[str, Any]:
    """What config.json holds. Raises `StageError`: there is none, or it is not JSON."""
    path = folder / "config.json"
    with open_plain(path, "name the folder of a model in Hugging Face format") as file:
        text = file.read(_LARGEST_CONFIG + 1)
    if len(text) > _LARGEST_CONFIG:
        raise StageError(f"{path} is larger than {_LARGEST_CONFIG >> 20} MiB; fetch it again")
    try:
        config = json.loads(text)
    except (ValueError, RecursionError):
        raise StageError(f"{path} is not JSON; fetch it again") from None
    if not isinstance(config, dict):
        raise StageError(f"{path} is not a JSON object; fetch it again")
    return config


def read_layout() -> ModelLayout:
    """The layout of the base model, as prepare left it."""
    return read_document(ModelLayout, LAYOUT)


def read_manifest() -> ModelManifest:
    """The base model's manifest, as prepare left it."""
    return read_document(ModelManifest, MANIFEST)


def verify(folder: Path, manifest: ModelManifest) -> None:
    """Check that a base that lies outside the project is still what prepare pinned. Raises `StageError`: a file
    changed, is missing or is new."""
    if manifest.source == "organism":
        return  # DVC keeps it
    if manifest.source == "hub":
        there = _proven(folder, [file.path for file in manifest.files])
    else:
        there = digests(folder, read_checkpoint(folder).files, remembered=True)
    found, pinned = ({digest.path: digest for digest in files} for files in (there, manifest.files))
    for path in sorted(found.keys() | pinned.keys()):
        if found.get(path) != pinned.get(path):
            raise StageError(f"{folder / path} is not what it was; run `dvc repro --force prepare` to pin it anew")


def _proven(folder: Path, files: Collection[str]) -> list[FileDigest]:
    """Digests of files of a Hub model's snapshot, which are those that the Hub gave."""
    from excise.checkpoint.snapshots import refuse_spoiled  # slow to import

    found = digests(folder, files, remembered=True)
    refuse_spoiled(folder, found)
    return found


# Of methods that go by another name than the key of config.json.
_METHODS = {"awq": "AWQ", "gptq": "GPTQ", "mxfp4": "MXFP4"}
# How the names of tensors end that hold quantised weights or what belongs to them.
_ENDINGS = {
    ".weight_scale_inv": "fp8",
    ".weight_scale": "fp8",
    "_blocks": "MXFP4",
    ".qweight": "GPTQ or AWQ",
    ".weight.absmax": "bitsandbytes",
    ".weight.quant_state.bitsandbytes__nf4": "bitsandbytes",
    ".weight.quant_state.bitsandbytes__fp4": "bitsandbytes",
    ".SCB": "bitsandbytes",
}


def quantization(config: Mapping[str, Any], tensors: Iterable[str]) -> str | None:
    """The name of the format, from config.json or else from the names of the tensors; None for plain weights."""
    declared = config.get("quantization_config")
    if isinstance(declared, Mapping):
        method = str(declared.get("quant_method", "an unnamed format"))
        return _METHODS.get(method, method)
    return next((method for name in tensors for ending, method in _ENDINGS.items() if name.endswith(ending)), None)
