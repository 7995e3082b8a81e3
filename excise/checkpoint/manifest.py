"""Pinning a model folder by the SHA-256 of its files, and checking it against what was pinned."""

import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, cast

from excise.checkpoint.weights import Checkpoint, read_checkpoint
from excise.plumbing.artifacts import open_plain, read_document
from excise.plumbing.digests import digests
from excise.plumbing.errors import StageError
from schemas.document import FileDigest
from schemas.layout import ModelLayout
from schemas.model import ModelManifest
from schemas.params.device import PLACE, Place
from schemas.params.model import Model
from schemas.params.section import read_settings
from schemas.text import shorten

MANIFEST = Path("artifacts/model.json")
LAYOUT = Path("artifacts/layout.json")
ORGANISM = Path("models/base")
_LARGEST_CONFIG = 1 << 24
_DTYPES = ("float32", "bfloat16", "float16")


def base_folder() -> Path:
    """Where the base model lies on this machine; its manifest says what it is. One of the Hub's is fetched if it is not
    there yet, as after a run on another machine.

    Raises:
        StageError: the folder that params.yaml names is not there, or the model cannot be had from the Hub.
    """
    manifest = read_manifest()
    if manifest.id is not None and manifest.revision is not None:
        # Slow to import, and needed only here.
        from excise.checkpoint.snapshots import fetch

        return fetch(manifest.id, manifest.revision, [file.path for file in manifest.files])
    place = read_settings(Place, PLACE).folder
    folder = ORGANISM if place is None else Path(place)
    if not folder.is_dir():
        raise StageError(f"params.yaml: model.source: {folder} is not a folder; name one that holds a model")
    return folder


def make_manifest(
    folder: Path,
    source: Literal["organism", "folder", "hub"],
    dtype: str,
    layout: ModelLayout,
    model: Model | None = None,
    files: Collection[str] | None = None,
) -> ModelManifest:
    """Describe and pin the model in `folder`.

    Args:
        dtype: a torch name or `auto`, which takes the config's.
        model: of the Hub, its id and commit.
        files: of the Hub, those of the snapshot that are the model's.

    Raises:
        StageError: it is not a whole model in Hugging Face format with safetensors weights.
    """
    proven = _proven(folder, files) if files is not None else None
    checkpoint = read_checkpoint(folder, files)
    config = read_config(folder)
    declared = config.get("dtype") or config.get("torch_dtype") or "float32"
    resolved = declared if dtype == "auto" else dtype
    if resolved not in _DTYPES:
        raise StageError(
            f"{folder / 'config.json'}: dtype {shorten(repr(resolved), 60)} is not one of {', '.join(_DTYPES)}; name "
            "one of them as model.dtype in params.yaml"
        )
    return ModelManifest(
        source=source,
        id=model.source if model else None,
        revision=model.revision if model else None,
        model_type=layout.model_type,
        dtype=cast(Literal["float32", "bfloat16", "float16"], resolved),
        layers=layout.layers,
        hidden_size=layout.hidden_size,
        files=proven or digests(folder, checkpoint.files, remembered=True),
    )


def refuse_quantized(where: str, config: Mapping[str, Any], tensors: Iterable[str]) -> None:
    """Raises `StageError` unless the weights are plain floats, as far as config and names of tensors tell."""
    if method := quantization(config, tensors):
        raise StageError(
            f"{where} is quantised ({method}), and such weights cannot be edited; name a bfloat16 copy: the "
            "publisher's, or one that transformers dequantised and saved"
        )


def base_checkpoint(folder: Path, manifest: ModelManifest) -> Checkpoint:
    """The base model's weights and what belongs to them. Beside a Hub model's files the cache may hold others of its
    repository, which are not read.

    Raises:
        StageError: a file is missing or malformed.
    """
    return read_checkpoint(folder, [file.path for file in manifest.files] if manifest.source == "hub" else None)


def read_config(folder: Path) -> dict[str, Any]:
    """The config of the model in `folder`: of its text part where it has several.

    Raises:
        StageError: there is none, or it is not JSON.
    """
    config = read_config_file(folder)
    text = config.get("text_config")
    return {**config, **text} if isinstance(text, dict) else config


def read_config_file(folder: Path) -> dict[str, Any]:
    """What config.json holds.

    Raises:
        StageError: there is none, or it is not JSON.
    """
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
    """Check that a base that lies outside the project is still what prepare pinned.

    Raises:
        StageError: a file changed, is missing or is new.
    """
    if manifest.source == "organism":
        return  # DVC keeps it
    if manifest.source == "hub":
        there = _proven(folder, [file.path for file in manifest.files])
    else:
        there = digests(folder, read_checkpoint(folder).files, remembered=True)
    found = {digest.path: digest for digest in there}
    pinned = {digest.path: digest for digest in manifest.files}
    for path in sorted(found.keys() | pinned.keys()):
        if found.get(path) != pinned.get(path):
            raise StageError(f"{folder / path} is not what it was; run `dvc repro --force prepare` to pin it anew")


def _proven(folder: Path, files: Collection[str]) -> list[FileDigest]:
    """Digests of files of a Hub model's snapshot, which are those that the Hub gave."""
    # Slow to import, and needed only here.
    from excise.checkpoint.snapshots import refuse_spoiled

    found = digests(folder, files, remembered=True)
    refuse_spoiled(folder, found)
    return found


_METHODS = {
    "awq": "AWQ",
    "bitsandbytes": "bitsandbytes",
    "compressed-tensors": "compressed-tensors",
    "fp8": "fp8",
    "gptq": "GPTQ",
    "mxfp4": "MXFP4",
}
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
    for name in tensors:
        for ending, method in _ENDINGS.items():
            if name.endswith(ending):
                return method
    return None
