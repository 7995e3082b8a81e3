"""Pinning a model folder by the SHA-256 of its files, and checking it against what was pinned."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import ValidationError

from schemas.artifacts import FileDigest, ModelManifest
from schemas.params import Model, read_section
from stages.base.progress import progress
from stages.base.quantization import quantization
from stages.base.stage import StageError
from stages.base.weights import read_checkpoint

MANIFEST = Path("artifacts/model.json")
ORGANISM = Path("models/base")
_MODEL_PARAMS = Path("artifacts/params/model.json")
_DTYPES = ("float32", "bfloat16", "float16")
_CHUNK = 1 << 20


def base_folder() -> Path:
    """Where the base model lies on this machine; its manifest says what it is.

    Raises:
        StageError: the folder that params.yaml names is not there.
    """
    source = read_section(Model, _MODEL_PARAMS).source
    folder = ORGANISM if source == "organism" else Path(source)
    if not folder.is_dir():
        raise StageError(f"params.yaml: model.source: {folder} is not a folder; name one that holds a model")
    return folder


def make_manifest(folder: Path, source: Literal["organism", "folder"], dtype: str) -> ModelManifest:
    """Describe and pin the model in `folder`; `dtype` is a torch name or `auto`, which takes the config's.

    Raises:
        StageError: it is not a whole model in Hugging Face format with safetensors weights that are plain floats.
    """
    config = read_config(folder)
    checkpoint = read_checkpoint(folder)
    if method := quantization(config, checkpoint.tensors):
        raise StageError(
            f"{folder} is quantised ({method}), and such weights cannot be edited; name a bfloat16 copy: the "
            "publisher's, or one that transformers dequantised and saved"
        )
    declared = config.get("dtype") or config.get("torch_dtype") or "float32"
    resolved = declared if dtype == "auto" else dtype
    if resolved not in _DTYPES:
        raise StageError(f"{folder / 'config.json'}: dtype {resolved!r} is not one of {', '.join(_DTYPES)}")
    try:
        return ModelManifest(
            source=source,
            model_type=config["model_type"],
            dtype=cast(Literal["float32", "bfloat16", "float16"], resolved),
            layers=config["num_hidden_layers"],
            hidden_size=config["hidden_size"],
            files=digests(folder, checkpoint.files),
        )
    except (KeyError, ValidationError):
        raise StageError(
            f"{folder / 'config.json'} lacks model_type, num_hidden_layers or hidden_size; name a text model's folder"
        ) from None


def read_config(folder: Path) -> dict[str, Any]:
    """The config of the model in `folder`: of its text part where it has several.

    Raises:
        StageError: there is none, or it is not JSON.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_bytes())
        return dict({**config, **config["text_config"]} if "text_config" in config else config)
    except FileNotFoundError:
        raise StageError(f"{path} is missing; name the folder of a model in Hugging Face format") from None
    except (ValueError, TypeError):
        raise StageError(f"{path} is not a JSON object; fetch it again") from None


def read_manifest() -> ModelManifest:
    """The base model's manifest, as prepare left it."""
    return ModelManifest.model_validate_json(MANIFEST.read_text())


def verify(folder: Path, manifest: ModelManifest) -> None:
    """Check that a base that lies outside the project is still what prepare pinned.

    Raises:
        StageError: a file changed, is missing or is new.
    """
    if manifest.source == "organism":
        return  # DVC keeps it
    found = {digest.path: digest for digest in digests(folder, read_checkpoint(folder).files)}
    pinned = {digest.path: digest for digest in manifest.files}
    for path in sorted(found.keys() | pinned.keys()):
        if found.get(path) != pinned.get(path):
            raise StageError(f"{folder / path} is not what it was; run `dvc repro --force prepare` to pin it anew")


def digests(folder: Path, files: Iterable[str]) -> list[FileDigest]:
    """Size and SHA-256 of these files of a folder, sorted by path, several files at a time."""
    paths = sorted(files)
    sizes = [(folder / path).stat().st_size for path in paths]
    with progress("Digests", sum(sizes), "B") as advance, ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(lambda path: sha256_of(folder / path, advance), paths)
        return [
            FileDigest(path=path, size=size, sha256=sha256)
            for path, size, sha256 in zip(paths, sizes, found, strict=True)
        ]


def sha256_of(path: Path, advance: Callable[[int], None] = lambda _: None) -> str:
    """SHA-256 of a file, read in pieces; `advance` is told the number of bytes read since."""
    sha256 = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            sha256.update(chunk)
            advance(len(chunk))
    return sha256.hexdigest()
