"""The base model of a project: its manifest, layout and checkpoint."""

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast, get_args

from excise.checkpoint.weights import FLOATS, Checkpoint, Tensor, read_checkpoint
from excise.plumbing.errors import StageError
from excise.plumbing.files import digests, open_plain, read_document
from schemas.basis.document import FileDigest, read_settings
from schemas.basis.text import shorten
from schemas.model import Dtype, ModelLayout, ModelManifest
from schemas.params.model import PLACE, Model, Place

if TYPE_CHECKING:
    import torch  # elsewhere in functions: commands that read a manifest need not wait for it

MANIFEST = Path("artifacts/model.json")
LAYOUT = Path("artifacts/layout.json")
LAYOUT_PROOF = Path("artifacts/layout_proof.json")
ORGANISM = Path("models/base")
_LARGEST_CONFIG = 1 << 24
_DTYPES: tuple[str, ...] = get_args(Dtype)
SHORTER = "a file of the base became shorter while it was read; run again"


@dataclass(frozen=True)
class BaseModel:
    """The model that is measured and edited; its weights are not in memory."""

    manifest: ModelManifest
    layout: ModelLayout
    checkpoint: Checkpoint

    @classmethod
    def open(cls) -> Self:
        """The base model that prepare pinned. Raises `StageError`: it is missing or has changed, or was not pinned."""
        manifest = read_manifest()
        folder = base_folder(manifest)
        verify(folder, manifest)
        return cls(manifest, read_layout(), base_checkpoint(folder, manifest))

    @property
    def folder(self) -> Path:
        return self.checkpoint.folder

    @property
    def tensors(self) -> dict[str, Tensor]:
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
        raise StageError(f"{name} is stored as {tensor.dtype}, which is not a float type; name a bfloat16 copy")
    return cast("torch.dtype", getattr(torch, FLOATS[tensor.dtype]))


def base_folder(manifest: ModelManifest, files: Collection[str] | None = None) -> Path:
    """The base model's folder on this machine. Of a Hub model, missing ones of `files` (by default all) are fetched.
    Raises `StageError`: they cannot be fetched, or params.yaml names a folder that does not exist."""
    if manifest.id is not None and manifest.revision is not None:
        from excise.checkpoint.snapshots import fetch  # slow to import

        paths = [file.path for file in manifest.files] if files is None else files
        return fetch(manifest.id, manifest.revision, paths)
    return existing_folder(Path(read_settings(Place, PLACE).folder or ORGANISM))


def existing_folder(folder: Path) -> Path:
    """The folder of a local base model. Raises `StageError`: it does not exist."""
    if not folder.is_dir():
        raise StageError(f"params.yaml: model.source: {folder} is not a folder; name one that holds a model")
    return folder


def make_manifest(
    folder: Path, model: Model, layout: ModelLayout, files: Collection[str] | None = None
) -> ModelManifest:
    """Describe and pin the model in `folder`; `files` are those of a Hub model. Raises as `read_checkpoint`."""
    verified = _verified(folder, files) if files is not None else None
    checkpoint = read_checkpoint(folder, files)
    config = read_config(folder)
    dtype = model.dtype if model.dtype != "auto" else config.get("dtype") or config.get("torch_dtype") or "float32"
    if dtype not in _DTYPES:
        raise StageError(
            f"{folder / 'config.json'}: dtype {shorten(repr(dtype), 60)} is not one of {', '.join(_DTYPES)}; name "
            "one of them as model.dtype in params.yaml"
        )
    return ModelManifest(
        source="hub" if model.revision is not None else "organism" if model.source == "organism" else "folder",
        id=None if model.revision is None else model.source,
        revision=model.revision,
        model_type=layout.model_type,
        dtype=cast(Dtype, dtype),
        layers=layout.layers,
        hidden_size=layout.hidden_size,
        files=verified or digests(folder, checkpoint.files, remembered=True),
    )


def base_checkpoint(folder: Path, manifest: ModelManifest) -> Checkpoint:
    """The base model's checkpoint, without other files that the Hub's cache may hold. Raises as `read_checkpoint`."""
    return read_checkpoint(folder, [file.path for file in manifest.files] if manifest.source == "hub" else None)


def read_config(folder: Path) -> dict[str, Any]:
    """The config of the model in `folder`, or of its text part. Raises as `read_config_file` does."""
    config = read_config_file(folder)
    text = config.get("text_config")
    return {**config, **text} if isinstance(text, dict) else config


def read_config_file(folder: Path) -> dict[str, Any]:
    """The content of config.json. Raises `StageError`: it is missing or not a JSON object."""
    path = folder / "config.json"
    with open_plain(path, "name the folder of a model in Hugging Face format") as file:
        text = file.read(_LARGEST_CONFIG + 1)
    if len(text) > _LARGEST_CONFIG:
        raise StageError(f"{path} is larger than {_LARGEST_CONFIG >> 20} MiB; fetch it again")
    try:
        if isinstance(config := json.loads(text), dict):
            return config
    except (ValueError, RecursionError):
        pass
    raise StageError(f"{path} is not a JSON object; fetch it again")


def read_layout() -> ModelLayout:
    return read_document(ModelLayout, LAYOUT)


def read_manifest() -> ModelManifest:
    return read_document(ModelManifest, MANIFEST)


def verify(folder: Path, manifest: ModelManifest) -> None:
    """Raises `StageError`: in the base model, a file changed, is missing or is new. DVC, which keeps the built-in one,
    looks at sizes and times only."""
    if manifest.source == "hub":
        files = _verified(folder, [file.path for file in manifest.files])
    else:
        files = digests(folder, read_checkpoint(folder).files, remembered=True)
    if changed := sorted({file.path for file in {*files} ^ {*manifest.files}}):
        pin = "run `dvc repro --force prepare` to pin it again"
        remedy = f"delete {folder}, and run `dvc checkout {folder}`" if manifest.source == "organism" else pin
        raise StageError(f"{folder / changed[0]} has changed since it was pinned; {remedy}")


def _verified(folder: Path, files: Collection[str]) -> list[FileDigest]:
    """Digests of a Hub model's files, which are the Hub's."""
    from excise.checkpoint.snapshots import refuse_damaged  # slow to import

    file_digests = digests(folder, files, remembered=True)
    refuse_damaged(folder, file_digests)
    return file_digests


_METHODS = {"awq": "AWQ", "gptq": "GPTQ", "mxfp4": "MXFP4"}  # names that config.json spells differently
# Endings of names of tensors that hold quantized weights or belong to them.
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
    """The name of the quantization, from config.json or else from names of tensors; None for plain weights."""
    declared = config.get("quantization_config")
    if isinstance(declared, Mapping):
        method = str(declared.get("quant_method", "an unnamed format"))
        return _METHODS.get(method, method)
    return next((method for name in tensors for ending, method in _ENDINGS.items() if name.endswith(ending)), None)
